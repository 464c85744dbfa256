"""SpikeTimingBackprop under a Trainer: processes, checkpoints, callbacks, and training that reaches something."""

from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import FORKED, load, train_spiking
from lightning.fabric.utilities.exceptions import MisconfigurationException
from resuming import assert_resumed_equals_whole
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import blobs, loader, trainer, weights

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.datamodules import DigitsDataModule, XORDataModule, YinYangDataModule
from lightning_nobp.nn import (
    EarliestSpikePool2d,
    FirstSpike,
    LatencyEncoder,
    SpikingCNN,
    SpikingConv2d,
    SpikingLinear,
    SpikingMLP,
    ThresholdCrossingEncoder,
)
from lightning_nobp.rules import SpikeTimingBackprop

ADAM = partial(torch.optim.Adam, lr=3e-3)
NETWORKS = {
    "mlp": partial(SpikingMLP, hidden_dims=(30,), tau_v=1.0, tau_i=0.5, delays=True, learn_tau=True),
    "cnn": partial(SpikingCNN, channels=(4,), kernel_size=3),
}


def classifier(network="mlp", **options):
    return SpikeTimingBackprop(network=NETWORKS[network], optimizer=ADAM, **options)


def test_two_processes_equal_one(tmp_path):
    for strategy in ("auto", FORKED):
        train_spiking(tmp_path, strategy)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-8, atol=1e-8)
    for name in (
        "train/loss_epoch",
        "val/loss",
        "val/spikes_per_neuron/1",
        "val/decision_time",
        "val/silent_fraction/1",
    ):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_stopped_in_the_middle_of_an_epoch_and_resumed(tmp_path, network):
    assert_resumed_equals_whole(tmp_path, lambda: classifier(network))


@pytest.mark.parametrize(
    "options",
    [
        {"network": NETWORKS["mlp"], "num_classes": 10, "input_shape": (1, 8, 8), "loss": "mse"},
        {"network": "cnn", "num_classes": 10, "input_shape": (1, 8, 8), "t_ref": 1.0},
        {"network": SpikingMLP((1, 8, 8), 10, (9,), encoder=ThresholdCrossingEncoder()), "num_classes": 10},
        {
            "network": nn.Sequential(
                LatencyEncoder(),
                SpikingConv2d(1, 3, 3, max_spikes=2),
                EarliestSpikePool2d(2),
                nn.Flatten(1, -2),
                SpikingLinear(27, 10),
                FirstSpike(),
            ),
            "num_classes": 10,
        },
    ],
    ids=["mlp", "cnn", "encoder", "sequential"],
)
def test_checkpoints_say_how_to_build_the_rule_again(tmp_path, options):
    rule = SpikeTimingBackprop(optimizer=ADAM, **options)
    rule.compute_gradients((torch.rand(30, 1, 8, 8), torch.arange(30) % 10))
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    torch.load(tmp_path / "rule.ckpt", weights_only=True)
    again = SpikeTimingBackprop.load_from_checkpoint(tmp_path / "rule.ckpt")
    assert all(map(torch.equal, again.state_dict().values(), rule.state_dict().values()))
    assert repr(again.network) == repr(rule.network)
    x = torch.rand(5, 1, 8, 8)
    # The range of inputs that was measured is among what comes back, and the weights are not scaled again.
    assert torch.equal(again(x), rule(x))
    again.compute_gradients((x, torch.arange(5)))
    assert torch.equal(weights(again), weights(rule))


def test_the_gradient_is_aligned_with_backpropagations_and_measuring_changes_nothing(tmp_path):
    results = []
    for callbacks in ([], [GradientAlignment(1)]):
        L.seed_everything(0, verbose=False)
        rule = SpikeTimingBackprop(
            network=NETWORKS["mlp"], num_classes=3, input_shape=(1, 2, 3), spike_penalty=0.1, optimizer=ADAM
        )
        trainer(tmp_path, max_epochs=2, callbacks=callbacks, precision="64-true").fit(rule, loader(), loader())
        results.append(weights(rule))
    assert torch.equal(*results)
    assert callbacks[0].mean_cosine == pytest.approx(1, abs=1e-12)
    assert min(callbacks[0].cosines) > 1 - 1e-12


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_both_precisions_train(tmp_path, precision):
    run = trainer(tmp_path, max_epochs=4, precision=precision)
    run.fit(classifier("cnn"), datamodule=DigitsDataModule(batch_size=32, subset=500, val_size=100))
    assert run.callback_metrics["val/accuracy"] > 0.5


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precisions_are_refused(tmp_path, precision):
    with pytest.raises(MisconfigurationException, match="SpikeTimingBackprop supports 32-true, 64-true"):
        trainer(tmp_path, precision=precision).fit(classifier(), datamodule=DigitsDataModule())


def test_digits_are_learnt_and_firing_is_logged(tmp_path):
    L.seed_everything(0, verbose=False)
    run = trainer(tmp_path, max_epochs=6)
    rule = SpikeTimingBackprop(network=partial(SpikingMLP, hidden_dims=(100,)), optimizer=ADAM)
    data = DigitsDataModule(batch_size=32)
    run.fit(rule, datamodule=data)
    assert {"train/spikes_per_neuron", "train/saturated_fraction", "train/decision_time"} <= {*run.callback_metrics}
    [tested] = run.test(rule, datamodule=data, verbose=False)
    assert tested["test/accuracy"] > 0.92
    assert 0 < tested["test/spikes_per_neuron/1"] < 16
    assert 0 < tested["test/silent_fraction/1"] < 1
    assert 0 < tested["test/decision_time"] < 2
    assert tested["test/synaptic_operations"] > 1000


def test_exclusive_or_is_learnt(tmp_path):
    L.seed_everything(0, verbose=False)
    encoder = LatencyEncoder(threshold=-1.0, value_range=(0, 1))
    network = SpikingMLP((1, 1, 2), 2, hidden_dims=(20,), encoder=encoder)
    rule = SpikeTimingBackprop(network=network, num_classes=2, gain=0.5, optimizer=ADAM)
    run = trainer(tmp_path, max_epochs=4)
    run.fit(rule, datamodule=XORDataModule(batch_size=4, shuffle=False))
    assert run.callback_metrics["val/accuracy"] == 1


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_yin_and_yang_are_learnt_as_no_linear_classifier_does(tmp_path, loss):
    L.seed_everything(0, verbose=False)
    encoder = LatencyEncoder(threshold=-1.0, value_range=(0, 1))
    network = SpikingMLP((4,), 3, hidden_dims=(60,), encoder=encoder)
    adam = partial(torch.optim.Adam, lr=5e-3)
    rule = SpikeTimingBackprop(network=network, num_classes=3, loss=loss, gain=0.5, optimizer=adam)
    run = trainer(tmp_path, max_epochs=6)
    run.fit(rule, datamodule=YinYangDataModule(num_train=2000, val_size=500, batch_size=50))
    assert run.callback_metrics["val/accuracy"] > 0.75


def test_a_first_batch_of_nothing_but_nan_is_skipped(tmp_path):
    x, target = blobs().tensors
    x[:16] = torch.nan
    rule = SpikeTimingBackprop(network="mlp", num_classes=3, input_shape=(1, 2, 3), on_nonfinite="skip")
    run = trainer(tmp_path)
    run.fit(rule, DataLoader(TensorDataset(x, target), 16))
    assert run.callback_metrics["train/skipped_steps"] == 1
    assert weights(rule).isfinite().all()
