"""SelfLearningMachine under a Trainer: processes, checkpoints, callbacks, and training that reaches something."""

from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import FORKED, load, train_self_learning_machine
from lightning.fabric.utilities.exceptions import MisconfigurationException
from resuming import assert_resumed_equals_whole
from toys import loader, trainer, weights

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.datamodules import DigitsDataModule, XORDataModule
from lightning_nobp.nn import (
    CoherentReadout,
    ImageEncoder,
    KerrCavityArray,
    KerrCavityNetwork,
    LearningFieldNetwork,
    ModeEncoder,
    TwoBeamNetwork,
    TwoFieldNLSE,
    WaveFieldNetwork,
)
from lightning_nobp.rules import SelfLearningMachine

BEAMS = partial(TwoBeamNetwork, system=TwoFieldNLSE((8, 8)), n_steps=10)
HEAVY_BALL = {"relative": False, "eta": 1e-3, "decay": 1.0}


def classifier(**options):
    return SelfLearningMachine(**{"network": BEAMS, "loss": "cross_entropy", "learning_rate": 1.0} | options)


@pytest.mark.parametrize("options", [{}, HEAVY_BALL, {"mode": "sequential", "accumulate_grad_batches": 2}])
def test_two_processes_equal_one(tmp_path, options):
    for strategy in ("auto", FORKED):
        train_self_learning_machine(tmp_path, strategy, **options)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-8, atol=1e-10)
    for name in ("train/loss_epoch", "val/loss", "val/accuracy"):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-6)


@pytest.mark.parametrize("options", [{}, HEAVY_BALL])
def test_stopped_in_the_middle_of_an_epoch_and_resumed(tmp_path, options):
    assert_resumed_equals_whole(tmp_path, lambda: classifier(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"network": "cavity", "num_classes": 2, "input_shape": (2,)},
        {"network": "wave_field", "num_classes": 4, "input_shape": (3,), "mode": "simple"},
        {"network": BEAMS, "num_classes": 3, "input_shape": (1, 2, 3), "loss": "cross_entropy", **HEAVY_BALL},
        {"network": KerrCavityNetwork((2,), 2, KerrCavityArray(disorder=0.1), n_steps=9), "num_classes": 2},
        {
            "network": LearningFieldNetwork(
                KerrCavityArray(width=3), ModeEncoder(4, (1, 2)), CoherentReadout(4, 3, modes=(0, 1, 3)), n_steps=5
            ),
            "num_classes": 3,
        },
    ],
    ids=["cavity", "wave_field", "two_beams", "disorder", "own"],
)
def test_checkpoints_say_how_to_build_the_rule_again(tmp_path, options):
    rule = SelfLearningMachine(**options)
    batch = torch.rand(3, *(options.get("input_shape", (2,)))), torch.arange(3) % 2
    rule.compute_gradients(batch)
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    torch.load(tmp_path / "rule.ckpt", weights_only=True)
    again = SelfLearningMachine.load_from_checkpoint(tmp_path / "rule.ckpt")
    assert all(map(torch.equal, again.state_dict().values(), rule.state_dict().values()))
    assert repr(again.network) == repr(rule.network)
    assert torch.equal(again(batch[0]), rule(batch[0]))


def test_the_gradient_is_aligned_with_backpropagations_and_measuring_changes_nothing(tmp_path):
    results = []
    for callbacks in ([], [GradientAlignment(1)]):
        L.seed_everything(0, verbose=False)
        rule = classifier(num_classes=3, input_shape=(1, 2, 3), eta=1e-4, kick_cutoff=1e3)
        trainer(tmp_path, max_epochs=2, callbacks=callbacks, precision="64-true").fit(rule, loader(), loader())
        results.append(weights(rule))
    assert torch.equal(*results)
    assert min(callbacks[0].cosines) > 1 - 1e-8


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_both_precisions_train(tmp_path, precision):
    L.seed_everything(0, verbose=False)
    rule = classifier(network=partial(TwoBeamNetwork, n_steps=20), learning_rate=3.0)
    run = trainer(tmp_path, max_epochs=3, precision=precision)
    run.fit(rule, datamodule=DigitsDataModule(batch_size=32, subset=500, val_size=100))
    assert run.callback_metrics["val/accuracy"] > 0.3


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precisions_are_refused(tmp_path, precision):
    with pytest.raises(MisconfigurationException, match="SelfLearningMachine supports 32-true, 64-true"):
        trainer(tmp_path, precision=precision).fit(classifier(), datamodule=DigitsDataModule())


@pytest.mark.parametrize("network", [KerrCavityNetwork, partial(WaveFieldNetwork, dt=0.05, n_steps=150)])
@pytest.mark.parametrize("mode", ["averaged", "simple", "sequential"])
def test_exclusive_or_is_learnt(tmp_path, network, mode):
    L.seed_everything(0, verbose=False)
    rate = 0.02 if network is KerrCavityNetwork else 0.05
    rule = SelfLearningMachine(
        network=network, mode=mode, eta=1e-3, learning_rate=2 * rate if mode == "simple" else rate
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(rule, datamodule=XORDataModule(batch_size=4, shuffle=False))
    assert run.callback_metrics["val/accuracy"] == 1


def test_a_batch_that_is_not_finite_is_skipped(tmp_path):
    class Broken(ImageEncoder):
        def forward(self, x):
            return super().forward(x) / (x.flatten(1).mean(1) > 0).all()

    torch.manual_seed(0)
    network = TwoBeamNetwork((1, 2, 3), 3, TwoFieldNLSE((8, 8)), n_steps=5)
    network.encoder = Broken((8, 8))
    rule = classifier(network=network, num_classes=3, input_shape=(1, 2, 3), on_nonfinite="skip")
    before = weights(rule)
    run = trainer(tmp_path)
    run.fit(rule, loader())
    assert run.callback_metrics["train/skipped_steps"] == 6
    assert torch.equal(weights(rule), before)
