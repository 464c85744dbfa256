"""What masks keep, when they change, and that what is absent stays so."""

import math
from functools import partial
from itertools import pairwise

import lightning as L
import pytest
import torch
from masked import OPTIMIZERS, cnn, fit, layers, masks, mlp, pruned
from torch import nn
from toys import blobs

from lightning_nobp.callbacks import SparsityMask
from lightning_nobp.functional.sparsity import kept_counts


class Record(L.Callback):
    """Masks, weights and gradients; before the masks' own callback or behind it."""

    def __init__(self, mask):
        self.mask, self.masks, self.weights, self.gradients = mask, [], [], []

    def on_train_start(self, trainer, rule):
        self.masks.append(masks(rule, self.mask))

    def on_train_batch_start(self, trainer, rule, batch, batch_idx):
        self.batch = batch

    def on_before_optimizer_step(self, trainer, rule, optimizer):
        """The gradient of an ordinary network with the same weights."""
        twin = mlp().double()
        twin.load_state_dict(rule.network.state_dict())
        nn.functional.cross_entropy(twin(self.batch[0]), self.batch[1]).backward()
        self.gradients.append({f"network.{n}": m.weight.grad for n, m in twin.named_modules() if hasattr(m, "weight")})

    def on_train_batch_end(self, trainer, rule, *_):
        self.masks.append(masks(rule, self.mask))
        self.weights.append({n: m.weight.detach().clone() for n, m in layers(rule).items()})


SPARSE = pytest.mark.parametrize("sparse", [None, {"threshold": 0.0}], ids=["dense", "sparse"])


@SPARSE
@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("method", ["gradual", "one_shot", "random", "gradient"])
def test_final_sparsity_is_the_one_asked_for(tmp_path, method, distribution, sparse):
    options = {"begin": 3, "end": 11, "every": 4} if method == "gradual" else {}
    mask = SparsityMask(method, 0.75, distribution=distribution, **options)
    rule = fit(tmp_path, mlp(), mask, sparse=sparse)
    kept = [int((m.weight != 0).sum()) for m in layers(rule).values()]
    assert sum(kept) == 28  # A quarter of 114 is 28.5, and a half is rounded to the even number.
    if distribution != "global":
        assert kept == kept_counts([(8, 6), (6, 8), (3, 6)], 0.75, distribution)
        assert kept == [12, 12, 4] or distribution == "erk"


@SPARSE
@pytest.mark.parametrize("end", [9, None])
@pytest.mark.parametrize(("schedule", "second", "third"), [("cubic", 119, 64), ("linear", 210, 120)])
def test_gradual_pruning_follows_its_schedule(tmp_path, schedule, second, third, end, sparse):
    # Of twelve steps three quarters are nine. Sparsity after 4 and 7: 0.8 (1 - (5 / 8) ** 3) and 0.8 (1 - (2 / 8) ** 3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 3))
    mask = SparsityMask("gradual", 0.8, begin=1, end=end, every=3, schedule=schedule, include=["*.1"])
    found = []

    class Count(L.Callback):
        def on_train_batch_end(self, trainer, rule, *_):
            found.append(int((rule.network[1].weight != 0).sum()))

    fit(tmp_path, network, mask, Count(), sparse=None if sparse is None else sparse | {"include": ["1"]})
    assert found == [300] * 3 + [second] * 3 + [third] * 2 + [60] * 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["gradual", "set", "rigl"])
def test_weights_gradients_and_state_of_absent_weights_are_exactly_zero(tmp_path, method, optimizer):
    mask, checked = SparsityMask(method, 0.7, begin=2, every=2, end=12, schedule=None), []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, rule, optimizer):
            self.check(rule, lambda weight: [weight.grad])

        def on_train_batch_end(self, trainer, rule, *_):
            [optimizer] = trainer.optimizers
            self.check(rule, lambda weight: [weight, *optimizer.state[weight].values()])

        def check(self, rule, tensors):
            for name, present in masks(rule, mask).items():
                weight = layers(rule)[name].weight
                found = [t for t in tensors(weight) if isinstance(t, torch.Tensor) and t.shape == weight.shape]
                assert all((t[~present] == 0).all() and (t[present] != 0).any() for t in found)
                checked.append((len(found), int((~present).sum())))

    fit(tmp_path, mlp(), mask, Watch(), optimizer=OPTIMIZERS[optimizer])
    assert {number for number, _ in checked} == ({1, 2} if optimizer == "sgd" else {1, 3})
    assert checked[-1][1] > 0


