"""Masks beside other rules, modules and callbacks; stopped and resumed, on two processes, and logged."""

from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import FORKED, load, train_sparse
from imperfect import Ordinary, TwoOptimizers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import backprop, blobs, loader, trainer, weights

from lightning_nobp.callbacks import HardwareNoise, SparsityMask
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP, ForwardForwardMLP, sparsify
from lightning_nobp.rules import (
    ForwardForward,
    MultiplexedGradientDescent,
    SparseProp,
    SymBa,
)

ADAM = partial(torch.optim.Adam, lr=0.02)


def matrices(module):
    """The dense weights, by layer."""
    found = {n: m.weight for n, m in module.named_modules() if hasattr(m, "weight") and m.weight.dim() > 1}
    return {name: weight.detach().clone() for name, weight in found.items()}


def kept(module):
    return {name: int((weight != 0).sum()) for name, weight in matrices(module).items()}


def fit(folder, module, *callbacks, max_epochs=2, **kwargs):
    run = trainer(folder, callbacks=list(callbacks), max_epochs=max_epochs, **{"log_every_n_steps": 100} | kwargs)
    run.fit(module, loader())
    return run


class Absent(L.Callback):
    """Behind the masks: once a weight is absent for good it stays exactly zero, whatever the module does."""

    def __init__(self, since):
        self.since, self.seen = since, []

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.fit_loop.total_batch_idx + 1 >= self.since:
            self.seen.append(matrices(module))

    def check(self):
        first, last = self.seen[0], self.seen[-1]
        for name in first:
            assert all(torch.equal(first[name] == 0, seen[name] == 0) for seen in self.seen)
            assert not torch.equal(first[name], last[name])


FF = partial(ForwardForwardMLP, hidden_dims=(8, 6))
RULES = {
    "symba": partial(SymBa, network=FF),
    "forward_forward": partial(ForwardForward, network=FF),
    "mgd": partial(MultiplexedGradientDescent, network=partial(MLP, hidden_dims=(8,)), engine="vmap"),
    "mgd_in_place": partial(MultiplexedGradientDescent, network=partial(MLP, hidden_dims=(8,)), engine="in_place"),
}


@pytest.mark.parametrize("method", ["gradual", "gradient"])
@pytest.mark.parametrize("name", RULES)
def test_other_rules_train_under_masks(tmp_path, name, method):
    rule = RULES[name](num_classes=3, input_shape=(1, 2, 3))
    absent = Absent(since=7)
    options = {"every": 2, "end": 7} if method == "gradual" else {"begin": 2}
    fit(tmp_path, rule, SparsityMask(method, 0.75, **options), absent)
    absent.check()
    assert list(kept(rule).values()) == [12, 12] if name in ("symba", "forward_forward") else [12, 6]


class TwoLosses(TwoOptimizers):
    """The first optimizer steps before the second, and each has momentum."""

    def configure_optimizers(self):
        moved = [self.network[1].parameters(), self.network[3].parameters()]
        return [torch.optim.SGD(moved[0], lr=0.1, momentum=0.9), torch.optim.Adam(moved[1], lr=0.02)]


def pruned_by_hand(accumulate):
    """Two epochs of ordinary torch, with half of the weights gone after the fourth step, a quarter after the third."""
    module = Ordinary().double()
    optimizer, (x, target), step = module.configure_optimizers(), blobs().tensors, 0
    layers = [module.network[1], module.network[3]]
    present = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    for batch in 2 * list(range(6)):
        rows = slice(16 * batch, 16 * batch + 16)
        (module.training_step((x[rows].double(), target[rows]), 0) / accumulate).backward()
        if (batch + 1) % accumulate:
            continue
        for layer, mask in zip(layers, present, strict=True):
            layer.weight.grad *= mask
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        for k, layer in enumerate(layers):
            if step in (3, 4):
                count = layer.weight.numel() * (3 if step == 3 else 2) // 4
                size = layer.weight.detach().abs().flatten()
                present[k] = (size >= size.sort(descending=True).values[count - 1]).view_as(layer.weight)
            layer.weight.data *= present[k]
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[layer.weight][name] *= present[k]
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_module_of_somebody_elses_is_pruned_as_by_hand(tmp_path, accumulate):
    module, mask = Ordinary(), SparsityMask("gradual", 0.5, begin=2, end=4, every=1, schedule="linear")
    fit(tmp_path, module, mask, precision="64-true", accumulate_grad_batches=accumulate)
    reference = pruned_by_hand(accumulate)
    assert kept(module) == kept(reference) == {"network.1": 24, "network.3": 12}
    torch.testing.assert_close(weights(module), weights(reference), rtol=1e-12, atol=1e-12)


class Keeps(Ordinary):
    """With sparse layers; its last loss, and the graph behind it, live on."""

    def __init__(self, keeps=True):
        super().__init__()
        self.network, self.keeps = sparsify(self.network), keeps

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.keeps:
            self.loss = loss
        return loss


