"""Devices that do not do as they are told: rounded, one-sided and bounded memories, units that differ from each other.

References:
    Rasch et al., "A flexible and fast PyTorch toolkit for simulating training and inference on analog crossbar arrays",
    arXiv 2104.02184, for memories whose steps shrink towards a bound; Gupta, Agrawal, Gopalakrishnan and Narayanan,
    "Deep learning with limited numerical precision", arXiv 1502.02551, for stochastic rounding; McCaughan, Oripov,
    Ganesh, Nam, Dienstfrey and Buckley, "Multiplexed gradient descent: Fast online training of modern datasets on
    hardware neural networks without backpropagation", arXiv 2303.03986, for the variation of activations.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.counter_random import random_normal


def part_seed(seed: int, part: str) -> int:
    """Seed of one part of a device, so that no two parts draw the same numbers.

    Args:
        seed: Of the device.
        part: Any name.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{part}".encode(), digest_size=8).digest())


def quantise(x: Tensor, step: float, uniform: Tensor | None = None) -> Tensor:
    """Round to multiples of ``step``: to the nearest, or up or down at random.

    With uniform numbers :math:`u`, a value at the fraction :math:`f` of the way to the next multiple goes up where
    :math:`u < f`: the mean over :math:`u` is ``x`` itself, and multiples stay where they are.

    Args:
        x: Any shape.
        step: From one multiple to the next, positive.
        uniform: Numbers between 0 and 1, of the shape of ``x``; None rounds to the nearest.
    """
    scaled = x / step
    if uniform is None:
        return scaled.round() * step
    below = scaled.floor()
    return (below + (uniform < scaled - below)) * step


def grid_step(bound: float, bits: int) -> float:
    """Step of the grid on which ``bits`` bits store numbers from ``-bound`` to ``bound``, zero among them.

    There are ``2 ** bits - 1`` levels, as many below zero as above.

    Args:
        bound: Largest number, positive.
        bits: At least 2.
    """
    levels: int = 2 ** (bits - 1) - 1
    return bound / levels


def device_update(
    change: Tensor,
    weights: Tensor,
    *,
    dead_zone: float = 0.0,
    up_gain: float = 1.0,
    down_gain: float = 1.0,
    soft_bound: float | None = None,
) -> Tensor:
    r"""The change that a device makes when another is asked for.

    .. math::

        \Delta' = \begin{cases}
            g_\uparrow\, \Delta\, (1 - w / b) & \Delta \ge \delta, \\
            g_\downarrow\, \Delta\, (1 + w / b) & \Delta \le -\delta, \\
            0 & \text{otherwise.}
        \end{cases}

    Args:
        change: What is asked for, :math:`\Delta`.
        weights: Before the change, :math:`w`.
        dead_zone: :math:`\delta`: a smaller change is none.
        up_gain: :math:`g_\uparrow`.
        down_gain: :math:`g_\downarrow`.
        soft_bound: :math:`b`, towards which steps shrink to nothing and from which they double; None for equal steps
            everywhere.
    """
    up, down = change.clamp(min=0) * up_gain, change.clamp(max=0) * down_gain
    if soft_bound is not None:
        up, down = up * (1 - weights / soft_bound), down * (1 + weights / soft_bound)
    return torch.where(change.abs() >= dead_zone, up + down, 0.0)


class UnitVariation(NamedTuple):
    """How the activation :math:`f` of each unit differs: it has become :math:`L f(k (a - x_0)) + y_0`."""

    shift: Tensor
    """:math:`x_0`, shape of one sample."""
    steepness: Tensor
    """:math:`k`."""
    height: Tensor
    """:math:`L`."""
    offset: Tensor
    """:math:`y_0`."""

    def enter(self, a: Tensor) -> Tensor:
        """What the activation gets, :math:`k (a - x_0)`.

        Args:
            a: ``(batch, *shape)``.
        """
        return self.steepness * (a - self.shift)

    def leave(self, y: Tensor) -> Tensor:
        """What becomes of its result, :math:`L y + y_0`.

        Args:
            y: ``(batch, *shape)``.
        """
        return self.height * y + self.offset


def unit_variation(seed: int, sigma: float, shape: Sequence[int], device: torch.device | str) -> UnitVariation:
    r"""Draw the variation of a layer's units: :math:`x_0, y_0 \sim N(0, \sigma)` and :math:`k, L \sim N(1, \sigma)`.

    Args:
        seed: Of the layer.
        sigma: Standard deviation, :math:`\sigma_a`.
        shape: Of one sample.
        device: Where the units are.
    """
    rows = torch.arange(4, device=device)
    drawn = sigma * random_normal(seed, rows, 0, torch.Size(shape).numel()).view(4, *shape)
    return UnitVariation(drawn[0], 1 + drawn[1], 1 + drawn[2], drawn[3])
