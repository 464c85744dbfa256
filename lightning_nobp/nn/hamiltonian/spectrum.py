"""The largest eigenvalue of matrices that are known by their products."""

from collections.abc import Callable

import torch
from torch import Tensor


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor, iterations: int = 24) -> Tensor:
    """By Arnoldi's iteration: from below, and close after few products, even behind larger negative ones.

    Args:
        apply: Products of one matrix a sample, whose eigenvalues are real, with vectors ``(batch, ...)``.
        like: Of the vectors' shape.
        iterations: Products.

    Returns:
        ``(batch,)``; nan where a product is not finite.
    """
    basis, images, v = [], [], _normalised(probe(like).flatten(1))
    for _ in range(min(iterations, v.shape[1])):
        basis.append(v)
        images.append(apply(v.view_as(like)).flatten(1))
        v = images[-1]
        span = torch.stack(basis, dim=1)
        # Once leaves rounding errors as large as what remains.
        for _ in range(2):
            v = v - torch.einsum("bkn,bk->bn", span, torch.einsum("bkn,bn->bk", span, v))
        v = _normalised(v)
    small = torch.einsum("bkn,bln->bkl", torch.stack(basis, dim=1), torch.stack(images, dim=1))
    # LAPACK ends the process where it is given a nan.
    finite = small.isfinite().flatten(1).all(dim=1)
    found = torch.linalg.eigvals(torch.where(finite[:, None, None], small, 0.0)).real.amax(dim=1)
    return torch.where(finite, found, torch.nan)


def probe(like: Tensor) -> Tensor:
    """Normal numbers of the shape of ``like``, always the same ones: training goes on from the same random state."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _normalised(v: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    return v / norm.clamp_min(torch.finfo(v.dtype).tiny)
