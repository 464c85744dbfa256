"""Convolution filters in closed form: principal components and their alternatives.

References:
    PCA: Chan et al., "PCANet: A Simple Deep Learning Baseline for Image Classification?", arXiv 1404.3606; also random
    filters (RandNet) and linear discriminant analysis (LDANet).
    DCT: Ng and Teoh, "DCTNet: A Simple Learning-free Approach for Face Recognition", arXiv 1507.02049.
    Saab: Kuo et al., "Interpretable Convolutional Neural Networks via Feedforward Design", arXiv 1810.02786.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.patches import (
    PatchFilters,
    PatchMoments,
    patch_covariance,
    patch_mean,
    principal_components,
    with_fixed_signs,
)

FILTERS = ("pca", "pca_rotated", "random", "dct", "saab", "lda")
"""Kinds of filters that :func:`choose_filters` knows."""


class ClassTotals(NamedTuple):
    """Sums over the patches of each class's images."""

    total: Tensor
    """``(num_classes, m)``, float64."""
    num_patches: Tensor
    """Of each class, ``(num_classes,)``."""


def choose_filters(
    kind: str,
    moments: PatchMoments,
    num_filters: int,
    kernel_size: int,
    *,
    remove_patch_mean: bool = False,
    classes: ClassTotals | None = None,
    generator: torch.Generator | None = None,
) -> PatchFilters:
    """Orthonormal filters from sums over patches.

    - ``'pca'``: principal components;
    - ``'pca_rotated'``: the same, turned at random within the space that they span;
    - ``'random'``: random directions;
    - ``'dct'``: the discrete cosines of each channel, those of largest variance;
    - ``'saab'``: the constant patch, then principal components of what is left without it;
    - ``'lda'``: directions in which the classes' mean patches differ most, relative to the spread within the classes;
      there are ``num_classes - 1`` of these, principal components of the rest follow.

    Args:
        kind: One of the above.
        moments: Of the patches.
        num_filters: How many.
        kernel_size: Height and width of a patch.
        remove_patch_mean: Whether the mean of each channel is taken off each patch first. The filters then sum to zero
            over each channel, so that convolving the image itself is the same.
        classes: Sums by class, for ``'lda'``.
        generator: Of random numbers, on the CPU.

    Raises:
        ValueError: An unknown kind, more filters than patches have dimensions, or no classes for ``'lda'``.
    """
    covariance = patch_covariance(*moments)
    channels, rank = len(covariance) // kernel_size**2, len(covariance)
    projector = torch.eye(rank, dtype=torch.float64)
    if remove_patch_mean:
        projector, rank = patch_mean_projector(channels, kernel_size), rank - channels
    projector = projector.to(covariance.device)
    covariance = projector @ covariance @ projector
    if num_filters > rank:
        less = " - channels, since remove_patch_mean takes one dimension of each" if remove_patch_mean else ""
        raise ValueError(
            f"num_filters={num_filters} is above {rank}, the rank of patches of {channels} channels "
            f"(channels * {kernel_size} ** 2{less}): give fewer channels or a larger kernel"
        )
    if kind == "pca":
        filters, _ = principal_components(covariance, num_filters)
    elif kind == "pca_rotated":
        turn = torch.randn(num_filters, num_filters, dtype=torch.float64, generator=generator).to(covariance.device)
        filters = _orthonormal(turn) @ principal_components(covariance, num_filters)[0]
    elif kind == "random":
        drawn = torch.randn(len(covariance), num_filters, dtype=torch.float64, generator=generator)
        filters = _orthonormal(projector @ drawn.to(covariance.device))
    elif kind == "dct":
        filters = _cosines(covariance, projector, num_filters, kernel_size)
    elif kind == "saab":
        if remove_patch_mean:
            raise ValueError("filters='saab' keeps the patches' mean as a filter of its own: remove_patch_mean=False")
        constant = torch.full_like(covariance[:1], len(covariance) ** -0.5)
        filters = _and_components(constant, covariance, num_filters)
    elif kind == "lda":
        if classes is None:
            raise ValueError("filters='lda' needs the sums of patches by class: classes=...")
        filters = _and_components(_discriminants(covariance, projector, moments, classes), covariance, num_filters)
    else:
        raise ValueError(f"filters={kind!r} is not one of {', '.join(map(repr, FILTERS))}")
    variances = ((filters @ covariance) * filters).sum(1).clamp(min=0)
    return PatchFilters(with_fixed_signs(filters), variances, patch_mean(moments.total, moments.count))


