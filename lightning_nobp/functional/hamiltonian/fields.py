"""Simulations of complex fields by Strang's splitting, and their echo."""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from lightning_nobp.functional.hamiltonian.checks import check_finite, check_run, check_state, check_system
from lightning_nobp.functional.hamiltonian.echo import Simulation, System, simulate
from lightning_nobp.functional.hamiltonian.flows import Drives
from lightning_nobp.functional.hamiltonian.imperfections import Imperfections
from lightning_nobp.functional.hamiltonian.integrator import run
from lightning_nobp.functional.hamiltonian.leapfrog import Drive, as_drives
from lightning_nobp.functional.hamiltonian.nudge import NudgeMode, check_nudge
from lightning_nobp.functional.hamiltonian.phase_space import COMPLEX, State
from lightning_nobp.typed import explained

Fields = TypeVar("Fields", Tensor, tuple[Tensor, ...])
"""One complex field ``(batch, ...)``, or several."""


@explained
def strang(system: System, fields: Fields, u: Drive = None, *, dt: float, n_steps: int, damping: float = 0.0) -> Fields:
    """Fields a time ``n_steps * dt`` later, by half a step of linear waves, one of phases, half a step of waves.

    Symplectic, reversible, of second order in ``dt``; norms are kept to rounding. Autograd sees every operation.

    Args:
        system: See :class:`~lightning_nobp.nn.FieldSystem`.
        fields: At the start, complex ``(batch, ...)``: one or several, as the system has.
        u: See :data:`~lightning_nobp.functional.hamiltonian.Drive`; what it does, the system says.
        dt: Length of a time step, in the system's unit of time.
        n_steps: How many, at least 1.
        damping: Rate at which intensities are lost, one over time; negative for a gain.

    Raises:
        ValueError: An argument out of its range, or shapes that do not fit.
        TypeError: Numbers that are not complex.
        FloatingPointError: A field that is not finite; the message names the step.
    """
    drives, state = as_drives(u, n_steps), _state(fields)
    check_state(state, drives, COMPLEX)
    check_system(system, COMPLEX, state[0])
    check_run(dt, n_steps, damping, None)
    flows = Simulation(system, dt, n_steps, n_steps, damping=damping).flows(Drives(drives), damping)
    end = run(flows, state, dt=dt, order=range(n_steps))
    check_finite(end, flows, state, dt, n_steps)
    return end[0] if isinstance(fields, Tensor) else end


@explained
def field_echo(
    system: System,
    fields: Fields,
    u: Drive = None,
    *,
    dt: float,
    n_steps: int,
    eta: float = 1e-4,
    nudge: NudgeMode = "symmetric",
    relative: bool = True,
    damping: float = 0.0,
    imperfections: Imperfections | None = None,
) -> Fields:
    """The same fields as :func:`strang`'s, with a backward pass that is an echo.

    The forward pass keeps its last fields alone, whatever the number of steps. The backward pass takes the incoming
    gradient for an error signal, and gives gradients by the fields at the start, drives and the system's parameters.

    Args:
        system: See :func:`strang`, and so for the next four.
        fields: At the start.
        u: Drives.
        dt: Length of a time step.
        n_steps: How many.
        eta: See :func:`~lightning_nobp.functional.hamiltonian.hamiltonian_echo`, and so for the next two.
        nudge: Its mode.
        relative: Whether each sample's nudge is scaled.
        damping: See :func:`strang`. The echo is amplified at the same rate.
        imperfections: What is wrong with the apparatus; None for nothing.

    Returns:
        The fields at the end.

    Raises:
        ValueError: As :func:`strang`, or an unknown mode.
        TypeError: Numbers that are not complex.
        FloatingPointError: A field that is not finite; the message names the step.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """
    seen = field_echo_trajectory(
        system,
        fields,
        u,
        dt=dt,
        n_steps=n_steps,
        every=n_steps,
        eta=eta,
        nudge=nudge,
        relative=relative,
        damping=damping,
        imperfections=imperfections,
    )
    return seen[0] if isinstance(seen, Tensor) else tuple(field[0] for field in seen)


@explained
def field_echo_trajectory(
    system: System,
    fields: Fields,
    u: Drive = None,
    *,
    dt: float,
    n_steps: int,
    every: int = 1,
    eta: float = 1e-4,
    nudge: NudgeMode = "symmetric",
    relative: bool = True,
    damping: float = 0.0,
    imperfections: Imperfections | None = None,
) -> Fields:
    """:func:`field_echo` that is looked at on its way, for costs that run with time.

    Args:
        system: See :func:`field_echo`, and so for the others.
        fields: At the start.
        u: Drives.
        dt: Length of a time step.
        n_steps: How many.
        every: After so many steps the fields are looked at, each time; a divisor of ``n_steps``.
        eta: Size of the nudge.
        nudge: Its mode.
        relative: Whether each sample has a size of its own.
        damping: Rate of the loss.
        imperfections: Of the apparatus.

    Returns:
        Fields ``(n_steps / every, batch, ...)``, after ``every``, ``2 * every``, ... steps.

    Raises:
        ValueError: As :func:`field_echo`, or ``every`` that does not divide ``n_steps``.
    """
    drives, state = as_drives(u, n_steps), _state(fields)
    check_state(state, drives, COMPLEX)
    check_system(system, COMPLEX, state[0])
    check_run(dt, n_steps, damping, None, every)
    check_nudge(nudge, eta)
    simulation = Simulation(
        system,
        dt,
        n_steps,
        every,
        eta=eta,
        nudge=nudge,
        relative=relative,
        damping=damping,
        imperfections=imperfections or Imperfections(),
    )
    seen = simulate(simulation, state, drives)
    return seen[0] if isinstance(fields, Tensor) else seen


def _state(fields: Tensor | Sequence[Tensor]) -> State:
    return (fields,) if isinstance(fields, Tensor) else tuple(fields)
