"""The membrane potential without spikes: what inputs alone would do to a neuron."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.spiking.kernel import Rates, TimeConstant, kernel_rate_derivatives, psc_kernel, response
from lightning_nobp.typed import explained


class PotentialGradients(NamedTuple):
    """Gradients of :func:`free_potential`'s arguments."""

    spikes: Tensor
    """``(batch, inputs, spikes)``."""
    weight: Tensor
    """``(inputs, neurons)``."""
    tau_v: Tensor | None
    """0-dimensional; None where nobody asked."""
    tau_i: Tensor | None
    """Likewise."""


def drive(spikes: Tensor, t: float, tau_v: TimeConstant, tau_i: TimeConstant) -> Tensor:
    """What each input's spikes before ``t`` add to a potential at ``t``, for a weight of 1: ``(batch, inputs)``.

    Args:
        spikes: ``(batch, inputs, spikes)``, padded with infinity.
        t: The time.
        tau_v: Membrane time constant.
        tau_i: Synaptic time constant.
    """
    return psc_kernel(_age(spikes, t), tau_v, tau_i).sum(-1)


@explained
def free_potential(spikes: Tensor, weight: Tensor, t: float, tau_v: TimeConstant, tau_i: TimeConstant) -> Tensor:
    """Potential at ``t`` of neurons that do not spike, ``(batch, neurons)``; differentiable.

    Args:
        spikes: ``(batch, inputs, spikes)``, padded with infinity.
        weight: ``(inputs, neurons)``.
        t: The time.
        tau_v: Membrane time constant.
        tau_i: Synaptic time constant.
    """
    return drive(spikes, t, tau_v, tau_i) @ weight


@explained
def free_potential_vjp(
    grad: Tensor,
    spikes: Tensor,
    weight: Tensor,
    t: float,
    tau_v: TimeConstant,
    tau_i: TimeConstant,
    *,
    needs_tau_grad: bool = False,
) -> PotentialGradients:
    """Gradients of :func:`free_potential` for the gradient ``(batch, neurons)`` of the potential."""
    age = _age(spikes, t)
    rates = Rates.of(tau_v, tau_i, 1.0)
    left = response(age, rates)
    grad_drive = (grad @ weight.t()).unsqueeze(-1)
    # A later spike has had less time: the kernel's slope, with a minus.
    grad_spikes = torch.where(spikes < t, grad_drive * (rates.v * left.kernel - left.i), 0.0)
    by_weight = left.kernel.sum(-1).t() @ grad
    if not needs_tau_grad:
        return PotentialGradients(grad_spikes, by_weight, None, None)
    by_rates = zip(rates[:2], kernel_rate_derivatives(age, rates), strict=True)
    return PotentialGradients(grad_spikes, by_weight, *(-(r**2) * (grad_drive * by_r).sum() for r, by_r in by_rates))


def _age(spikes: Tensor, t: float) -> Tensor:
    """Time since each spike; 0, at which the kernel is 0, where there is none yet."""
    return torch.where(spikes < t, t - spikes, 0.0)
