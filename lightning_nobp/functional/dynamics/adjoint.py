"""Gradients of what a network predicts over a window, by its couplings: backpropagation through time, written out.

References:
    Werbos, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78, 1550 (1990); Tan, Correa,
    Stemler and Small, "Backpropagation on Dynamical Networks", arXiv 2207.03093.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_nobp.functional.dynamics.network import Field, Integrator, coupling, rk4_increment, velocity
from lightning_nobp.typed import explained

Adjoint = Literal["exact", "linearised"]

Pullback = Callable[[Tensor], Tensor]
"""From the gradient by what came out to that by what went in."""

FieldVjp = Callable[[Tensor], tuple[Tensor, Pullback]]
"""A field ``x -> dx/dt`` that gives its pullback too; which may add to the gradients of its own parameters."""

_Pulled = tuple[Tensor, Tensor]
"""Gradients by states and by weights."""
_StepVjp = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], _Pulled]]]


class WindowGradient(NamedTuple):
    """What a window says of the couplings.

    Args:
        loss: Mean over samples, steps, nodes and components of the squared error.
        weights: Its gradient by the couplings ``(nodes, nodes)``, zero on the diagonal.
    """

    loss: Tensor
    weights: Tensor


@explained
def autograd_vjp(field: Field) -> FieldVjp:
    """Any differentiable field with its pullback."""

    @explained
    def run(x: Tensor) -> tuple[Tensor, Pullback]:
        y, pullback = torch.func.vjp(field, x)  # type: ignore[misc]
        return y, lambda grad: pullback(grad)[0]

    return run


@explained
def coupling_adjoint(
    field_vjp: FieldVjp,
    windows: Tensor,
    weights: Tensor,
    dt: float,
    *,
    integrator: Integrator = "split",
    adjoint: Adjoint = "exact",
) -> WindowGradient:
    """Follow the network from the first sample of each window, and take the error of all others back through time.

    Args:
        field_vjp: Of each node alone, with its pullback; see :func:`autograd_vjp`.
        windows: ``(batch, steps + 1, nodes, components)``.
        weights: ``(nodes, nodes)``; row ``i`` holds what acts on node ``i``. The diagonal does not matter.
        dt: Time from one sample to the next.
        integrator: See :func:`~lightning_nobp.functional.dynamics.step`.
        adjoint: ``'exact'``, through every stage of the integrator; ``'linearised'``, as in the paper, through a step
            of Euler's method at the state before the step: a quarter of the products on the way back, and the same in
            the limit of small ``dt``.

    Raises:
        ValueError: An unknown option, or windows of one sample.
    """
    if adjoint not in get_args(Adjoint):
        raise ValueError(f"adjoint={adjoint!r} is not one of {', '.join(map(repr, get_args(Adjoint)))}")
    if integrator not in get_args(Integrator):
        raise ValueError(f"integrator={integrator!r} is not one of {', '.join(map(repr, get_args(Integrator)))}")
    if windows.dim() != 4 or windows.shape[1] < 2:
        raise ValueError(
            f"windows of shape {tuple(windows.shape)}: give (batch, steps + 1, nodes, components), with a step at least"
        )
    wanted = windows.unbind(1)
    x, errors, pullbacks = wanted[0], [], []
    for target in wanted[1:]:
        x, pullback = _step_vjp(field_vjp, x, weights, dt, integrator, adjoint)
        errors.append(x - target)
        pullbacks.append(pullback)
    numbers = len(errors) * x.numel()
    back, by_weights = torch.zeros_like(x), torch.zeros_like(weights)
    for error, pullback in zip(reversed(errors), reversed(pullbacks), strict=True):
        back, share = pullback(back + (2 / numbers) * error)
        by_weights += share
    loss = torch.stack(errors).square().mean()
    return WindowGradient(loss, by_weights.fill_diagonal_(0))


def _step_vjp(
    field_vjp: FieldVjp, x: Tensor, weights: Tensor, dt: float, integrator: Integrator, adjoint: Adjoint
) -> tuple[Tensor, Callable[[Tensor], _Pulled]]:
    """A step, and what takes gradients back through it."""

    def alone(state: Tensor) -> tuple[Tensor, Callable[[Tensor], _Pulled]]:
        y, pullback = field_vjp(state)
        return y, lambda grad: (pullback(grad), torch.zeros_like(weights))

    def coupled(state: Tensor) -> tuple[Tensor, Callable[[Tensor], _Pulled]]:
        y, pullback = field_vjp(state)
        felt, back = _coupling_vjp(state, weights)
        return y + felt, lambda grad: _sum((pullback(grad), 0), back(grad))

    if adjoint == "linearised" or integrator == "euler":
        return _linearised_vjp(field_vjp, x, weights, dt, integrator)
    if integrator == "rk4":
        increment, pullback = _rk4_vjp(coupled, x, dt)
        return x + increment, lambda grad: _sum((grad, 0), pullback(grad))
    increment, pullback = _rk4_vjp(alone, x, dt)
    felt, back = _coupling_vjp(x, weights)
    return x + increment + dt * felt, lambda grad: _sum((grad, 0), pullback(grad), back(dt * grad))


def _linearised_vjp(
    field_vjp: FieldVjp, x: Tensor, weights: Tensor, dt: float, integrator: Integrator
) -> tuple[Tensor, Callable[[Tensor], _Pulled]]:
    """A step, and what takes gradients back through one of Euler's method in its place."""

    def field(state: Tensor) -> Tensor:
        return field_vjp(state)[0]

    alone, pullback = field_vjp(x)
    felt, back = _coupling_vjp(x, weights)
    if integrator == "rk4":
        after = x + rk4_increment(lambda state: velocity(field, state, weights), x, dt, first=alone + felt)
    elif integrator == "split":
        after = x + rk4_increment(field, x, dt, first=alone) + dt * felt
    else:
        after = x + dt * (alone + felt)
    return after, lambda grad: _sum((grad + pullback(dt * grad), 0), back(dt * grad))


def _rk4_vjp(moved: _StepVjp, x: Tensor, dt: float) -> tuple[Tensor, Callable[[Tensor], _Pulled]]:
    first, back1 = moved(x)
    second, back2 = moved(x + dt / 2 * first)
    third, back3 = moved(x + dt / 2 * second)
    fourth, back4 = moved(x + dt * third)

    def pullback(grad: Tensor) -> _Pulled:
        by4 = back4(dt / 6 * grad)
        by3 = back3(dt / 3 * grad + dt * by4[0])
        by2 = back2(dt / 3 * grad + dt / 2 * by3[0])
        by1 = back1(dt / 6 * grad + dt / 2 * by2[0])
        return _sum(by1, by2, by3, by4)

    return dt / 6 * (first + 2 * second + 2 * third + fourth), pullback


def _coupling_vjp(x: Tensor, weights: Tensor) -> tuple[Tensor, Callable[[Tensor], _Pulled]]:
    """What nodes feel of others, as states that are zero but for the first component."""
    h = x[..., 0]
    felt = torch.zeros_like(x)
    felt[..., 0] = coupling(h, weights)

    def pullback(grad: Tensor) -> _Pulled:
        back = grad[..., 0]
        by_state = torch.zeros_like(grad)
        by_state[..., 0] = back @ weights - back * weights.sum(dim=1)
        return by_state, back.T @ h - (back * h).sum(dim=0).unsqueeze(1)

    return felt, pullback


def _sum(*parts: tuple[Tensor, Tensor | int]) -> _Pulled:
    by_state, by_weights = zip(*parts, strict=True)
    return sum(by_state[1:], start=by_state[0]), sum(by_weights[1:], start=by_weights[0])
