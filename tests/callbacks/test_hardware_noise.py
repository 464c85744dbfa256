"""Imperfect hardware: each noise as documented, the same device after a restart, and nothing at all unless asked."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.func import functional_call, jvp, vmap
from toys import backprop, loader, trainer, weights

from lightning_nobp.callbacks import HardwareNoise
from lightning_nobp.callbacks.activation_variation import ActivationVariation
from lightning_nobp.callbacks.imperfect_memory import ImperfectMemory
from lightning_nobp.callbacks.noisy_readout import NoisyReadout
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.functional.counter_random import random_signs
from lightning_nobp.functional.device import part_seed, unit_variation
from lightning_nobp.nn import MLP
from lightning_nobp.rules import (
    Backprop,
    ClassificationRule,
    LearningRule,
    MultiplexedGradientDescent,
    ResidualCompensation,
)

SIGMOID = partial(MLP, hidden_dims=(8,), activation="sigmoid")


class Spsa(ClassificationRule):
    """Two costs a perturbation, ten perturbations a batch."""

    def __init__(self, in_time_order=True, **kwargs):
        super().__init__(**kwargs)
        self.cost_hooks, self.difference_hooks = [], []
        self.reads_in_time_order = in_time_order

    @torch.no_grad()
    def compute_gradients(self, batch):
        flat = weights(self)
        steps = torch.arange(10 * self.trainer.global_step, 10 * self.trainer.global_step + 10)
        signs = random_signs(0, steps, 0, len(flat))
        costs = torch.stack([self.cost(flat + turn * 0.01 * s, batch) for s in signs for turn in (1, -1)]).view(-1, 2)
        for hook in self.cost_hooks:
            costs = hook(costs)
        differences = (costs[:, 0] - costs[:, 1]) / 2
        for hook in self.difference_hooks:
            differences = hook(differences)
        nn.utils.vector_to_parameters(flat, self.parameters())
        grad = (differences / 0.01) @ signs / 10
        for p, piece in zip(self.parameters(), grad.split([p.numel() for p in self.parameters()]), strict=True):
            p.grad = piece.view_as(p)
        return {"loss": costs.mean()}

    def cost(self, flat, batch):
        nn.utils.vector_to_parameters(flat, self.parameters())
        return self.loss_function(self(batch[0]), batch[1])


class Ordinary(L.LightningModule):
    """A module of somebody else's, in automatic optimization."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = SIGMOID((1, 2, 3), 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class TwoOptimizers(Ordinary):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.network[1].parameters(), lr=0.1), torch.optim.Adam(self.network[3].parameters())]


def spsa(**kwargs):
    torch.manual_seed(0)
    defaults = {"network": SIGMOID, "num_classes": 3, "input_shape": (1, 2, 3)}
    return Spsa(**defaults | {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.5)} | kwargs)


def varied(**kwargs):
    return backprop(network=SIGMOID, engine="autograd", **kwargs)


def fit(folder, module, *callbacks, **kwargs):
    run = trainer(folder, callbacks=list(callbacks), **kwargs)
    run.fit(module, loader(), loader() if isinstance(module, LearningRule) else None)
    return run


def written(memory, start, changes, seed=0, dtype=torch.float32):
    """Weights after each of some changes that plain SGD asks for."""
    parameter = nn.Parameter(torch.as_tensor(start, dtype=dtype).clone())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    memory.attach([optimizer], seed)
    results = []
    for change in changes:
        parameter.grad = None if change is None else -torch.as_tensor(change, dtype=dtype).expand_as(parameter)
        optimizer.step()
        results.append(parameter.detach().clone())
    memory.detach()
    return results


