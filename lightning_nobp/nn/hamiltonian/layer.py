"""A layer that simulates positions and momenta."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian import Imperfections, State
from lightning_nobp.functional.hamiltonian.sums import energies
from lightning_nobp.nn.hamiltonian.echo_layer import EchoLayer, EchoNudge, GradientEngine, plain_run
from lightning_nobp.nn.hamiltonian.spectrum import probe
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem

UNSTABLE, NEARLY_UNSTABLE = 2.0, 1.8
"""``dt`` times the highest frequency, from where leapfrog diverges, and from where that is near."""


class HamiltonianLayer(EchoLayer):
    """Positions and momenta a while later; gradients come from the echo of the simulation, not from a graph.

    Args:
        system: What is simulated.
        dt: Length of a time step, less than 2 over the system's highest frequency.
        n_steps: How many.
        gradient_engine: ``'echo'``, gradients from simulations alone, in memory that does not grow with ``n_steps``;
            ``'adjoint'``, the echo of an infinitely small nudge; ``'autograd'``, with a graph through all time steps.
        eta: Size of the echo's nudge; None for 1e-2 in float32 and 1e-5 in float64.
        nudge: ``'symmetric'``, ``'one_sided'`` or ``'richardson'``, see
            :func:`~lightning_nobp.functional.hamiltonian.hamiltonian_echo`.
        relative_eta: Whether ``eta`` is a fraction of each sample's state.
        damping: Rate at which momenta are lost; the echo is amplified at this rate.

    Raises:
        ValueError: An argument out of its range.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """

    system: HamiltonianSystem

    def __init__(
        self,
        system: HamiltonianSystem,
        dt: float,
        n_steps: int,
        gradient_engine: GradientEngine = "echo",
        eta: float | None = None,
        nudge: EchoNudge = "symmetric",
        relative_eta: bool = True,
        damping: float = 0.0,
    ) -> None:
        super().__init__(system, dt, n_steps, gradient_engine, eta, nudge, relative_eta, damping)

    def forward(
        self, q0: Tensor, p0: Tensor | None = None, u: Tensor | Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Positions and momenta at the end.

        Args:
            q0: Positions at the start ``(batch, ...)``.
            p0: Momenta, of the same shape; None for none.
            u: What acts on the system: a tensor ``(batch, ...)``, or one a step; None for nothing.

        Raises:
            ValueError: See :meth:`EchoLayer.run`; on the first batch of training, a time step that is too long.
            TypeError: See :meth:`EchoLayer.run`.
            FloatingPointError: See :meth:`EchoLayer.run`.
        """
        drives = () if u is None else (u,) if isinstance(u, Tensor) else tuple(u)
        self._check_shapes(q0, drives)
        q, p = self.run((q0, torch.zeros_like(q0) if p0 is None else p0), drives)
        return q, p

    def dt_omega(self, q: Tensor, drives: Sequence[Tensor] = ()) -> float:
        """``dt`` times the system's highest frequency at some positions: leapfrog is stable below 2.

        Args:
            q: Positions ``(batch, ...)``.
            drives: What acts on the system: none, one, or one a step, of which the first counts.
        """
        return self.dt * float(self.system.highest_frequency(q, drives[0] if drives else None))

    def hint(self, state: State, drives: Sequence[Tensor]) -> str:
        """How long the time step is, where that is too long from the start."""
        dt_omega = self.dt_omega(state[0], drives) if bool(state[0].isfinite().all()) else 0.0
        if not UNSTABLE <= dt_omega < math.inf:
            return ""
        return (
            f". dt times the highest frequency is {dt_omega:.2f} at the start, and leapfrog is unstable from "
            f"{UNSTABLE:g} on: take a dt below {UNSTABLE * self.dt / dt_omega:.2g}"
        )

    def check(self, state: State, drives: Sequence[Tensor]) -> None:
        """Refuse forces that come from no potential or cannot be reversed, and a time step that is too long.

        Args:
            state: Positions and momenta at the start.
            drives: What acts on the system.

        Raises:
            ValueError: Says how large the error is, or the largest time step; or energies that are not one a sample.
        """
        q, p = (part.detach() for part in state)
        drives = [u.detach() for u in drives]
        u, system = drives[0] if drives else None, self.system
        nearby = q + 0.1 * probe(q)
        with torch.no_grad():
            force, velocity = system.potential_gradient(nearby, u), system.velocity(nearby)
        self._compare("potential_gradient", force, "potential", lambda x: energies(system, x, u), nearby)
        self._compare("velocity", velocity, "kinetic", system.kinetic, nearby)
        self.check_time_step(self.dt_omega(q, drives))
        super().check((q, p), drives)
        self._check_samples(nearby, u)

    def diagnose(self, state: State, drives: Sequence[Tensor]) -> dict[str, float]:
        """``reversal_error``; ``dt_omega`` at the start or the end, and ``energy_drift``, if energy is to be kept.

        Args:
            state: Positions and momenta at the start.
            drives: What acts on the system.

        Raises:
            ValueError: Learning has made the time step too long.
        """
        with torch.no_grad():
            q, p = state
            q_end, p_end = plain_run(replace(self.simulation(q), imperfections=Imperfections()), state, drives)
            u = drives[0] if drives else None
            dt_omega = max(self.dt_omega(q, drives), self.dt_omega(q_end, drives[-1:]))
            self.check_time_step(dt_omega)
            values = super().diagnose(state, drives) | {"dt_omega": dt_omega}
            if self.damping or len(drives) > 1:
                return values
            before, after = self.system.energy(q, p, u), self.system.energy(q_end, p_end, u)
            scale = torch.maximum(before.abs(), after.abs()).clamp_min(torch.finfo(before.dtype).tiny)
            return values | {"energy_drift": float(((after - before).abs() / scale).max())}

    def _compare(self, name: str, found: Tensor, of: str, energy: Callable[[Tensor], Tensor], at: Tensor) -> None:
        with torch.enable_grad():
            at = at.clone().requires_grad_()
            total = energy(at).sum()
            expected = torch.autograd.grad(total, at, allow_unused=True, materialize_grads=True)[0].detach()
        error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-30)
        if not bool(error.isfinite()):
            raise FloatingPointError(f"{name} is nan, or too large for {at.dtype}, at the start: scale the inputs down")
        self.refuse(
            float(error),
            at.dtype,
            f"{name} is {{error:.1e}} off autograd's derivative of {of}: mend the one or the other, or leave {name} to "
            "autograd",
        )

    def _check_samples(self, q: Tensor, u: Tensor | None) -> None:
        """Refuse forces between the samples of a batch: in an echo its copies are samples too."""
        with torch.no_grad():
            force = self.system.potential_gradient(q, u)[:1]
            alone = self.system.potential_gradient(q[:1], None if u is None else u[:1])
        error = torch.linalg.vector_norm(alone - force) / torch.linalg.vector_norm(force).clamp_min(1e-30)
        self.refuse(
            float(error),
            q.dtype,
            "a sample's force is {error:.1e} off the one that it feels alone: samples must not act on each other, as "
            "by the mean over a batch",
        )

    def check_time_step(self, dt_omega: float) -> None:
        """Refuse a time step that leapfrog cannot take, and warn of one that it nearly cannot.

        Args:
            dt_omega: See :meth:`dt_omega`.

        Raises:
            ValueError: It is 2 or more.
        """
        said = (
            f"{self.label}, of a {type(self.system).__name__}: dt={self.dt:g} times the highest frequency "
            f"omega={dt_omega / self.dt:.3g} is {dt_omega:.2f}, and leapfrog is unstable from 2 on: take a dt below "
            f"{UNSTABLE * self.dt / max(dt_omega, 1e-30):.2g}, or a weaker coupling"
        )
        if dt_omega >= UNSTABLE:
            raise ValueError(said)
        if dt_omega >= NEARLY_UNSTABLE:
            warnings.warn(said, stacklevel=2)

    def _check_shapes(self, q0: Tensor, drives: Sequence[Tensor]) -> None:
        system = self.system
        if system.state_shape is not None and q0.shape[1:] != system.state_shape:
            raise ValueError(
                f"positions of shape {tuple(q0.shape)} do not fit the {type(system).__name__}: give "
                f"(batch, {', '.join(map(str, system.state_shape))})"
            )
        if len(drives) not in (0, 1, self.n_steps):
            raise ValueError(f"u has {len(drives)} drives: give one tensor, or n_steps={self.n_steps} of them")
        for drive in drives:
            if system.drive_shape is not None and drive.shape[1:] != system.drive_shape:
                raise ValueError(
                    f"a drive of shape {tuple(drive.shape)} does not fit the {type(system).__name__}: give "
                    f"(batch, {', '.join(map(str, system.drive_shape))})"
                )
