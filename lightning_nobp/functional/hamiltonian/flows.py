"""The parts of a split Hamiltonian: exact flows, and what they tell of parameters and drives on the way of an echo."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.phase_space import PhaseSpace, State, per_sample

Scale = Callable[[int], float]
"""The factor with which what happens at a step counts."""


class Flow(Protocol):
    """The motion under one part :math:`H_a` of a Hamiltonian, exactly: ``flow(-h)`` undoes ``flow(h)``."""

    def __call__(self, state: State, h: float, step: int) -> State:
        """The state a time ``h`` later; ``step`` counts the time steps from 0, for parts that change with time."""
        ...

    def recorder(self, weight: Tensor, scale: Scale) -> "Recorder":
        """The same flow for the rows of an echo, which adds up derivatives of :math:`H_a`.

        Rows come in two halves, ``plus`` and ``minus``. What is summed over calls is
        ``weight * scale(step) * h * (H_a(plus) - H_a(minus))``, differentiated by parameters and drives. That is the
        echo's gradient where the flow conserves these derivatives.

        Args:
            weight: ``(rows / 2,)``.
            scale: See :data:`Scale`.
        """
        ...


class Recorder(Protocol):
    """A flow on the way of an echo."""

    def __call__(self, state: State, h: float, step: int) -> State:
        """The state a time ``h`` later."""
        ...

    def parameter_gradients(self) -> dict[Tensor, Tensor]:
        """Sums for parameters, by parameter."""
        ...

    def drive_gradients(self) -> list[Tensor] | None:
        """Sums for the drives ``(rows / 2, ...)``, as many as there are drives; None if there are none."""
        ...


class Unrecorded:
    """A recorder of a flow without parameters."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def __call__(self, state: State, h: float, step: int) -> State:
        """The flow itself."""
        return self.flow(state, h, step)

    def parameter_gradients(self) -> dict[Tensor, Tensor]:
        """None."""
        return {}

    def drive_gradients(self) -> list[Tensor] | None:
        """None."""
        return None


class Drives:
    """What acts on a system from outside: nothing, the same at all steps, or something else at every step.

    Args:
        tensors: None of them, one, or one a step, each ``(batch, ...)``.
        copies: Every sample comes so many times, as the rows of an echo do.
    """

    def __init__(self, tensors: Sequence[Tensor], copies: int = 1) -> None:
        self.tensors, self.copies = tuple(tensors), copies
        self._constant = self._copied(self.tensors[0]) if len(self.tensors) == 1 else None

    def __call__(self, step: int) -> Tensor | None:
        """What acts at a step."""
        if self._constant is not None or not self.tensors:
            return self._constant
        return self._copied(self.tensors[step])

    def index(self, step: int) -> int:
        """Which of the tensors acts at a step."""
        return step if len(self.tensors) > 1 else 0

    def _copied(self, drive: Tensor) -> Tensor:
        return drive if self.copies == 1 else torch.cat([drive] * self.copies)


