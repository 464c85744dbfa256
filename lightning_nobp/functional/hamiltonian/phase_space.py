r"""What states of Hamiltonian systems are made of: how they are reversed in time, nudged and compared.

An error signal moves a state along the flow of the cost :math:`C`, taken for a Hamiltonian: the direction is
:math:`J \nabla C`, with the symplectic form :math:`J` of the space.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""Tensors ``(batch, ...)``; which, the phase space says."""


class PhaseSpace(ABC):
    """Time reversal and symplectic form of one kind of states."""

    @abstractmethod
    def reverse(self, state: State, error: float = 0.0) -> State:
        """The state that runs back where ``state`` came from; ``error`` is the part of its momentum that gets lost."""

    @abstractmethod
    def direction(self, gradient: State) -> State:
        r"""Where the flow of the cost moves a state: :math:`J \nabla C` of torch's gradients of the cost."""

    @abstractmethod
    def gradient(self, direction: State) -> State:
        """The gradient that :meth:`direction` came from."""

    @abstractmethod
    def damped(self, state: State, factor: float) -> State:
        """The state after a uniform loss, in which areas of phase space shrink by ``factor``."""

    @abstractmethod
    def shaken(self, state: State, noise: State) -> State:
        """The state with real noise added to its momenta, ``noise`` as :meth:`noise` draws it."""


class _Canonical(PhaseSpace):
    """Positions and momenta ``(q, p)``, real."""

    def reverse(self, state: State, error: float = 0.0) -> State:
        q, p = state
        return q, p * (error - 1)

    def direction(self, gradient: State) -> State:
        by_q, by_p = gradient
        return by_p, -by_q

    def gradient(self, direction: State) -> State:
        by_p, minus_by_q = direction
        return -minus_by_q, by_p

    def damped(self, state: State, factor: float) -> State:
        q, p = state
        return q, p * factor

    def shaken(self, state: State, noise: State) -> State:
        q, p = state
        return q, p + noise[1]


class _Complex(PhaseSpace):
    r"""Complex fields :math:`\psi = (q + ip) / \sqrt 2` with :math:`i \dot\psi = \partial H / \partial \psi^*`.

    Torch's gradient of a complex number is :math:`2 \partial C / \partial \psi^*`.
    """

    def reverse(self, state: State, error: float = 0.0) -> State:
        if not error:
            return tuple(field.conj().resolve_conj() for field in state)
        return tuple(torch.complex(field.real, field.imag * (error - 1)) for field in state)

    def direction(self, gradient: State) -> State:
        return tuple(-0.5j * g for g in gradient)

    def gradient(self, direction: State) -> State:
        return tuple(2j * d for d in direction)

    def damped(self, state: State, factor: float) -> State:
        return tuple(field * factor**0.5 for field in state)

    def shaken(self, state: State, noise: State) -> State:
        return tuple(field + n for field, n in zip(state, noise, strict=True))


CANONICAL: PhaseSpace = _Canonical()
"""Real positions and momenta: states ``(q, p)`` of the same shape ``(batch, ...)``."""

COMPLEX: PhaseSpace = _Complex()
"""Complex fields: states of any number of tensors ``(batch, ...)``."""


def added(state: State, other: State, factor: Tensor | float = 1.0) -> State:
    """``state + factor * other``; the factor is a number, or one a sample ``(batch,)``."""
    if isinstance(factor, Tensor):
        return tuple(torch.addcmul(s, o, per_sample(factor, s)) for s, o in zip(state, other, strict=True))
    return tuple(torch.add(s, o, alpha=factor) for s, o in zip(state, other, strict=True))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values ``(batch,)`` in a form that multiplies ``like`` ``(batch, ...)``, in its type."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def sizes(state: Sequence[Tensor]) -> Tensor:
    """Euclidean norm ``(batch,)`` of every sample's state."""
    rows = [s.unsqueeze(-1).flatten(1) for s in state]
    # Squares of what is smaller than 1e-19 or larger than 1e19 leave single precision.
    largest = torch.stack([r.abs().amax(dim=1) for r in rows]).amax(dim=0)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    norms = [torch.linalg.vector_norm(r / scale.unsqueeze(1), dim=1) for r in rows]
    of_all: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0) * scale
    return of_all
