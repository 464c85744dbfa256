"""When the membrane of a neuron that stays silent comes closest to its threshold, and the gradient there."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.spiking.events import SpikeTrain
from lightning_nobp.functional.spiking.kernel import Rates, TimeConstant, kernel_rate_derivatives, psc_kernel, response
from lightning_nobp.functional.spiking.record import LayerGradients

# Times of the window at which membranes are looked at.
TIMES = 32


def window_times(t_max: float) -> list[float]:
    """The times, at equal distances up to the end of the window."""
    times: list[float] = torch.linspace(0, t_max, TIMES + 1)[1:].tolist()
    return times


class Moments(NamedTuple):
    """Some moments in the lives of some neurons, one tensor of equal length each."""

    sample: Tensor
    neuron: Tensor
    time: Tensor


@torch.no_grad()
def highest_potential(
    train: SpikeTrain, weight: Tensor, t_max: float, tau_v: TimeConstant, tau_i: TimeConstant
) -> tuple[Tensor, Tensor]:
    """The highest potential of neurons that do not spike, and when: at the best of 32 times of the window.

    Args:
        train: Input events.
        weight: ``(inputs, neurons)``.
        t_max: End of the window.
        tau_v: Membrane time constant.
        tau_i: Synaptic time constant.

    Returns:
        Potentials and times, ``(batch, neurons)``.
    """
    times = train.times.new_tensor(window_times(t_max))
    age = _age(times.unsqueeze(1), train.times.unsqueeze(1))
    potential = psc_kernel(age, tau_v, tau_i) @ weight[_index(train)]
    value, place = potential.max(1)
    return value, times[place]


def potential_at(
    moments: Moments, train: SpikeTrain, weight: Tensor, tau_v: TimeConstant, tau_i: TimeConstant
) -> Tensor:
    """Potentials of neurons that do not spike, ``(moments,)``; differentiable in all but the moments' times.

    Args:
        moments: Of whom and when.
        train: Input events.
        weight: ``(inputs, neurons)``.
        tau_v: Membrane time constant.
        tau_i: Synaptic time constant.
    """
    age = _age(moments.time.unsqueeze(1), train.times[moments.sample])
    synapses = weight[_index(train)[moments.sample], moments.neuron.unsqueeze(1)]
    return (psc_kernel(age, tau_v, tau_i) * synapses).sum(1)


def potential_at_vjp(
    grad: Tensor,
    moments: Moments,
    train: SpikeTrain,
    weight: Tensor,
    tau_v: TimeConstant,
    tau_i: TimeConstant,
    *,
    needs_tau_grad: bool = False,
) -> LayerGradients:
    """Gradients of :func:`potential_at` for the gradient ``(moments,)`` of the potentials."""
    rates, grad = Rates.of(tau_v, tau_i, 1.0), grad.unsqueeze(1)
    times, index = train.times[moments.sample], _index(train)[moments.sample]
    age, place = _age(moments.time.unsqueeze(1), times), (index, moments.neuron.unsqueeze(1))
    left, by_kernel = response(age, rates), grad * weight[place]
    # A later input has had less time: the kernel's slope, with a minus.
    by_time = torch.where(times < moments.time.unsqueeze(1), by_kernel * (rates.v * left.kernel - left.i), 0.0)
    return LayerGradients(
        torch.zeros_like(train.times).index_add_(0, moments.sample, by_time),
        torch.zeros_like(weight).index_put_(place, grad * left.kernel, accumulate=True),
        *_by_taus(by_kernel, age, rates, needs_tau_grad),
    )


def _by_taus(by_kernel: Tensor, age: Tensor, rates: Rates, needs: bool) -> tuple[Tensor | None, Tensor | None]:
    if not needs:
        return None, None
    by_v, by_i = kernel_rate_derivatives(age, rates)
    return -(rates.v**2) * (by_kernel * by_v).sum(), -(rates.i**2) * (by_kernel * by_i).sum()


def _age(now: Tensor, times: Tensor) -> Tensor:
    """Time since each event; 0, at which the kernel is 0, where there is none yet."""
    return torch.where(times < now, now - times, 0.0)


def _index(train: SpikeTrain) -> Tensor:
    return torch.where(train.is_spike, train.index, 0)
