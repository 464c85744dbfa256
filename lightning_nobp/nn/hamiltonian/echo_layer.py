"""The base of layers that simulate a physical system."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_nobp.functional.hamiltonian import (
    Drives,
    Imperfections,
    Simulation,
    State,
    System,
    reversal_error,
    simulate,
)
from lightning_nobp.functional.hamiltonian.checks import check_finite, check_run, check_start, check_state, check_system
from lightning_nobp.functional.hamiltonian.integrator import run
from lightning_nobp.functional.hamiltonian.nudge import check_nudge
from lightning_nobp.typed import Typed

GradientEngine = Literal["echo", "adjoint", "autograd"]

EchoNudge = Literal["symmetric", "one_sided", "richardson"]
"""Nudges of a size; the limit of none is an engine of its own."""

_CHECKED_STEPS = 20


class EchoLayer(Typed, nn.Module):
    """What layers that simulate have in common, whatever their states are.

    On the first batch of training the simulation is tried: forces that no echo can reverse are refused.

    Args:
        system: What is simulated.
        dt: Length of a time step.
        n_steps: How many.
        gradient_engine: ``'echo'``, gradients from simulations alone; ``'adjoint'``, the echo of an infinitely small
            nudge; ``'autograd'``, with a graph through all time steps.
        eta: Size of the echo's nudge; None for 1e-2 in float32 and 1e-5 in float64.
        nudge: ``'symmetric'``, ``'one_sided'`` or ``'richardson'``, see
            :func:`~lightning_nobp.functional.hamiltonian.hamiltonian_echo`.
        relative_eta: Whether ``eta`` is a fraction of each sample's state.
        damping: Rate of a uniform loss.

    Raises:
        ValueError: An argument out of its range.
    """

    system: nn.Module
    imperfections: Imperfections | None
    """What is wrong with the apparatus that makes the echo; None for nothing."""

    def __init__(
        self,
        system: nn.Module,
        dt: float,
        n_steps: int,
        gradient_engine: GradientEngine = "echo",
        eta: float | None = None,
        nudge: EchoNudge = "symmetric",
        relative_eta: bool = True,
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        check_nudge(nudge, 1.0 if eta is None else eta)
        check_run(dt, n_steps, damping, None)
        self.system, self.dt, self.n_steps, self.damping = system, dt, n_steps, damping
        self.gradient_engine, self.eta, self.nudge, self.relative_eta = gradient_engine, eta, nudge, relative_eta
        self.imperfections = None
        self.label = type(self).__name__
        """What error messages call the layer; a rule writes its place in the network here."""
        self.watcher: Callable[[State, Sequence[Tensor]], None] | None = None
        """Is told the start and the drives of every simulation."""
        self._is_checked = False

    def simulation(self, like: Tensor) -> Simulation:
        """The layer's simulation, for states of the type of ``like``."""
        system: System = self.system  # type: ignore[assignment]
        return Simulation(
            system,
            self.dt,
            self.n_steps,
            self.n_steps,
            eta=default_eta(like.dtype) if self.eta is None else self.eta,
            nudge="tangent" if self.gradient_engine == "adjoint" else self.nudge,
            relative=self.relative_eta,
            damping=self.damping,
            imperfections=self.imperfections or Imperfections(),
        )

    def run(self, state: State, drives: Sequence[Tensor] = ()) -> State:
        """The state at the end, with gradients by the layer's engine.

        Args:
            state: At the start, tensors ``(batch, ...)``.
            drives: None, one, or one a step.

        Raises:
            ValueError: Shapes that do not fit; on the first batch of training, a force that cannot be reversed.
            TypeError: A state of the wrong type.
            FloatingPointError: A state that is not finite; the message names layer and step.
        """
        simulation = self.simulation(state[0])
        if torch.compiler.is_compiling() or state[0].is_meta:
            return plain_run(simulation, state, drives)
        check_state(state, drives, simulation.system.space)
        check_system(simulation.system, simulation.system.space, state[0])
        if self.watcher is not None:
            self.watcher(state, drives)
        try:
            if self.training and len(state[0]) and not (self._is_checked or torch.is_inference_mode_enabled()):
                check_start(state, drives)
                self.check(state, drives)
                self._is_checked = True
            if self.gradient_engine == "autograd":
                return _checked(simulation, state, drives)
            return tuple(part[0] for part in simulate(simulation, state, drives))
        except FloatingPointError as error:
            hint = self.hint(state, drives)
            raise FloatingPointError(f"{self.label}, of a {type(self.system).__name__}: {error}{hint}") from error

    def hint(self, state: State, drives: Sequence[Tensor]) -> str:
        """What else there is to say of a simulation that leaves the finite numbers.

        Args:
            state: At the start.
            drives: What acts on it.
        """
        return ""

    def check(self, state: State, drives: Sequence[Tensor]) -> None:
        """Refuse a system that cannot be simulated back to where it started.

        Args:
            state: At the start.
            drives: What acts on it.

        Raises:
            ValueError: Says how large the error is.
        """
        steps = min(self.n_steps, _CHECKED_STEPS)
        drives = drives if len(drives) < 2 else drives[:steps]
        system: System = self.system  # type: ignore[assignment]
        error = float(reversal_error(system, state, drives, dt=self.dt, n_steps=steps, damping=self.damping).max())
        self.refuse(
            error,
            state[0].dtype,
            f"{steps} steps of it, reversed in time, end off their start by {{error:.1e}} of the state: its flows must "
            "be exact, the same at every call, and the same for reversed momenta",
        )

    def diagnose(self, state: State, drives: Sequence[Tensor]) -> dict[str, float]:
        """What there is to know of a simulation, by name: its ``reversal_error``.

        Args:
            state: At the start.
            drives: What acts on it.
        """
        system: System = self.system  # type: ignore[assignment]
        error = reversal_error(system, state, drives, dt=self.dt, n_steps=self.n_steps, damping=self.damping)
        return {"reversal_error": float(error.max())}

    def refuse(self, error: float, dtype: torch.dtype, message: str) -> None:
        """Refuse an error that is more than rounding.

        Args:
            error: Relative.
            dtype: Of the numbers.
            message: With ``{error}``.

        Raises:
            ValueError: The message.
        """
        # NaN is more than any rounding.
        if not error <= torch.finfo(dtype).eps ** 0.5:
            raise ValueError(f"{self.label}, of a {type(self.system).__name__}: {message.format(error=error)}")

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"dt={self.dt}, n_steps={self.n_steps}" + (f", damping={self.damping}" if self.damping else "")


def default_eta(dtype: torch.dtype) -> float:
    """A size of the nudge between rounding and curvature."""
    return 1e-2 if torch.finfo(dtype).eps > 1e-10 else 1e-5


def plain_run(simulation: Simulation, state: State, drives: Sequence[Tensor]) -> State:
    """The state at the end, by operations that autograd sees.

    Args:
        simulation: What runs.
        state: At the start.
        drives: What acts on it.
    """
    flows = simulation.flows(Drives(drives), simulation.damping)
    return run(flows, state, dt=simulation.dt, order=range(simulation.n_steps))


def _checked(simulation: Simulation, state: State, drives: Sequence[Tensor]) -> State:
    end = plain_run(simulation, state, drives)
    flows = simulation.flows(Drives(drives), simulation.damping)
    check_finite(end, flows, state, simulation.dt, simulation.n_steps)
    return end
