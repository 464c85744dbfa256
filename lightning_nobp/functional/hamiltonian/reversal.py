"""Whether a simulation can be reversed in time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.checks import check_finite
from lightning_nobp.functional.hamiltonian.echo import Simulation, System
from lightning_nobp.functional.hamiltonian.flows import Drives
from lightning_nobp.functional.hamiltonian.integrator import run
from lightning_nobp.functional.hamiltonian.phase_space import State, added, sizes
from lightning_nobp.typed import explained


@explained
@torch.no_grad()
def reversal_error(
    system: System,
    state: State,
    drives: Sequence[Tensor] = (),
    *,
    dt: float,
    n_steps: int,
    damping: float = 0.0,
) -> Tensor:
    """How far from its start a simulation ends that runs, is reversed in time, and runs again.

    Args:
        system: What runs.
        state: At the start, tensors ``(batch, ...)``.
        drives: None, one, or one a step; in the second run they come in the reversed order.
        dt: Length of a time step.
        n_steps: How many.
        damping: Rate of a uniform loss; a gain in the second run.

    Returns:
        The distance ``(batch,)`` over the size of the state, that at the start or the end, whichever is larger. Some
        hundred rounding errors are fine; in a chaotic system they grow exponentially with time.

    Raises:
        FloatingPointError: The first run leaves the finite numbers; the message names the step.
    """
    space, simulation = system.space, Simulation(system, dt, n_steps, n_steps)
    order = range(n_steps)
    flows = simulation.flows(Drives(drives), damping)
    end = run(flows, state, dt=dt, order=order)
    check_finite(end, flows, state, dt, n_steps)
    back = run(simulation.flows(Drives(drives), -damping), space.reverse(end), dt=dt, order=order[::-1])
    distance = sizes(added(space.reverse(back), state, -1.0))
    largest = torch.maximum(sizes(state), sizes(end))
    return torch.where(distance > 0, distance / largest, distance)
