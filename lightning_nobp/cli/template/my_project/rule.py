"""The rule: replace what it does by what you have in mind."""

from typing import Any

import torch
from lightning_nobp.rules import ClassificationRule
from torch import Tensor


class WeightPerturbation(ClassificationRule):
    """The slope of the loss along random directions, times these directions.

    Args:
        num_directions: Directions a batch, of which the mean is taken.
        epsilon: How far to go along each.
        **kwargs: See :class:`lightning_nobp.rules.ClassificationRule`.

    Raises:
        ValueError: An argument that is not positive.
    """

    def __init__(self, *, num_directions: int = 1, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_directions < 1 or not epsilon > 0:
            raise ValueError(f"num_directions={num_directions} and epsilon={epsilon} must be positive")
        self.num_directions, self.epsilon = num_directions, epsilon

    @torch.no_grad()
    def compute_gradients(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Set ``p.grad`` to the estimated gradient of the batch's mean loss."""
        x, target = batch
        parameters = list(self.built_network().parameters())
        loss = self.loss_function(self(x), target)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(self.num_directions):
            directions = [torch.randn_like(p) for p in parameters]
            torch._foreach_add_(parameters, directions, alpha=self.epsilon)
            slope = (self.loss_function(self(x), target) - loss) / self.epsilon
            torch._foreach_sub_(parameters, directions, alpha=self.epsilon)
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.grad += slope * direction / self.num_directions
        return {"loss": loss}
