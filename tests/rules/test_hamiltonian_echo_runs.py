"""HamiltonianEcho under a Trainer: processes, checkpoints, callbacks, export, and training that reaches something."""

from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import FORKED, load, train_hamiltonian
from lightning.fabric.utilities.exceptions import MisconfigurationException
from resuming import assert_resumed_equals_whole
from torch import nn
from toys import loader, trainer, weights

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.datamodules import DigitsDataModule, XORDataModule
from lightning_nobp.nn import (
    DriveEncoder,
    DuffingClassifier,
    DuffingNetwork,
    HamiltonianLayer,
    HamiltonianNetwork,
    HamiltonianSystem,
    KleinGordonField,
    LastUnits,
    LogCoshClassifier,
    LogCoshNetwork,
)
from lightning_nobp.rules import HamiltonianEcho

ADAM = partial(torch.optim.Adam, lr=1e-2)
NETWORKS = {
    "duffing": partial(DuffingClassifier, hidden_units=16),
    "log_cosh": partial(LogCoshClassifier, n_units=26, hidden_features=32),
}


def classifier(network="duffing", **options):
    return HamiltonianEcho(network=NETWORKS[network], optimizer=ADAM, **options)


def test_two_processes_equal_one(tmp_path):
    for strategy in ("auto", FORKED):
        train_hamiltonian(tmp_path, strategy)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-8, atol=1e-8)
    for name in ("train/loss_epoch", "val/loss"):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_stopped_in_the_middle_of_an_epoch_and_resumed(tmp_path, network):
    assert_resumed_equals_whole(tmp_path, lambda: classifier(network))


def own_network():
    layer = HamiltonianLayer(LogCoshNetwork(14, 6), 0.2, 5, damping=0.1)
    return HamiltonianNetwork(DriveEncoder(64, 6, 14), layer, LastUnits(10))


@pytest.mark.parametrize(
    "options",
    [
        {"network": "duffing", "num_classes": 10, "input_shape": (1, 8, 8), "loss": "mse"},
        {"network": NETWORKS["log_cosh"], "num_classes": 10, "input_shape": (1, 8, 8), "nudge": "richardson"},
        {"network": LogCoshClassifier((1, 8, 8), 10, 12, 9, linear_readout=True, pool=2), "num_classes": 10},
        {"network": own_network(), "num_classes": 10, "gradient_engine": "adjoint"},
    ],
    ids=["preset", "partial", "module", "own"],
)
def test_checkpoints_say_how_to_build_the_rule_again(tmp_path, options):
    rule = HamiltonianEcho(optimizer=ADAM, **options)
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    torch.load(tmp_path / "rule.ckpt", weights_only=True)
    again = HamiltonianEcho.load_from_checkpoint(tmp_path / "rule.ckpt")
    assert repr(again.network) == repr(rule.network)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(again(x), rule(x))
    again.compute_gradients((x, torch.arange(5)))


