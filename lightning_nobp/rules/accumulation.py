"""Sums over batches: gradients that wait for their step, and the epoch's running means."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.rules.synchronisation import gather_from_ranks, is_main_rank, sum_over_ranks


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


_Groups = dict[tuple[str, ...], tuple[Tensor, Tensor]]
"""Sums and counts of values that come together, by their names."""


class RunningMeans:
    """Means of logged values over the samples of an epoch, summed on the device without waiting for it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._groups: _Groups = {}

    def add(self, values: Mapping[str, Tensor], num_samples: int, only_finite: bool = False) -> None:
        """Take in one batch.

        Args:
            values: Means over the batch, scalars, by name; each batch may have names of its own.
            num_samples: Samples in the batch.
            only_finite: Whether to pass over values that are not finite.
        """
        if not values:
            return
        row = torch.stack([v.detach() for v in values.values()])
        row = row.to(torch.promote_types(row.dtype, torch.float32))
        sums, counts = self._groups.setdefault(tuple(values), (torch.zeros_like(row), torch.zeros_like(row)))
        if only_finite:
            counts.add_(row.isfinite(), alpha=num_samples)
            row = row.nan_to_num(0.0, 0.0, 0.0)
        else:
            counts.add_(num_samples)
        sums.add_(row, alpha=num_samples)

    def compute(self) -> dict[str, Tensor]:
        """The means over all ranks."""
        totals: dict[str, Tensor] = {}
        for names, (sums, counts) in self._over_ranks().items():
            for name, total in zip(names, torch.stack([sums, counts]).unbind(1), strict=True):
                totals[name] = totals[name] + total if name in totals else total
        return {name: total / count for name, (total, count) in totals.items() if count}

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks."""
        groups = [{"names": list(n), "sums": s, "counts": c} for n, (s, c) in self._over_ranks().items()]
        return {"groups": groups}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take the sums over all ranks back; they count once, on the main rank."""
        share = 1 if is_main_rank() else 0
        self._groups = {
            tuple(g["names"]): (g["sums"].to(device) * share, g["counts"].to(device) * share) for g in state["groups"]
        }

    def _over_ranks(self) -> _Groups:
        """The sums of all ranks, on the CPU; ranks may have seen different names."""
        local = {names: (sums.cpu(), counts.cpu()) for names, (sums, counts) in self._groups.items()}
        merged: _Groups = {}
        for groups in gather_from_ranks(local):
            for names, (sums, counts) in groups.items():
                before = merged.get(names)
                merged[names] = (sums, counts) if before is None else (before[0] + sums, before[1] + counts)
        return merged
