"""Symplectic, reversible integrators: compositions of exact flows that read the same from both ends."""

from collections.abc import Callable, Sequence

from lightning_nobp.functional.hamiltonian.flows import Flow
from lightning_nobp.functional.hamiltonian.phase_space import State

Step = Callable[[State, float, int], State]
"""A flow, or its recorder."""

Visit = Callable[[int, State], State]
"""What happens between two time steps: of the number of steps done and the state, the state to go on with."""

Call = tuple[Flow, float, int]
"""A flow, the time for which it acts, and the number of the time step."""


def run(
    flows: Sequence[Step], state: State, *, dt: float, order: Sequence[int], every: int = 0, visit: Visit | None = None
) -> State:
    """Strang's composition: all flows for half a step, the last for a whole one, and all again in reversed order.

    The half steps of the first flow at the end of one time step and the start of the next are one, so it must not
    change with time.

    Args:
        flows: At least two.
        state: Of any phase space.
        dt: Length of a time step.
        order: Numbers of the time steps, in the order in which they are taken.
        every: After how many steps ``visit`` is called, each time.
        visit: See :data:`Visit`.

    Returns:
        The last state.
    """
    first, *middle, last = flows
    state = first(state, dt / 2, order[0])
    for done, step in enumerate(order, 1):
        for flow in middle:
            state = flow(state, dt / 2, step)
        state = last(state, dt, step)
        for flow in reversed(middle):
            state = flow(state, dt / 2, step)
        is_last = done == len(order)
        if visit is not None and done % every == 0:
            state = visit(done, first(state, dt / 2, step))
            state = state if is_last else first(state, dt / 2, step)
        else:
            state = first(state, dt / 2 if is_last else dt, step)
    return state


def calls(flows: Sequence[Flow], dt: float, step: int) -> list[Call]:
    """The calls of one time step of :func:`run`."""
    *halves, last = [(flow, dt / 2, step) for flow in flows]
    return [*halves, (last[0], dt, step), *reversed(halves)]
