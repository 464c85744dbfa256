"""The timing of multiplexed gradient descent: who is shown when, which perturbation is on, and analog filters.

References:
    McCaughan, Oripov, Ganesh, Nam, Dienstfrey and Buckley, "Multiplexed gradient descent: Fast online training of
    modern datasets on hardware neural networks without backpropagation", arXiv 2303.03986.
"""

import math
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor


class Schedule(NamedTuple):
    """One window of integration, from one update of the parameters to the next."""

    perturbation: Tensor
    """``(readings,)``, int64: which perturbation of the window is on."""
    slot: Tensor
    """``(readings,)``, int64: which of the window's inputs is shown."""
    reading: Tensor
    """``(time_steps,)``, int64: the reading that each time step repeats. Both of the above rise with it."""
    num_slots: int
    """Inputs shown in a window."""

    def up_to(self, slots: int) -> "Schedule":
        """The part of the window in which the first ``slots`` inputs are shown."""
        readings = int((self.slot < slots).sum())
        steps = int((self.reading < readings).sum())
        return Schedule(self.perturbation[:readings], self.slot[:readings], self.reading[:steps], slots)

    def to(self, device: torch.device) -> "Schedule":
        """The same on a device."""
        return Schedule(self.perturbation.to(device), self.slot.to(device), self.reading.to(device), self.num_slots)


def schedule(tau_p: int, tau_theta: int, tau_x: int) -> Schedule:
    """What happens at each time step of a window.

    Args:
        tau_p: Time steps that a perturbation stays.
        tau_theta: Time steps from one update of the parameters to the next, a multiple of ``tau_p``.
        tau_x: Time steps that an input stays: a divisor of ``tau_theta``, or a multiple.

    Raises:
        ValueError: A time constant that is no positive integer, or does not fit the others.
    """
    check_counts(tau_p=tau_p, tau_theta=tau_theta, tau_x=tau_x)
    if tau_theta % tau_p:
        raise ValueError(
            f"tau_theta={tau_theta} is no multiple of tau_p={tau_p}: the parameters would move under a perturbation; "
            f"take {tau_p * max(1, round(tau_theta / tau_p))}"
        )
    if max(tau_theta, tau_x) % min(tau_theta, tau_x):
        raise ValueError(
            f"tau_x={tau_x} and tau_theta={tau_theta}: one must be a multiple of the other, so that no input is cut"
        )
    time = torch.arange(tau_theta)
    pairs = torch.stack([time // tau_p, time // tau_x], dim=1)
    distinct, reading = torch.unique_consecutive(pairs, dim=0, return_inverse=True)
    return Schedule(distinct[:, 0], distinct[:, 1], reading, max(1, tau_theta // tau_x))


def check_counts(**counts: int) -> None:
    """Refuse counts, of time steps or perturbations, that are no positive whole numbers.

    Raises:
        ValueError: Names the first.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive whole number")


def high_pass(state: Tensor, change: Tensor, time_constant: float) -> Tensor:
    r"""One time step of a first-order high-pass filter.

    Args:
        state: What it gave at the step before.
        change: By how much its input has changed since then.
        time_constant: In time steps.

    Returns:
        :math:`\frac{\tau}{\tau + 1}(y + \Delta x)`.
    """
    return (state + change) * (time_constant / (time_constant + 1))


def low_pass(state: Tensor, value: Tensor, time_constant: float) -> Tensor:
    r"""One time step of a first-order low-pass filter.

    Args:
        state: What it gave at the step before.
        value: Its input.
        time_constant: In time steps.

    Returns:
        :math:`y + \frac{1}{\tau + 1}(x - y)`.
    """
    return torch.lerp(state, value, 1 / (time_constant + 1))


def expected_cosine(num_perturbations: float, num_parameters: int) -> float:
    r"""Cosine between an estimate from random signs and the gradient, :math:`1 / \sqrt{1 + (P - 1) / T}`.

    Args:
        num_perturbations: ``T``, perturbations behind the estimate.
        num_parameters: ``P``, parameters that were perturbed at once.
    """
    return 1 / math.sqrt(1 + (num_parameters - 1) / num_perturbations)


def shrinkage(num_perturbations: float, num_parameters: int) -> float:
    r"""The factor :math:`T / (T + P - 1)` that makes the estimate's mean square error least.

    An estimate from ``T`` random perturbations is :math:`\sqrt{1 + (P - 1) / T}` times too long.

    Args:
        num_perturbations: ``T``.
        num_parameters: ``P``.
    """
    return num_perturbations / (num_perturbations + num_parameters - 1)
