"""The echo of an infinitely small nudge: the reversible adjoint."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.flows import Flow
from lightning_nobp.functional.hamiltonian.integrator import calls
from lightning_nobp.functional.hamiltonian.phase_space import State, added


def adjoint(
    flows: Sequence[Flow], state: State, seen: Sequence[State], inputs: Sequence[Tensor], *, dt: float, order: range
) -> tuple[State, list[Tensor | None]]:
    """Gradients of a simulation whose states are found again by running back, one flow at a time.

    Args:
        flows: Those of the simulation, made of ``inputs``.
        state: The last state.
        seen: Gradients of the cost by the states that were looked at, at equal distances; the last is the last state's.
        inputs: Drives and parameters that require gradients.
        dt: Length of a time step.
        order: Numbers of the time steps, as they were taken.

    Returns:
        Gradients by the first state, and by the inputs.
    """
    every = len(order) // len(seen)
    totals: list[Tensor | None] = [None] * len(inputs)
    gradient: State = tuple(torch.zeros_like(s) for s in state)
    for step in reversed(order):
        if (step + 1) % every == 0:
            gradient = added(gradient, seen[(step + 1) // every - 1])
        for flow, h, _ in reversed(calls(flows, dt, step)):
            with torch.no_grad():
                state = flow(state, -h, step)
            gradient, changes = _pull_back(flow, state, h, step, gradient, inputs)
            totals = [c if t is None else t if c is None else t + c for t, c in zip(totals, changes, strict=True)]
    return gradient, totals


def _pull_back(
    flow: Flow, state: State, h: float, step: int, gradient: State, inputs: Sequence[Tensor]
) -> tuple[State, tuple[Tensor | None, ...]]:
    """Take a gradient back through one flow."""
    with torch.enable_grad():
        start = tuple(s.detach().requires_grad_() for s in state)
        end = flow(start, h, step)
    # The next step uses what the flows have computed of parameters again.
    found = torch.autograd.grad(end, [*start, *inputs], gradient, allow_unused=True, retain_graph=True)
    by_start = tuple(torch.zeros_like(s) if g is None else g for s, g in zip(start, found[: len(start)], strict=True))
    return by_start, found[len(start) :]
