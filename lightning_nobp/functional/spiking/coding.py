"""From numbers between 0 and 1 to spikes: codes without randomness.

Every code takes ``(batch, ...)`` and gives one input neuron to each number of a sample, in order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nobp.functional.spiking.events import SpikeTrain, events_from_spikes


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
    times = torch.where(x > threshold, t_last * (1 - x), torch.inf)
    return events_from_spikes(times.flatten(1).unsqueeze(2))


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
    levels = torch.as_tensor(thresholds, dtype=x.dtype, device=x.device)
    steps = levels.diff(prepend=levels.new_zeros(1))
    if not levels.numel() or not bool((steps > 0).all()) or float(levels[-1]) > 1:
        raise ValueError(f"thresholds={list(thresholds)} must ascend, from above 0 up to 1")
    x = x.flatten(1).unsqueeze(2)
    is_crossed = x >= levels
    return events_from_spikes(torch.where(is_crossed, t_last * levels / torch.where(is_crossed, x, 1.0), torch.inf))


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
    if max_spikes < 1:
        raise ValueError(f"max_spikes={max_spikes} must be at least 1")
    number = (x.flatten(1).unsqueeze(2) * max_spikes).round()
    k = torch.arange(max_spikes, dtype=x.dtype, device=x.device)
    return events_from_spikes(torch.where(k < number, t_last * (k + 0.5) / number.clamp(min=1), torch.inf))


def with_inverse(x: Tensor) -> Tensor:
    """Each sample ``(batch, n)`` and a second population that sees its negative: ``(batch, 2 n)``.

    Args:
        x: ``(batch, ...)``, from 0 to 1.
    """
    x = x.flatten(1)
    return torch.cat([x, 1 - x], 1)


def _check(x: Tensor, t_last: float) -> None:
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(f"x of type {x.dtype} and shape {tuple(x.shape)}: give floating point (batch, ...)")
    if not t_last > 0:
        raise ValueError(f"t_last={t_last:g} must be positive")
    if not bool(((x >= 0) & (x <= 1)).all()):
        least, most = (float(n) for n in x.detach().aminmax())
        raise ValueError(f"x from {least:g} to {most:g}: codes take numbers from 0 to 1, so scale them")