@pytest.mark.parametrize("field", [KleinGordonField(2, (3, 4)), KleinGordonField(1, (5,), 1, 0.5, 0.3, "fixed")])
def test_fields_are_rebuilt_from_checkpoints_too(tmp_path, field):
    network = nn.Sequential(nn.Linear(4, 4), HamiltonianLayer(field, 0.1, 5))
    run = trainer(tmp_path)
    rule = HamiltonianEcho(network=network, task="regression", loss="mse")
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    assert repr(HamiltonianEcho.load_from_checkpoint(tmp_path / "rule.ckpt").network) == repr(network)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_gradient_is_aligned_with_backpropagations_and_measuring_changes_nothing(tmp_path, network):
    results = []
    for callbacks in ([], [GradientAlignment(1)]):
        L.seed_everything(0, verbose=False)
        rule = classifier(network, num_classes=3, input_shape=(1, 2, 3))
        trainer(tmp_path, max_epochs=2, callbacks=callbacks, precision="64-true").fit(rule, loader(), loader())
        results.append(weights(rule))
    assert torch.equal(*results)
    assert min(callbacks[0].cosines) > 1 - 1e-12


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_trained_networks_leave_the_package(tmp_path, network, suffix):
    from lightning_nobp.cli.export import export

    rule = classifier(network, num_classes=10, input_shape=(1, 8, 8))
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    # Compared on three samples; a file of a fixed batch would not take another.
    assert export(tmp_path / "rule.ckpt", tmp_path / f"net.{suffix}") < 1e-4
    if suffix == "pt2":
        loaded, x = torch.export.load(tmp_path / "net.pt2").module(), torch.randn(7, 1, 8, 8)
        torch.testing.assert_close(loaded(x), rule.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_both_precisions_train(tmp_path, precision):
    run = trainer(tmp_path, max_epochs=4, precision=precision)
    run.fit(classifier(), datamodule=DigitsDataModule(batch_size=32, subset=500, val_size=100))
    assert run.callback_metrics["val/accuracy"] > 0.7


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precisions_are_refused(tmp_path, precision):
    with pytest.raises(MisconfigurationException, match="HamiltonianEcho supports 32-true, 64-true"):
        trainer(tmp_path, precision=precision).fit(classifier(), datamodule=DigitsDataModule())


@pytest.mark.parametrize(("network", "least"), [("duffing", 0.93), ("log_cosh", 0.93)])
def test_digits_are_learnt(tmp_path, network, least):
    L.seed_everything(0, verbose=False)
    run = trainer(tmp_path, max_epochs=6)
    rule, data = classifier(network), DigitsDataModule(batch_size=32)
    run.fit(rule, datamodule=data)
    [tested] = run.test(rule, datamodule=data, verbose=False)
    assert tested["test/accuracy"] > least


@pytest.mark.parametrize("seed", range(3))
def test_six_oscillators_learn_exclusive_or(tmp_path, seed):
    L.seed_everything(seed, verbose=False)
    network = partial(DuffingClassifier, hidden_units=2, n_steps=60, dt=0.1)
    rule = HamiltonianEcho(network=network, optimizer=partial(torch.optim.Adam, lr=0.03))
    run = trainer(tmp_path)
    run.fit(rule, datamodule=XORDataModule(batch_size=4, shuffle=False))
    assert rule.network.layer.system.n_units == 6
    assert run.callback_metrics["val/accuracy"] == 1


def test_linear_oscillators_do_not(tmp_path):
    L.seed_everything(0, verbose=False)
    network = partial(DuffingClassifier, hidden_units=2, n_steps=60, dt=0.1, beta=0.0)
    rule = HamiltonianEcho(network=network, optimizer=partial(torch.optim.Adam, lr=0.03))
    run = trainer(tmp_path)
    run.fit(rule, datamodule=XORDataModule(batch_size=4, shuffle=False))
    assert run.callback_metrics["val/accuracy"] < 1


class Chain(HamiltonianSystem):
    """A user's own: nothing but a potential."""

    def __init__(self):
        super().__init__()
        self.tie = nn.Parameter(0.3 * torch.randn(6, 14))

    def potential(self, q, u):
        return q.square().sum(dim=1) / 2 + (q @ self.tie.T + u).cosh().log().sum(dim=1)


def test_a_system_of_ones_own_is_validated_tested_and_asked(tmp_path):
    network = HamiltonianNetwork(DriveEncoder(6, 6, 14), HamiltonianLayer(Chain(), 0.2, 5), LastUnits(3))
    rule, runs = HamiltonianEcho(network=network, num_classes=3, optimizer=ADAM), trainer(tmp_path, max_epochs=1)
    before = weights(rule)
    runs.fit(rule, loader(), loader())
    assert "val/loss" in runs.callback_metrics
    assert "test/loss" in runs.test(rule, loader(), verbose=False)[0]
    assert not torch.equal(weights(rule), before)


class Softening(HamiltonianSystem):
    """Runs away from where it is pushed far."""

    def __init__(self):
        super().__init__()
        self.depth = nn.Parameter(torch.ones(6))

    def potential(self, q, u):
        return (self.depth * (q.square() - q.pow(4))).sum(dim=1) / 2


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_runaway_batches_are_skipped_if_wished(task):
    def rule(on_nonfinite):
        layer = HamiltonianLayer(Softening(), 0.1, 200)
        network, loss = HamiltonianNetwork(nn.Flatten(), layer, nn.Linear(6, 3)), {"classification": "cross_entropy"}
        return HamiltonianEcho(
            network=network, num_classes=3, task=task, loss=loss.get(task, "mse"), on_nonfinite=on_nonfinite
        )

    x, target = torch.full((2, 1, 2, 3), 30.0), torch.tensor([0, 1])
    target = target if task == "classification" else torch.zeros(2, 3)
    with pytest.raises(
        FloatingPointError, match=r"network\.layer, of a Softening: the simulation is not finite after step"
    ):
        rule("raise").compute_gradients((x, target))
    skipping = rule("skip")
    found = skipping.compute_gradients((x, target))
    assert found["loss"].isnan()
    finite = skipping.compute_gradients((0 * x, target))
    # Processes average them all.
    assert found.keys() == finite.keys()


def test_a_frozen_network_is_refused():
    network = HamiltonianNetwork(nn.Flatten(), HamiltonianLayer(DuffingNetwork(6), 0.1, 5), LastUnits(3))
    rule = HamiltonianEcho(network=network.requires_grad_(False), num_classes=3)
    with pytest.raises(ValueError, match="all of its parameters are frozen"):
        rule.compute_gradients((torch.rand(2, 6), torch.tensor([0, 1])))
