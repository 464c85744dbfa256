"""Ridge regression from sums over samples: exact in one pass over any amount of data.

A linear read-out ``features @ weight + bias`` that minimises the squared error plus a penalty needs only the sums of
:class:`RidgeStatistics`. They add up over batches, machines and sites, and a part can be taken away again.

References:
    Hoerl and Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", Technometrics 12 (1970).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

_SILENT = 1e-10
"""A feature whose variance is below this share of the largest is taken for constant."""

_BLOCKS = 4
"""Stretches of columns in a product with itself: of the blocks below the diagonal none is computed."""


class RidgeStatistics(NamedTuple):
    """Sums over samples of features ``(D,)`` and targets ``(K,)``, all float64."""

    gram: Tensor
    """Of products of features, ``(D, D)``."""
    cross: Tensor
    """Of products of features and targets, ``(D, K)``."""
    feature_sum: Tensor
    """``(D,)``."""
    target_sum: Tensor
    """``(K,)``."""
    target_square: Tensor
    """Of the targets' squares, a scalar."""
    num_samples: Tensor
    """A scalar."""

    def plus(self, other: "RidgeStatistics") -> "RidgeStatistics":
        """The statistics of both sets of samples."""
        return RidgeStatistics(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "RidgeStatistics") -> "RidgeStatistics":
        """The statistics without the other's samples, which must be among these."""
        return RidgeStatistics(*(a - b for a, b in zip(self, other, strict=True)))


class LinearReadout(NamedTuple):
    """``features @ weight + bias``."""

    weight: Tensor
    """``(D, K)``, float64."""
    bias: Tensor
    """``(K,)``, float64."""
    ridge: float
    """The penalty that it was solved with, larger than asked for where that was too small for the numbers."""
    condition: float
    """A lower bound of the condition number of what was solved."""


class _Standardised(NamedTuple):
    """Moments of features with zero mean and unit variance, and targets with zero mean."""

    gram: Tensor
    cross: Tensor
    scale: Tensor
    feature_mean: Tensor
    target_mean: Tensor

    def readout(self, solution: Tensor, ridge: float, condition: float) -> LinearReadout:
        """The read-out of the raw features."""
        weight = self.scale.unsqueeze(1) * solution
        return LinearReadout(weight, self.target_mean - self.feature_mean @ weight, ridge, condition)


def ridge_statistics(features: Tensor, targets: Tensor, dtype: torch.dtype | None = None) -> RidgeStatistics:
    """The sums of one batch.

    Products are computed of features less their mean over the batch, in ``dtype``, and put back in float64: without
    that, float32 loses the small eigenvalues that a weak penalty needs.

    Args:
        features: ``(batch, D)``.
        targets: ``(batch, K)``.
        dtype: Of the products; by default that of ``features``, at least float32.

    Raises:
        ValueError: Shapes that do not fit.
    """
    if features.dim() != 2 or targets.dim() != 2 or len(features) != len(targets):
        raise ValueError(
            f"features {tuple(features.shape)} and targets {tuple(targets.shape)} must be (batch, D) and (batch, K)"
        )
    dtype = dtype or torch.promote_types(features.dtype, torch.float32)
    count = len(features)
    exact_targets = targets.double()
    target_sum = exact_targets.sum(0)
    pilot = features.mean(0, dtype=dtype) if count else features.new_zeros(features.shape[1], dtype=dtype)
    centred = features.to(dtype) - pilot
    exact_pilot = pilot.double()
    rest = centred.sum(0, dtype=torch.float64)
    gram = symmetric_product(centred).double()
    total = rest + count * exact_pilot
    # (c + p)(c + p)' = cc' + c p' + p (c + p)', summed over the batch.
    gram.addmm_(torch.stack([rest, exact_pilot], 1), torch.stack([exact_pilot, total]))
    cross = (centred.T @ targets.to(dtype)).double().addr_(exact_pilot, target_sum)
    number = torch.tensor(float(count), dtype=torch.float64, device=features.device)
    return RidgeStatistics(gram, cross, total, target_sum, exact_targets.square().sum(), number)


