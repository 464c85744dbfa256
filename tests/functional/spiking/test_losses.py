"""Losses of spike times: values by hand, gradients by autograd, and missing spikes."""

import math

import pytest
import torch
from spiking_toys import INF
from torch.nn import functional as F

from lightning_nobp.functional.spiking import (
    first_spike_cross_entropy,
    first_spike_logits,
    first_time_penalty,
    spike_time_mse,
    spike_trace,
    trace_cross_entropy,
    trace_mse,
)

T_MAX = 2.0
TARGET = torch.tensor([2, 0, 1, 1, 0])


def spike_times():
    """Some neurons fire less than others, one not at all."""
    times = T_MAX * torch.rand(5, 3, 4, dtype=torch.float64).sort(2).values
    counts = torch.randint(0, 5, (5, 3))
    counts[0, 0], counts[1, 0] = 0, 4
    return torch.where(torch.arange(4) < counts[..., None], times, INF)


def wanted_times():
    """Others, the same whenever they are asked for."""
    generator = torch.Generator().manual_seed(1)
    times = T_MAX * torch.rand(5, 3, 4, dtype=torch.float64, generator=generator).sort(2).values
    return torch.where(times < 1.5, times, INF)


LOSSES = {
    "first spike": lambda t: first_spike_cross_entropy(t, TARGET, 0.2, T_MAX),
    "spike times": lambda t: spike_time_mse(t, wanted_times(), T_MAX),
    "trace": lambda t: trace_cross_entropy(t, TARGET, 0.7),
    "count": lambda t: trace_mse(t, torch.tensor([1.0, 0.0, 3.0]).double(), 0.7),
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


def test_a_spike_at_the_end_of_the_window_has_the_gradient_that_autograd_gives_it():
    times = torch.tensor([[[T_MAX], [1.0]]], requires_grad=True)
    loss = first_spike_cross_entropy(times, torch.tensor([0]), 0.5, T_MAX)
    assert torch.allclose(loss.grad, torch.autograd.grad(loss.value, times)[0])
    assert bool((loss.grad != 0).all())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda t: first_spike_cross_entropy(t, TARGET, 0.0, T_MAX), "sigma=0.0 must be positive and finite"),
        (lambda t: first_spike_cross_entropy(t, TARGET, 0.1, INF), "t_max=inf must be positive and finite"),
        (lambda t: trace_cross_entropy(t, TARGET, INF), "tau_out=inf must be positive and finite, or the loss has no"),
        (lambda t: trace_mse(t, torch.ones(3), -1.0), "tau_out=-1.0 must be positive"),
    ],
)
def test_losses_without_a_gradient_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(spike_times())