class Sums(Protocol):
    """Weighted derivatives of a potential, added up over the kicks of an echo."""

    def kick(self, q: Tensor, u: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
        """Add ``factor * weight * (V(plus) - V(minus))``, differentiated by the parameters.

        Args:
            q: Positions ``(rows, ...)``.
            u: The drive ``(rows, ...)``, or None.
            factor: Of this kick.

        Returns:
            ``dV/dq`` and ``dV/du`` of all rows, as they are.
        """
        ...

    def gradients(self) -> dict[Tensor, Tensor]:
        """The sums, by parameter."""
        ...


class KineticSums(Protocol):
    """Weighted derivatives of a kinetic energy, added up over the drifts of an echo."""

    def drift(self, p: Tensor, factor: float) -> None:
        """Add ``factor * weight * (T(plus) - T(minus))`` of momenta ``(rows, ...)``, differentiated by parameters."""
        ...

    def gradients(self) -> dict[Tensor, Tensor]:
        """The sums, by parameter."""
        ...


class Mechanics(Protocol):
    """What leapfrog asks of a system ``H(q, p) = T(p) + V(q; u)``."""

    def potential_gradient(self, q: Tensor, u: Tensor | None) -> Tensor:
        """``dV/dq``, of the shape of ``q``."""
        ...

    def velocity(self, p: Tensor) -> Tensor:
        """``dT/dp``, of the shape of ``p``, odd in ``p``."""
        ...

    def sums(self, weight: Tensor) -> Sums:
        """Derivatives of ``V`` by the parameters, to be summed over an echo's kicks; ``weight`` is ``(rows / 2,)``."""
        ...


class Drift:
    """Positions move with constant momenta.

    Args:
        system: What moves.
        grid: Positions are multiples of it, and their changes too; 0 for no such grid.
    """

    def __init__(self, system: Mechanics, grid: float = 0.0) -> None:
        self.system, self.grid = system, grid

    def __call__(self, state: State, h: float, step: int) -> State:
        """``q + h dT/dp``."""
        q, p = state
        return _moved(q, self.system.velocity(p), h, self.grid), p

    def recorder(self, weight: Tensor, scale: Scale) -> Recorder:
        """Of the kinetic energy's parameters, if the system has ``kinetic_sums``."""
        make = getattr(self.system, "kinetic_sums", None)
        sums: KineticSums | None = None if make is None else make(weight)
        return Unrecorded(self) if sums is None else _DriftRecorder(self, sums, scale)


class _DriftRecorder:
    def __init__(self, drift: Drift, sums: KineticSums, scale: Scale) -> None:
        self.drift, self.sums, self.scale = drift, sums, scale

    def __call__(self, state: State, h: float, step: int) -> State:
        self.sums.drift(state[1], h * self.scale(step))
        return self.drift(state, h, step)

    def parameter_gradients(self) -> dict[Tensor, Tensor]:
        return self.sums.gradients()

    def drive_gradients(self) -> list[Tensor] | None:
        return None


class Kick:
    """Momenta change at constant positions.

    Args:
        system: What moves.
        drives: What acts on it.
        grid: See :class:`Drift`.
    """

    def __init__(self, system: Mechanics, drives: Drives, grid: float = 0.0) -> None:
        self.system, self.drives, self.grid = system, drives, grid

    def __call__(self, state: State, h: float, step: int) -> State:
        """``p - h dV/dq``."""
        q, p = state
        return q, _moved(p, self.system.potential_gradient(q, self.drives(step)), -h, self.grid)

    def recorder(self, weight: Tensor, scale: Scale) -> Recorder:
        """Of the potential's parameters and drives."""
        return _KickRecorder(self, weight, scale)


class _KickRecorder:
    def __init__(self, kick: Kick, weight: Tensor, scale: Scale) -> None:
        self.drives, self.grid, self.weight, self.scale = kick.drives, kick.grid, weight, scale
        self._sums = kick.system.sums(weight)
        self._by_drive: list[Tensor | None] = [None] * len(kick.drives.tensors)

    def __call__(self, state: State, h: float, step: int) -> State:
        q, p = state
        factor = h * self.scale(step)
        by_q, by_u = self._sums.kick(q, self.drives(step), factor)
        if by_u is not None:
            plus, minus = by_u.chunk(2)
            self._add(self.drives.index(step), plus - minus, factor * per_sample(self.weight, plus))
        return q, _moved(p, by_q, -h, self.grid)

    def _add(self, index: int, change: Tensor, weight: Tensor) -> None:
        so_far = self._by_drive[index]
        self._by_drive[index] = change.mul_(weight) if so_far is None else so_far.addcmul_(change, weight)

    def parameter_gradients(self) -> dict[Tensor, Tensor]:
        return self._sums.gradients()

    def drive_gradients(self) -> list[Tensor] | None:
        found = [g for g in self._by_drive if g is not None]
        return found if found and len(found) == len(self._by_drive) else None


class Friction:
    """A loss that is the same everywhere, ``dp/dt = -rate * p``; a gain if the rate is negative.

    Args:
        space: Of the states.
        rate: In units of one over time.
    """

    def __init__(self, space: PhaseSpace, rate: float) -> None:
        self.space, self.rate = space, rate

    def __call__(self, state: State, h: float, step: int) -> State:
        """Momenta times ``exp(-rate h)``."""
        return self.space.damped(state, math.exp(-self.rate * h))

    def recorder(self, weight: Tensor, scale: Scale) -> Recorder:
        """Nothing to record."""
        return Unrecorded(self)


def _moved(x: Tensor, rate: Tensor, h: float, grid: float) -> Tensor:
    if not grid:
        return torch.add(x, rate, alpha=h)
    # Multiples of a grid add up exactly in floating point, and so can be taken back exactly.
    return x + rounded(rate * h, grid)


def rounded(x: Tensor, grid: float) -> Tensor:
    """The nearest multiples of a grid; to derivatives rounding does nothing, or there would be none."""
    found: Tensor = _Rounded.apply(x, grid)
    return found


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: float) -> Tensor:
        return (x / grid).round() * grid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None
