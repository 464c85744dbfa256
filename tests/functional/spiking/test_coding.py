"""Codes: when which number sends spikes."""

import math

import pytest
import torch
from spiking_toys import INF

from lightning_nobp.functional.spiking import latency_encode, regular_encode, threshold_encode, with_inverse


def spikes(train, sample=0):
    """Pairs of time and neuron."""
    count = int(train.counts[sample])
    times = [round(t, 6) for t in train.times[sample, :count].tolist()]
    return list(zip(times, train.index[sample, :count].tolist(), strict=True))


def test_larger_numbers_spike_earlier_and_zeros_never():
    x = torch.tensor([[0.2, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    train = latency_encode(x, t_last=2.0)
    assert spikes(train) == [(0.0, 2), (1.0, 3), (1.6, 0)]
    assert spikes(train, 1) == []
    assert spikes(latency_encode(x, threshold=0.2)) == [(0.0, 2), (0.5, 3)]


def test_images_are_numbered_pixel_by_pixel():
    x = torch.zeros(2, 1, 3, 4)
    x[1, 0, 2, 1] = 0.75
    assert spikes(latency_encode(x), 1) == [(0.25, 9)]


def test_a_ramp_spikes_at_each_threshold_that_it_crosses():
    train = threshold_encode(torch.tensor([[1.0, 0.5, 0.2]]), (0.25, 0.5, 0.75), t_last=2.0)
    assert spikes(train) == [(0.5, 0), (1.0, 0), (1.0, 1), (1.5, 0), (2.0, 1)]


def test_regular_trains_have_as_many_spikes_as_the_number_is_large():
    train = regular_encode(torch.tensor([[1.0, 0.5, 0.1, 0.0]]), 4)
    assert spikes(train) == [(0.125, 0), (0.25, 1), (0.375, 0), (0.625, 0), (0.75, 1), (0.875, 0)]


def test_the_inverse_population_sees_the_negative():
    assert torch.allclose(with_inverse(torch.tensor([[[0.2], [1.0]]])).flatten(), torch.tensor([0.2, 1.0, 0.8, 0.0]))


@pytest.mark.parametrize(
    "encode", [lambda x: latency_encode(x, threshold=0.1), lambda x: threshold_encode(x, (0.3, 0.6))]
)
def test_times_are_differentiable_in_the_numbers(encode):
    x = torch.tensor([[0.9, 0.05, 0.7, 0.4]], dtype=torch.float64, requires_grad=True)

    def total(x):
        return encode(x).times.nan_to_num(posinf=0).square().sum()

    assert torch.autograd.gradcheck(total, x)
    assert torch.autograd.grad(total(x), x)[0][0, 1] == 0


@pytest.mark.parametrize(
    "encode", [latency_encode, lambda x: threshold_encode(x, (0.5,)), lambda x: regular_encode(x, 3)]
)
def test_numbers_out_of_range_are_refused(encode):
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="codes take numbers from 0 to 1, so scale them"):
            encode(torch.tensor([[0.5, bad]]))
    with pytest.raises(ValueError, match=r"x of type torch.int64 .*give floating point \(batch, ...\)"):
        encode(torch.ones(2, 3).long())
    with pytest.raises(ValueError, match=r"shape \(3,\): give floating point"):
        encode(torch.ones(3))


def test_options_out_of_range_are_refused():
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="t_last=0 must be positive"):
        latency_encode(x, t_last=0.0)
    with pytest.raises(ValueError, match="max_spikes=0 must be at least 1"):
        regular_encode(x, 0)
    for thresholds in ((), (0.5, 0.5), (0.0, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="must ascend, from above 0 up to 1"):
            threshold_encode(x, thresholds)


def test_a_code_of_an_empty_batch_is_empty():
    assert latency_encode(torch.rand(0, 3)).times.shape == (0, 0)
    assert (latency_encode(torch.zeros(2, 3)).times < INF).sum() == 0
