"""A metric whose states are sums."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_nobp.typed import Typed


class SummedMetric(Typed, Metric):
    """Float64 sums over samples, added up over batches and processes.

    What others have summed can be added (:meth:`merge`) or taken away (:meth:`forget`).
    """

    full_state_update = False

    def add_sum(self, name: str, *shape: int) -> None:
        """A state of zeros."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def sums(self) -> dict[str, Tensor]:
        """This process's sums, by name."""
        return {name: getattr(self, name) for name in self._defaults}

    def merge(self, sums: Mapping[str, Tensor]) -> None:
        """Add the :meth:`sums` of other samples.

        Raises:
            ValueError: Other names or shapes.
        """
        self._add(sums, 1)

    def check_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Refuse the sums of something else.

        Raises:
            ValueError: Other names or shapes.
        """
        mine, given = ({name: tuple(state.shape) for name, state in states.items()} for states in (self.sums(), sums))
        if mine != given:
            raise ValueError(f"these sums have the shapes {given}, but {type(self).__name__} has {mine}")

    def forget(self, sums: Mapping[str, Tensor]) -> None:
        """Take the :meth:`sums` of some of the samples away, as if they had never been counted.

        Raises:
            ValueError: Other names or shapes.
        """
        self._add(sums, -1)

    def _add(self, sums: Mapping[str, Tensor], weight: float) -> None:
        self.check_sums(sums)
        for name, state in self.sums().items():
            state.add_(sums[name].to(state), alpha=weight)
        self._update_count, self._computed = self._update_count + 1, None

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move to another device; sums stay float64, whatever dtype a module around them takes."""
        super()._apply(fn, exclude_state)
        for name, default in self._defaults.items():
            assert isinstance(default, Tensor)
            self._defaults[name] = default.double()
            setattr(self, name, getattr(self, name).double())
        return self