class Watch(L.Callback):
    """Keep the weights at the start and after every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(weights(pl_module))


# Weights


def test_update_noise_has_mean_zero_and_the_given_deviation():
    number = 100_000
    first, second = written(ImperfectMemory(update_noise=0.3), torch.zeros(number), [0.0, 0.0])
    for noise in (first, second - first):
        assert abs(noise.mean()) < 4 * 0.3 / math.sqrt(number)
        assert abs(noise.std() - 0.3) < 4 * 0.3 / math.sqrt(2 * number)
    assert abs(torch.corrcoef(torch.stack([first, second - first]))[0, 1]) < 4 / math.sqrt(number)


def test_every_process_writes_the_same_weights_and_reads_other_costs(monkeypatch):
    results = []
    for rank in (0, 1):
        monkeypatch.setattr("lightning_nobp.callbacks.noisy_readout.rank", lambda rank=rank: rank)
        memory = ImperfectMemory(update_noise=0.1, update_step=0.01, update_rounding="stochastic", stuck_fraction=0.2)
        readout = NoisyReadout(cost_noise=0.1)
        readout.attach(spsa(), seed=3)
        results.append((written(memory, torch.zeros(50), [0.02, 0.1], seed=3)[-1], readout.read(torch.ones(50))))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.isclose(results[0][1], results[1][1]).any()


def test_another_seed_is_another_device():
    a, b = (written(ImperfectMemory(update_noise=0.1), torch.zeros(50), [0.0], seed)[-1] for seed in (0, 1))
    assert not torch.isclose(a, b).any()


def test_updates_come_in_pulses():
    [nearest] = written(ImperfectMemory(update_step=0.25), torch.zeros(4), [[0.1, 0.2, -0.3, -0.7]])
    assert nearest.tolist() == [0, 0.25, -0.25, -0.75]


def test_stochastic_pulses_are_right_on_average():
    number = 100_000
    memory = ImperfectMemory(update_step=0.25, update_rounding="stochastic")
    first, second = written(memory, torch.zeros(number), [0.1, 0.1])
    error = 0.25 * math.sqrt(0.4 * 0.6 / number)
    assert abs(first.mean() - 0.1) < 4 * error
    assert abs(second.mean() - 0.2) < 4 * error * math.sqrt(2)
    assert first.unique().tolist() == [0, 0.25]


def test_the_device_answers_what_the_optimizer_changed():
    memory = ImperfectMemory(dead_zone=0.15, up_gain=2.0, down_gain=0.5)
    [moved] = written(memory, torch.ones(4), [[0.1, 0.2, -0.1, -0.2]], dtype=torch.float64)
    torch.testing.assert_close(moved, torch.tensor([1, 1.4, 1, 0.9], dtype=torch.float64))


def test_an_optimizer_of_any_kind_is_distorted():
    # Adam's first steps are as long as its learning rate, however small the gradient.
    results = {}
    for dead_zone in (0.9e-2, 1.1e-2):
        parameter = nn.Parameter(torch.zeros(5))
        optimizer = torch.optim.Adam([parameter], lr=1e-2)
        memory = ImperfectMemory(dead_zone=dead_zone)
        memory.attach([optimizer], 0)
        parameter.grad = torch.full((5,), 1e-3)
        optimizer.step()
        results[dead_zone] = parameter.detach()
    torch.testing.assert_close(results[0.9e-2], torch.full((5,), -1e-2), rtol=1e-3, atol=0)
    assert torch.equal(results[1.1e-2], torch.zeros(5))


@pytest.mark.parametrize(("saturation", "expected"), [("hard", 1.0), ("soft", 1 - 0.6**4)])
def test_weights_stay_in_their_range(saturation, expected):
    memory = ImperfectMemory(weight_range=1.0, saturation=saturation)
    results = written(memory, torch.zeros(3), [0.4] * 4, dtype=torch.float64)
    torch.testing.assert_close(results[-1], torch.full((3,), expected, dtype=torch.float64), rtol=0, atol=1e-12)
    [clipped] = written(memory, torch.tensor([-3.0, 3.0]), [None])
    assert clipped.tolist() == [-1, 1]


def test_drift_is_exact_and_needs_no_gradient():
    start = torch.randn(6).double()
    memory = ImperfectMemory(drift=0.1, update_noise=1.0)
    results = written(memory, start, [None] * 5, dtype=torch.float64)
    torch.testing.assert_close(results[-1], start * 0.9**5, rtol=1e-14, atol=0)


def test_stuck_parameters_never_move_and_the_others_move_as_ever():
    number = 20_000
    memory = ImperfectMemory(stuck_fraction=0.1)
    changes = [torch.randn(number) for _ in range(3)]
    ideal = written(ImperfectMemory(), torch.ones(number), changes)
    results = written(memory, torch.ones(number), changes)
    stuck = results[0] == 1
    assert abs(stuck.double().mean() - 0.1) < 4 * math.sqrt(0.09 / number)
    for found, free in zip(results, ideal, strict=True):
        assert torch.equal(found[stuck], torch.ones(int(stuck.sum())))
        assert torch.equal(found[~stuck], free[~stuck])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_weights_lie_on_the_grid_from_the_start_on(tmp_path, rounding):
    watch = Watch()
    noise = HardwareNoise(weight_range=0.7, weight_bits=4, weight_rounding=rounding, update_noise=0.1, drift=0.01)
    fit(tmp_path, backprop(), noise, watch)
    seen = torch.stack(watch.seen).double() / (0.7 / 7)
    torch.testing.assert_close(seen, seen.round(), rtol=0, atol=1e-5)
    assert seen.abs().max() <= 7 + 1e-5
    assert not torch.equal(seen[0], seen[-1])


def test_stuck_parameters_keep_the_value_they_started_with(tmp_path):
    watch = Watch()
    fit(tmp_path, Ordinary(), HardwareNoise(stuck_fraction=0.3, update_noise=0.01, drift=0.1), watch, max_epochs=2)
    seen = torch.stack(watch.seen)
    stuck = (seen == seen[0]).all(0)
    assert 0.15 < stuck.double().mean() < 0.45
    assert (seen[2:, ~stuck] != seen[0, ~stuck]).all()


@pytest.mark.parametrize("kind", [Ordinary, TwoOptimizers])
def test_modules_of_any_kind_and_several_optimizers(tmp_path, kind):
    noise = HardwareNoise(update_noise=0.01, activation_variation=0.1)
    module, other = kind(), kind()
    run = fit(tmp_path, module, noise)
    assert noise.memory.updates == 6 * len(run.optimizers)
    fit(tmp_path, other)
    assert not torch.isclose(weights(module), weights(other)).all()


def test_a_skipped_step_writes_nothing(tmp_path):
    class Spoilt(Backprop):
        def compute_gradients(self, batch):
            values = super().compute_gradients(batch)
            self.network[1].bias.grad.fill_(torch.nan)
            return values

    torch.manual_seed(0)
    module = Spoilt(network=SIGMOID, num_classes=3, input_shape=(1, 2, 3), on_nonfinite="skip")
    before = weights(module)
    fit(tmp_path, module, HardwareNoise(update_noise=1.0))
    assert torch.equal(weights(module), before)


# Costs


@pytest.mark.parametrize(
    ("absolute", "relative", "expected"), [(0.3, 0.0, 0.3), (0.0, 0.1, 0.2), (0.3, 0.1, math.hypot(0.3, 0.2))]
)
def test_read_outs_have_the_cost_as_mean_and_the_given_deviation(absolute, relative, expected):
    number = 100_000
    readout = NoisyReadout(cost_noise=absolute, cost_noise_relative=relative)
    error = readout.read(torch.full((number // 10, 5, 2), 2.0, dtype=torch.float64)) - 2
    assert error.dtype == torch.float64
    assert abs(error.mean()) < 4 * expected / math.sqrt(number)
    assert abs(error.std() - expected) < 4 * expected / math.sqrt(2 * number)


def test_no_read_out_repeats_another_however_they_are_grouped():
    costs = torch.zeros(30)
    together, apart = NoisyReadout(cost_noise=1.0), NoisyReadout(cost_noise=1.0)
    expected = together.read(costs)
    assert torch.equal(torch.cat([apart.read(part) for part in costs.split(7)]), expected)
    assert len(expected.unique()) == 30


def test_read_outs_are_rounded():
    assert NoisyReadout(cost_quantisation=0.5).read(torch.tensor([0.2, 0.3, 1.6])).tolist() == [0, 0.5, 1.5]


@pytest.mark.parametrize("lengths", [(12,), (5, 7), (1, 2, 3, 6), (12, 0)])
def test_a_delay_shifts_differences_over_all_batches(lengths):
    readout = NoisyReadout(readout_delay=3)
    late = torch.cat([readout.hold_back(part) for part in torch.arange(1.0, 13).split(lengths)])
    assert late.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_rule_learns_from_what_is_read(tmp_path):
    results = []
    for noise in ({}, {"cost_noise": 0.01}, {"cost_quantisation": 100.0}, {"readout_delay": 10}):
        module = spsa()
        before = weights(module)
        fit(tmp_path, module, HardwareNoise(**noise), limit_train_batches=1)
        results.append(weights(module) - before)
        assert module.cost_hooks == module.difference_hooks == []
    ideal, noisy, rounded, late = results
    assert ideal.norm() > 0
    assert not torch.isclose(noisy, ideal).all()
    # All costs are rounded to zero; all differences of the first batch come with the second.
    assert torch.equal(rounded, torch.zeros_like(ideal))
    assert torch.equal(late, torch.zeros_like(ideal))


# Units


def attached(network, sigma=0.3, seed=0):
    variation = ActivationVariation(sigma)
    variation.attach(network, seed)
    return variation


def test_units_have_curves_of_their_own():
    network = SIGMOID((1, 2, 3), 3)
    x = torch.randn(5, 1, 2, 3)
    _, linear, _, readout = network
    v = unit_variation(part_seed(0, "activation 2"), 0.3, (8,), "cpu")
    variation = attached(network)
    expected = readout(v.height * torch.sigmoid(v.steepness * (linear(x.flatten(1)) - v.shift)) + v.offset)
    torch.testing.assert_close(network(x), expected)
    variation.detach()
    torch.testing.assert_close(network(x), readout(torch.sigmoid(linear(x.flatten(1)))))


def test_the_units_of_maps_have_curves_each():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    attached(network)
    y = network(torch.ones(3, 1, 4, 5))
    assert torch.equal(y[0], y[2])
    assert len(y[0].unique()) > 20


def test_units_do_not_draw_from_torch():
    network = SIGMOID((1, 2, 3), 3)
    attached(network)
    state = torch.get_rng_state()
    network(torch.ones(2, 6))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("first", ["plain", "inference", "vmap", "jvp"])
def test_units_are_the_same_under_every_transform(first):
    torch.manual_seed(0)
    network = SIGMOID((1, 2, 3), 3)
    x, parameters = torch.randn(4, 6), {name: p.detach() for name, p in network.named_parameters()}
    attached(network)

    def cost(given):
        return functional_call(network, given, (x,)).square().mean()

    def in_inference_mode():
        with torch.inference_mode():
            return cost(parameters)

    def with_autograd():
        result = network(x).square().mean()
        result.backward()
        return result.detach()

    ways = {
        "plain": with_autograd,
        "inference": in_inference_mode,
        "vmap": lambda: vmap(cost)({name: p.expand(3, *p.shape) for name, p in parameters.items()}).mean(),
        "jvp": lambda: jvp(cost, (parameters,), (parameters,))[0],
    }
    # Whichever comes first draws the numbers.
    results = [ways[first](), *(way() for way in ways.values())]
    torch.testing.assert_close(torch.stack(results), results[0].expand(5))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_units_are_the_same_in_training_and_afterwards(tmp_path, stage):
    module = varied()
    fit(tmp_path, module, HardwareNoise(activation_variation=0.4, seed=5))
    [(x, target)] = list(loader(96, 96))
    ideal = module(x)
    variation = attached(module, 0.4, seed=5)
    expected = module(x)
    assert not torch.isclose(ideal, expected).all()
    variation.detach()
    run = trainer(tmp_path, callbacks=[HardwareNoise(activation_variation=0.4, seed=5)])
    found = getattr(run, stage)(module, loader(96, 96))
    if stage == "predict":
        torch.testing.assert_close(found[0], expected.softmax(-1))
    else:
        prefix = {"validate": "val", "test": "test"}[stage]
        assert found[0][f"{prefix}/loss"] == pytest.approx(nn.functional.cross_entropy(expected, target).item())
    assert torch.equal(module(x), ideal)


def test_a_checkpoint_is_tested_on_the_device_that_it_was_trained_on(tmp_path):
    module = varied()
    fit(tmp_path, module, HardwareNoise(activation_variation=0.4, seed=5)).save_checkpoint(tmp_path / "run.ckpt")
    results = []
    for seed, path in ((5, None), (0, tmp_path / "run.ckpt"), (0, None)):
        run = trainer(tmp_path, callbacks=[HardwareNoise(activation_variation=0.4, seed=seed)])
        results += run.test(module, loader(), ckpt_path=path)
    assert results[0] == results[1] != results[2]


def test_training_follows_the_gradient_of_the_varied_units(tmp_path):
    module, reference = varied(), varied()
    fit(tmp_path, module, HardwareNoise(activation_variation=0.4), max_steps=1)
    attached(reference, 0.4)
    x, target = next(iter(loader()))
    reference.loss_function(reference(x), target).backward()
    expected = [p - 0.1 * p.grad for p in reference.parameters()]
    torch.testing.assert_close(list(module.parameters()), expected)


# A run


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
        ({"update_noise": math.nan}, "update_noise=nan must not be negative"),
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
