"""A loader that can stop after any batch and go on from there."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_nobp.datamodules.sampler import BatchIndex, EpochBatchSampler

Batch = tuple[Tensor, ...]
"""Inputs, class numbers, and what else a data module gives."""


class BatchedDataset(Protocol):
    """A data set that is asked for whole batches."""

    def __len__(self) -> int: ...

    def __getitems__(self, index: BatchIndex) -> Batch:
        """Inputs ``(batch, channels, height, width)``, class numbers ``(batch,)``, and what else there is."""
        ...


class _From:
    """The batches of an epoch from one on, as a DataLoader wants them."""

    def __init__(self, sampler: EpochBatchSampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[BatchIndex]:
        return self.sampler.batches(self.start)

    def __len__(self) -> int:
        return len(self.sampler) - self.start


def _as_it_is(batch: Batch) -> Batch:
    return batch


class ResumableLoader:
    """Batches of a :class:`BatchedDataset`, with a state that Lightning saves in the middle of an epoch.

    It is no DataLoader itself, so Lightning leaves its sampler alone in distributed runs; the sampler shares the
    data over ranks already.

    Args:
        dataset: Gives batches.
        batch_sampler: Says which.
        num_workers: Processes that load ahead; 0 loads in this one.
        pin_memory: Whether batches are copied to page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: BatchedDataset,
        batch_sampler: EpochBatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.batch_sampler = dataset, batch_sampler
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._position = 0
        self._resume: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        # Lightning calls iter() before it sets the epoch: nothing may be read before the first batch is asked for.
        start = 0
        if self._resume is not None and self._resume["epoch"] == self.batch_sampler.epoch:
            start = self._resume["position"]
        self._resume = None
        self._position = start
        loader: DataLoader[Any] = DataLoader(
            self.dataset,  # type: ignore[arg-type]
            batch_sampler=_From(self.batch_sampler, start),
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            # Otherwise it draws from the global generator, which belongs to the rule.
            generator=torch.Generator(),
        )
        for batch in loader:
            # Counted when handed out, not when loaded: workers run ahead.
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self.batch_sampler.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, once that epoch comes."""
        self._resume = dict(state)
        self._position = state["position"]
