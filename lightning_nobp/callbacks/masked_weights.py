"""A weight and its mask, whether the layer is dense and its absent weights are zeros, or sparse and has none."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.typed import Typed


class MaskedWeight(Typed, ABC):
    """What a mask needs to know of a weight, and what it does to it."""

    parameter: nn.Parameter
    """What an optimizer moves."""

    @abstractmethod
    def weight(self) -> Tensor:
        """The dense weight, detached."""

    @abstractmethod
    def mask(self) -> Tensor:
        """The bool mask, of the shape of the dense weight."""

    @abstractmethod
    def dense_gradient(self) -> Tensor | None:
        """The gradient of the dense weight, absent weights included; None if no backward pass has left one."""

    @abstractmethod
    def record_dense_gradient(self, wanted: bool) -> None:
        """Say before a forward pass whether :meth:`dense_gradient` will be asked for."""

    @abstractmethod
    def collect_dense_gradient(self, num_samples: int) -> None:
        """Add what the last backward pass left, as the mean over so many samples."""

    @abstractmethod
    def forget_dense_gradient(self) -> None:
        """It has been used."""

    @abstractmethod
    def set_mask(self, mask: Tensor, optimizers: Sequence[Optimizer]) -> None:
        """Give the weight other entries; those that stay keep value, gradient and optimizer state, new ones have 0."""

    @abstractmethod
    def mask_gradient(self) -> None:
        """Take the gradient of absent weights away."""

    @abstractmethod
    def mask_weight(self) -> None:
        """Set absent weights to zero."""

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the weights."""
        self.parameter.mul_(factor)


class DenseWeight(MaskedWeight):
    """An ordinary parameter, of which some entries are zeros.

    Args:
        parameter: The weight, of two dimensions or more.
        mask: Bool, of its shape; None for all entries.
    """

    def __init__(self, parameter: nn.Parameter, mask: Tensor | None = None) -> None:
        self.parameter = parameter
        self.absent = torch.zeros_like(parameter, dtype=torch.bool) if mask is None else ~mask.to(parameter.device)

    def weight(self) -> Tensor:
        """The parameter."""
        return self.parameter.detach()

    def mask(self) -> Tensor:
        """Where it is not held at zero."""
        return ~self.absent

    def dense_gradient(self) -> Tensor | None:
        """Its gradient, as long as :meth:`mask_gradient` has not been called."""
        return self.parameter.grad

    def record_dense_gradient(self, wanted: bool) -> None:
        """There always is one."""

    def collect_dense_gradient(self, num_samples: int) -> None:
        """The rule does."""

    def forget_dense_gradient(self) -> None:
        """The optimizer needs it."""

    @torch.no_grad()
    def set_mask(self, mask: Tensor, optimizers: Sequence[Optimizer]) -> None:
        """Hold other entries at zero."""
        if self.parameter.grad is not None:
            self.parameter.grad.masked_fill_(mask & self.absent, 0)
        self.absent = ~mask
        self.mask_weight()
        for optimizer in optimizers:
            for entry in optimizer.state.get(self.parameter, {}).values():
                if isinstance(entry, Tensor) and entry.shape == self.parameter.shape:
                    entry.masked_fill_(self.absent, 0)

    @torch.no_grad()
    def mask_gradient(self) -> None:
        """Zeros in the gradient."""
        if self.parameter.grad is not None:
            self.parameter.grad.masked_fill_(self.absent, 0)

    @torch.no_grad()
    def mask_weight(self) -> None:
        """Zeros in the weight."""
        self.parameter.masked_fill_(self.absent, 0)


class SparseWeight(MaskedWeight):
    """The values of a sparse layer: what is absent takes no memory and gets no gradient.

    Args:
        layer: The layer.
        collected: The part of the dense gradient that a stopped run had.
    """

    def __init__(self, layer: SparseLayer, collected: Tensor | None = None) -> None:
        self.layer = layer
        self.parameter = layer.values
        self.collected = None if collected is None else collected.to(layer.values.device)

    def weight(self) -> Tensor:
        """The values, with zeros between them."""
        return self.layer.weight.detach()

    def mask(self) -> Tensor:
        """The layer's mask."""
        return self.layer.mask

    def dense_gradient(self) -> Tensor | None:
        """The sum of what the layer recorded, weighted by samples: right but for a factor."""
        return self.collected

    def record_dense_gradient(self, wanted: bool) -> None:
        """Let the layer record it."""
        self.layer.records_dense_grad = wanted

    def collect_dense_gradient(self, num_samples: int) -> None:
        """Take it from the layer."""
        if self.layer.dense_grad is not None:
            more = self.layer.dense_grad * num_samples
            self.collected = more if self.collected is None else self.collected + more
            self.layer.dense_grad = None

    def forget_dense_gradient(self) -> None:
        """Give its memory back."""
        self.collected = self.layer.dense_grad = None

    def set_mask(self, mask: Tensor, optimizers: Sequence[Optimizer]) -> None:
        """Change the layer's structure."""
        self.layer.set_mask(mask, optimizers)

    def mask_gradient(self) -> None:
        """There is nothing to take away."""

    def mask_weight(self) -> None:
        """There is nothing to set."""
