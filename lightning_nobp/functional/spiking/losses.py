r"""Losses and read-outs of spike times, each with its gradient written out.

All return means over the samples of a batch. A missing spike is infinity in the spike times; it has no gradient.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.typed import explained


class SpikeLoss(NamedTuple):
    """A loss and its gradient."""

    value: Tensor
    """0-dimensional."""
    grad: Tensor
    """Of the spike times, ``(batch, neurons, max_spikes)``."""


@explained
def first_spike_logits(spike_times: Tensor, sigma: float, t_max: float) -> Tensor:
    r"""Scores ``(batch, neurons)``, the larger the earlier the first spike: :math:`-t_1 / \sigma`.

    Args:
        spike_times: ``(batch, neurons, max_spikes)``, padded with infinity.
        sigma: Time difference of one logit, :math:`\sigma`.
        t_max: Stands in for a missing spike.
    """
    first = spike_times[..., 0]
    # Not by clamp: a spike at the very end has a gradient.
    return -torch.where(first <= t_max, first, t_max) / sigma


@explained
def first_spike_cross_entropy(spike_times: Tensor, target: Tensor, sigma: float, t_max: float) -> SpikeLoss:
    """Cross-entropy of :func:`first_spike_logits`: the neuron of the right class is to spike before all others.

    Args:
        spike_times: ``(batch, classes, max_spikes)``, padded with infinity.
        target: ``(batch,)``, int64.
        sigma: Time difference of one logit.
        t_max: Stands in for a missing spike.

    Raises:
        ValueError: A number that is not positive and finite.
    """
    _check_positive(sigma=sigma, t_max=t_max)
    logits = first_spike_logits(spike_times, sigma, t_max)
    value, by_logit = _cross_entropy(logits, target)
    grad = torch.zeros_like(spike_times, dtype=by_logit.dtype)
    grad[..., 0] = torch.where(spike_times[..., 0] <= t_max, -by_logit / sigma, 0.0)
    return SpikeLoss(value, grad)


@explained
def spike_time_mse(spike_times: Tensor, target: Tensor, t_max: float) -> SpikeLoss:
    """Half the squared distance of spike times to wanted ones, summed over a sample's spikes.

    Args:
        spike_times: ``(batch, neurons, max_spikes)``, padded with infinity.
        target: The same shape; infinity where the time of a spike is of no interest.
        t_max: Stands in for a missing spike.
    """
    is_wanted, is_spike = target < torch.inf, spike_times < torch.inf
    times = torch.where(is_spike, spike_times, t_max)
    difference = torch.where(is_wanted, times - torch.where(is_wanted, target, 0.0), 0.0)
    batch = max(1, len(times))
    return SpikeLoss(difference.square().sum() / (2 * batch), torch.where(is_spike, difference, 0.0) / batch)


@explained
def spike_trace(spike_times: Tensor, tau_out: float) -> Tensor:
    r"""Scores ``(batch, neurons)`` from all spikes, early ones counting more: :math:`\sum_k e^{-t_k / \tau_{out}}`.

    With an infinite :math:`\tau_{out}` they are the counts, which have no gradient.
    """
    return _decayed(spike_times, tau_out).sum(-1)


@explained
def trace_cross_entropy(spike_times: Tensor, target: Tensor, tau_out: float) -> SpikeLoss:
    """Cross-entropy of :func:`spike_trace`: the neuron of the right class is to spike early and often.

    Args:
        spike_times: ``(batch, classes, max_spikes)``, padded with infinity.
        target: ``(batch,)``, int64.
        tau_out: Of the trace, finite.

    Raises:
        ValueError: It is not positive and finite.
    """
    _check_positive(tau_out=tau_out)
    decayed = _decayed(spike_times, tau_out)
    value, by_trace = _cross_entropy(decayed.sum(-1), target)
    return SpikeLoss(value, -decayed / tau_out * by_trace.unsqueeze(-1))


@explained
def trace_mse(spike_times: Tensor, target: Tensor, tau_out: float) -> SpikeLoss:
    """Half the squared distance of :func:`spike_trace` to wanted ones, summed over a sample's neurons.

    Args:
        spike_times: ``(batch, neurons, max_spikes)``, padded with infinity.
        target: ``(batch, neurons)``, or what broadcasts to it.
        tau_out: Of the trace, finite.

    Raises:
        ValueError: It is not positive and finite.
    """
    _check_positive(tau_out=tau_out)
    decayed = _decayed(spike_times, tau_out)
    difference = decayed.sum(-1) - target
    batch = max(1, len(decayed))
    grad = -decayed / tau_out * difference.unsqueeze(-1) / batch
    return SpikeLoss(difference.square().sum() / (2 * batch), grad)


@explained
def first_time_penalty(spike_times: Tensor, t_ref: float) -> SpikeLoss:
    """Mean over samples and neurons of ``(t_1 - t_ref)^2``, 0 for silent ones: keeps first spikes inside the window.

    Args:
        spike_times: ``(batch, neurons, max_spikes)``, padded with infinity.
        t_ref: Where they are to be.
    """
    first = spike_times[..., 0]
    is_spike = first < torch.inf
    difference = torch.where(is_spike, first, t_ref) - t_ref
    grad = torch.zeros_like(spike_times, dtype=difference.dtype)
    grad[..., 0] = 2 * difference / max(1, difference.numel())
    return SpikeLoss(difference.square().sum() / max(1, difference.numel()), grad)


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name}={number} must be positive and finite, or the loss has no gradient")


def _decayed(spike_times: Tensor, tau_out: float) -> Tensor:
    """``exp(-t / tau_out)`` of each spike, 0 where there is none."""
    is_spike = spike_times < torch.inf
    return torch.where(is_spike, torch.exp(-torch.where(is_spike, spike_times, 0.0) / tau_out), 0.0)


def _cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the batch, and its gradient."""
    grad = torch.softmax(logits, 1)
    grad[torch.arange(len(target), device=target.device), target] -= 1
    return F.cross_entropy(logits, target), grad / max(1, len(target))