@SPARSE
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_exchange_keeps_the_number_of_weights(tmp_path, method, schedule, sparse):
    mask = SparsityMask(method, 0.6, every=3, end=9, schedule=schedule, drop_fraction=0.4)
    record = Record(mask)
    fit(tmp_path, mlp(), mask, record, sparse=sparse)
    for name in record.masks[0]:
        seen = [found[name] for found in record.masks]
        [kept] = {int(found.sum()) for found in seen}
        exchanged = [int((after & ~before).sum()) for before, after in pairwise(seen)]
        fractions = {3: 0.3, 6: 0.1} if schedule == "cosine" else {3: 0.4, 6: 0.4}
        absent = seen[0].numel() - kept
        assert math.isclose(0.4 / 2 * (1 + math.cos(math.pi / 3)), 0.3)
        assert exchanged == [min(absent, round(fractions.get(step, 0) * kept)) for step in range(1, 13)]


@SPARSE
@pytest.mark.parametrize("regrow", [False, True])
def test_rigl_drops_the_smallest_weights_and_grows_where_the_gradient_is_largest(tmp_path, regrow, sparse):
    mask = SparsityMask("rigl", 0.6, every=2, end=12, schedule="constant", regrow=regrow)
    record, behind = Record(mask), Record(mask)
    fit(tmp_path, mlp(), record, mask, behind, sparse=sparse)
    exchanges = 0
    for step in (2, 4, 6, 8, 10):
        for name, old in behind.masks[step - 1].items():
            new, gradient = behind.masks[step][name], record.gradients[step - 1][name].abs()
            weight = record.weights[step - 1][name].abs()
            dropped = round(0.3 * int(old.sum()))
            stay = torch.zeros_like(old).flatten()
            stay[torch.where(old, weight, -1).flatten().argsort(descending=True)[: int(old.sum()) - dropped]] = True
            stay = stay.view_as(old)
            may_grow = ~stay if regrow else ~old
            assert (new & stay).equal(stay)
            assert (new & ~stay & ~may_grow).sum() == 0
            grown, left = gradient[new & ~stay], gradient[may_grow & ~new]
            assert len(grown) == dropped
            assert grown.min() >= left.max()
            assert (behind.weights[step - 1][name][new & ~old] == 0).all()
            exchanges += int((new & ~old).sum())
    assert exchanges >= 20


@SPARSE
@pytest.mark.parametrize("distribution", ["uniform", "global"])
@pytest.mark.parametrize("begin", [0, 3])
def test_gradient_keeps_the_weights_that_change_the_loss_most(tmp_path, begin, distribution, sparse):
    mask = SparsityMask("gradient", 0.75, begin=begin, distribution=distribution)
    record, behind = Record(mask), Record(mask)
    fit(tmp_path, mlp(), record, mask, behind, sparse=sparse)
    twin = mlp().double()
    if begin:
        before = record.weights[begin - 1]
    else:
        before = {f"network.{n}": m.weight.detach() for n, m in twin.named_modules() if hasattr(m, "weight")}
        batch = blobs().tensors
        nn.functional.cross_entropy(twin(batch[0][:16].double()), batch[1][:16]).backward()
        assert all(torch.allclose(twin[k].weight.grad, record.gradients[0][f"network.{k}"]) for k in (1, 3, 5))
    scores = {n: (w * record.gradients[begin][n]).abs() for n, w in before.items()}
    pools = [list(scores)] if distribution == "global" else [[name] for name in scores]
    assert all(found.all() for found in behind.masks[begin].values())
    for names, kept in zip(pools, [28] if distribution == "global" else [12, 12, 4], strict=True):
        pool = torch.cat([scores[name].flatten() for name in names])
        chosen = torch.cat([behind.masks[begin + 1][name].flatten() for name in names])
        assert torch.equal(chosen, pool >= pool.sort(descending=True).values[kept - 1])


@SPARSE
@pytest.mark.parametrize("begin", [0, 4])
def test_n_of_m_inputs_are_kept_everywhere(tmp_path, begin, sparse):
    mask = SparsityMask("n_m", n_m=(2, 4), begin=begin, include=["*.2", "*.5"])
    rule = fit(tmp_path, cnn(), mask, sparse=None if sparse is None else {"include": ["2", "5"]})
    convolution, linear = (layers(rule)[name].weight != 0 for name in ("network.2", "network.5"))
    assert (convolution.sum(1) == 2).all()
    assert (linear.view(3, 6, 4).sum(-1) == 2).all()
    if begin == 0:
        largest = cnn()[5].weight.view(3, 6, 4).abs().topk(2, -1).indices.sort(-1).values
        assert torch.equal(linear.view(3, 6, 4).nonzero()[:, 2].view(3, 6, 2), largest)


