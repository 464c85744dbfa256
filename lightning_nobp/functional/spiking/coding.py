"""From numbers between 0 and 1 to spikes: codes without randomness.

Every ``..._code`` gives the spike times of each number along one more dimension, padded with infinity. Every
``..._encode`` takes ``(batch, ...)``, and gives one input neuron to each number of a sample, in order.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nobp.functional.spiking.events import SpikeTrain, events_from_spikes, whole
from lightning_nobp.typed import explained


def latency_code(u: Tensor, t_last: float, threshold: float) -> Tensor:
    """The times of :func:`latency_encode`, ``(..., 1)`` of numbers ``(...)``."""
    return torch.where(u > threshold, t_last * (1 - u), torch.inf).unsqueeze(-1)


def threshold_code(u: Tensor, thresholds: Sequence[float], t_last: float) -> Tensor:
    """The times of :func:`threshold_encode`, ``(..., thresholds)`` of numbers ``(...)``."""
    levels, u = u.new_tensor(thresholds), u.unsqueeze(-1)
    is_crossed = u >= levels
    return torch.where(is_crossed, t_last * levels / torch.where(is_crossed, u, 1.0), torch.inf)


def regular_code(u: Tensor, max_spikes: int, t_last: float) -> Tensor:
    """The times of :func:`regular_encode`, ``(..., max_spikes)`` of numbers ``(...)``; they have no gradient."""
    number = (u.detach().unsqueeze(-1) * max_spikes).round()
    k = torch.arange(max_spikes, dtype=u.dtype, device=u.device)
    return torch.where(k < number, t_last * (k + 0.5) / number.clamp(min=1), torch.inf)


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse thresholds that a ramp does not cross one after another.

    Raises:
        ValueError: They do not ascend from above 0 up to 1.
    """
    levels = [0.0, *thresholds]
    if len(levels) < 2 or levels != sorted(set(levels)) or levels[-1] > 1:
        raise ValueError(f"thresholds={list(thresholds)} must ascend, from above 0 up to 1")


@explained
def latency_encode(x: Tensor, t_last: float = 1.0, threshold: float = 0.0) -> SpikeTrain:
    r"""One spike a number, the earlier the larger: at :math:`T (1 - x)`.

    Args:
        x: ``(batch, ...)``, from 0 to 1; differentiable.
        t_last: :math:`T`.
        threshold: Numbers up to this one send no spike.

    Raises:
        ValueError: Numbers outside of 0 to 1, or a ``t_last`` that is not positive.
    """
    _check(x, t_last)
    return events_from_spikes(latency_code(x.flatten(1), t_last, threshold))


@explained
def threshold_encode(x: Tensor, thresholds: Sequence[float], t_last: float = 1.0) -> SpikeTrain:
    r"""Several spikes a number: a ramp from 0 that reaches x at :math:`T` spikes at each threshold on its way.

    The threshold :math:`h \le x` is crossed at :math:`T h / x`: larger numbers send more spikes, and earlier ones.

    Args:
        x: ``(batch, ...)``, from 0 to 1; differentiable.
        thresholds: Ascending, above 0 and up to 1.
        t_last: :math:`T`.

    Raises:
        ValueError: Numbers or thresholds out of range, or a ``t_last`` that is not positive.
    """
    _check(x, t_last)
    check_thresholds(thresholds)
    return events_from_spikes(threshold_code(x.flatten(1), thresholds, t_last))


@explained
def regular_encode(x: Tensor, max_spikes: int, t_last: float = 1.0) -> SpikeTrain:
    r"""A rate code without randomness: :math:`n = \mathrm{round}(x\, n_{max})` spikes at equal distances.

    They are at :math:`T (k + 1/2) / n` for :math:`k = 0, \dots, n - 1`.

    Args:
        x: ``(batch, ...)``, from 0 to 1.
        max_spikes: Of a number 1, :math:`n_{max}`.
        t_last: :math:`T`.

    Raises:
        ValueError: Numbers outside of 0 to 1, no spikes, or a ``t_last`` that is not positive.
    """
    _check(x, t_last)
    if whole(max_spikes, "max_spikes") < 1:
        raise ValueError(f"max_spikes={max_spikes} must be at least 1")
    return events_from_spikes(regular_code(x.flatten(1), max_spikes, t_last))


@explained
def with_inverse(x: Tensor) -> Tensor:
    """Each sample ``(batch, n, ...)`` and a second population behind, of its negative: ``(batch, 2 n, ...)``.

    Args:
        x: ``(batch, n, ...)``, from 0 to 1.
    """
    return torch.cat([x, 1 - x], 1)


def _check(x: Tensor, t_last: float) -> None:
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(f"x of type {x.dtype} and shape {tuple(x.shape)}: give floating point (batch, ...)")
    if not 0 < t_last < math.inf:
        raise ValueError(f"t_last={t_last:g} must be positive and finite")
    if not bool(((x >= 0) & (x <= 1)).all()):
        least, most = (float(n) for n in x.detach().aminmax())
        raise ValueError(f"x from {least:g} to {most:g}: codes take numbers from 0 to 1, so scale them")