def test_a_graph_that_lives_on_does_not_matter_when_sparse_layers_change(tmp_path):
    found = []
    for keeps in (False, True):
        module = Keeps(keeps)
        fit(tmp_path, module, SparsityMask("gradual", 0.75, every=2, end=8))
        found.append(weights(module))
    assert torch.equal(*found)


def test_two_optimizers_have_one_clock_and_both_forget_absent_weights(tmp_path):
    module, mask, found = TwoLosses(), SparsityMask("one_shot", 0.5, begin=3), []

    class Count(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            found.append(kept(module)["network.3"])

    run = fit(tmp_path, module, mask, Count())
    assert found == [24] * 2 + [12] * 10
    assert mask.steps == 12
    for optimizer, name, states in zip(run.optimizers, ("network.1", "network.3"), (1, 2), strict=True):
        weight = module.get_submodule(name).weight
        entries = [e for e in optimizer.state[weight].values() if e.shape == weight.shape]
        assert len(entries) == states
        assert all(torch.equal(e == 0, weight == 0) for e in entries)


def test_patterns_choose_layers_and_others_are_left_alone(tmp_path):
    for options in ({"include": ["network.1"]}, {"exclude": ["*.3"]}, {"include": ["*.[13]"], "exclude": ["*3"]}):
        module = backprop()
        fit(tmp_path, module, SparsityMask("one_shot", 0.75, **options))
        assert kept(module) == {"network.1": 12, "network.3": 24}


@pytest.mark.parametrize("method", ["gradual", "random", "rigl"])
def test_a_second_fit_starts_anew(tmp_path, method):
    mask, results = SparsityMask(method, 0.75, begin=2, every=2, end=8), []
    for _ in range(2):
        module = backprop()
        fit(tmp_path, module, mask)
        results.append(weights(module))
        assert mask.steps == 12
    assert torch.equal(*results)


NOISES = [{"update_noise": 0.01}, {"weight_range": 1.0, "weight_bits": 7}, {"drift": 0.01}, {"stuck_fraction": 0.2}]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sparse", [False, True])
def test_imperfect_hardware_wakes_no_absent_weight(tmp_path, sparse, noise):
    absent, mask = Absent(since=8), SparsityMask("gradual", 0.75, every=2, end=8)
    module = sparse_rule() if sparse else backprop()
    if sparse and "stuck_fraction" in noise:
        with pytest.raises(MisconfigurationException, match=r"stuck_fraction=0\.2: a sparse layer .* densify"):
            fit(tmp_path, module, HardwareNoise(**noise), mask)
        return
    fit(tmp_path, module, HardwareNoise(**noise), mask, absent)
    absent.check()
    if "weight_bits" not in noise:
        assert kept(module) == {"network.1": 12, "network.3": 6}


def sparse_rule(**kwargs):
    """The sparse twin of the toys' dense rule."""
    torch.manual_seed(0)
    defaults = {"network": partial(MLP, hidden_dims=(8,)), "num_classes": 3, "input_shape": (1, 2, 3)}
    return SparseProp(**defaults | {"loss": "cross_entropy", "sparsity": None, "threshold": 0.0} | kwargs)


# Stopped and resumed


class Save(L.Callback):
    def __init__(self, path, after):
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx + 1 == self.after:
            trainer.save_checkpoint(self.path)


def run_digits(folder, kind, mask, ckpt_path=None, before=(), **kwargs):
    """Ten steps, five an epoch; every checkpoint is kept. Returns what the run ends with."""
    shape = {"num_classes": 10, "input_shape": (1, 8, 8), "optimizer": ADAM}
    rule = backprop(**shape | kwargs) if kind == "dense" else sparse_rule(**shape | kwargs)
    saved = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    run = trainer(folder, max_epochs=2, callbacks=[*before, mask, saved], enable_checkpointing=True)
    data = DigitsDataModule(batch_size=64, subset=400, val_size=100)
    run.fit(rule, datamodule=data, ckpt_path=ckpt_path)
    [optimizer] = run.optimizers
    state = [t for entry in optimizer.state.values() for t in entry.values()]
    return [*rule.network.state_dict().values(), *mask.state_dict()["masks"].values(), *state]


def assert_equal(found, expected):
    assert len(found) == len(expected) > 8
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(
    "options",
    [
        {"method": "gradual", "every": 2, "begin": 2, "end": 9},
        {"method": "rigl", "every": 2, "end": 10},
        {"method": "set", "every": 1, "end": 10},
        {"method": "gradient", "begin": 4},
    ],
)
def test_stopped_after_any_batch_and_resumed(tmp_path, options, kind):
    make = partial(SparsityMask, sparsity=0.8, **options)
    whole = run_digits(tmp_path, kind, make())
    for step in (1, 3, 4, 5, 8):
        path = tmp_path / f"step={step}.ckpt"
        assert torch.load(path, weights_only=True)["global_step"] == step
        assert_equal(run_digits(tmp_path / "resumed", kind, make(), path), whole)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("method", ["gradual", "rigl"])
def test_saved_between_a_step_and_the_change_of_masks_behind_it(tmp_path, method, kind):
    make = partial(SparsityMask, method, 0.8, every=4, end=9)
    whole = run_digits(tmp_path, kind, make(), before=[Save(tmp_path / "early.ckpt", after=4)])
    assert_equal(run_digits(tmp_path / "resumed", kind, make(), tmp_path / "early.ckpt"), whole)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_stopped_while_gradients_accumulate(tmp_path, kind):
    make, settings = partial(SparsityMask, "rigl", 0.8, every=1, end=9), {"accumulate_grad_batches": 2}
    whole = run_digits(tmp_path, kind, make(), before=[Save(tmp_path / "middle.ckpt", after=3)], **settings)
    assert_equal(run_digits(tmp_path / "resumed", kind, make(), tmp_path / "middle.ckpt", **settings), whole)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_checkpoint_is_one_of_the_final_sparsity(tmp_path, mode):
    class Falling(L.Callback):
        """A value that is best at first, when the network is dense."""

        def on_validation_end(self, trainer, rule):
            trainer.callback_metrics["value"] = torch.tensor(float(trainer.current_epoch)) * (
                -1 if mode == "max" else 1
            )

    saved = ModelCheckpoint(tmp_path, monitor="value", mode=mode, save_top_k=1, filename="{epoch}")
    mask = SparsityMask("gradual", 0.8, every=2, end=12)
    run = trainer(tmp_path, max_epochs=5, callbacks=[mask, Falling(), saved], enable_checkpointing=True)
    rule = sparse_rule(num_classes=10, input_shape=(1, 8, 8))
    run.fit(rule, datamodule=DigitsDataModule(batch_size=64, subset=400, val_size=100))
    # Five steps an epoch: the twelfth is in the third.
    assert saved.best_model_path == str(tmp_path / "epoch=2.ckpt")
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=2.ckpt"]


def test_resumed_while_a_sparse_start_has_all_its_weights(tmp_path):
    # Gradual pruning begins dense: the checkpoint's weights have no zero, and the new layers are half empty.
    make, settings = partial(SparsityMask, "gradual", 0.8, every=5, end=9), {"sparsity": 0.5}
    whole = run_digits(tmp_path, "sparse", make(), **settings)
    assert_equal(run_digits(tmp_path / "resumed", "sparse", make(), tmp_path / "step=2.ckpt", **settings), whole)


# On two processes


GRADUAL = {"method": "gradual", "sparsity": 0.6, "every": 2, "end": 9}
RIGL = {"method": "rigl", "sparsity": 0.6, "every": 2, "end": 12}
ALL, FEW = {"sparsity": None}, {"sparsity": 0.6}


@pytest.mark.parametrize(
    ("mask", "layers"),
    [
        *((mask, layers) for mask in (GRADUAL, RIGL) for layers in ({}, ALL, FEW)),
        (RIGL | {"sparsity": None}, FEW | {"engine": "autograd"}),
        # The seventh batch is the uneven one.
        *((RIGL | {"every": 7, "end": 14}, layers) for layers in ({}, ALL, FEW | {"engine": "autograd"})),
        *(({"method": "gradient", "sparsity": 0.6, "begin": 6}, layers) for layers in ({}, ALL)),
    ],
)
def test_two_processes_equal_one(tmp_path, mask, layers):
    # An epoch has six batches of 16 samples, shared evenly, and one of 7 = 4 + 3.
    for strategy in ("auto", FORKED):
        train_sparse(tmp_path, strategy, mask, **layers)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-12, atol=1e-12)
    assert ranks[0]["metrics"] == pytest.approx(single["metrics"], rel=1e-6)
    assert ranks[0]["metrics"]["sparsity"] == pytest.approx(0.6, abs=0.005)


