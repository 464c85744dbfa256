"""Features of samples, kept for classifiers that sums are not enough for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.metrics.summed import SummedMetric


class FeatureRows(SummedMetric):
    """Non-zero features of every sample and its class; memory grows with the samples. For one process.

    Args:
        num_features: Features of a sample.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self._parts: list[dict[str, Tensor]] = []

    def update(self, features: Tensor, target: Tensor) -> None:
        """Keep samples of features ``(batch, num_features)`` and classes ``(batch,)``.

        Raises:
            ValueError: Another number of features.
        """
        if features.shape[1:] != (self.num_features,):
            raise ValueError(f"features of shape {tuple(features.shape)} are not (batch, {self.num_features})")
        filled = features != 0
        row, column = filled.nonzero(as_tuple=True)
        part = {
            "values": features[row, column].float(),
            "columns": column.to(torch.int32),
            "lengths": filled.sum(1),
            "targets": target,
        }
        self._parts.append({name: values.cpu() for name, values in part.items()})

    def compute(self) -> tuple[Any, Tensor]:
        """Features as a scipy matrix in compressed rows ``(samples, num_features)``, and classes ``(samples,)``."""
        from scipy.sparse import csr_matrix

        sums = self.sums()
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), sums["lengths"].cumsum(0)])
        parts = (sums["values"].numpy(), sums["columns"].numpy(), starts.numpy())
        return csr_matrix(parts, shape=(len(sums["targets"]), self.num_features)), sums["targets"]

    def sums(self) -> dict[str, Tensor]:
        """All that was kept, one part behind the other."""
        if not self._parts:
            self.update(torch.zeros(0, self.num_features), torch.zeros(0, dtype=torch.int64))
        self._parts = [{name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}]
        return self._parts[0]

    def check_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Refuse what are no kept features.

        Raises:
            ValueError: Other names.
        """
        if set(sums) != {"values", "columns", "lengths", "targets"}:
            raise ValueError(f"these are no kept features: {sorted(sums)}")

    def merge(self, sums: Mapping[str, Tensor]) -> None:
        """Keep another's samples too."""
        self._parts.append(dict(sums))
        self._update_count, self._computed = self._update_count + 1, None

    def forget(self, sums: Mapping[str, Tensor]) -> None:
        """Refuse.

        Raises:
            ValueError: Always: what was kept has no numbers to find it by.
        """
        raise ValueError("kept features cannot be forgotten: take a classifier from sums, classifier='ridge'")
