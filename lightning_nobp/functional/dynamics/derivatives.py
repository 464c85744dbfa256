"""Time derivatives of sampled series.

References:
    Savitzky and Golay, "Smoothing and differentiation of data by simplified least squares procedures", Anal. Chem. 36,
    1627 (1964).
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.signal import savgol_coeffs
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.typed import explained

Derivative = Literal["central5", "savgol", "forward"]
_SAVGOL_LENGTH, _SAVGOL_ORDER = 9, 4


class Differentiated(NamedTuple):
    """A series and its derivative at the same times, shorter than what they were made of."""

    x: Tensor
    velocity: Tensor


@explained
def differentiate(x: Tensor, dt: float, method: Derivative = "central5") -> Differentiated:
    """Values and time derivatives of a series.

    Args:
        x: ``(trajectories, time, ...)``.
        dt: Time from one sample to the next.
        method: ``'central5'``, central differences of fourth order, for clean series: two samples less at each end.
            ``'savgol'``, the filter of Savitzky and Golay over 9 samples, for noisy ones, which smooths the values too:
            four samples less at each end. ``'forward'``, the difference to the next sample, for maps: one sample less.

    Raises:
        ValueError: An unknown method, or a series that is too short for it.
    """
    if method not in get_args(Derivative):
        raise ValueError(f"derivative={method!r} is not one of {', '.join(map(repr, get_args(Derivative)))}")
    least = {"central5": 5, "savgol": _SAVGOL_LENGTH, "forward": 2}[method]
    if x.shape[1] < least:
        raise ValueError(f"{x.shape[1]} samples a trajectory are too few: derivative={method!r} needs {least}")
    if method == "forward":
        return Differentiated(x[:, :-1], (x[:, 1:] - x[:, :-1]) / dt)
    if method == "central5":
        return Differentiated(x[:, 2:-2], (8 * (x[:, 3:-1] - x[:, 1:-3]) - (x[:, 4:] - x[:, :-4])) / (12 * dt))
    smooth, slope = (
        _filtered(x, savgol_coeffs(_SAVGOL_LENGTH, _SAVGOL_ORDER, deriv=order, delta=dt, use="dot")) for order in (0, 1)
    )
    return Differentiated(smooth, slope)


def _filtered(x: Tensor, coefficients: np.ndarray) -> Tensor:
    kernel = torch.from_numpy(coefficients.copy()).to(x)
    series = x.movedim(1, -1)
    rows = F.conv1d(series.reshape(series.shape[:-1].numel(), 1, series.shape[-1]), kernel.view(1, 1, -1))
    return rows.view(*series.shape[:-1], rows.shape[-1]).movedim(-1, 1)
