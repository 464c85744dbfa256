"""Costs as an imperfect instrument reads them."""

import math

import pytest
import torch
from imperfect import fit, spsa
from toys import weights

from lightning_nobp.callbacks import HardwareNoise
from lightning_nobp.callbacks.noisy_readout import NoisyReadout


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
