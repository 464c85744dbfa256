"""Leapfrog simulations of positions and momenta, and their echo."""

from collections.abc import Sequence

from torch import Tensor

from lightning_nobp.functional.hamiltonian.checks import (
    check_digits,
    check_finite,
    check_run,
    check_state,
    check_system,
)
from lightning_nobp.functional.hamiltonian.echo import Simulation, System, simulate
from lightning_nobp.functional.hamiltonian.flows import Drives
from lightning_nobp.functional.hamiltonian.imperfections import Imperfections
from lightning_nobp.functional.hamiltonian.integrator import run
from lightning_nobp.functional.hamiltonian.nudge import NudgeMode, check_nudge
from lightning_nobp.functional.hamiltonian.phase_space import CANONICAL
from lightning_nobp.typed import explained

Drive = Tensor | Sequence[Tensor] | None
"""What acts on a system: nothing, a tensor ``(batch, ...)`` all the time, or a sequence of them, one a step."""


@explained
def leapfrog(
    system: System,
    q: Tensor,
    p: Tensor,
    u: Drive = None,
    *,
    dt: float,
    n_steps: int,
    damping: float = 0.0,
    fractional_bits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions and momenta a time ``n_steps * dt`` later, by drift, kick, drift.

    Symplectic, reversible, of second order in ``dt``; stable while ``dt`` times the highest frequency is below 2.
    Autograd sees every operation.

    Args:
        system: See :class:`~lightning_nobp.nn.HamiltonianSystem`.
        q: Positions ``(batch, ...)``.
        p: Momenta, of the same shape.
        u: See :data:`Drive`.
        dt: Length of a time step, in the system's unit of time.
        n_steps: How many, at least 1.
        damping: Rate at which momenta are lost, one over time; negative for a gain.
        fractional_bits: Binary digits behind the point of fixed-point numbers: positions and momenta are multiples of
            ``2 ** -fractional_bits``, and a simulation reversed in time ends where it began, bit for bit. Take float64
            and 36 for numbers up to 131,072, and no damping. None for ordinary numbers. Derivatives take no notice of
            the rounding.

    Raises:
        ValueError: An argument out of its range, or shapes that do not fit.
        TypeError: Numbers that are not real floating point.
        FloatingPointError: A state that is not finite; the message names the step.
    """
    drives = as_drives(u, n_steps)
    check_state((q, p), drives, CANONICAL)
    check_system(system, CANONICAL, q)
    check_run(dt, n_steps, damping, fractional_bits)
    simulation = Simulation(system, dt, n_steps, n_steps, damping=damping, grid=_grid(fractional_bits))
    flows = simulation.flows(Drives(drives), damping)
    start = simulation.on_grid((q, p))
    end = run(flows, start, dt=dt, order=range(n_steps))
    check_finite(end, flows, start, dt, n_steps)
    check_digits(start, simulation.grid)
    check_digits(end, simulation.grid)
    return end[0], end[1]


@explained
def hamiltonian_echo(
    system: System,
    q0: Tensor,
    p0: Tensor,
    u: Drive = None,
    *,
    dt: float,
    n_steps: int,
    eta: float = 1e-4,
    nudge: NudgeMode = "symmetric",
    relative: bool = True,
    damping: float = 0.0,
    fractional_bits: int | None = None,
    imperfections: Imperfections | None = None,
) -> tuple[Tensor, Tensor]:
    """The same positions and momenta as :func:`leapfrog`'s, with a backward pass that is an echo.

    The forward pass keeps its last state alone, whatever the number of steps. The backward pass takes the incoming
    gradient for an error signal, and gives gradients by ``q0``, ``p0``, drives and the system's parameters.

    Args:
        system: See :class:`~lightning_nobp.nn.HamiltonianSystem`.
        q0: Positions at the start ``(batch, ...)``.
        p0: Momenta, of the same shape.
        u: See :data:`Drive`.
        dt: Length of a time step.
        n_steps: How many, at least 1.
        eta: Size of the nudge: with ``relative`` its length over that of the state. 1e-2 suits float32, 1e-5 float64.
        nudge: ``'symmetric'``, two echoes, with an error of the order ``eta ** 2``; ``'one_sided'``, one echo against
            one without a nudge, ``eta``; ``'richardson'``, four echoes, ``eta ** 4``; ``'tangent'``, the limit of no
            nudge: the reversible adjoint, exact.
        relative: Whether each sample's nudge is scaled by its state and error signal. A fixed ``eta`` drowns in
            rounding when gradients get small.
        damping: See :func:`leapfrog`. The echo is amplified at the same rate, and stays exact.
        fractional_bits: See :func:`leapfrog`.
        imperfections: What is wrong with the apparatus; None for nothing.

    Returns:
        Positions and momenta at the end.

    Raises:
        ValueError: An argument out of its range, or shapes that do not fit.
        TypeError: Numbers that are not real floating point.
        FloatingPointError: A state that is not finite; the message names the step.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """
    q, p = hamiltonian_echo_trajectory(
        system,
        q0,
        p0,
        u,
        dt=dt,
        n_steps=n_steps,
        every=n_steps,
        eta=eta,
        nudge=nudge,
        relative=relative,
        damping=damping,
        fractional_bits=fractional_bits,
        imperfections=imperfections,
    )
    return q[0], p[0]


@explained
def hamiltonian_echo_trajectory(
    system: System,
    q0: Tensor,
    p0: Tensor,
    u: Drive = None,
    *,
    dt: float,
    n_steps: int,
    every: int = 1,
    eta: float = 1e-4,
    nudge: NudgeMode = "symmetric",
    relative: bool = True,
    damping: float = 0.0,
    fractional_bits: int | None = None,
    imperfections: Imperfections | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`hamiltonian_echo` that is looked at on its way, for costs that run with time.

    Args:
        system: See :func:`hamiltonian_echo`, and so for the others.
        q0: Positions at the start.
        p0: Momenta at the start.
        u: Drives.
        dt: Length of a time step.
        n_steps: How many.
        every: After so many steps the state is looked at, each time; a divisor of ``n_steps``.
        eta: Size of the nudge.
        nudge: Its mode.
        relative: Whether each sample has a size of its own.
        damping: Rate of the loss.
        fractional_bits: Of fixed-point numbers.
        imperfections: Of the apparatus.

    Returns:
        Positions and momenta ``(n_steps / every, batch, ...)``, after ``every``, ``2 * every``, ... steps.

    Raises:
        ValueError: As :func:`hamiltonian_echo`, or ``every`` that does not divide ``n_steps``.
    """
    drives = as_drives(u, n_steps)
    check_state((q0, p0), drives, CANONICAL)
    check_system(system, CANONICAL, q0)
    check_run(dt, n_steps, damping, fractional_bits, every)
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
        grid=_grid(fractional_bits),
        imperfections=imperfections or Imperfections(),
    )
    q, p = simulate(simulation, (q0, p0), drives)
    return q, p


def as_drives(u: Drive, n_steps: int) -> tuple[Tensor, ...]:
    """Drives as a tuple: of none, of one, or of one a step.

    Raises:
        ValueError: Another number of them.
    """
    if u is None:
        return ()
    if isinstance(u, Tensor):
        return (u,)
    if len(u) != n_steps:
        raise ValueError(f"u has {len(u)} drives: give one tensor, or a sequence of n_steps={n_steps} of them")
    return tuple(u)


def _grid(fractional_bits: int | None) -> float:
    return 0.0 if fractional_bits is None else 2.0**-fractional_bits
