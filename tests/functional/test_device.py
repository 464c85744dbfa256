"""Imperfect devices: rounding, memories and units, against what defines them."""

import math

import pytest
import torch

from lightning_nobp.functional.counter_random import random_uniform
from lightning_nobp.functional.device import (
    device_update,
    grid_step,
    part_seed,
    quantise,
    unit_variation,
)


def uniform(size, seed=0):
    return random_uniform(seed, torch.zeros(1, dtype=torch.int64), 0, size)[0]


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_parts_of_a_device_have_seeds_of_their_own():
    seeds = {part_seed(seed, part) for seed in range(10) for part in ("noise", "stuck", "cost")}
    assert len(seeds) == 30
    assert part_seed(3, "noise") == part_seed(3, "noise")


def test_nearest_rounding_finds_the_nearest_multiple():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    rounded = quantise(x, 0.25)
    assert (rounded - x).abs().max() <= 0.125
    assert torch.equal(rounded / 0.25, (rounded / 0.25).round())


@pytest.mark.parametrize("step", [0.1, 1 / 127, 3e-5])
def test_multiples_stay_where_they_are(step):
    multiples = torch.arange(-2000, 2001) * step
    assert torch.equal(quantise(multiples, step), multiples)
    # What rounding left of a multiple may be a little less than one: then it stays nearly always.
    stochastic = quantise(multiples, step, uniform(4001))
    assert (stochastic != multiples).sum() <= 1


@pytest.mark.parametrize("value", [0.3, 0.96, -0.3, -7.01])
def test_stochastic_rounding_is_right_on_average(value):
    number = 200_000
    rounded = quantise(torch.full((number,), value), 1.0, uniform(number))
    fraction = value - math.floor(value)
    assert rounded.unique().tolist() == [math.floor(value), math.ceil(value)]
    error = math.sqrt(fraction * (1 - fraction) / number)
    assert rounded.double().mean().item() == pytest.approx(value, abs=4 * error)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_grid_has_as_many_levels_above_zero_as_below(bits):
    step = grid_step(1.5, bits)
    levels = quantise(torch.linspace(-1.5, 1.5, 10_001, dtype=torch.float64), step).unique()
    assert len(levels) == 2**bits - 1
    assert 0 in levels
    torch.testing.assert_close(levels[[0, -1]], doubles(-1.5, 1.5))


def test_an_ideal_device_does_what_it_is_asked():
    change = torch.randn(50)
    assert torch.equal(device_update(change, torch.randn(50)), change)


def test_small_changes_are_none():
    change = doubles(-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)
    done = device_update(change, torch.zeros(7), dead_zone=0.2)
    assert torch.equal(done, doubles(-0.3, -0.2, 0, 0, 0, 0.2, 0.3))


def test_up_and_down_have_gains_of_their_own():
    done = device_update(doubles(-1, 2), torch.zeros(2), up_gain=0.5, down_gain=3.0)
    assert torch.equal(done, doubles(-3, 1))


def test_steps_vanish_at_a_soft_bound_and_double_on_the_way_back():
    weights, change = doubles(-2, 0, 1, 2), torch.ones(4).double()
    assert torch.equal(device_update(change, weights, soft_bound=2.0), doubles(2, 1, 0.5, 0))
    assert torch.equal(device_update(-change, weights, soft_bound=2.0), -doubles(0, 1, 1.5, 2))


def test_equal_steps_near_a_soft_bound_follow_their_geometric_series():
    weights, bound, step = doubles(0.0), 2.0, 0.3
    for _ in range(20):
        weights = weights + device_update(doubles(step), weights, soft_bound=bound)
    assert weights.item() == pytest.approx(bound * (1 - (1 - step / bound) ** 20), rel=1e-12)


def test_units_vary_as_documented():
    sigma, number = 0.2, 40_000
    variation = torch.stack(unit_variation(0, sigma, (200, 200), "cpu")).flatten(1).double()
    expected = doubles(0, 1, 1, 0)
    assert (variation.mean(1) - expected).abs().max() < 4 * sigma / math.sqrt(number)
    assert (variation.std(1) - sigma).abs().max() < 4 * sigma / math.sqrt(2 * number)
    correlations = torch.corrcoef(variation) - torch.eye(4)
    assert correlations.abs().max() < 4 / math.sqrt(number)


def test_curves_are_those_of_the_formula():
    variation = unit_variation(1, 0.3, (5,), "cpu")
    a = torch.randn(7, 5)
    found = variation.leave(torch.tanh(variation.enter(a)))
    for unit, (x0, k, height, y0) in enumerate(zip(*variation, strict=True)):
        torch.testing.assert_close(found[:, unit], height * torch.tanh(k * (a[:, unit] - x0)) + y0)


def test_units_without_variation_are_ideal():
    variation = unit_variation(0, 0.0, (4,), "cpu")
    a = torch.randn(3, 4)
    assert torch.equal(variation.leave(variation.enter(a)), a)
