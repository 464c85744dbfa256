"""Weights in a memory that is written imperfectly."""

import math

import pytest
import torch
from imperfect import SIGMOID, Ordinary, TwoOptimizers, Watch, fit, spsa, written
from torch import nn
from toys import backprop, weights

from lightning_nobp.callbacks import HardwareNoise
from lightning_nobp.callbacks.imperfect_memory import ImperfectMemory
from lightning_nobp.callbacks.noisy_readout import NoisyReadout
from lightning_nobp.rules import (
    Backprop,
)


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
