r"""Variable projection: couplings and local motion that fit best, jointly, in closed form.

A node moves by :math:`v_i = T_i \beta + \sum_j w_{ij} (h_j - h_i) = T_i \beta + \sum_j c_{ij} h_j` with
:math:`c_{ij} = w_{ij}` elsewhere and :math:`\sum_j c_{ij} = 0`. For a given :math:`\beta` the best row is
:math:`c_i = Z (b_i - B_i \beta)`, with the sums :math:`b_i = \sum_t h v_i`, :math:`B_i = \sum_t h T_i`,
:math:`G = \sum_t h h^T` and

.. math::

    Z = G^{-1} - \frac{G^{-1} 1 1^T G^{-1}}{1^T G^{-1} 1},

the same for every node: one factorisation serves the whole network. What is left is least squares for :math:`\beta`.

References:
    Golub and Pereyra, "Separable nonlinear least squares: the variable projection method and its applications",
    Inverse Problems 19, R1 (2003).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.network_inference.statistics import Statistics
from lightning_nobp.typed import explained


class Solution(NamedTuple):
    """What fits best.

    Args:
        weights: ``(nodes, nodes)``, zero on the diagonal.
        coefficients: ``(1 or nodes, terms, components)``, of the local motion.
    """

    weights: Tensor
    coefficients: Tensor


@explained
def solve(sums: Statistics, *, shared: bool, ridge: float, links: Tensor | None = None) -> Solution:
    """Couplings and local motion of least squares.

    Args:
        sums: Of a series.
        shared: Whether all nodes move alike alone.
        ridge: Added to the diagonals, relative to their mean.
        links: ``(nodes, nodes)``, bool: which couplings there may be; None for all.
    """
    rows = _projections(sums, ridge, links)
    # What the couplings cannot explain of the terms, and of the velocities.
    local = sums.local - sums.cross.transpose(1, 2) @ (rows @ sums.cross)
    moved = sums.moved.clone()
    explained = rows @ sums.driven.unsqueeze(-1)
    moved[..., :1] -= sums.cross.transpose(1, 2) @ explained
    first = _least_squares(local, moved[..., :1], shared, ridge)
    rest = _least_squares(sums.local, sums.moved[..., 1:], shared, ridge)
    couplings = (explained - rows @ (sums.cross @ first)).squeeze(-1)
    weights = couplings - torch.diag(couplings.diagonal())
    return Solution(weights, torch.cat([first, rest], dim=-1))


def _projections(sums: Statistics, ridge: float, links: Tensor | None) -> Tensor:
    """The matrix ``Z``, ``(1, nodes, nodes)``; with ``links`` one a node, zero where there is none."""
    nodes = len(sums.couplings)
    diagonal = ridge * sums.couplings.diagonal().mean() * torch.eye(nodes).to(sums.couplings)
    if links is None:
        return _constrained_inverse(sums.couplings + diagonal).unsqueeze(0)
    found = sums.couplings.new_zeros(nodes, nodes, nodes)
    for i, row in enumerate(links):
        chosen = row.clone()
        chosen[i] = True
        index = chosen.nonzero().squeeze(1)
        block = (sums.couplings + diagonal)[index][:, index]
        found[i, index.unsqueeze(1), index] = _constrained_inverse(block)
    return found


def _constrained_inverse(gram: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(gram)
    inverse = torch.cholesky_inverse(factor)
    towards = inverse.sum(dim=1)
    projected: Tensor = inverse - torch.outer(towards, towards) / towards.sum()
    return projected


def _least_squares(gram: Tensor, right: Tensor, shared: bool, ridge: float) -> Tensor:
    if shared:
        gram, right = gram.sum(dim=0, keepdim=True), right.sum(dim=0, keepdim=True)
    scale = gram.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
    scaled = gram / (scale.unsqueeze(1) * scale.unsqueeze(2)) + ridge * torch.eye(gram.shape[-1]).to(gram)
    found: Tensor = torch.linalg.solve(scaled, right / scale.unsqueeze(-1)) / scale.unsqueeze(-1)
    return found


@explained
def solve_local(sums: Statistics, weights: Tensor, *, shared: bool, ridge: float) -> Tensor:
    """Local motion ``(1 or nodes, terms, components)`` of least squares beside given couplings.

    Args:
        sums: Of a series.
        weights: ``(nodes, nodes)``.
        shared: See :func:`solve`.
        ridge: Likewise.
    """
    moved = sums.moved.clone()
    moved[..., 0] -= torch.einsum("ij,ijk->ik", _contrasts(weights), sums.cross)
    return _least_squares(sums.local, moved, shared, ridge)


@explained
def constrained(weights: Tensor, symmetric: bool, non_negative: bool) -> Tensor:
    """The nearest couplings that are symmetric, not negative, or both.

    Args:
        weights: ``(nodes, nodes)``.
        symmetric: Whether they act both ways alike.
        non_negative: Whether none is negative.
    """
    weights = weights / 2 + weights.T / 2 if symmetric else weights
    return weights.clamp(min=0) if non_negative else weights


@explained
def residual(sums: Statistics, solution: Solution) -> Tensor:
    """Mean square of what a solution leaves of the velocities, over samples, nodes and components.

    Args:
        sums: Of the series.
        solution: Couplings and local motion.
    """
    rows, nodes = _contrasts(solution.weights), len(solution.weights)
    beta = solution.coefficients.expand(nodes, -1, -1)
    left = sums.energy + (beta * (sums.local @ beta - 2 * sums.moved)).sum(dim=1)
    felt = (rows * (rows @ sums.couplings - 2 * sums.driven)).sum(dim=1)
    felt += 2 * torch.einsum("ij,ijk,ik->i", rows, sums.cross, beta[..., 0])
    return (left.sum() + felt.sum()).clamp_min(0) / (sums.samples * left.numel())


def _contrasts(weights: Tensor) -> Tensor:
    """Rows ``c_i`` whose product with first components is the coupling."""
    return weights - torch.diag(weights.sum(dim=1))
