"""Which samples make which batch: a pure function of seed, epoch and rank."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler


def mix(*numbers: int) -> int:
    """One seed from several numbers, far apart for neighbouring ones (a step of Knuth's linear congruence each)."""
    seed = 0
    for number in numbers:
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return seed


class BatchIndex(list[int]):
    """The samples of one batch, with the seed of its augmentation.

    The seed travels with the batch, so that augmentation depends neither on the worker that loads it nor on what
    else the program draws.
    """

    def __init__(self, samples: list[int], seed: int) -> None:
        super().__init__(samples)
        self.seed = seed

    def __reduce__(self) -> tuple[Any, ...]:
        return (BatchIndex, (list(self), self.seed))


class EpochBatchSampler(Sampler[BatchIndex]):
    """Batches of one rank, in an order given by seed and epoch.

    The ranks together see the batches of one process with ``batch_size * world_size``: rank r takes every
    ``world_size``-th sample of each joined batch.

    Args:
        num_samples: Size of the data set.
        batch_size: Samples in a batch of this rank.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the order and of augmentation.
        drop_last: Whether to leave out a last batch that is not full.
        rank: This process, counted from 0.
        world_size: Number of processes.
        pad: Repeat samples until every rank has equally many, as torch's DistributedSampler does; otherwise each
            sample comes exactly once, and batches of different ranks differ by at most one sample (two in a last
            batch that takes in a remainder smaller than ``world_size``).
        repeats: How often each batch comes, in a row and with the same augmentation.

    Raises:
        ValueError: Fewer than one sample in a batch, fewer samples than ranks, or no repeats.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = False,
        repeats: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if num_samples < world_size:
            raise ValueError(f"{num_samples} samples cannot be shared by {world_size} processes")
        if repeats < 1:
            raise ValueError(f"repeats={repeats} must be at least 1")
        self.num_samples, self.batch_size = num_samples, batch_size
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.rank, self.world_size, self.pad, self.repeats = rank, world_size, pad, repeats
        self.epoch = 0

    @property
    def sampler(self) -> "EpochBatchSampler":
        """This sampler itself, since Lightning looks here for :meth:`set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of that epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._ends()) * self.repeats

    def __iter__(self) -> Iterator[BatchIndex]:
        return self.batches(0)

    def batches(self, start: int) -> Iterator[BatchIndex]:
        """The batches of this epoch from number ``start`` on, where each showing of a batch counts."""
        order = self._order()
        ends = self._ends()
        for showing in range(start, len(self)):
            number = showing // self.repeats
            begin = ends[number - 1] if number else 0
            seed = mix(self.seed, self.epoch, number, self.rank)
            yield BatchIndex(order[begin + self.rank : ends[number] : self.world_size], seed)

    def indices(self) -> list[int]:
        """The samples of this rank in this epoch, in order."""
        return [sample for batch in self for sample in batch]

    def _order(self) -> list[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
            order = torch.randperm(self.num_samples, generator=generator).tolist()
        else:
            order = list(range(self.num_samples))
        return order + order[: self._padding()]

    def _padding(self) -> int:
        return -self.num_samples % self.world_size if self.pad else 0

    def _ends(self) -> list[int]:
        """Where each joined batch ends in the order."""
        total, joined = self.num_samples + self._padding(), self.batch_size * self.world_size
        ends = list(range(joined, total + 1, joined))
        rest = total - (ends[-1] if ends else 0)
        if rest and not self.drop_last:
            # A rest too small for all ranks joins the batch before: no rank may be without samples.
            if rest < self.world_size and ends:
                ends[-1] = total
            else:
                ends.append(total)
        return ends