@SPARSE
def test_fixed_keeps_the_zeros_of_a_pruned_network(tmp_path, sparse):
    rule = fit(tmp_path, pruned(), SparsityMask("fixed"), sparse=sparse)
    for k in (1, 3, 5):
        assert torch.equal(layers(rule)[f"network.{k}"].weight != 0, pruned()[k].weight != 0)
    assert all((fit(tmp_path, pruned()).network[k].weight != 0).all() for k in (1, 3, 5))


@pytest.mark.parametrize(("max_epochs", "accumulate", "last"), [(4, 1, 18), (4, 2, 9)])
def test_masks_change_in_the_first_three_quarters_of_the_training(tmp_path, max_epochs, accumulate, last):
    mask = SparsityMask("gradual", 0.5, every=1000)
    record = Record(mask)
    fit(tmp_path, mlp(), mask, record, max_epochs=max_epochs, accumulate_grad_batches=accumulate)
    dense = [all(found.all() for found in masks.values()) for masks in record.masks[1:]]
    assert dense.index(False) + 1 == last * accumulate
    assert mask.steps == 24 // accumulate


def test_what_gradual_pruning_has_taken_never_comes_back(tmp_path):
    class Zero(L.Callback):
        """Before the third change all weights are equal, and those that are absent are no smaller."""

        def on_train_batch_end(self, trainer, rule, *_):
            if trainer.global_step >= 3:
                rule.network[1].weight.data.zero_()

    mask = SparsityMask("gradual", 0.5, every=2, end=12, include=["*.1"])
    record = Record(mask)
    fit(tmp_path, mlp(), Zero(), mask, record)
    found = [masks["network.1"] for masks in record.masks]
    assert [int(mask.sum()) for mask in found[::2]] == [48, 38, 31, 27, 25, 24, 24]
    assert not any((after & ~before).any() for before, after in pairwise(found))


@pytest.mark.parametrize("begin", [0, 2])
def test_only_a_start_with_random_masks_is_rescaled(tmp_path, begin):
    still = partial(torch.optim.SGD, lr=0.0)
    rule = fit(tmp_path, mlp(), SparsityMask("random", 0.75, distribution="uniform", begin=begin), optimizer=still)
    weight = rule.network[1].weight.detach()
    expected = mlp()[1].weight.detach().double() * (2 if begin == 0 else 1)
    torch.testing.assert_close(weight[weight != 0], expected[weight != 0])
    assert (weight != 0).sum() == 12


def test_every_exchange_draws_anew(tmp_path):
    # With the numbers of the start, what is dropped would have the best claim to grow.
    mask = SparsityMask("set", 0.6, every=2, end=12, schedule="constant", regrow=True)
    record = Record(mask)
    fit(tmp_path, mlp(), mask, record)
    for name, before in record.masks[0].items():
        for step in (2, 4, 6, 8, 10):
            after = record.masks[step][name]
            assert not torch.equal(after, before) or name == "network.5"
            before = after


class Start(L.Callback):
    """Behind the masks: the weights before the first step."""

    def on_train_start(self, trainer, rule):
        self.weights = [rule.network[k].weight.detach().clone() for k in (1, 3, 5)]


def start(folder, method="random", **options):
    begin = Start()
    fit(folder, mlp(), SparsityMask(method, 0.75, distribution="uniform", **options), begin)
    return begin.weights


@pytest.mark.parametrize("method", ["random", "set", "rigl"])
def test_random_masks_keep_the_size_of_activities(tmp_path, method):
    found = [start(tmp_path, method, rescale=rescale) for rescale in (False, True)]
    for k, density, plain, scaled in zip((1, 3, 5), (12 / 48, 12 / 48, 4 / 18), *found, strict=True):
        torch.testing.assert_close(scaled, plain / math.sqrt(density))
        assert torch.equal(plain[plain != 0], mlp()[k].weight.double()[plain != 0])


@pytest.mark.parametrize("method", ["random", "set", "rigl"])
def test_seeds_choose_random_masks(tmp_path, method):
    first, same, other = (start(tmp_path, method, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, same))
    assert not any(torch.equal(a != 0, b != 0) for a, b in zip(first, other, strict=True))
