"""Physical systems that learn by their echo: the bases of those made of complex fields."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_nobp.functional.hamiltonian import COMPLEX, DenseFlow, Drives, Flow, FourierFlow, PhaseSpace
from lightning_nobp.functional.hamiltonian.phase_space import State
from lightning_nobp.typed import Typed

_MOST_DENSE = 64
"""Sites along an axis up to which one product is faster than two Fourier transforms."""


class FieldFlow(Flow, Protocol):
    """A part of a Hamiltonian of fields, which knows its energy."""

    def energy(self, state: State, step: int) -> Tensor:
        """Of each sample ``(batch,)``, at a time step."""
        ...


class FieldSystem(Typed, nn.Module):
    """Complex fields whose Hamiltonian is a sum of parts with known flows: a subclass writes :meth:`flows`.

    Its ``nn.Parameter`` s are learned; a flow with parameters must keep ``dH/dtheta``, as
    :class:`~lightning_nobp.functional.hamiltonian.PhaseFlow` does.
    """

    space: PhaseSpace = COMPLEX

    @abstractmethod
    def flows(self, drives: Drives, grid: float = 0.0) -> Sequence[FieldFlow]:
        """At least two flows, the first of them the same at all times.

        Args:
            drives: What acts on the system.
            grid: Of fixed-point numbers, which fields do not have: 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement flows(drives)  (abstract)")

    def energy(self, *fields: Tensor, u: Tensor | None = None, step: int = 0) -> Tensor:
        """``H``, ``(batch,)``.

        Args:
            *fields: Complex ``(batch, ...)``.
            u: What acts on the system.
            step: The time step at which it is asked for.
        """
        flows = self.flows(Drives(() if u is None else (u,)))
        return torch.stack([flow.energy(fields, step) for flow in flows]).sum(dim=0)


class CoupledFields(FieldSystem):
    r"""An evaluation field :math:`\Psi` and a learning field :math:`\Theta` that act on each other.

    A state is one tensor with both. Subclasses say how, and set the two shapes.
    """

    evaluation_shape: tuple[int, ...]
    learning_shape: tuple[int, ...]

    @abstractmethod
    def join(self, evaluation: Tensor, learning: Tensor) -> Tensor:
        """The state of two fields, complex ``(batch, *evaluation_shape)`` and ``(batch, *learning_shape)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement join(evaluation, learning)  (abstract)")

    @abstractmethod
    def evaluation(self, state: Tensor) -> Tensor:
        """The evaluation field of a state."""
        raise NotImplementedError(f"{type(self).__name__} must implement evaluation(state)  (abstract)")

    @abstractmethod
    def learning(self, state: Tensor) -> Tensor:
        """The learning field of a state."""
        raise NotImplementedError(f"{type(self).__name__} must implement learning(state)  (abstract)")

    @abstractmethod
    def initial_learning_field(self) -> Tensor:
        """Where learning begins: real ``(*learning_shape,)``, drawn by torch's generator."""
        raise NotImplementedError(f"{type(self).__name__} must implement initial_learning_field()  (abstract)")


def free_waves(shape: Sequence[int], spacing: float, device: torch.device) -> FieldFlow:
    """The flow of ``|grad psi|^2 / 2`` on a periodic grid.

    Args:
        shape: Sites along each axis.
        spacing: Between neighbours.
        device: Where the waves are.
    """
    # In float64 whatever the field's type: rounded propagators would not be unitary.
    axes = [torch.fft.fftfreq(n, spacing / (2 * torch.pi), dtype=torch.float64, device=device) for n in shape]
    if max(shape) <= _MOST_DENSE and len(shape) <= 2:
        return DenseFlow([_circulant(k.square() / 2) for k in axes])
    grids = torch.meshgrid(*(k.square() / 2 for k in axes), indexing="ij")
    return FourierFlow(torch.stack(grids).sum(dim=0))


def _circulant(frequencies: Tensor) -> Tensor:
    """The operator with these frequencies on a ring, ``(sites, sites)``."""
    first: Tensor = torch.fft.ifft(frequencies).real
    sites = torch.arange(len(first), device=first.device)
    operator: Tensor = first[(sites[:, None] - sites).abs()]
    return operator


def check_positive(**values: float) -> None:
    """Refuse numbers that are not positive and finite.

    Raises:
        ValueError: Names the first.
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r} must be positive, and finite")


def check_finite_numbers(**values: float) -> None:
    """Refuse what is not finite.

    Raises:
        ValueError: Names the first.
    """
    for name, value in values.items():
        if not -float("inf") < value < float("inf"):
            raise ValueError(f"{name}={value!r} must be finite")


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a grid.

    Raises:
        ValueError: It has not one or two axes, or fewer than two sites along one.
    """
    if not (1 <= len(shape) <= 2 and all(n == int(n) and n >= 2 for n in shape)):
        raise ValueError(f"shape={tuple(shape)!r}: give the sites along one axis or two, at least 2 each")
    return tuple(int(n) for n in shape)
