"""Steps of fixed length for couplings, Adam's for the motion of nodes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.typed import Typed


class NetworkDescent(Typed, torch.optim.Adam):
    """Moves couplings a fixed length along the running mean of their gradient, all other parameters as Adam.

    A group of parameters with ``couplings=True`` (see :meth:`~lightning_nobp.nn.DynamicalNetwork.parameter_groups`)
    holds couplings. Its ``lr`` is the root mean square change of a coupling in a step: the step is
    ``lr * sqrt(nodes * (nodes - 1))`` long, however small the gradient. Let a scheduler shorten it to come to rest.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate of Adam.
        coupling_step: ``lr`` of groups of couplings that have none of their own.
        momentum: Of the running mean of the couplings' gradient.
        betas: Of Adam's running means.

    Raises:
        ValueError: An argument out of its range.

    References:
        Tan, Correa, Stemler and Small, "Backpropagation on Dynamical Networks", arXiv 2207.03093.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        coupling_step: float = 1e-3,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not coupling_step >= 0:
            raise ValueError(f"coupling_step={coupling_step} must not be negative")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1)")
        self.coupling_step, self.momentum = coupling_step, momentum
        super().__init__(params, lr=lr, betas=betas)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; of couplings if it says so."""
        if param_group.get("couplings"):
            param_group.setdefault("lr", self.coupling_step)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: Computes the loss anew, with gradients.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = []
        for group in self.param_groups:
            for weights in group["params"] if group.get("couplings") else ():
                if weights.grad is not None:
                    self._descend(weights, weights.grad, group["lr"])
                    held.append((weights, weights.grad))
                    weights.grad = None
        super().step()
        for weights, grad in held:
            weights.grad = grad
        return loss

    def _descend(self, weights: Tensor, grad: Tensor, lr: float) -> None:
        state = self.state[weights]
        if not state:
            # Adam looks for it in every state.
            state["step"] = torch.tensor(0.0)
            state["mean"] = torch.zeros_like(weights)
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - self.momentum)
        size = state["mean"].norm().clamp_min(torch.finfo(weights.dtype).tiny)
        nodes = len(weights)
        weights.sub_(state["mean"] / size, alpha=lr * (nodes * (nodes - 1)) ** 0.5)
