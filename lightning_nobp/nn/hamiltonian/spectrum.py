"""The largest eigenvalue of matrices that are known by their products."""

from collections.abc import Callable

import torch
from torch import Tensor


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor, iterations: int = 30) -> Tensor:
    """By power iteration: from below, a few percent off where eigenvalues lie close.

    Args:
        apply: Products of one symmetric matrix a sample with vectors ``(batch, ...)``.
        like: Of the vectors' shape.
        iterations: Products; twice as many with negative eigenvalues.

    Returns:
        ``(batch,)``.
    """
    farthest = _farthest_eigenvalue(apply, like, iterations)
    if not bool((farthest < 0).any()):
        return farthest
    # Moved up, so that none is negative and the largest is the farthest from 0.
    shift = (-farthest).clamp_min(0)
    column = shift.view(-1, *[1] * (like.dim() - 1))
    return _farthest_eigenvalue(lambda v: torch.addcmul(apply(v), v, column), like, iterations) - shift


def _farthest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor, iterations: int) -> Tensor:
    v = probe(like)
    for _ in range(iterations):
        v = _normalised(v)
        image = apply(v)
        quotient = (v * image).flatten(1).sum(dim=1)
        v = image
    return quotient


def probe(like: Tensor) -> Tensor:
    """Normal numbers of the shape of ``like``, always the same ones: training goes on from the same random state."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _normalised(v: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(torch.finfo(v.dtype).tiny)
    found: Tensor = v / norm.view(-1, *[1] * (v.dim() - 1))
    return found
