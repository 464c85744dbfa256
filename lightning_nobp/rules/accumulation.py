"""Sums over batches: gradients that wait for their step, and the epoch's running means."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.rules.synchronisation import is_main_rank, sum_over_ranks


class GradientAccumulator:
    """Sum of gradients weighted by samples, so that several batches equal their joined batch."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.batches = 0
        self.num_samples = 0
        self._loss: Tensor | None = None
        self._sums: list[Tensor | None] = []

    def add(self, parameters: list[nn.Parameter], num_samples: int, loss: Tensor | None) -> None:
        """Take in the gradients of one batch.

        Args:
            parameters: The same list at every call; their ``grad`` holds means over the batch.
            num_samples: Samples in the batch.
            loss: The batch's mean loss, or None.
        """
        sums = self._sums or [None] * len(parameters)
        self._sums = [
            old if p.grad is None else p.grad * num_samples + (0 if old is None else old.to(p.grad.device))
            for old, p in zip(sums, parameters, strict=True)
        ]
        if loss is not None:
            self._loss = loss.detach() * num_samples + (0 if self._loss is None else self._loss.to(loss.device))
        self.num_samples += num_samples
        self.batches += 1

    def release(self, parameters: list[nn.Parameter]) -> tuple[int, Tensor | None]:
        """Write the mean gradients to ``p.grad``, start anew, and return the samples and the mean loss."""
        samples, loss = self.num_samples, self._loss
        for total, parameter in zip(self._sums, parameters, strict=True):
            parameter.grad = None if total is None else total / samples
        self._clear()
        return samples, None if loss is None else loss / samples

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks."""
        sums = [None if total is None else sum_over_ranks(total) for total in self._sums]
        return {
            "batches": self.batches,
            "num_samples": int(sum_over_ranks(torch.tensor(self.num_samples))),
            "loss": None if self._loss is None else sum_over_ranks(self._loss),
            "sums": sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums over all ranks back; they count once, on the main rank."""
        self._clear()
        self.batches = state["batches"]
        if not self.batches:
            return
        share = 1 if is_main_rank() else 0
        self.num_samples = state["num_samples"] * share
        self._loss = None if state["loss"] is None else state["loss"] * share
        self._sums = [None if total is None else total * share for total in state["sums"]]


class RunningMeans:
    """Means of logged values over the samples of an epoch, summed on the device without waiting for it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._num_samples = 0

    def add(self, values: Mapping[str, Tensor], num_samples: int) -> None:
        """Take in one batch.

        Args:
            values: Means over the batch, by name; the same names at every call.
            num_samples: Samples in the batch.
        """
        if not values:
            return
        self._names = list(values)
        row = torch.stack([v.detach() for v in values.values()])
        sums = torch.zeros(len(row)) if self._sums is None else self._sums
        self._sums = sums.to(row.device).add_(row, alpha=num_samples)
        self._num_samples += num_samples

    def compute(self) -> dict[str, Tensor]:
        """The means over all ranks."""
        if self._sums is None:
            return {}
        sums = sum_over_ranks(self._sums)
        count = sum_over_ranks(torch.tensor(self._num_samples, device=sums.device))
        return dict(zip(self._names, (sums / count).unbind(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks."""
        return {
            "names": self._names,
            "sums": None if self._sums is None else sum_over_ranks(self._sums),
            "num_samples": int(sum_over_ranks(torch.tensor(self._num_samples))),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the sums over all ranks back; they count once, on the main rank."""
        share = 1 if is_main_rank() else 0
        self._names = state["names"]
        self._sums = None if state["sums"] is None else state["sums"] * share
        self._num_samples = state["num_samples"] * share
