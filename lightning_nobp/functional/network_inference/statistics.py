"""The sums over time from which couplings and local motion are solved for."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_nobp.typed import explained


@dataclass(frozen=True)
class Statistics:
    """Sums over samples; those of two parts of a series add up to those of the whole.

    With the first components ``h_j`` of all nodes, the terms ``T_i`` of a node's local motion and its velocity ``v_i``:

    Args:
        couplings: ``(nodes, nodes)``, of ``h_j h_k``.
        cross: ``(nodes i, nodes j, terms)``, of ``h_j T_i``.
        driven: ``(nodes i, nodes j)``, of ``h_j`` times the first component of ``v_i``.
        local: ``(nodes, terms, terms)``, of ``T_i T_i``.
        moved: ``(nodes, terms, components)``, of ``T_i v_i``.
        energy: ``(nodes, components)``, of the squares of ``v_i``.
        levels: ``(nodes,)``, of ``h_j``.
        samples: How many, without dimensions.
    """

    couplings: Tensor
    cross: Tensor
    driven: Tensor
    local: Tensor
    moved: Tensor
    energy: Tensor
    levels: Tensor
    samples: Tensor

    def __add__(self, other: "Statistics") -> "Statistics":
        """The sums over both parts."""
        return Statistics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> "Statistics":
        """The sums as if every sample were there so many times."""
        return Statistics(*(getattr(self, f.name) * times for f in fields(self)))


@explained
def statistics(features: Tensor, h: Tensor, velocity: Tensor) -> Statistics:
    """The sums over the samples of a series.

    Args:
        features: ``(samples, nodes, terms)``.
        h: First components ``(samples, nodes)``.
        velocity: ``(samples, nodes, components)``.
    """
    samples, nodes, terms = features.shape
    by_node = features.transpose(0, 1)
    cross = (h.T @ features.reshape(samples, nodes * terms)).view(nodes, nodes, terms)
    return Statistics(
        h.T @ h,
        cross.transpose(0, 1).contiguous(),
        velocity[..., 0].T @ h,
        by_node.transpose(1, 2) @ by_node,
        by_node.transpose(1, 2) @ velocity.transpose(0, 1),
        velocity.square().sum(dim=0),
        h.sum(dim=0),
        torch.tensor(float(samples), dtype=torch.float64, device=h.device),
    )
