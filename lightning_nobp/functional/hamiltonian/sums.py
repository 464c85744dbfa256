"""Derivatives of a potential by its parameters, summed over an echo."""

from typing import cast

import torch
from torch import Tensor, nn


def followed(tensor: Tensor) -> Tensor:
    """The tensor as autograd can follow it: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def energies(system: nn.Module, q: Tensor, u: Tensor | None) -> Tensor:
    """``system.potential``, one number a sample.

    Raises:
        ValueError: Another shape, like that of a sum over the batch.
    """
    found = cast(Tensor, system.potential(q, u))  # type: ignore[operator]
    if found.shape != q.shape[:1]:
        raise ValueError(
            f"{type(system).__name__}.potential gives energies of shape {tuple(found.shape)} for positions of shape "
            f"{tuple(q.shape)}: it must give (batch,), by sum(dim=1) for one"
        )
    return found


class AutogradSums:
    """By autograd through one call of ``potential`` a kick: for potentials without formulas of their own.

    Args:
        system: A module with ``potential(q, u)``, which gives energies ``(batch,)``.
        weight: ``(rows / 2,)``.
    """

    def __init__(self, system: nn.Module, weight: Tensor) -> None:
        self.system = system
        self.signed = torch.cat([weight, -weight])
        self.totals: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in system.parameters() if p.requires_grad}

    def kick(self, q: Tensor, u: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
        """See :class:`~lightning_nobp.functional.hamiltonian.Sums`."""
        with torch.enable_grad():
            q = q.detach().requires_grad_()
            u = None if u is None else u.detach().requires_grad_()
            energy = energies(self.system, q, u)
            summed = energy.sum()
        inputs = [q] if u is None else [q, u]
        # Two passes: a force that carried the weights would be rounded in another way than on the way there.
        found = torch.autograd.grad(
            summed, inputs, retain_graph=bool(self.totals), allow_unused=True, materialize_grads=True
        )
        if self.totals:
            signed = (factor * self.signed).to(energy.dtype)
            changes = torch.autograd.grad(energy, list(self.totals), signed, allow_unused=True)
            for parameter, change in zip(self.totals, changes, strict=True):
                if change is not None:
                    self.totals[parameter] += change
        return found[0], None if u is None else found[1]

    def gradients(self) -> dict[Tensor, Tensor]:
        """By parameter."""
        return self.totals


class AutogradKineticSums:
    """The same of a kinetic energy, which drifts conserve: for masses that are learned.

    Args:
        system: A module with ``kinetic(p)``, which gives energies ``(batch,)``.
        weight: ``(rows / 2,)``.
    """

    def __init__(self, system: nn.Module, weight: Tensor) -> None:
        self.system, self.signed = system, torch.cat([weight, -weight])
        self.learned = [p for p in system.parameters() if p.requires_grad]
        self.totals: dict[Tensor, Tensor] = {}

    def drift(self, p: Tensor, factor: float) -> None:
        """See :class:`~lightning_nobp.functional.hamiltonian.flows.KineticSums`."""
        with torch.enable_grad():
            energy = cast(Tensor, self.system.kinetic(p.detach()))  # type: ignore[operator]
        if not energy.requires_grad:
            return
        changes = torch.autograd.grad(energy, self.learned, (factor * self.signed).to(energy.dtype), allow_unused=True)
        for parameter, change in zip(self.learned, changes, strict=True):
            if change is not None:
                so_far = self.totals.get(parameter)
                self.totals[parameter] = change if so_far is None else so_far + change

    def gradients(self) -> dict[Tensor, Tensor]:
        """By parameter."""
        return self.totals
