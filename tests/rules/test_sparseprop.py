"""The rule: gradients of the weights that there are, sparse starts, runs, checkpoints and files."""

import csv
from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import FORKED, load, train_sparse
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from toys import loader, plain_loop, trainer, weights

from lightning_nobp.callbacks import GradientAlignment, SparsityMask
from lightning_nobp.cli.export import export
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.functional.sparsity import kept_counts
from lightning_nobp.nn import CNN, MLP, ResNet, SparseConv2d, SparseLinear
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.rules import Backprop, SparseProp

ADAM = partial(torch.optim.Adam, lr=0.02)


class Functional(nn.Module):
    """As torchvision's networks are: what happens between the layers stands in ``forward``."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Linear(64, 4)

    def forward(self, x):
        return self.fc(nn.functional.relu(self.norm(self.conv(x))).flatten(1))


NETWORKS = {
    "mlp": lambda: MLP((1, 8, 8), 4, (12, 10)),
    "cnn": lambda: CNN((1, 8, 8), 4, (5, 6), 12, batch_norm=True),
    "resnet": lambda: ResNet((1, 8, 8), 4, (4, 6), (1, 2)),
    "functional": Functional,
}


def make(network="mlp", kind=SparseProp, **kwargs):
    """The same weights before they become sparse at every call."""
    torch.manual_seed(0)
    network = NETWORKS[network]() if isinstance(network, str) else network
    return kind(network=network, **{"num_classes": 4, "input_shape": (1, 8, 8), "loss": "cross_entropy"} | kwargs)


def small(**kwargs):
    """A sparse rule for the blobs."""
    defaults = {"network": partial(MLP, hidden_dims=(8, 6)), "num_classes": 3, "input_shape": (1, 2, 3)}
    return make(**defaults | {"sparsity": 0.6, "optimizer": ADAM} | kwargs)


def sparse_layers(rule):
    return {n: m for n, m in rule.network.named_modules() if isinstance(m, SparseLayer)}


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, 1, 8, 8, generator=generator, dtype=dtype), torch.arange(9) % 4


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("engine", ["explicit", "autograd"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet"])
def test_gradients_are_those_of_the_dense_network_under_the_mask(network, loss, engine, threshold):
    rule = make(network, sparsity=0.7, loss=loss, engine=engine, threshold=threshold).double()
    dense = make(network, Backprop, loss=loss, engine="autograd").double()
    dense.network.load_state_dict(rule.network.state_dict())
    values, expected = rule.compute_gradients(batch()), dense.compute_gradients(batch())
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
    masks = {f"{n}.weight": m.mask for n, m in sparse_layers(rule).items()}
    assert all(mask.sum() > 0 for mask in masks.values())
    assert any(mask.sum() < 0.5 * mask.numel() for mask in masks.values())
    found = {n.replace("values", "weight"): p.grad for n, p in rule.network.named_parameters()}
    for name, parameter in dense.network.named_parameters():
        reference = parameter.grad[masks[name]] if name in masks else parameter.grad
        atol = 1e-12 * parameter.grad.abs().max().item()
        torch.testing.assert_close(found.pop(name), reference, rtol=1e-12, atol=max(atol, 1e-15))
    assert not found
    for buffer, reference in zip(rule.network.buffers(), dense.network.buffers(), strict=True):
        torch.testing.assert_close(buffer, reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ["auto", "explicit", "autograd"])
@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet"])
def test_the_explicit_engine_builds_no_graph(network, engine):
    rule, saved = make(network, sparsity=0.7, engine=engine), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rule.compute_gradients(batch(torch.float32))
    assert bool(saved) is (engine == "autograd")
    assert rule.engine == ("autograd" if engine == "autograd" else "explicit")
    assert all(p.grad is not None for p in rule.parameters())


def test_networks_that_the_explicit_engine_does_not_know_fall_back_on_autograd(tmp_path):
    rule = make("functional", sparsity=0.7).double()
    assert rule.engine == "autograd"
    dense = make("functional", Backprop, engine="autograd").double()
    dense.network.load_state_dict(rule.network.state_dict())
    for module in (rule, dense):
        module.compute_gradients(batch())
    for name, layer in sparse_layers(rule).items():
        gradient = dense.network.get_submodule(name).weight.grad[layer.mask]
        torch.testing.assert_close(layer.values.grad, gradient, rtol=1e-12, atol=1e-13)
    with pytest.raises(TypeError, match=r"'network', a Functional.*engine='autograd'"):
        make("functional", sparsity=0.7, engine="explicit")


# Sparse starts


@pytest.mark.parametrize("distribution", ["erk", "uniform", "global"])
@pytest.mark.parametrize("method", ["random", "magnitude"])
def test_a_network_starts_as_sparse_as_was_asked(method, distribution):
    rule, dense = make(sparsity=0.75, method=method, distribution=distribution), NETWORKS["mlp"]
    shapes = [(12, 64), (10, 12), (4, 10)]
    found = [int(layer.mask.sum()) for layer in sparse_layers(rule).values()]
    assert sum(found) == 232  # A quarter of 768 + 120 + 40.
    if distribution != "global":
        assert found == kept_counts(shapes, 0.75, distribution)
    torch.manual_seed(0)
    dense = dense()
    threshold = torch.cat([dense[k].weight.abs().flatten() for k in (1, 3, 5)]).sort(descending=True).values[231]
    for k, layer in zip((1, 3, 5), sparse_layers(rule).values(), strict=True):
        kept = dense[k].weight[layer.mask]
        if method == "random":
            # Activities keep their size: weights grow where there are few.
            torch.testing.assert_close(layer.values, kept / (1 - layer.sparsity) ** 0.5)
        else:
            assert torch.equal(layer.values, kept)
            limit = threshold if distribution == "global" else dense[k].weight[~layer.mask].abs().max()
            assert kept.abs().min() >= limit
        assert torch.equal(layer.bias, dense[k].bias)


def test_seeds_choose_the_weights_whatever_torch_s_own_is():
    masks = [sparse_layers(make(sparsity=0.7, seed=seed))["1"].mask for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    torch.manual_seed(123)
    assert torch.equal(
        SparseProp(network=MLP((1, 8, 8), 4, (12, 10)), num_classes=4, sparsity=0.7).network[1].mask, masks[0]
    )


def test_there_are_as_many_parameters_as_weights_and_biases():
    rule = make(sparsity=0.75)
    assert sum(p.numel() for p in rule.parameters()) == 232 + 12 + 10 + 4
    excluded = make(sparsity=0.75, exclude=["5"], distribution="uniform")
    assert sum(p.numel() for p in excluded.parameters()) == (768 + 120) // 4 + 40 + 12 + 10 + 4
    assert type(excluded.network[5]) is nn.Linear
    convolutional = make("cnn", sparsity=0.5)
    assert [type(m) for m in sparse_layers(convolutional).values()] == [SparseConv2d] * 2 + [SparseLinear] * 2


def test_without_a_sparsity_the_zeros_of_the_network_are_kept():
    network = MLP((1, 8, 8), 4, (12, 10))
    network[1].weight.data[:, ::2] = 0
    rule = make(network, sparsity=None)
    assert [layer.sparsity for layer in sparse_layers(rule).values()] == [0.5, 0, 0]
    layer = rule.network[1]
    assert make(rule.network, sparsity=None).network[1] is layer
    # What is sparse already is left as it is.
    assert make(rule.network, sparsity=0.75).network[1] is layer


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"sparsity=1.0 is not in \[0, 1\)"),
        ({"sparsity": -0.5}, ValueError, r"sparsity=-0.5 is not in \[0, 1\)"),
        ({"method": "best"}, ValueError, "method='best' is not one of 'random', 'magnitude'"),
        ({"distribution": "even"}, ValueError, "distribution='even' is not one of 'uniform', 'global', 'erk'"),
        ({"include": ["conv*"]}, ValueError, r"include='conv\*' matches no layer .*'1', '3', '5'"),
        ({"exclude": ["head"]}, ValueError, "exclude='head' matches no layer"),
        ({"engine": "fast"}, ValueError, "engine='fast' is not one of"),
        ({"threshold": "guess"}, ValueError, "threshold='guess'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


# Runs


def fit(folder, rule, *callbacks, **kwargs):
    run = trainer(folder, callbacks=list(callbacks), **{"log_every_n_steps": 100} | kwargs)
    run.fit(rule, loader())
    return run


def test_thresholds_are_measured_on_the_first_batch_only(tmp_path):
    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, rule, batch, batch_idx):
            layers = sparse_layers(rule).values()
            assert batch_idx != 1 or all(0 <= layer.threshold <= 1 for layer in layers)
            for layer in layers:
                layer.threshold = -1.0 if batch_idx == 0 else 2.0

    rule, plain = small(threshold="measure"), small(threshold=0.0)
    fit(tmp_path, rule, Watch())
    assert all(layer.threshold == 2.0 for layer in sparse_layers(rule).values())
    fit(tmp_path, plain)
    torch.testing.assert_close(weights(rule), weights(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_gradients_are_aligned_with_backpropagation_and_measuring_changes_nothing(tmp_path, engine):
    plain, watched, alignment = small(engine=engine), small(engine=engine), GradientAlignment(every_n_steps=1)
    fit(tmp_path, plain, SparsityMask("rigl", every=2, end=6))
    logger = CSVLogger(tmp_path)
    fit(tmp_path, watched, alignment, SparsityMask("rigl", every=2, end=6), logger=logger)
    assert torch.equal(weights(watched), weights(plain))
    assert alignment.cosines == pytest.approx([1.0] * 6, abs=1e-6)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        norms = [float(row["alignment/norm_ratio"]) for row in csv.DictReader(file) if row["alignment/norm_ratio"]]
    assert norms == pytest.approx([1.0] * 6, abs=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_half_precision_trains_nearly_alike(tmp_path, engine, precision):
    results = []
    for chosen in ("32-true", precision):
        rule = small(engine=engine, optimizer=partial(torch.optim.SGD, lr=0.1))
        start = weights(rule)
        fit(tmp_path, rule, precision=chosen)
        results.append(weights(rule).float() - start)
    assert rule.network[1].values.dtype == (torch.float32 if precision == "bf16-mixed" else torch.bfloat16)
    error = (results[1] - results[0]).norm() / results[0].norm()
    assert 0 < error < (0.1 if precision == "bf16-mixed" else 0.2)


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_two_processes_equal_one(tmp_path, engine):
    for strategy in ("auto", FORKED):
        train_sparse(tmp_path, strategy, None, sparsity=0.6, engine=engine)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-12, atol=1e-12)
    assert ranks[0]["metrics"] == pytest.approx(single["metrics"], rel=1e-6)


# Files


def assert_same_network(rule, other):
    assert sparse_layers(rule).keys() == sparse_layers(other).keys()
    for name, layer in sparse_layers(rule).items():
        assert torch.equal(layer.mask, sparse_layers(other)[name].mask)
    assert all(map(torch.equal, rule.network.state_dict().values(), other.network.state_dict().values()))


@pytest.mark.parametrize("method", [None, "rigl"])
@pytest.mark.parametrize("network", ["mlp", "resnet"])
def test_checkpoints_bring_masks_and_weights_back(tmp_path, network, method):
    rule = make(network, sparsity=0.8, seed=3, optimizer=ADAM)
    x, target = batch(torch.float32)
    before = {n: m.mask for n, m in sparse_layers(rule).items()}
    callbacks = [] if method is None else [SparsityMask(method, every=1, end=20)]
    run = trainer(tmp_path, callbacks=callbacks, max_epochs=3, log_every_n_steps=100)
    run.fit(rule, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, target), batch_size=3))
    run.save_checkpoint(tmp_path / "rule.ckpt")
    content = torch.load(tmp_path / "rule.ckpt", weights_only=True)
    moved = any(not torch.equal(m.mask, before[n]) for n, m in sparse_layers(rule).items())
    assert moved is (method is not None)
    for cls in (SparseProp, L.LightningModule):
        again = cls.load_from_checkpoint(tmp_path / "rule.ckpt")
        assert type(again) is SparseProp
        assert_same_network(again, rule)
    # An ordinary network takes the same file.
    ordinary = NETWORKS[network]()
    prefix = "network."
    state = {n.removeprefix(prefix): v for n, v in content["state_dict"].items() if n.startswith(prefix)}
    ordinary.load_state_dict(state, strict=True)
    torch.testing.assert_close(ordinary.eval()(x), rule.eval()(x))


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_exported_networks_give_the_same_scores(tmp_path, network):
    rule = make(network, sparsity=0.8).eval()
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    assert export(tmp_path / "rule.ckpt", tmp_path / "rule.pt2") < 1e-5
    x = batch(torch.float32)[0]
    torch.testing.assert_close(torch.export.load(tmp_path / "rule.pt2").module()(x), rule(x))


@pytest.mark.parametrize("network", ["cnn", partial(MLP, hidden_dims=(16,), dropout=0.2)])
def test_stopped_in_the_middle_of_an_epoch_and_resumed(tmp_path, network):
    def run(folder, ckpt_path=None):
        rule = SparseProp(network=network, loss="cross_entropy", optimizer=ADAM)
        saved = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        run = trainer(folder, max_epochs=2, callbacks=[saved], enable_checkpointing=True)
        run.fit(rule, datamodule=DigitsDataModule(batch_size=64, subset=300, val_size=100), ckpt_path=ckpt_path)
        [optimizer] = run.optimizers
        return rule, [t for entry in optimizer.state.values() for t in entry.values()]

    torch.manual_seed(0)
    whole, state = run(tmp_path)
    for step in (2, 5):
        # The new network starts from other weights, and the generators from another state.
        resumed, resumed_state = run(tmp_path / "resumed", tmp_path / f"step={step}.ckpt")
        assert_same_network(resumed, whole)
        assert all(map(torch.equal, resumed_state, state))


def test_a_plain_torch_loop_learns():
    rule = small(sparsity=0.5)
    assert plain_loop(rule)["accuracy"] > 0.95
    assert sum(int((layer.weight != 0).sum()) for layer in sparse_layers(rule).values()) == 57
