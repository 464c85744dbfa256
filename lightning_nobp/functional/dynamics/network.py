"""Oscillators coupled in a network, and how they move in time."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_nobp.functional.dynamics.fields import FIELDS, VectorField
from lightning_nobp.typed import explained

Field = Callable[[Tensor], Tensor]
"""Time derivatives ``(..., nodes, components)`` of states of that shape."""

Integrator = Literal["rk4", "split", "euler"]


@explained
def coupling(x: Tensor, weights: Tensor) -> Tensor:
    """What others add to each node's first component: the sum of ``w_ij (x_j - x_i)`` over ``j``.

    Args:
        x: First components ``(..., nodes)``.
        weights: ``(nodes, nodes)``; row ``i`` holds what acts on node ``i``. The diagonal does not matter.
    """
    return x @ weights.T - x * weights.sum(dim=1)


@explained
def velocity(field: Field, x: Tensor, weights: Tensor) -> Tensor:
    """``dx/dt`` of the network, of the shape of ``x``.

    Args:
        field: Of each node alone.
        x: States ``(..., nodes, components)``.
        weights: ``(nodes, nodes)``.
    """
    return field(x) + _in_first(coupling(x[..., 0], weights), x)


@explained
def rk4_increment(field: Field, x: Tensor, dt: float, first: Tensor | None = None) -> Tensor:
    """How far the classical Runge-Kutta method of fourth order goes in a step.

    Args:
        field: What moves the states.
        x: States.
        dt: Length of the step.
        first: ``field(x)``, if it is known.
    """
    first = field(x) if first is None else first
    second = field(x + dt / 2 * first)
    third = field(x + dt / 2 * second)
    fourth = field(x + dt * third)
    return dt / 6 * (first + 2 * second + 2 * third + fourth)


@explained
def step(field: Field, x: Tensor, weights: Tensor, dt: float, integrator: Integrator = "rk4") -> Tensor:
    """The network a time ``dt`` later.

    Args:
        field: Of each node alone.
        x: States ``(..., nodes, components)``.
        weights: ``(nodes, nodes)``.
        dt: Length of the step.
        integrator: ``'rk4'``, fourth order for the whole network; ``'split'``, fourth order for the nodes, first for
            the coupling, as in the paper; ``'euler'``, first order.
    """
    _check_integrator(integrator)
    if integrator == "rk4":
        return x + rk4_increment(lambda state: velocity(field, state, weights), x, dt)
    if integrator == "split":
        return x + rk4_increment(field, x, dt) + dt * _in_first(coupling(x[..., 0], weights), x)
    return x + dt * velocity(field, x, weights)


@explained
def rollout(
    field: Field,
    x: Tensor,
    weights: Tensor,
    num_steps: int,
    dt: float,
    *,
    integrator: Integrator = "rk4",
    dynamical_noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """States after every step, ``(num_steps + 1, ..., nodes, components)``; the first is ``x``.

    Args:
        field: Of each node alone.
        x: States at the start ``(..., nodes, components)``.
        weights: ``(nodes, nodes)``.
        num_steps: How many.
        dt: Length of a step.
        integrator: See :func:`step`.
        dynamical_noise: Standard deviation, per square root of time, of what is added to every component at every step.
        generator: Of the noise.

    Raises:
        FloatingPointError: A state that is not finite; the message names step and node.
    """
    seen = [x]
    for _ in range(num_steps):
        x = step(field, x, weights, dt, integrator)
        if dynamical_noise:
            x = x + dynamical_noise * dt**0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        seen.append(x)
    found = torch.stack(seen)
    if not bool(found[-1].isfinite().all()):
        _refuse_diverged(found, dt)
    return found


@explained
def simulate_network(
    system: Literal["lorenz", "chua", "fitzhugh_nagumo", "roessler"] | Field,
    weights: Tensor | np.ndarray | Sequence[Sequence[float]],
    num_steps: int,
    dt: float,
    num_trajectories: int = 1,
    transient: int = 1000,
    seed: int = 0,
    *,
    integrator: Integrator = "rk4",
    dynamical_noise: float = 0.0,
    start: Tensor | None = None,
) -> Tensor:
    """Time series of a network of oscillators.

    Args:
        system: A name, a :class:`~lightning_nobp.functional.dynamics.VectorField`, or any function that gives
            ``dx/dt`` of states ``(..., nodes, components)``.
        weights: ``(nodes, nodes)``; row ``i`` holds what acts on node ``i``. The diagonal does not matter.
        num_steps: Samples of each trajectory.
        dt: Time from one sample to the next, which is one step.
        num_trajectories: From different random states.
        transient: Steps before the first sample.
        seed: Of the random states, and of the noise.
        integrator: See :func:`step`.
        dynamical_noise: See :func:`rollout`.
        start: States at the start ``(num_trajectories, nodes, components)``; needed for a function of your own.

    Returns:
        ``(num_trajectories, num_steps, nodes, components)``, float64.

    Raises:
        ValueError: An argument out of its range.
        FloatingPointError: A state that is not finite.
    """
    if isinstance(system, str):
        if system not in FIELDS:
            raise ValueError(f"system={system!r} is not one of {', '.join(map(repr, FIELDS))}, nor a function")
        system = FIELDS[system]()
    weights = torch.as_tensor(weights, dtype=torch.float64)
    _check_simulation(weights, num_steps, dt, num_trajectories, transient, integrator)
    if not 0 <= dynamical_noise < float("inf"):
        raise ValueError(
            f"dynamical_noise={dynamical_noise} is a standard deviation: it must be at least 0, and finite"
        )
    generator = torch.Generator().manual_seed(seed)
    if start is None:
        if not isinstance(system, VectorField):
            raise ValueError("start: give states (num_trajectories, nodes, components) for a function of your own")
        start = system.start((num_trajectories, len(weights)), generator)
    start = torch.as_tensor(start, dtype=torch.float64)
    if start.dim() != 3 or tuple(start.shape[:2]) != (num_trajectories, len(weights)):
        raise ValueError(
            f"start of shape {tuple(start.shape)}: give (num_trajectories={num_trajectories}, nodes={len(weights)}, "
            "components)"
        )
    # A step by Euler's or the split method is a map of its own: its transient is too.
    noise = {"dynamical_noise": dynamical_noise, "generator": generator}
    before = rollout(system, start, weights, transient, dt, integrator=integrator, **noise)  # type: ignore[arg-type]
    found = rollout(system, before[-1], weights, num_steps - 1, dt, integrator=integrator, **noise)  # type: ignore[arg-type]
    return found.movedim(0, 1)


def _in_first(values: Tensor, x: Tensor) -> Tensor:
    """``values`` ``(..., nodes)`` as first components of what is otherwise zero."""
    return torch.cat([values.unsqueeze(-1), torch.zeros_like(x[..., 1:])], dim=-1)


def _check_simulation(
    weights: Tensor, num_steps: int, dt: float, num_trajectories: int, transient: int, integrator: str
) -> None:
    check_weights(weights)
    for name, value, least in (
        ("num_steps", num_steps, 1),
        ("num_trajectories", num_trajectories, 1),
        ("transient", transient, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt={dt} must be positive, and finite")
    _check_integrator(integrator)


def _check_integrator(integrator: str) -> None:
    if integrator not in get_args(Integrator):
        raise ValueError(f"integrator={integrator!r} is not one of {', '.join(map(repr, get_args(Integrator)))}")


@explained
def check_weights(weights: Tensor) -> None:
    """Refuse what is no matrix of couplings.

    Raises:
        ValueError: Another shape, fewer than two nodes, or a weight that is not finite.
    """
    if weights.dim() != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: give (nodes, nodes)")
    if len(weights) < 2:
        raise ValueError("weights of one node: a network has at least two")
    if not bool(weights.isfinite().all()):
        i, j = (~weights.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"weights[{i}, {j}]={float(weights[i, j])} must be finite")


def _refuse_diverged(found: Tensor, dt: float) -> None:
    first = int((~found.isfinite().flatten(1).all(dim=1)).nonzero()[0])
    # Within a step what is not finite spreads to all nodes: the culprit is the one that was farthest out before.
    before = found[max(first - 1, 0)].abs().nan_to_num(float("inf")).amax(dim=-1)
    node = int(before.reshape(-1, before.shape[-1]).amax(dim=0).argmax())
    raise FloatingPointError(
        f"the network is not finite at step {first}, first at node {node}: take a smaller dt than {dt}, or "
        "weaker weights"
    )