def test_two_processes_refuse_to_resize_what_autograd_and_they_remember(tmp_path):
    with pytest.raises(Exception, match=r"size of 'network\.1', which only SparseProp\(engine='explicit'\) can bear"):
        train_sparse(tmp_path, FORKED, GRADUAL, sparsity=None, engine="autograd")


# Logged


@pytest.mark.parametrize("sparse", [False, True])
def test_sparsity_of_every_layer_is_logged(tmp_path, sparse):
    module = sparse_rule() if sparse else backprop()
    run = fit(tmp_path, module, SparsityMask("one_shot", 0.3, include=["*.1"]), max_epochs=1)
    logged = {name: float(v) for name, v in run.callback_metrics.items() if name.startswith("sparsity")}
    # Of 48 weights 33.6 are kept, that is 34.
    assert logged == pytest.approx({"sparsity": 14 / 48, "sparsity/network.1": 14 / 48})
    fit_of_both = fit(tmp_path, backprop(), SparsityMask("random", 0.5), max_epochs=1)
    logged = {name: float(v) for name, v in fit_of_both.callback_metrics.items() if name.startswith("sparsity")}
    mean = (48 * logged["sparsity/network.1"] + 24 * logged["sparsity/network.3"]) / 72
    assert logged["sparsity"] == pytest.approx(0.5)
    assert mean == pytest.approx(0.5)
    assert logged["sparsity/network.1"] > logged["sparsity/network.3"]
