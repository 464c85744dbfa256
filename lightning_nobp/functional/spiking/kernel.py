r"""What one input spike does to a leaky integrate-and-fire neuron, for any two time constants.

The potential decays with :math:`\tau_v` and integrates a current that decays with :math:`\tau_i`. Both may be infinite.
Rates :math:`1 / \tau` are 0 then, and no formula needs a case of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.typed import explained

TimeConstant = float | Tensor
"""A positive number, infinity among them, or a tensor of one that may be learned."""

# Below, the quotient -expm1(-d) / d and its derivative are taken from their series.
_SERIES = 1e-4


@explained
def psc_kernel(s: Tensor, tau_v: TimeConstant, tau_i: TimeConstant) -> Tensor:
    r"""The potential that an input spike of weight 1 has caused after a time.

    .. math::

        K(s) = \frac{e^{-s / \tau_v} - e^{-s / \tau_i}}{1 / \tau_i - 1 / \tau_v}

    with its limits :math:`s\,e^{-s / \tau}` of equal constants, :math:`\tau_v (1 - e^{-s / \tau_v})` of
    a current without decay and :math:`s` without any. It is symmetric in the two constants, and differentiable in all
    arguments.

    Args:
        s: Time since the spike, any shape, not negative.
        tau_v: Membrane time constant :math:`\tau_v`, in the unit of ``s``; ``float('inf')`` for none.
        tau_i: Synaptic time constant :math:`\tau_i`, likewise.

    Returns:
        The shape of ``s``, in its unit.
    """
    rate_v, rate_i = (1 / torch.as_tensor(tau, dtype=s.dtype, device=s.device) for tau in (tau_v, tau_i))
    return s * torch.exp(-s * torch.minimum(rate_v, rate_i)) * _mean_decay(s * (rate_i - rate_v).abs())


def _mean_decay(d: Tensor) -> Tensor:
    """``(1 - exp(-d)) / d``, the mean of the exponential from 0 to d."""
    is_small = d < _SERIES
    # A derivative of the quotient at 0 would be nan, and nan times 0 too.
    safe = torch.where(is_small, torch.ones_like(d), d)
    return torch.where(is_small, 1 - d / 2 * (1 - d / 3 * (1 - d / 4)), -torch.expm1(-safe) / safe)


def number(tau: TimeConstant) -> float:
    """The value of a time constant."""
    return float(tau.detach()) if isinstance(tau, Tensor) else float(tau)


class Rates(NamedTuple):
    """The numbers of a neuron: its threshold, and the inverse of its time constants."""

    v: float
    """Of the membrane, 1 / tau_v."""
    i: float
    """Of the synaptic current, 1 / tau_i."""
    theta: float

    @classmethod
    def of(cls, tau_v: TimeConstant, tau_i: TimeConstant, theta: float) -> "Rates":
        """From time constants."""
        return cls(1 / number(tau_v), 1 / number(tau_i), theta)


class Response(NamedTuple):
    """What is left of a potential and of a current after a time, and the potential that the current has caused."""

    v: Tensor
    i: Tensor
    kernel: Tensor


def response(s: Tensor, rates: Rates) -> Response:
    """The solution of the neuron's linear equations after times ``s``, of any shape."""
    slow, difference = min(rates.v, rates.i), abs(rates.v - rates.i)
    slow_decay = torch.exp(-s * slow)
    fast_decay = slow_decay * torch.exp(-s * difference)
    kernel = s * slow_decay * _mean_decay(s * difference)
    return Response(slow_decay, fast_decay, kernel) if rates.v <= rates.i else Response(fast_decay, slow_decay, kernel)


def kernel_rate_derivatives(s: Tensor, rates: Rates) -> tuple[Tensor, Tensor]:
    """Derivatives of :func:`psc_kernel` with respect to ``1 / tau_v`` and ``1 / tau_i``, exact for equal ones too."""
    slow, d = min(rates.v, rates.i), s * abs(rates.v - rates.i)
    scale = -s.square() * torch.exp(-s * slow)
    by_slow, by_fast = scale * _ramp_down_decay(d), scale * _ramp_up_decay(d)
    return (by_slow, by_fast) if rates.v <= rates.i else (by_fast, by_slow)


def _ramp_down_decay(d: Tensor) -> Tensor:
    """The integral of ``(1 - x) exp(-x d)`` over x from 0 to 1."""
    return _mean_decay(d) - _ramp_up_decay(d)


def _ramp_up_decay(d: Tensor) -> Tensor:
    """The integral of ``x exp(-x d)`` over x from 0 to 1."""
    is_small = d < 1
    safe = torch.where(is_small, torch.ones_like(d), d)
    return torch.where(is_small, _ramp_series(d.clamp(max=1)), (1 - torch.exp(-safe) * (1 + safe)) / safe.square())


def _ramp_series(d: Tensor) -> Tensor:
    """The sum of ``(-d)^n / n! / (n + 2)``, to the last bit for d up to 1."""
    total, term = torch.full_like(d, 0.5), torch.ones_like(d)
    for n in range(1, 18):
        term = term * (-d / n)
        total = total + term / (n + 2)
    return total
