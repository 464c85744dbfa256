"""Sums over features and targets, for read-outs in closed form."""

import torch
from torch import Tensor

from lightning_nobp.functional.ridge import RidgeStatistics, ridge_statistics
from lightning_nobp.metrics.summed import SummedMetric


class NormalEquations(SummedMetric):
    """Everything that ridge regression needs to know of its samples.

    Args:
        num_features: Features of a sample.
        num_targets: Targets of a sample.
        dtype: In which products are computed, see :func:`~lightning_nobp.functional.ridge.ridge_statistics`.
    """

    gram: Tensor
    cross: Tensor
    feature_sum: Tensor
    target_sum: Tensor
    target_square: Tensor
    count: Tensor

    def __init__(self, num_features: int, num_targets: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.product_dtype = dtype
        self.add_sum("gram", num_features, num_features)
        self.add_sum("cross", num_features, num_targets)
        self.add_sum("feature_sum", num_features)
        self.add_sum("target_sum", num_targets)
        self.add_sum("target_square")
        self.add_sum("count")

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Count samples of features ``(batch, num_features)`` and targets ``(batch, num_targets)``.

        Large batches are faster: each costs one pass over a matrix of ``num_features ** 2``.
        """
        for state, more in zip(self._states(), ridge_statistics(features, targets, self.product_dtype), strict=True):
            state += more

    def compute(self) -> RidgeStatistics:
        """The sums over all processes."""
        return RidgeStatistics(*self._states())

    def _states(self) -> tuple[Tensor, ...]:
        return self.gram, self.cross, self.feature_sum, self.target_sum, self.target_square, self.count
