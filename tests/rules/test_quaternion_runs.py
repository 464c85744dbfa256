"""QuaternionBackprop under a Trainer: processes, checkpoints, export, and training that reaches something."""

from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import FORKED, load, train_quaternion
from resuming import assert_resumed_equals_whole
from torch import nn
from toys import loader, trainer

from lightning_nobp.callbacks import AttitudeError
from lightning_nobp.cli.export import export
from lightning_nobp.datamodules import AttitudeDataModule, DigitsDataModule
from lightning_nobp.functional.quaternion import hamilton_rule
from lightning_nobp.nn import (
    EquivariantMLP,
    PHMConv2d,
    PHMLinear,
    QuaternionAdam,
    QuaternionAutoencoder,
    QuaternionCNN,
    QuaternionMLP,
    QuaternionRotation,
)
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv1d
from lightning_nobp.rules import QuaternionBackprop

ADAM = partial(QuaternionAdam, lr=3e-3)
NETWORKS = {
    "mlp": partial(QuaternionMLP, hidden_dims=(16, 16), dropout=0.2),
    "cnn": partial(QuaternionCNN, channels=(8, 16), norm="whiten"),
}


HYPERCOMPLEX = nn.Sequential(
    PHMConv1d(4, 8, 12, 3, groups=1, rule=hamilton_rule("right")),
    PHMConv2d(2, 12, 8, 3, 2, 1, groups=2, bias=False),
    PHMLinear(3, 12, 6),
    QuaternionRotation(6, 9),
    QuaternionRotation(9, 3, scale=False),
)


def classifier(network, **options):
    return QuaternionBackprop(network=NETWORKS[network], optimizer=ADAM, **options)


def test_two_processes_equal_one(tmp_path):
    for strategy in ("auto", FORKED):
        train_quaternion(tmp_path, strategy)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-10, atol=1e-10)
    assert ranks[0]["metrics"]["val/angle"] == pytest.approx(single["metrics"]["val/angle"], rel=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_stopped_in_the_middle_of_an_epoch_and_resumed(tmp_path, network):
    assert_resumed_equals_whole(tmp_path, lambda: classifier(network))


@pytest.mark.parametrize(
    "options",
    [
        {"network": NETWORKS["mlp"], "num_classes": 10, "input_shape": (1, 8, 8), "grad_scale": 1},
        {"network": "cnn", "num_classes": 10, "input_shape": (3, 16, 16), "backward_mode": "autograd"},
        {"network": EquivariantMLP(32, hidden_dims=(16,)), "loss": "unit_mse", "task": "regression"},
        {"network": HYPERCOMPLEX, "loss": "mse", "task": "regression"},
        {"network": QuaternionAutoencoder((8,)), "loss": nn.SmoothL1Loss(beta=0.5), "task": "regression"},
    ],
    ids=["mlp", "cnn", "equivariant", "hypercomplex", "autoencoder"],
)
def test_checkpoints_say_how_to_build_the_rule_again(tmp_path, options):
    rule = QuaternionBackprop(optimizer=ADAM, **options)
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    torch.load(tmp_path / "rule.ckpt", weights_only=True)
    again = QuaternionBackprop.load_from_checkpoint(tmp_path / "rule.ckpt")
    assert again.state_dict().keys() == rule.state_dict().keys()
    assert all(map(torch.equal, again.state_dict().values(), rule.state_dict().values()))
    assert (again.grad_scale, again.backward_mode, again.task) == (rule.grad_scale, rule.backward_mode, rule.task)
    assert type(again.loss) is type(rule.loss)


@pytest.mark.parametrize(("network", "shape"), [("mlp", (1, 8, 8)), ("cnn", (3, 16, 16))])
def test_exported_networks_give_the_same_scores(tmp_path, network, shape):
    rule = classifier(network, num_classes=10, input_shape=shape).eval()
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    assert export(tmp_path / "rule.ckpt", tmp_path / "rule.pt2") < 1e-5
    exported = torch.export.load(tmp_path / "rule.pt2").module()
    for batch in (1, 7):
        x = torch.randn(batch, *shape)
        torch.testing.assert_close(exported(x), rule(x))


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_every_precision_trains(tmp_path, precision, network):
    run = trainer(tmp_path, max_epochs=6, precision=precision)
    run.fit(classifier(network), datamodule=DigitsDataModule(batch_size=16, subset=500, val_size=100))
    assert run.callback_metrics["val/accuracy"] > 0.5


def test_digits_are_learnt(tmp_path):
    run = trainer(tmp_path, max_epochs=10)
    rule = QuaternionBackprop(network="mlp", optimizer=partial(torch.optim.Adam, lr=3e-3))
    data = DigitsDataModule(batch_size=64)
    run.fit(rule, datamodule=data)
    [tested] = run.test(rule, datamodule=data, verbose=False)
    assert tested["test/accuracy"] > 0.93


def test_attitudes_are_learnt_in_every_frame(tmp_path):
    """Trained on one eighth of all frames, an equivariant network is as good in the others."""
    L.seed_everything(0, verbose=False)
    data = AttitudeDataModule(num_train=600, test_size=200)
    rule = QuaternionBackprop(
        network=EquivariantMLP(32, hidden_dims=(64, 64)),
        loss="unit_mse",
        task="regression",
        optimizer=partial(torch.optim.Adam, lr=1e-2),
    )
    run = trainer(tmp_path, max_epochs=30, callbacks=[AttitudeError()])
    run.fit(rule, datamodule=data)
    [tested] = run.test(rule, datamodule=data, verbose=False)
    # Repeating the last orientation is off by 45 degrees.
    assert tested["test/angle_known_frames"] < 22
    assert tested["test/angle_any_frame"] < 1.2 * tested["test/angle_known_frames"] + 1


def test_a_compiled_network_trains(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), *EquivariantMLP(8, 8, (8,)), nn.Linear(8, 3))
    rule = QuaternionBackprop(network=network, num_classes=3, input_shape=(1, 2, 3), backward_mode="autograd")
    rule.network.compile(backend="aot_eager")
    run = trainer(tmp_path, max_epochs=2)
    run.fit(rule, loader(), loader())
    assert run.callback_metrics["val/accuracy"] > 0.3
