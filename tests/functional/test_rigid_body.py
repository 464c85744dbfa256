"""A free rigid body against its conserved quantities, closed forms and scipy's integrator."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from lightning_nobp.functional.quaternion import hamilton_product
from lightning_nobp.functional.rigid_body import (
    angular_momentum,
    kinetic_energy,
    orientation_derivative,
    orientations_in_cone,
    rate_derivative,
    simulate,
    uniform_orientations,
)

INERTIA = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def bodies(num=20, seed=0):
    """Orientations ``(num, 4)`` and angular rates ``(num, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    orientation = uniform_orientations(num, generator)
    return orientation, torch.randn(num, 3, generator=generator, dtype=torch.float64)


def matrices(q):
    """Rotation matrices ``(..., 3, 3)`` of quaternions, written out by their textbook formula."""
    a, b, c, d = q.unbind(-1)
    rows = (
        (1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)),
        (2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)),
        (2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def test_eulers_equations_are_a_cross_product():
    _, rate = bodies()
    torque = torch.linalg.cross(INERTIA * rate, rate)
    torch.testing.assert_close(rate_derivative(rate, INERTIA), torque / INERTIA, rtol=1e-12, atol=1e-12)
    front = rate_derivative(rate.T, INERTIA, dim=0)
    assert torch.equal(front.T, rate_derivative(rate, INERTIA))


def test_an_orientation_turns_vectors_of_the_body_at_its_angular_rate():
    """Of the rotation matrix ``R``, ``R' v = R (omega x v)``."""
    q, rate = bodies()
    _, derivative = torch.func.jvp(matrices, (q,), (orientation_derivative(q, rate),))
    v = torch.randn(20, 3, dtype=torch.float64)
    expected = torch.einsum("nij,nj->ni", matrices(q), torch.linalg.cross(rate, v))
    torch.testing.assert_close(torch.einsum("nij,nj->ni", derivative, v), expected, rtol=1e-12, atol=1e-12)


def test_angular_momentum_is_turned_into_the_world():
    q, rate = bodies()
    expected = torch.einsum("nij,nj->ni", matrices(q), INERTIA * rate)
    torch.testing.assert_close(angular_momentum(q, rate, INERTIA), expected, rtol=1e-12, atol=1e-12)


def drift(substeps):
    """How far energy and angular momentum get from where they were, at most."""
    path, rates = simulate(*bodies(), INERTIA, 0.4, 10, substeps)
    energy, momentum = kinetic_energy(rates, INERTIA), angular_momentum(path, rates, INERTIA)
    return torch.stack([(energy - energy[:, :1]).abs().max(), (momentum - momentum[:, :1]).abs().max()])


def test_energy_and_angular_momentum_are_kept_to_the_fourth_order():
    coarse, fine = drift(16), drift(32)
    assert (fine > 1e-13).all()
    assert (coarse / fine > 0.9 * 2**4).all()
    assert (drift(256) < 1e-10).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_about_a_principal_axis_the_body_spins_evenly(axis):
    rate = torch.zeros(1, 3, dtype=torch.float64)
    rate[0, axis] = 0.7
    path, rates = simulate(torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64), rate, INERTIA, 0.1, 12, 64)
    half = 0.7 * 0.1 * torch.arange(13, dtype=torch.float64) / 2
    expected = torch.zeros(13, 4, dtype=torch.float64)
    expected[:, 0], expected[:, 1 + axis] = half.cos(), half.sin()
    torch.testing.assert_close(path[0], expected, rtol=0, atol=1e-12)
    assert torch.equal(rates[0], rate.expand(13, 3))


@pytest.mark.parametrize(("substeps", "tolerance"), [(4, 1e-5), (128, 1e-10)])
def test_trajectories_are_those_of_scipy(substeps, tolerance):
    q, rate = bodies(5)
    path, rates = simulate(q, rate, INERTIA, 0.1, 12, substeps)

    def derivative(_, state):
        (a, b, c, d), (w1, w2, w3) = state[:4], state[4:]
        turned = (
            -b * w1 - c * w2 - d * w3,
            a * w1 + c * w3 - d * w2,
            a * w2 + d * w1 - b * w3,
            a * w3 + b * w2 - c * w1,
        )
        i = INERTIA.numpy()
        return np.concatenate([np.array(turned) / 2, np.cross(i * state[4:], state[4:]) / i])

    for k in range(5):
        start = torch.cat([q[k], rate[k]]).numpy()
        found = solve_ivp(derivative, (0, 1.2), start, "DOP853", np.linspace(0, 1.2, 13), rtol=1e-12, atol=1e-13)
        expected = torch.from_numpy(found.y.T)
        torch.testing.assert_close(torch.cat([path[k], rates[k]], -1), expected, rtol=0, atol=tolerance)


def test_turning_the_world_turns_the_whole_trajectory():
    q, rate = bodies()
    r = uniform_orientations(1, torch.Generator().manual_seed(5))
    path, rates = simulate(q, rate, INERTIA, 0.1, 12)
    turned, same_rates = simulate(hamilton_product(r, q), rate, INERTIA, 0.1, 12)
    torch.testing.assert_close(turned, hamilton_product(r.unsqueeze(1), path), rtol=0, atol=1e-13)
    assert torch.equal(same_rates, rates)


def test_trajectories_begin_at_the_start_and_have_unit_length():
    q, rate = bodies()
    path, rates = simulate(q, rate, INERTIA, 0.3, 40)
    assert (path.shape, rates.shape) == ((20, 41, 4), (20, 41, 3))
    assert torch.equal(path[:, 0], q)
    assert torch.equal(rates[:, 0], rate)
    torch.testing.assert_close(path.norm(dim=-1), torch.ones(20, 41, dtype=torch.float64), rtol=0, atol=1e-14)


def test_samples_twice_as_dense_are_of_the_same_trajectory():
    q, rate = bodies()
    long, short = simulate(q, rate, INERTIA, 0.2, 5, 4)[0], simulate(q, rate, INERTIA, 0.1, 10, 2)[0]
    torch.testing.assert_close(long, short[:, ::2], rtol=0, atol=1e-14)


def test_cones_hold_any_axis_and_even_angles():
    q = orientations_in_cone(20000, 60.0, torch.Generator().manual_seed(0))
    angle = 2 * torch.atan2(q[:, 1:].norm(dim=-1), q[:, 0])
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(20000, dtype=torch.float64), rtol=0, atol=1e-14)
    assert angle.max() <= math.radians(60) + 1e-12
    # Standard errors are 1 / sqrt(12 * 20000) of the range and 1 / sqrt(3 * 20000).
    assert (angle / math.radians(60)).mean().sub(0.5).abs() < 5 / math.sqrt(12 * 20000)
    axis = q[:, 1:] / q[:, 1:].norm(dim=-1, keepdim=True)
    assert axis.mean(0).abs().max() < 5 / math.sqrt(3 * 20000)
    assert (axis.T @ axis / 20000 - torch.eye(3) / 3).abs().max() < 0.02


def test_uniform_orientations_prefer_no_direction():
    q = uniform_orientations(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(20000, dtype=torch.float64), rtol=0, atol=1e-14)
    assert q.mean(0).abs().max() < 5 / math.sqrt(4 * 20000)
    assert (q.T @ q / 20000 - torch.eye(4) / 4).abs().max() < 0.02
