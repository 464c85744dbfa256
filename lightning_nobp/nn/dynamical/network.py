"""A network of nodes that move by a local motion and by what they feel of each other."""

from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_nobp.functional import dynamics
from lightning_nobp.functional.dynamics import Integrator
from lightning_nobp.functional.network_inference import Normalisation, constrained
from lightning_nobp.typed import Typed


class DynamicalNetwork(Typed, nn.Module):
    """Nodes with a local motion, coupled through their first components.

    States are normalised, ``(..., nodes, components)``: :attr:`mean` and :attr:`scale` tell by what.

    Args:
        local: The velocity of each node alone, from states to velocities, like
            :class:`~lightning_nobp.nn.PolynomialDynamics`.
        num_nodes: How many.
        components: Numbers in the state of a node.
        dt: Length of a step; couplings are in one over its unit.
        integrator: See :func:`~lightning_nobp.functional.dynamics.step`.

    Attributes:
        weights: Couplings ``(nodes, nodes)``, zero at first, and on the diagonal; row ``i`` holds what acts on node
            ``i``.

    Raises:
        ValueError: An argument out of its range.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, local: nn.Module, num_nodes: int, components: int, dt: float, integrator: Integrator = "rk4"
    ) -> None:
        super().__init__()
        if num_nodes < 2:
            raise ValueError(f"num_nodes={num_nodes}: a network has at least two")
        if not 0 < dt < float("inf"):
            raise ValueError(f"dt={dt} must be positive, and finite")
        if integrator not in get_args(Integrator):
            raise ValueError(f"integrator={integrator!r} is not one of {', '.join(map(repr, get_args(Integrator)))}")
        self.num_nodes, self.components, self.dt, self.integrator = num_nodes, components, dt, integrator
        self.local = local
        self.weights = nn.Parameter(torch.zeros(num_nodes, num_nodes))
        self.register_buffer("mean", torch.zeros(components))
        self.register_buffer("scale", torch.ones(components))

    def forward(self, x: Tensor) -> Tensor:
        """States one step later."""
        return dynamics.step(self.local, x, self.weights, self.dt, self.integrator)

    def rollout(self, x: Tensor, num_steps: int) -> Tensor:
        """A free run.

        Args:
            x: Normalised states at the start ``(batch, nodes, components)``.
            num_steps: How many steps.

        Returns:
            ``(batch, num_steps + 1, nodes, components)``, the start first.

        Raises:
            FloatingPointError: A state that is not finite; the message names step and node.
        """
        found = dynamics.rollout(self.local, x, self.weights, num_steps, self.dt, integrator=self.integrator)
        return found.movedim(0, 1)

    @torch.no_grad()
    def simulate(self, x: Tensor, num_steps: int) -> Tensor:
        """:meth:`rollout` in the units of the data.

        Args:
            x: States at the start ``(batch, nodes, components)``.
            num_steps: How many steps.
        """
        start = (x.to(self.scale) - self.mean) / self.scale
        return self.rollout(start, num_steps) * self.scale + self.mean

    def velocity(self, x: Tensor) -> Tensor:
        """Velocities of normalised states."""
        return dynamics.velocity(self.local, x, self.weights)

    @torch.no_grad()
    def normalise_by(self, normalisation: Normalisation) -> None:
        """Set :attr:`mean` and :attr:`scale`."""
        self.mean.copy_(normalisation.mean)
        self.scale.copy_(normalisation.scale)

    @torch.no_grad()
    def constrain_(self, symmetric: bool, non_negative: bool) -> None:
        """Put the couplings to the nearest ones that are symmetric, not negative, or both."""
        self.weights.copy_(constrained(self.weights, symmetric, non_negative))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What an optimizer moves: couplings, marked for :class:`~lightning_nobp.nn.NetworkDescent`, and the rest."""
        local = [p for p in self.local.parameters() if p.requires_grad]
        return [{"params": [self.weights], "couplings": True}, *([{"params": local}] if local else [])]