def symmetric_product(x: Tensor) -> Tensor:
    """``x.T @ x`` with little more than half of its products, for ``x`` ``(batch, D)``."""
    size = x.shape[1]
    if size < 64 * _BLOCKS:
        return x.T @ x
    product = x.new_empty(size, size)
    edges = [round(size * block / _BLOCKS) for block in range(_BLOCKS + 1)]
    for start, end in pairwise(edges):
        block = torch.mm(x[:, start:end].T, x[:, start:])
        product[start:end, start:] = block
        product[end:, start:end] = block[:, end - start :].T
    return product


def ridge_solve(statistics: RidgeStatistics, ridge: float) -> LinearReadout:
    """The read-out that minimises the mean squared error plus ``ridge`` times the squared weights.

    Features are standardised first and the bias is not penalised: the same as scikit-learn's ``StandardScaler`` and
    ``Ridge(alpha=ridge * count)``. A feature that hardly varies gets the weight zero. Without a penalty the solution
    of least norm is taken, through an eigendecomposition.

    Args:
        statistics: Of the samples.
        ridge: The penalty per sample, at least 0.

    Raises:
        ValueError: A negative penalty, no samples, or statistics that are not finite.
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge} must be at least 0, and finite")
    moments = _standardise(statistics)
    if ridge == 0:
        return moments.readout(*_least_norm(moments.gram, moments.cross))
    factor, ridge = _cholesky(moments.gram, ridge)
    solution = torch.cholesky_solve(moments.cross, factor)
    return moments.readout(solution, ridge, _condition(factor))


def ridge_path(
    folds: Sequence[RidgeStatistics], ridges: Sequence[float]
) -> tuple[float, list[float], list[list[LinearReadout]]]:
    """Choose the penalty by the error on folds that the read-out has not seen.

    Args:
        folds: Statistics of each fold; the read-out for a fold is solved from all others.
        ridges: Penalties to try.

    Returns:
        The best penalty, the mean squared error of each on the folds left out, and the read-outs by penalty and fold.

    Raises:
        ValueError: Fewer than two folds.
    """
    if len(folds) < 2:
        raise ValueError(f"{len(folds)} folds: at least two are needed to leave one out")
    total = folds[0]
    for fold in folds[1:]:
        total = total.plus(fold)
    readouts = [[ridge_solve(total.minus(fold), ridge) for fold in folds] for ridge in ridges]
    errors = [mean_error(folds, row) for row in readouts]
    best = min(range(len(errors)), key=errors.__getitem__)
    return ridges[best], errors, readouts


def mean_error(folds: Sequence[RidgeStatistics], readouts: Sequence[LinearReadout]) -> float:
    """Mean over the samples of all folds of the squared error of each fold's read-out."""
    pairs = zip(folds, readouts, strict=True)
    total = sum(squared_error(fold, readout.weight, readout.bias) for fold, readout in pairs)
    return float(total / sum(fold.num_samples for fold in folds))


def squared_error(statistics: RidgeStatistics, weight: Tensor, bias: Tensor) -> Tensor:
    """Sum over samples of ``norm(target - features @ weight - bias) ** 2``, from the sums alone.

    Args:
        statistics: Of the samples, which need not be those of the read-out.
        weight: ``(D, K)``, float64.
        bias: ``(K,)``, float64.
    """
    gram, cross, feature_sum, target_sum, target_square, count = statistics
    quadratic = (weight * (gram @ weight)).sum() - 2 * (weight * cross).sum() + target_square
    offset: Tensor = 2 * bias @ (feature_sum @ weight - target_sum) + count * bias @ bias
    return quadratic + offset


