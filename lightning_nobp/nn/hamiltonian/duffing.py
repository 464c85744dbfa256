"""Coupled Duffing oscillators."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_nobp.functional.hamiltonian import AutogradSums, Drift, Drives, Flow, Kick, Sums
from lightning_nobp.nn.hamiltonian.outer_products import OuterProducts
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem


class DuffingNetwork(HamiltonianSystem):
    r"""Oscillators with a hardening spring, each coupled to each.

    :math:`V = \frac\alpha2 |q|^2 + \frac12 q^T K q + \frac\beta4 \sum_i q_i^4 - u \cdot q` with a learned symmetric
    :math:`K`, positions ``(batch, n_units)`` and, if wanted, a drive ``(batch, n_units)``.

    Args:
        n_units: Number of oscillators.
        alpha: Stiffness of their springs.
        beta: How fast these harden; 0 for linear oscillators.

    Raises:
        ValueError: No oscillators, or springs that soften.
    """

    def __init__(self, n_units: int, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        if n_units < 1:
            raise ValueError(f"n_units={n_units} must be at least 1")
        if beta < 0:
            raise ValueError(f"beta={beta} must be at least 0: springs that soften let go in the end")
        self.n_units, self.alpha, self.beta = n_units, alpha, beta
        self.coupling = nn.Parameter(torch.empty(n_units, n_units))
        self.reset_parameters()

    @property
    def state_shape(self) -> tuple[int, ...]:
        """``(n_units,)``."""
        return (self.n_units,)

    @property
    def drive_shape(self) -> tuple[int, ...]:
        """``(n_units,)``."""
        return (self.n_units,)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a symmetric ``coupling`` of standard deviation ``0.3 / sqrt(n_units)``."""
        drawn = torch.randn_like(self.coupling) * (0.3 / self.n_units**0.5)
        self.coupling.copy_((drawn + drawn.t()) / 2**0.5)

    def stiffness(self) -> Tensor:
        """``alpha + K``; the part of ``coupling`` that is not symmetric has no effect."""
        diagonal = torch.eye(self.n_units, dtype=self.coupling.dtype, device=self.coupling.device)
        return (self.coupling + self.coupling.t()) / 2 + self.alpha * diagonal

    def potential(self, q: Tensor, u: Tensor | None) -> Tensor:
        """See the class."""
        energy = (q * (q @ self.stiffness())).sum(dim=1) / 2 + self.beta / 4 * q.square().square().sum(dim=1)
        return energy if u is None else energy - (u * q).sum(dim=1)

    def potential_gradient(self, q: Tensor, u: Tensor | None) -> Tensor:
        """``dV/dq``."""
        return _Springs(self).potential_gradient(q, u)

    def sums(self, weight: Tensor) -> Sums:
        """Derivatives by the coupling."""
        return _Springs(self).sums(weight)

    def flows(self, drives: Drives, grid: float = 0.0) -> Sequence[Flow]:
        """Drift and kick, with the stiffness computed once."""
        springs = _Springs(self)
        return Drift(self, grid), Kick(springs, drives, grid)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.n_units}, alpha={self.alpha}, beta={self.beta}"


class _Springs:
    """The formulas, for one simulation."""

    def __init__(self, system: DuffingNetwork) -> None:
        self.system, self.beta, self.stiffness = system, system.beta, system.stiffness()

    def velocity(self, p: Tensor) -> Tensor:
        return self.system.velocity(p)

    def potential_gradient(self, q: Tensor, u: Tensor | None) -> Tensor:
        found = torch.addmm(q * q * q, q, self.stiffness, beta=self.beta) if self.beta else q @ self.stiffness
        return found if u is None else found - u

    def sums(self, weight: Tensor) -> Sums:
        # The formulas know parameters, not what they are made of.
        return AutogradSums(self.system, weight) if is_parametrized(self.system) else _CouplingSums(self, weight)


class _CouplingSums:
    r"""Of :math:`\frac12 q^T K q`, which differs by :math:`m^T K d` in two echoes of difference d and mean m.

    One product for both echoes, and nothing that cancels.
    """

    def __init__(self, springs: _Springs, weight: Tensor) -> None:
        coupling = springs.system.coupling
        self.springs, self.coupling = springs, coupling
        self.weight = weight.to(coupling.dtype).unsqueeze(1)
        self._products = OuterProducts(torch.zeros_like(coupling)) if coupling.requires_grad else None

    def kick(self, q: Tensor, u: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
        if self._products is not None:
            plus, minus = q.chunk(2)
            left, right = self._products.slots(len(plus))
            torch.sub(plus, minus, out=left).mul_(self.weight * factor)
            torch.add(plus, minus, out=right)
        return self.springs.potential_gradient(q, u), None if u is None else -q

    def gradients(self) -> dict[Tensor, Tensor]:
        if self._products is None:
            return {}
        # A mean is half of a sum, and a symmetric part half of another.
        found = self._products.sum()
        return {self.coupling: (found + found.t()) / 4}
