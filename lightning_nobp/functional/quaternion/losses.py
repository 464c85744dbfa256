"""Losses of quaternions: real numbers, since only those can be ordered, and hence descended.

Outputs and targets are features ``(batch, 4N)``, component-major, of one shape; each loss is a mean over batch and
quaternions. That of half precision is computed in float32 and stays so, since a mean may be too large for less. Targets
of another shape are refused by a ``ValueError``: broadcast, they would be learned in silence.
"""

import math

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.algebra import (
    conjugate,
    hamilton_product,
    in_range,
    normalize,
    unpack,
    widened,
)
from lightning_nobp.typed import explained


@explained
def component_mse(y: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the components: a quarter of the mean of ``|y - t|^2``."""
    y, target = _pair(y, target)
    return (y - target).square().mean()


@explained
def imaginary_mse(y: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the three imaginary components, for vectors and colours; real parts are free."""
    y, target = _pair(y, target)
    return (unpack(y) - unpack(target))[..., 1:].square().mean()


@explained
def unit_mse(y: Tensor, target: Tensor) -> Tensor:
    """Mean of ``|y / |y| - t|^2``, for targets of unit norm whose sign counts."""
    y, target = _pair(y, target)
    return (normalize(unpack(y)) - unpack(target)).square().sum(-1).mean()


@explained
def geodesic_loss(y: Tensor, target: Tensor) -> Tensor:
    """Mean angle in radians of the rotation from one to the other; see :func:`rotation_angle`.

    An output 0 is no rotation, and as wrong as can be: its angle counts as pi, with gradient 0.
    """
    y, target = (unpack(features) for features in _pair(y, target))
    undefined = (y == 0).all(-1) | (target == 0).all(-1)
    return rotation_angle(y, target).masked_fill(undefined, math.pi).mean()


@explained
def chordal_loss(y: Tensor, target: Tensor) -> Tensor:
    """Mean of ``1 - <y, t>^2`` of the normalised quaternions: the squared sine of half the angle between rotations."""
    y, target = _pair(y, target)
    return (1 - (normalize(unpack(y)) * normalize(unpack(target))).sum(-1).square()).mean()


@explained
def rotation_angle(p: Tensor, q: Tensor) -> Tensor:
    """Angle between the rotations of two quaternions: ``2 atan2(|Im(p* q)|, |Re(p* q)|)``.

    ``q`` and ``-q`` are the same rotation, and lengths do not matter. Unlike the form with an arc cosine it is exact
    for small angles (in float32 down to 1e-19), and its gradient stays finite there: where the two agree it is 0. The
    angle from a quaternion 0 is 0, with gradient 0.

    Args:
        p: ``(..., 4)``.
        q: ``(..., 4)``.

    Returns:
        Angles ``(...)``, from 0 to pi.
    """
    left, right = in_range(widened(p), -1)[0], in_range(widened(q), -1)[0]
    difference, _ = in_range(hamilton_product(conjugate(left), right), -1)
    sine = torch.linalg.vector_norm(difference[..., 1:], dim=-1)
    cosine = difference[..., 0].abs()
    # atan2 has no derivative at (0, 0).
    undefined = (difference == 0).all(-1)
    angle = 2 * torch.atan2(sine, torch.where(undefined, torch.ones_like(cosine), cosine))
    return angle.to(torch.promote_types(p.dtype, q.dtype))


def _pair(y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if y.shape != target.shape:
        raise ValueError(f"y of shape {tuple(y.shape)} and target of shape {tuple(target.shape)}: give one for each")
    return widened(y), widened(target)