def backfit(
    statistics: RidgeStatistics, sizes: Sequence[int], ridge: float, sweeps: int, shrinkage: float = 1.0
) -> LinearReadout:
    """Block after block of features, each fitted to what the others leave, several times over.

    Many sweeps lead to the read-out of all features at once, :func:`ridge_solve`, but need only systems of one block's
    size.

    Args:
        statistics: Of all features side by side.
        sizes: Features in each block.
        ridge: The penalty per sample, positive.
        sweeps: How often each block is fitted.
        shrinkage: How much of each step is made, from 0 to 1.

    Raises:
        ValueError: Blocks that do not add up to the features, no sweep, or no penalty.
    """
    if sum(sizes) != len(statistics.gram) or sweeps < 1 or not ridge > 0:
        raise ValueError(
            f"sizes={list(sizes)} must add up to {len(statistics.gram)} features, sweeps={sweeps} be at least 1, "
            f"ridge={ridge} be positive"
        )
    moments = _standardise(statistics)
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    blocks = [slice(start, end) for start, end in pairwise(edges)]
    factors = [_cholesky(moments.gram[block, block], ridge) for block in blocks]
    solution = torch.zeros_like(moments.cross)
    for _ in range(sweeps):
        for block, (factor, used) in zip(blocks, factors, strict=True):
            residual = moments.cross[block] - moments.gram[block] @ solution - used * solution[block]
            solution[block] += shrinkage * torch.cholesky_solve(residual, factor)
    condition = max(_condition(factor) for factor, _ in factors)
    return moments.readout(solution, max(used for _, used in factors), condition)


def dual_ridge(features: Tensor, targets: Tensor, ridge: float) -> LinearReadout:
    """:func:`ridge_solve` of few samples with many features: a system of the samples' size.

    Args:
        features: ``(batch, D)``.
        targets: ``(batch, K)``.
        ridge: The penalty per sample, positive.

    Raises:
        ValueError: No penalty.
    """
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge={ridge} must be positive: fewer samples than features determine no read-out")
    if not (features.isfinite().all() and targets.isfinite().all()):
        raise ValueError("features or targets hold nan or inf")
    count = len(features)
    mean, target_mean = features.mean(0, dtype=torch.float64), targets.mean(0, dtype=torch.float64)
    centred = features.double() - mean
    scale = _scale(centred.square().mean(0))
    centred *= scale
    factor, ridge = _cholesky(centred @ centred.T / count, ridge)
    weights = torch.cholesky_solve(targets.double() - target_mean, factor) / count
    weight = scale.unsqueeze(1) * (centred.T @ weights)
    return LinearReadout(weight, target_mean - mean @ weight, ridge, _condition(factor))


def _standardise(statistics: RidgeStatistics) -> _Standardised:
    gram, cross, feature_sum, target_sum, _, count = statistics
    if not count > 0:
        raise ValueError(f"count={float(count)}: no samples were counted")
    if not (gram.diagonal().isfinite().all() and cross.isfinite().all()):
        raise ValueError("the sums are not finite: features or targets hold nan or inf")
    mean, target_mean = feature_sum / count, target_sum / count
    covariance = (gram / count).addr_(mean, mean, alpha=-1)
    scale = _scale(covariance.diagonal())
    covariance.mul_(scale).mul_(scale.unsqueeze(1))
    cross = (cross / count - torch.outer(mean, target_mean)) * scale.unsqueeze(1)
    return _Standardised(covariance, cross, scale, mean, target_mean)


def _scale(variances: Tensor) -> Tensor:
    """One over the standard deviation; 0 for what hardly varies."""
    silent = variances <= _SILENT * variances.max().clamp(min=0)
    return variances.clamp(min=0).rsqrt().masked_fill(silent, 0.0)


def _cholesky(gram: Tensor, ridge: float) -> tuple[Tensor, float]:
    """The factor of ``gram + ridge``, and the ridge; rounding may ask for a larger one than given."""
    # A standardised matrix has ones on its diagonal: beyond this bound nothing is left of it.
    while ridge < 1e6:
        penalised = gram.clone()
        penalised.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(penalised)
        if not failed:
            return factor, ridge
        ridge *= 10
    raise ValueError("the sums are those of no samples: no penalty makes them positive definite")


def _condition(factor: Tensor) -> float:
    entries = factor.diagonal()
    return float((entries.max() / entries.min()).square())


def _least_norm(gram: Tensor, cross: Tensor) -> tuple[Tensor, float, float]:
    eigenvalues, vectors = torch.linalg.eigh(gram)
    kept = eigenvalues > _SILENT * eigenvalues.max()
    values, vectors = eigenvalues[kept], vectors[:, kept]
    solution = vectors @ ((vectors.T @ cross) / values.unsqueeze(1))
    return solution, 0.0, float(values.max() / values.min()) if len(values) else 1.0
