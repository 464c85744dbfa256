"""A free rigid body: how it turns when nothing acts on it.

Its orientation is a unit quaternion that takes vectors of the body to the world, ``v -> q v q*``. Turning the world's
axes by ``r`` multiplies every orientation from the left, ``q -> r q``; the angular rate and the moments of inertia are
those of the body's principal axes, and stay.

References:
    Goldstein, Poole and Safko, "Classical Mechanics", 3rd edition, Addison-Wesley (2002), chapters 4 and 5.
"""

import math

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion import hamilton_product, normalize, rotate


def simulate(
    orientation: Tensor, rate: Tensor, inertia: Tensor, dt: float, num_steps: int, substeps: int = 4
) -> tuple[Tensor, Tensor]:
    """Follow bodies with the classical Runge-Kutta method of fourth order.

    Args:
        orientation: ``q``, at the start, ``(batch, 4)``, of unit length.
        rate: ``omega``, at the start, ``(batch, 3)``, in radians per unit of time about the body's axes.
        inertia: ``I``, the principal moments, ``(3,)``.
        dt: Time from one sample to the next.
        num_steps: Samples after the first.
        substeps: Steps of the method from one sample to the next. After each the orientation gets unit length again.

    Returns:
        Orientations ``(batch, num_steps + 1, 4)`` and angular rates ``(batch, num_steps + 1, 3)``, the start included.
    """
    # Components in front: products then run over contiguous memory.
    state = torch.cat([orientation, rate], -1).movedim(-1, 0).contiguous()
    samples = [state]
    for _ in range(num_steps):
        for _ in range(substeps):
            state = _runge_kutta_step(state, inertia, dt / substeps)
            state = torch.cat([normalize(state[:4], dim=0), state[4:]])
        samples.append(state)
    path = torch.stack(samples, -1).movedim(0, -1)
    return path[..., :4].contiguous(), path[..., 4:].contiguous()


def _runge_kutta_step(state: Tensor, inertia: Tensor, h: float) -> Tensor:
    k1 = _state_derivative(state, inertia)
    k2 = _state_derivative(state + h / 2 * k1, inertia)
    k3 = _state_derivative(state + h / 2 * k2, inertia)
    k4 = _state_derivative(state + h * k3, inertia)
    return state + h / 6 * (k1 + 2 * (k2 + k3) + k4)


def _state_derivative(state: Tensor, inertia: Tensor) -> Tensor:
    orientation, rate = state[:4], state[4:]
    return torch.cat([orientation_derivative(orientation, rate, 0), rate_derivative(rate, inertia, 0)])


def orientation_derivative(orientation: Tensor, rate: Tensor, dim: int = -1) -> Tensor:
    """``q' = 1/2 q (0, omega)``.

    Args:
        orientation: 4 components along ``dim``.
        rate: 3 components along ``dim``.
        dim: Where the components lie.
    """
    return hamilton_product(orientation, _imaginary(rate, dim), dim) / 2


def rate_derivative(rate: Tensor, inertia: Tensor, dim: int = -1) -> Tensor:
    """Euler's equations without torque, ``I omega' = (I omega) x omega``.

    Args:
        rate: 3 components along ``dim``.
        inertia: The principal moments, ``(3,)``.
        dim: Where the components lie.
    """
    w1, w2, w3 = rate.unbind(dim)
    i1, i2, i3 = inertia.unbind()
    return torch.stack([(i2 - i3) / i1 * w2 * w3, (i3 - i1) / i2 * w3 * w1, (i1 - i2) / i3 * w1 * w2], dim)


def kinetic_energy(rate: Tensor, inertia: Tensor) -> Tensor:
    """``1/2 omega I omega``, which a free body keeps, ``(...)`` for rates ``(..., 3)``."""
    return (inertia * rate.square()).sum(-1) / 2


def angular_momentum(orientation: Tensor, rate: Tensor, inertia: Tensor) -> Tensor:
    """``q (I omega) q*``, in the world's axes, in which a free body keeps it.

    Args:
        orientation: ``(..., 4)``.
        rate: ``(..., 3)``.
        inertia: The principal moments, ``(3,)``.

    Returns:
        ``(..., 3)``.
    """
    return rotate(_imaginary(inertia * rate, -1), orientation)[..., 1:]


def uniform_orientations(num: int, generator: torch.Generator) -> Tensor:
    """Orientations drawn uniformly from all, ``(num, 4)``, float64."""
    # A normal distribution has no preferred direction.
    return normalize(torch.randn(num, 4, generator=generator, dtype=torch.float64))


def orientations_in_cone(num: int, largest: float, generator: torch.Generator) -> Tensor:
    """Orientations near the identity, ``(num, 4)``, float64: any axis, and an angle uniform from 0 to ``largest``.

    Args:
        num: How many.
        largest: In degrees.
        generator: Draws them.
    """
    axis = torch.nn.functional.normalize(torch.randn(num, 3, generator=generator, dtype=torch.float64), dim=-1)
    angle = math.radians(largest) * torch.rand(num, 1, generator=generator, dtype=torch.float64)
    return torch.cat([(angle / 2).cos(), (angle / 2).sin() * axis], -1)


def _imaginary(vector: Tensor, dim: int) -> Tensor:
    """Quaternions without a real part."""
    return torch.cat([torch.zeros_like(vector.narrow(dim, 0, 1)), vector], dim)
