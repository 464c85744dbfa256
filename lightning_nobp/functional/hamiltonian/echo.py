r"""Hamiltonian echo: exact gradients of a simulation from simulations alone.

The system runs, and its last state is nudged along the flow of the cost :math:`C` for a short time :math:`\eta`,
reversed in time, and runs on. What comes back differs from the start by :math:`\eta J \nabla (C \circ \Phi_T)`, the
flow of the cost seen from the start, because the motion :math:`\Phi_T` preserves the symplectic form. A frozen
parameter :math:`\theta` is a coordinate of infinite mass: its momentum, :math:`-\int \partial H / \partial \theta
\, dt`, tells :math:`-\eta \, \partial C / \partial \theta`. Nothing of the way there is stored.

References:
    Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv 2103.04992;
    Pourcel and Ernoult, "Learning long range dependencies through time reversal symmetry breaking", NeurIPS 2025, for
    frozen parameters.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_nobp.functional.hamiltonian.adjoint import adjoint
from lightning_nobp.functional.hamiltonian.checks import check_digits, check_finite
from lightning_nobp.functional.hamiltonian.flows import Drives, Flow, Friction, Recorder, rounded
from lightning_nobp.functional.hamiltonian.imperfections import Imperfections
from lightning_nobp.functional.hamiltonian.integrator import run
from lightning_nobp.functional.hamiltonian.nudge import PAIRS, NudgeMode, nudge_size
from lightning_nobp.functional.hamiltonian.phase_space import PhaseSpace, State, added, per_sample
from lightning_nobp.typed import explained


class System(Protocol):
    """A Hamiltonian that is a sum of parts whose flows are known exactly."""

    @property
    def space(self) -> PhaseSpace:
        """What its states are."""
        ...

    def flows(self, drives: Drives, grid: float) -> Sequence[Flow]:
        """The flows of its parts, the first of them the same at all times."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """As of ``nn.Module``."""
        ...


class Gradients(NamedTuple):
    """Gradients of a cost: by the first state, by each drive, and by parameter."""

    state: State
    drives: list[Tensor | None]
    parameters: dict[Tensor, Tensor | None]


@dataclass(frozen=True)
class Simulation:
    """How a system runs, and how its echo is made.

    Args:
        system: What runs.
        dt: Length of a time step.
        n_steps: How many.
        every: After how many of them the state is looked at, each time.
        eta: Size of the nudge.
        nudge: Its mode.
        relative: Whether ``eta`` is a fraction of each sample's state.
        damping: Rate of a uniform loss.
        grid: Positions and momenta are multiples of it; 0 for no such grid.
        imperfections: What is wrong with the apparatus.
    """

    system: System
    dt: float
    n_steps: int
    every: int
    eta: float = 1e-4
    nudge: NudgeMode = "symmetric"
    relative: bool = True
    damping: float = 0.0
    grid: float = 0.0
    imperfections: Imperfections = field(default_factory=Imperfections)

    def __post_init__(self) -> None:
        """Refuse an apparatus that makes no echo and has faults."""
        if self.nudge == "tangent" and self.imperfections != Imperfections():
            raise ValueError(
                "imperfections are those of an echo, and nudge='tangent', which is gradient_engine='adjoint', makes "
                "none: take gradient_engine='echo', or no imperfections"
            )

    @property
    def gain(self) -> float:
        """Rate with which the echo is amplified."""
        return self.damping if self.imperfections.gain is None else self.imperfections.gain

    def flows(self, drives: Drives, damping: float, copies: int = 1) -> list[Flow]:
        """Everything that acts on the system."""
        space = self.system.space
        friction: list[Flow] = [Friction(space, damping)] if damping else []
        return [*self.imperfections.flows(space, copies), *friction, *self.system.flows(drives, self.grid)]

    @torch.no_grad()
    def forward(self, state: State, drives: Sequence[Tensor]) -> list[State]:
        """The states after every ``every`` steps."""
        seen: list[State] = []

        def look(done: int, state: State) -> State:
            seen.append(state)
            return state

        flows, start = self.flows(Drives(drives), self.damping), self.on_grid(state)
        end = run(flows, start, dt=self.dt, order=range(self.n_steps), every=self.every, visit=look)
        check_finite(end, flows, start, self.dt, self.n_steps)
        check_digits(start, self.grid)
        check_digits(end, self.grid)
        return seen

    def on_grid(self, state: State) -> State:
        """The state, or the nearest on the grid."""
        return tuple(rounded(s, self.grid) for s in state) if self.grid else state

    def backward(self, state: State, seen: Sequence[State], drives: Sequence[Tensor]) -> Gradients:
        """Gradients from the last state, and those by the states that were looked at."""
        if self.nudge == "tangent":
            return self._tangent(state, seen, drives)
        return self._echo(state, seen, drives)

    def _tangent(self, state: State, seen: Sequence[State], drives: Sequence[Tensor]) -> Gradients:
        drives = [u.detach().requires_grad_() for u in drives]
        parameters = [p for p in self.system.parameters() if p.requires_grad]
        # What flows compute of parameters once, like a kernel, is part of the graph.
        with torch.enable_grad():
            flows = self.flows(Drives(drives), self.damping)
        by_start, found = adjoint(flows, state, seen, [*drives, *parameters], dt=self.dt, order=range(self.n_steps))
        by_parameter = dict(zip(parameters, found[len(drives) :], strict=True))
        return Gradients(by_start, found[: len(drives)], by_parameter)

    @torch.no_grad()
    def _echo(self, state: State, seen: Sequence[State], drives: Sequence[Tensor]) -> Gradients:
        space, pairs = self.system.space, PAIRS[self.nudge]
        directions = [space.direction(self.imperfections.misread(g)) for g in seen]
        size = nudge_size(state, directions, self.eta, self.relative)
        weight = torch.cat([pair.factor / size for pair in pairs])
        nudges = torch.cat([p.plus * size for p in pairs] + [p.minus * size for p in pairs])
        end, recorders = self.echo(state, directions, drives, nudges, -weight)
        decay = math.exp(-self.gain * self.dt * self.n_steps)
        differences = tuple(_summed(part.chunk(2)[0] - part.chunk(2)[1], weight * decay, len(pairs)) for part in end)
        by_drive: list[Tensor | None] = [None] * len(drives)
        by_parameter: dict[Tensor, Tensor | None] = {}
        for recorder in recorders:
            for index, change in enumerate(recorder.drive_gradients() or ()):
                by_drive[index] = _plus(by_drive[index], _over_pairs(change, len(pairs)))
            for parameter, change in recorder.parameter_gradients().items():
                by_parameter[parameter] = _plus(by_parameter.get(parameter), change)
        self._check_told(by_parameter)
        return Gradients(space.gradient(differences), by_drive, by_parameter)

    def _check_told(self, by_parameter: dict[Tensor, Tensor | None]) -> None:
        """Refuse to leave out a parameter in silence."""
        missing = [p for p in self.system.parameters() if p.requires_grad and p not in by_parameter]
        if missing:
            raise RuntimeError(
                f"{type(self.system).__name__}: its flows record nothing of parameters of shape "
                f"{', '.join(str(tuple(p.shape)) for p in missing)}, as behind torch.nn.utils.parametrize: freeze "
                "them, or take nudge='tangent', which is gradient_engine='adjoint'"
            )

    def echo(
        self,
        state: State,
        directions: Sequence[State],
        drives: Sequence[Tensor],
        nudges: Tensor,
        weight: Tensor,
    ) -> tuple[State, list[Recorder]]:
        """Nudge, reverse, run, and reverse again.

        Args:
            state: The last state of the way there.
            directions: Where nudges go, at each time when the state was looked at.
            drives: As on the way there.
            nudges: Sizes ``(rows,)``: copies of the samples one after another, each with a nudge of its own.
            weight: Of the recorders, ``(rows / 2,)``.

        Returns:
            What comes back ``(rows, ...)``, and what was recorded on the way.
        """
        space, batch = self.system.space, len(state[0])
        copies = len(nudges) // batch if batch else 2

        def nudged(state: State, direction: State, factor: float = 1.0) -> State:
            direction = tuple(torch.cat([d] * copies) for d in direction)
            return self.on_grid(added(state, direction, nudges * factor))

        def visit(done: int, state: State) -> State:
            if done == self.n_steps:
                return state
            direction = space.reverse(directions[(self.n_steps - done) // self.every - 1])
            return nudged(state, direction, math.exp(self.gain * self.dt * done))

        def scale(step: int) -> float:
            return math.exp(-self.gain * self.dt * (self.n_steps - step - 0.5))

        flows = self.flows(Drives(drives, copies), -self.gain, copies)
        recorders = [flow.recorder(weight, scale) for flow in flows]
        start = nudged(tuple(torch.cat([s] * copies) for s in state), directions[-1])
        start = self.on_grid(space.reverse(start, self.imperfections.conjugation_error))
        order = range(self.n_steps)[::-1]
        end = run(recorders, start, dt=self.dt, order=order, every=self.every, visit=visit)
        return space.reverse(end), recorders


def _summed(rows: Tensor, weight: Tensor, pairs: int) -> Tensor:
    """Rows times their weights, summed over the pairs of echoes."""
    return _over_pairs(rows * per_sample(weight, rows), pairs)


def _over_pairs(rows: Tensor, pairs: int) -> Tensor:
    return rows.view(pairs, len(rows) // pairs, *rows.shape[1:]).sum(dim=0)


def _plus(total: Tensor | None, change: Tensor) -> Tensor:
    return change if total is None else total + change


@explained
def simulate(simulation: Simulation, state: State, drives: Sequence[Tensor]) -> State:
    """Run a simulation whose backward pass is its echo.

    Args:
        simulation: See :class:`Simulation`.
        state: The first state, ``(batch, ...)``.
        drives: None, one, or one a step.

    Returns:
        The states after every ``simulation.every`` steps, ``(n_steps / every, batch, ...)``.
    """
    parameters = [p for p in simulation.system.parameters() if p.requires_grad]
    found: State = _Echo.apply(simulation, len(state), len(drives), *state, *drives, *parameters)
    return found


class _Echo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, simulation: Simulation, num_state: int, num_drives: int, *tensors: Tensor) -> State:
        state, drives = tensors[:num_state], tensors[num_state : num_state + num_drives]
        parameters = tensors[num_state + num_drives :]
        seen = simulation.forward(state, drives)
        ctx.simulation, ctx.num_state, ctx.num_drives = simulation, num_state, num_drives
        # Parameters are saved so that torch notices when they change before the backward pass, and kept because what
        # comes back of it may be copies, as from torch.utils.checkpoint.
        ctx.parameters = parameters
        ctx.save_for_backward(*seen[-1], *drives, *parameters)
        return tuple(torch.stack(parts) for parts in zip(*seen, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        saved = ctx.saved_tensors
        state, drives = saved[: ctx.num_state], saved[ctx.num_state : ctx.num_state + ctx.num_drives]
        seen = list(zip(*(g.unbind() for g in gradients), strict=True))
        _check_own(ctx.simulation.system, ctx.parameters)
        found = ctx.simulation.backward(state, seen, drives)
        return (None, None, None, *found.state, *found.drives, *(found.parameters.get(p) for p in ctx.parameters))


def _check_own(system: System, parameters: Sequence[Tensor]) -> None:
    """Refuse to echo a system that is not the one that ran."""
    own = {id(p) for p in system.parameters()}
    if not all(id(p) in own for p in parameters):
        raise RuntimeError(
            f"{type(system).__name__} has other parameters than when it ran, as after torch.func.functional_call, and "
            "its echo would be that of another system: write the parameters into the module, and run backward before "
            "they are replaced"
        )
