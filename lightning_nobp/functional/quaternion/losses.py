"""Losses of quaternions: real numbers, since only those can be ordered, and hence descended.

Outputs and targets are features ``(batch, 4N)``, component-major; each loss is a mean over batch and quaternions.
"""

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.algebra import conjugate, hamilton_product, norm, normalize, unpack


def component_mse(y: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the components: a quarter of the mean of ``|y - t|^2``."""
    return (y - target).square().mean()


def unit_mse(y: Tensor, target: Tensor) -> Tensor:
    """Mean of ``|y / |y| - t|^2``, for targets of unit norm whose sign counts."""
    return (normalize(unpack(y)) - unpack(target)).square().sum(-1).mean()


def geodesic_loss(y: Tensor, target: Tensor) -> Tensor:
    """Mean angle in radians of the rotation from one to the other; see :func:`rotation_angle`."""
    return rotation_angle(unpack(y), unpack(target)).mean()


def chordal_loss(y: Tensor, target: Tensor) -> Tensor:
    """Mean of ``1 - <y, t>^2`` of the normalised quaternions: the squared sine of half the angle between rotations."""
    return (1 - (normalize(unpack(y)) * normalize(unpack(target))).sum(-1).square()).mean()


def rotation_angle(p: Tensor, q: Tensor) -> Tensor:
    """Angle between the rotations of two quaternions: ``2 atan2(|Im(p* q)|, |Re(p* q)|)``.

    ``q`` and ``-q`` are the same rotation, and lengths do not matter. Unlike the form with an arc cosine it is exact
    for small angles, and its gradient stays finite there: where the two agree it is 0. The angle from a quaternion 0
    is 0, with gradient 0.

    Args:
        p: ``(..., 4)``.
        q: ``(..., 4)``.

    Returns:
        Angles ``(...)``, from 0 to pi.
    """
    difference = hamilton_product(conjugate(p), q)
    sine = torch.linalg.vector_norm(difference[..., 1:], dim=-1)
    cosine = difference[..., 0].abs()
    # atan2 has no derivative at (0, 0).
    undefined = norm(difference) == 0
    return 2 * torch.atan2(sine, torch.where(undefined, torch.ones_like(cosine), cosine))
