"""Losses of spike times: values by hand, gradients by autograd, and missing spikes."""

import math

import pytest
import torch
from spiking_toys import INF, TAUS, random_train, random_weight
from torch.nn import functional as F

from lightning_nobp.functional.spiking import (
    SpikeTrain,
    count_loss,
    first_spike_cross_entropy,
    first_spike_logits,
    first_time_penalty,
    lif_record,
    silent_penalty,
    spike_time_mse,
    spike_trace,
    trace_cross_entropy,
)

T_MAX = 2.0
TARGET = torch.tensor([2, 0, 1, 1, 0])


def spike_times():
    """Some neurons fire less than others, one not at all."""
    times = T_MAX * torch.rand(5, 3, 4, dtype=torch.float64).sort(2).values
    counts = torch.randint(0, 5, (5, 3))
    counts[0, 0], counts[1, 0] = 0, 4
    return torch.where(torch.arange(4) < counts[..., None], times, INF)


WANTED = spike_times().nan_to_num(posinf=INF)
LOSSES = {
    "first spike": lambda t: first_spike_cross_entropy(t, TARGET, 0.2, T_MAX),
    "spike times": lambda t: spike_time_mse(t, WANTED, T_MAX),
    "trace": lambda t: trace_cross_entropy(t, TARGET, 0.7),
    "count": lambda t: count_loss(t, torch.tensor([1.0, 0.0, 3.0]).double(), 0.7),
    "first time": lambda t: first_time_penalty(t, 1.2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_value(name):
    times = spike_times().requires_grad_()
    loss = LOSSES[name](times)
    (expected,) = torch.autograd.grad(loss.value, times)
    assert loss.value.isfinite()
    assert expected.norm() > 0
    assert torch.allclose(loss.grad, expected, rtol=1e-12, atol=1e-15)
    assert (loss.grad[times == INF] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_any_spike_has_a_finite_loss_and_no_gradient(name):
    loss = LOSSES[name](torch.full((5, 3, 4), INF, dtype=torch.float64))
    assert loss.value.isfinite()
    assert (loss.grad == 0).all()


def test_the_first_spike_decides():
    times = torch.tensor([[[0.5, 1.0], [INF, INF], [0.4, INF]]])
    assert torch.allclose(first_spike_logits(times, 0.1, 2.0), torch.tensor([[-5.0, -20.0, -4.0]]))
    expected = F.cross_entropy(torch.tensor([[-5.0, -20.0, -4.0]]), torch.tensor([2]))
    assert torch.allclose(first_spike_cross_entropy(times, torch.tensor([2]), 0.1, 2.0).value, expected)


def test_the_trace_counts_early_spikes_more():
    times = torch.tensor([[[0.5, 1.0], [INF, INF]]])
    assert torch.allclose(spike_trace(times, 2.0), torch.tensor([[math.exp(-0.25) + math.exp(-0.5), 0.0]]))
    assert torch.equal(spike_trace(times, INF), torch.tensor([[2.0, 0.0]]))


def test_missing_spikes_are_late_and_unwanted_ones_do_not_count():
    times, target = torch.tensor([[[0.5, 1.0], [INF, INF]]]), torch.tensor([[[0.7, INF], [1.5, INF]]])
    loss = spike_time_mse(times, target, 2.0)
    assert math.isclose(loss.value, (0.2**2 + 0.5**2) / 2, rel_tol=1e-6)
    assert torch.allclose(loss.grad, torch.tensor([[[-0.2, 0.0], [0.0, 0.0]]]))


# Silent neurons


@pytest.mark.parametrize("taus", TAUS)
def test_the_silent_penalty_is_what_potentials_lack_at_the_end(taus):
    train, weight = random_train(5, 12, 6), 0.5 * random_weight(6, 8)
    counts = lif_record(*(train.times, train.index, train.counts), weight, 2, *taus).counts
    assert 0 < (counts == 0).sum() < counts.numel()
    times = train.times.clone().requires_grad_()
    moving = weight.clone().requires_grad_()
    rate_v, rate_i = (1 / torch.tensor(tau).double() for tau in taus)
    s = torch.where(train.is_spike, T_MAX - times, 0.0)
    if math.isclose(rate_v, rate_i, rel_tol=1e-6):
        kernel = s * torch.exp(-s * (rate_v + rate_i) / 2)
    else:
        kernel = (torch.exp(-s * rate_v) - torch.exp(-s * rate_i)) / (rate_i - rate_v)
    potentials = torch.einsum("be,ben->bn", torch.where(train.is_spike, kernel, 0.0), moving[train.index])
    expected = ((1 - potentials).clamp(min=0) * (counts == 0)).sum() / 5
    penalty = silent_penalty(train, weight, counts, *taus)
    assert torch.allclose(penalty.value, expected, rtol=1e-8)
    for found, wanted in zip(penalty[1:], torch.autograd.grad(expected, [times, moving]), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-9)


def test_a_step_against_the_penalty_wakes_a_silent_neuron():
    train = SpikeTrain(torch.tensor([[0.1, 0.3]]), torch.tensor([[0, 1]]), torch.tensor([2]))
    weight, counts = torch.zeros(2, 1), torch.zeros(1, 1).long()
    for _ in range(100):
        weight -= silent_penalty(train, weight, counts, 1.0, 0.5).weight
        counts = lif_record(train.times, train.index, train.counts, weight, 1, 1.0, 0.5).counts
    assert counts.item() == 1


def test_neurons_that_fire_pay_no_penalty():
    train, weight = random_train(3, 5, 4), random_weight(4, 2)
    penalty = silent_penalty(train, weight, torch.ones(3, 2).long(), 1.0, 0.5)
    assert all((part == 0).all() for part in penalty)