def whitened(found: PatchFilters, tolerance: float = 1e-12) -> PatchFilters:
    """Filters scaled so that each response has unit variance; principal components are then white.

    Args:
        found: Orthonormal filters.
        tolerance: Smallest variance relative to the largest.

    Raises:
        ValueError: A filter's response hardly varies: there are more filters than the patches' numerical rank.
    """
    variances = found.eigenvalues
    rank = int((variances > tolerance * variances.max()).sum())
    if rank < len(variances):
        raise ValueError(
            f"{len(variances)} filters are above {rank}, the rank of the patches: they cannot be scaled to unit "
            f"variance. Give at most {rank} channels, or whiten=False"
        )
    return found._replace(filters=found.filters / variances.sqrt().unsqueeze(1))


def patch_mean_projector(channels: int, kernel_size: int) -> Tensor:
    """The symmetric matrix ``(m, m)`` that takes the mean of each channel off a patch, float64."""
    size = kernel_size**2
    once = torch.eye(size, dtype=torch.float64) - 1 / size
    return torch.kron(torch.eye(channels, dtype=torch.float64), once)


def _orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal rows that span what the columns span."""
    vectors: Tensor = torch.linalg.qr(columns).Q
    return vectors.T


def _cosines(covariance: Tensor, projector: Tensor, num_filters: int, kernel_size: int) -> Tensor:
    place = torch.arange(kernel_size, dtype=torch.float64)
    waves = torch.cos(math.pi / kernel_size * (place + 0.5) * place.unsqueeze(1))
    waves = waves / waves.norm(dim=1, keepdim=True)
    channels = len(covariance) // kernel_size**2
    basis = torch.kron(torch.eye(channels, dtype=torch.float64), torch.kron(waves, waves)).to(covariance)
    # A cosine is in the patches' space or orthogonal to it: only the constant ones can be missing.
    basis = basis[(basis @ projector).norm(dim=1) > 0.5]
    variances = ((basis @ covariance) * basis).sum(1)
    return basis[variances.argsort(descending=True, stable=True)[:num_filters]]


def _and_components(first: Tensor, covariance: Tensor, num_filters: int) -> Tensor:
    """The given orthonormal directions, then principal components of what they leave."""
    first = first[:num_filters]
    rest = num_filters - len(first)
    if not rest:
        return first
    left = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device) - first.T @ first
    components, _ = principal_components(left @ covariance @ left, rest)
    return torch.cat([first, components])


def _discriminants(covariance: Tensor, projector: Tensor, moments: PatchMoments, classes: ClassTotals) -> Tensor:
    """Orthonormal directions that tell the classes' mean patches apart."""
    seen = classes.num_patches > 0
    if int(seen.sum()) < 2:
        raise ValueError("filters='lda' needs images of at least two classes")
    counts = classes.num_patches[seen].to(torch.float64)
    means = classes.total[seen] / counts.unsqueeze(1)
    offsets = (means - moments.total / moments.count) @ projector * (counts / counts.sum()).sqrt().unsqueeze(1)
    between = offsets.T @ offsets
    # Directions without any spread say nothing: they are left out before dividing by it.
    spread, axes = torch.linalg.eigh(covariance - between)
    kept = spread > 1e-10 * spread.max()
    scaled = axes[:, kept] / spread[kept].sqrt()
    directions, _ = principal_components(scaled.T @ between @ scaled, min(len(means) - 1, int(kept.sum())))
    return _orthonormal(scaled @ directions.T)
