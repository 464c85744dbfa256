"""Physical systems that learn by their echo: the base of those with positions and momenta."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nobp.functional.hamiltonian import (
    CANONICAL,
    AutogradSums,
    Drift,
    Drives,
    Flow,
    Kick,
    PhaseSpace,
    Sums,
)
from lightning_nobp.functional.hamiltonian.flows import KineticSums
from lightning_nobp.functional.hamiltonian.sums import AutogradKineticSums, energies, followed
from lightning_nobp.nn.hamiltonian.spectrum import largest_eigenvalue
from lightning_nobp.typed import Typed


class HamiltonianSystem(Typed, nn.Module):
    """A system ``H(q, p) = T(p) + V(q; u)``: a subclass writes :meth:`potential`, all the rest has a default.

    Its ``nn.Parameter`` s are learned, of the potential and of the kinetic energy. By default ``T = |p|^2 / 2``, unit
    masses. Formulas for :meth:`potential_gradient` and :meth:`sums` make it faster, and change nothing else.
    """

    space: PhaseSpace = CANONICAL

    @property
    def state_shape(self) -> tuple[int, ...] | None:
        """Shape of a sample's positions; None, the default, for any."""
        return None

    @property
    def drive_shape(self) -> tuple[int, ...] | None:
        """Shape of what acts on a sample; None, the default, for any."""
        return None

    def potential(self, q: Tensor, u: Tensor | None) -> Tensor:
        """Potential energies ``(batch,)``, built of torch's operations.

        Args:
            q: Positions ``(batch, ...)``.
            u: What acts on the system at this time ``(batch, ...)``; None if nothing does.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement potential(q, u)  (abstract)")

    def potential_gradient(self, q: Tensor, u: Tensor | None) -> Tensor:
        """``dV/dq``, minus the force, of the shape of ``q``; by autograd through :meth:`potential`.

        Raises:
            ValueError: The potential has no graph.
        """
        differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        # Validation runs in inference mode, whose tensors autograd cannot follow.
        with torch.inference_mode(False), torch.enable_grad():
            q, u = followed(q), None if u is None else followed(u)
            q = q if differentiable and q.requires_grad else q.detach().requires_grad_()
            energy = energies(self, q, u).sum()
            if not energy.requires_grad:
                raise ValueError(
                    f"{type(self).__name__}.potential has no derivative by q: build it of torch's operations on q, "
                    "without detach(), item() or NumPy"
                )
            return torch.autograd.grad(energy, q, create_graph=differentiable, materialize_grads=True)[0]

    def kinetic(self, p: Tensor) -> Tensor:
        """Kinetic energies ``(batch,)`` of momenta ``(batch, ...)``, the same for ``p`` and ``-p``."""
        return p.square().flatten(1).sum(dim=1) / 2

    def velocity(self, p: Tensor) -> Tensor:
        """``dT/dp``, of the shape of ``p``; to be overridden together with :meth:`kinetic`."""
        return p

    def energy(self, q: Tensor, p: Tensor, u: Tensor | None = None) -> Tensor:
        """``H``, ``(batch,)``."""
        return self.kinetic(p) + self.potential(q, u)

    def highest_frequency(self, q: Tensor, u: Tensor | None) -> Tensor:
        """The highest angular frequency of small motions about any of the positions, in radians per unit of time.

        The square root of the largest curvature of the potential, over the masses. A subclass may give a bound.

        Args:
            q: Positions ``(batch, ...)``.
            u: What acts on the system.
        """
        with torch.inference_mode(False), torch.enable_grad():
            at = followed(q).detach().requires_grad_()
            gradient = self.potential_gradient(at, u)
        if not gradient.requires_grad:
            return q.new_zeros(())  # The same force everywhere.

        def curve(v: Tensor) -> Tensor:
            by_q = torch.autograd.grad(gradient, at, v, retain_graph=True, allow_unused=True, materialize_grads=True)
            return self.velocity(by_q[0])

        with torch.no_grad():
            return largest_eigenvalue(curve, q).max().clamp_min(0).sqrt()

    def sums(self, weight: Tensor) -> Sums:
        """Derivatives of :meth:`potential` by the parameters, summed over an echo; by autograd.

        Args:
            weight: ``(rows / 2,)``, see :class:`~lightning_nobp.functional.hamiltonian.Sums`.
        """
        return AutogradSums(self, weight)

    def kinetic_sums(self, weight: Tensor) -> KineticSums | None:
        """Derivatives of :meth:`kinetic` by the parameters, by autograd; None where it is the default.

        Args:
            weight: ``(rows / 2,)``.
        """
        return None if type(self).kinetic is HamiltonianSystem.kinetic else AutogradKineticSums(self, weight)

    def flows(self, drives: Drives, grid: float = 0.0) -> Sequence[Flow]:
        """Drift and kick."""
        return Drift(self, grid), Kick(self, drives, grid)
