"""Imperfect hardware: the same device after a restart, and nothing at all unless asked."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from imperfect import fit, spsa
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import backprop, loader, trainer, weights

from lightning_nobp.callbacks import HardwareNoise
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP
from lightning_nobp.rules import (
    MultiplexedGradientDescent,
    ResidualCompensation,
)


def test_nothing_is_registered_and_nothing_changes_unless_asked(tmp_path):
    class Hooks(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            assert pl_module.cost_hooks == pl_module.difference_hooks == []
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in pl_module.network.modules())
            [optimizer] = trainer.optimizers
            assert not optimizer._optimizer_step_pre_hooks
            assert not optimizer._optimizer_step_post_hooks

    plain, off = spsa(), spsa()
    fit(tmp_path, plain)
    fit(tmp_path, off, HardwareNoise(), Hooks())
    assert torch.equal(weights(off), weights(plain))


EVERYTHING = {
    "cost_noise": 0.01,
    "cost_noise_relative": 0.01,
    "cost_quantisation": 1e-4,
    "readout_delay": 3,
    "update_noise": 1e-3,
    "update_step": 1e-3,
    "update_rounding": "stochastic",
    "dead_zone": 1e-4,
    "up_gain": 1.1,
    "weight_range": 1.0,
    "saturation": "soft",
    "weight_bits": 10,
    "weight_rounding": "stochastic",
    "drift": 1e-3,
    "stuck_fraction": 0.1,
    "activation_variation": 0.1,
}


def hooks_of(run, module):
    found = [h for m in module.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    for optimizer in run.optimizers:
        found += [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    return found + module.cost_hooks + module.difference_hooks


@pytest.mark.parametrize("step", [3, 5, 9])
def test_stopped_after_any_batch_and_resumed(tmp_path, step):
    def run(folder, ckpt_path=None, seed=7):
        saved = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        module, noise = spsa(num_classes=10, input_shape=(1, 8, 8)), HardwareNoise(**EVERYTHING, seed=seed)
        made = trainer(folder, max_epochs=2, callbacks=[noise, saved], enable_checkpointing=True)
        made.fit(module, datamodule=DigitsDataModule(batch_size=64, subset=400, val_size=100), ckpt_path=ckpt_path)
        assert hooks_of(made, module) == []
        return module, noise

    whole, noise = run(tmp_path / "whole")
    # The device is the checkpoint's, whatever seed is given now.
    resumed, other = run(tmp_path / "resumed", tmp_path / "whole" / f"step={step}.ckpt", seed=0)
    assert torch.equal(weights(resumed), weights(whole))
    state, expected = other.state_dict(), noise.state_dict()
    assert torch.equal(state["readout"][0].pop("late"), expected["readout"][0].pop("late"))
    assert state == expected == {"seed": 7, "updates": 10, "readout": [{"read_outs": 200}]}


def test_an_exception_leaves_no_hook_behind(tmp_path):
    class Fails(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            assert hooks_of(trainer, pl_module)
            raise RuntimeError("it was meant to")

    module = spsa()
    run = trainer(tmp_path, callbacks=[HardwareNoise(**EVERYTHING), Fails()])
    with pytest.raises(RuntimeError, match="it was meant to"):
        run.fit(module, loader())
    assert hooks_of(run, module) == []


def test_another_fit_starts_anew(tmp_path):
    noise, results = HardwareNoise(**EVERYTHING), []
    for _ in range(2):
        module = spsa()
        fit(tmp_path, module, noise)
        results.append(weights(module))
    assert torch.equal(*results)


# At the door


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({name: -1}, f"{name}=-1 must not be negative")
            for name in (
                "cost_noise",
                "cost_noise_relative",
                "cost_quantisation",
                "readout_delay",
                "update_noise",
                "update_step",
                "dead_zone",
                "up_gain",
                "down_gain",
                "activation_variation",
            )
        ),
        ({"update_noise": math.nan}, "update_noise=nan must be finite"),
        ({"drift": 1.5}, "drift=1.5 is a fraction: give a number from 0 to 1"),
        ({"stuck_fraction": -0.5}, "stuck_fraction=-0.5 is a fraction: give a number from 0 to 1"),
        ({"update_rounding": "up"}, "update_rounding='up' is not one of 'nearest', 'stochastic'"),
        ({"weight_rounding": "up"}, "weight_rounding='up' is not one of 'nearest', 'stochastic'"),
        ({"saturation": "firm"}, "saturation='firm' is not one of 'hard', 'soft'"),
        ({"weight_range": 0.0}, "weight_range=0.0 must be positive, or None for no bound"),
        ({"weight_bits": 1, "weight_range": 1.0}, "weight_bits=1 has no level but zero: give at least 2, or None"),
        ({"weight_bits": 4}, "weight_bits=4 needs a bound: give weight_range too"),
        ({"saturation": "soft"}, "saturation='soft' needs a bound: give weight_range too"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HardwareNoise(**arguments)


@pytest.mark.parametrize("argument", ["cost_noise", "cost_noise_relative", "cost_quantisation", "readout_delay"])
def test_rules_that_read_no_costs_are_refused(tmp_path, argument):
    with pytest.raises(MisconfigurationException, match="a Backprop reads none: train with MultiplexedGradientDescent"):
        fit(tmp_path, backprop(), HardwareNoise(**{argument: 1}))


def test_what_is_read_all_at_once_cannot_come_late(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"readout_delay=2: .* engine='vmap' or 'in_place'"):
        fit(tmp_path, spsa(in_time_order=False), HardwareNoise(readout_delay=2))


def test_a_backward_pass_that_knows_no_variation_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"activation_variation=0\.1: .* take engine='autograd'"):
        fit(tmp_path, backprop(), HardwareNoise(activation_variation=0.1))


def test_networks_without_activation_modules_are_refused(tmp_path):
    module = backprop(network=partial(MLP, hidden_dims=()), engine="autograd")
    with pytest.raises(
        MisconfigurationException, match=r"activation_variation=0\.1: Backprop has no activation .* nn\."
    ):
        fit(tmp_path, module, HardwareNoise(activation_variation=0.1))


def test_closed_forms_are_refused(tmp_path):
    rule = ResidualCompensation()
    with pytest.raises(MisconfigurationException, match="ResidualCompensation solves for its weights"):
        trainer(tmp_path, callbacks=[HardwareNoise(update_noise=0.1)], max_epochs=-1).fit(rule, loader())


@pytest.mark.parametrize("engine", ["vmap", "in_place", "per_sample"])
def test_multiplexed_gradient_descent_resumes_on_the_same_device(tmp_path, engine):
    noise = {"cost_noise": 1e-3, "update_noise": 1e-3, "weight_range": 2.0, "weight_bits": 8, "stuck_fraction": 0.1}
    noise |= {"activation_variation": 0.1, "weight_rounding": "stochastic"}
    if engine != "per_sample":
        noise["readout_delay"] = 1

    def run(ckpt_path=None, **options):
        torch.manual_seed(0)
        network = partial(MLP, hidden_dims=(8,), activation="tanh")
        rule = MultiplexedGradientDescent(network=network, engine=engine, num_perturbations=3)
        saved = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        callbacks = [saved, HardwareNoise(**options)] if options else [saved]
        fit = trainer(tmp_path, max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
        fit.fit(rule, datamodule=DigitsDataModule(subset=200, val_size=40, batch_size=32), ckpt_path=ckpt_path)
        return weights(rule)

    whole = run(**noise)
    for at in (2, 5, 7):
        assert torch.equal(run(tmp_path / f"step={at}.ckpt", **noise), whole)
    assert not torch.allclose(run(), whole)


def test_rules_whose_optimizer_moves_nothing_are_refused(tmp_path):
    module = backprop()
    module.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="a Backprop gives them nothing"):
        fit(tmp_path, module, HardwareNoise(drift=0.1))
