"""What masks keep, when they change, and that a dense layer under a mask is a sparse layer."""

import math
from functools import partial
from itertools import pairwise

import lightning as L
import pytest
import torch
from torch import nn
from toys import blobs, loader, trainer

from lightning_nobp.callbacks import SparsityMask
from lightning_nobp.functional.sparsity import kept_counts
from lightning_nobp.nn import MLP
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.rules import Backprop, SparseProp

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
}


def mlp():
    """48, 48 and 18 weights."""
    torch.manual_seed(0)
    return MLP((1, 2, 3), 3, (8, 6), activation="tanh")


def pruned():
    network = mlp()
    for k in (1, 3, 5):
        network[k].weight.data *= torch.rand_like(network[k].weight) < 0.4
    return network


def cnn():
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, (2, 3), bias=False), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(24, 3))


def layers(rule):
    return {f"network.{n}": m for n, m in rule.network.named_modules() if hasattr(m, "weight")}


def masks(rule, callback):
    """Of all layers that have one, dense or sparse."""
    sparse = {n: m.mask for n, m in layers(rule).items() if isinstance(m, SparseLayer)}
    return callback.state_dict()["masks"] | sparse


def counts(masks):
    return [int(mask.sum()) for mask in masks.values()]


def fit(folder, network, *callbacks, sparse=None, num_samples=96, **kwargs):
    """Twelve steps, in float64; with sparse layers if they are given their arguments."""
    arguments = {"num_classes": 3, "input_shape": (1, 2, 3), "loss": "cross_entropy", "optimizer": OPTIMIZERS["sgd"]}
    kind = Backprop if sparse is None else partial(SparseProp, sparsity=None, **sparse)
    rule = kind(network=network, **arguments | kwargs)
    run = trainer(folder, callbacks=list(callbacks), max_epochs=2, precision="64-true", log_every_n_steps=100)
    run.fit(rule, loader(num_samples))
    return rule


CASES = {
    "one_shot": {},
    "one_shot, later, of all": {"begin": 3, "distribution": "global"},
    "gradual": {"every": 2, "end": 9},
    "gradual, later, linear": {"begin": 2, "every": 3, "schedule": "linear", "distribution": "erk"},
    "gradual, of all": {"every": 1, "end": 12, "distribution": "global"},
    "random": {},
    "random, later": {"begin": 4, "distribution": "uniform", "seed": 5},
    "gradient": {},
    "gradient, later, of all": {"begin": 5, "distribution": "global"},
    "set": {"every": 2, "end": 12},
    "set, later, constant": {"begin": 3, "every": 1, "schedule": "constant", "regrow": True, "drop_fraction": 0.5},
    "rigl": {"every": 2, "end": 12},
    "rigl, later": {"begin": 3, "every": 2, "end": 12, "rescale": False, "distribution": "uniform"},
    "rigl, constant": {"every": 1, "end": 12, "schedule": "constant", "regrow": True, "drop_fraction": 0.5},
    "n_m": {"sparsity": None, "n_m": (1, 2)},
    "fixed": {"sparsity": None},
}


def assert_alike(folder, network, make_mask, **kwargs):
    """Train dense and sparse layers from the same weights; returns the dense ones."""
    sparse = kwargs.pop("sparse", {"threshold": 0.0})
    references = [make_mask(), make_mask()]
    dense = fit(folder, network(), references[0], **kwargs)
    rule = fit(folder, network(), references[1], sparse=sparse, **kwargs)
    assert any(isinstance(m, SparseLayer) for m in layers(rule).values())
    for name, mask in masks(dense, references[0]).items():
        assert torch.equal(mask, masks(rule, references[1])[name])
    expected = dense.network.state_dict()
    for name, weight in rule.network.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected["5.bias"], network().double()[5].bias)
    return dense, references[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_dense_layers_under_a_mask_train_as_sparse_ones(tmp_path, case, optimizer):
    mask = partial(SparsityMask, case.partition(",")[0], **{"sparsity": 0.6} | CASES[case])
    network = pruned if case == "fixed" else mlp
    dense, found = assert_alike(tmp_path, network, mask, optimizer=OPTIMIZERS[optimizer], gradient_clip_val=0.3)
    kept, total = sum(counts(masks(dense, found))), 48 + 48 + 18
    assert kept == {"n_m": total // 2, "fixed": sum(int((pruned()[k].weight != 0).sum()) for k in (1, 3, 5))}.get(
        case, round(0.4 * total)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", ["gradual, of all", "gradient, later, of all", "set", "rigl, constant", "n_m"])
def test_dense_convolutions_under_a_mask_train_as_sparse_ones(tmp_path, case, optimizer):
    mask = partial(SparsityMask, case.partition(",")[0], **{"sparsity": 0.6} | CASES[case])
    only = {"include": ("*.2", "*.5")} if case == "n_m" else {}
    sparse = {"threshold": 0.3, "include": ("2", "5")} if case == "n_m" else {"threshold": 0.3}
    assert_alike(tmp_path, cnn, partial(mask, **only), optimizer=OPTIMIZERS[optimizer], sparse=sparse)


@pytest.mark.parametrize("case", ["gradual", "rigl", "gradient"])
@pytest.mark.parametrize("options", [{"engine": "autograd"}, {"sparse": {"include": ["3"]}}])
def test_other_engines_and_networks_with_some_sparse_layers_train_alike(tmp_path, case, options):
    assert_alike(tmp_path, mlp, partial(SparsityMask, case, 0.6, **CASES[case]), **options)


@pytest.mark.parametrize("case", ["rigl, constant", "gradient"])
@pytest.mark.parametrize("num_samples", [96, 81])
def test_dense_and_sparse_layers_accumulate_alike(tmp_path, case, num_samples):
    # 81 = 5 * 16 + 1: the last step of an epoch joins a batch of 16 samples and one of a single sample.
    options = CASES[case] | {"begin": 2 if case == "gradient" else 0}
    mask = partial(SparsityMask, case.partition(",")[0], 0.6, **options)
    assert_alike(tmp_path, mlp, mask, accumulate_grad_batches=2, num_samples=num_samples)


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
