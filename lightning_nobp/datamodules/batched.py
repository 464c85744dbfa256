"""The base of every data module: the loaders of batches that can be resumed and shared over processes."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_nobp.datamodules.loader import Batch, BatchedDataset, ResumableLoader
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import BatchIndex, EpochBatchSampler
from lightning_nobp.typed import Typed


class TensorBatches:
    """Batches from tensors that lie in memory.

    Args:
        *tensors: Each ``(num_samples, ...)``; what a batch holds, in this order.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, index: BatchIndex) -> Batch:
        """Of each tensor ``(batch, ...)``."""
        numbers = torch.tensor(index)
        return tuple(tensor[numbers] for tensor in self.tensors)


class BatchedDataModule(Typed, LightningDataModule):
    """Batches of samples whose order is a function of seed and epoch, shared over processes.

    A subclass says which samples there are (:meth:`batches`), gets them in ``setup``, and sets ``input_shape``.

    Args:
        batch_size: Training samples in a batch, on each process.
        eval_batch_size: Samples in a batch of validation, test and prediction.
        shuffle: Whether each epoch has its own order of training samples. False for rules that sum statistics: the
            order does not matter to them, but each process then sees the same samples in every epoch.
        drop_last: Whether to leave out a last training batch that is not full.
        pad_shards: Whether several processes repeat training samples until all have equally many. False for rules
            that sum statistics, where each sample must count once. Evaluation never pads.
        repeat_batches: How often each training batch comes, in a row and with the same augmentation: for rules whose
            sample stays longer than an update takes.
        num_workers: Processes that load ahead; samples in memory need none.
        seed: Of everything that is drawn.

    Raises:
        ValueError: An argument outside its range.
    """

    input_shape: tuple[int, ...]
    unsaved: ClassVar[tuple[str, ...]] = ()
    """Arguments that the checkpoint leaves out."""

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        shuffle: bool = True,
        drop_last: bool = False,
        pad_shards: bool = True,
        repeat_batches: int = 1,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # A numpy number overflows where Python's does not.
        batch_size, eval_batch_size, num_workers = plain(batch_size), plain(eval_batch_size), plain(num_workers)
        repeat_batches, seed = plain(repeat_batches), plain(seed)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("repeat_batches", repeat_batches, 1),
            ("num_workers", num_workers, 0),
        ):
            check_least(name, value, least)
        self.save_hyperparameters(logger=False, ignore=list(self.unsaved))
        # Lightning collects them from the constructors of subclasses too, which know nothing of the lines above.
        self.hparams.update(plain(self.hparams))
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.shuffle, self.drop_last, self.pad_shards = shuffle, drop_last, pad_shards
        self.repeat_batches, self.num_workers, self.seed = repeat_batches, num_workers, seed

    @abstractmethod
    def batches(self, split: str) -> BatchedDataset:
        """The samples of ``'train'``, ``'val'`` or ``'test'``, once ``setup`` has been called."""
        raise NotImplementedError(f"{type(self).__name__} must implement batches(split)  (abstract)")

    def train_dataloader(self) -> ResumableLoader:
        """Training batches, shuffled if ``shuffle``; in order while the Trainer overfits some of them."""
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._loader("train", shuffle=self.shuffle and not overfits)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Validation batches; none if there are no samples to validate with."""
        return self._loader("val") if len(self.batches("val")) else []

    def test_dataloader(self) -> ResumableLoader:
        """Test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """The test batches."""
        return self._loader("test")

    def _loader(self, split: str, shuffle: bool = False) -> ResumableLoader:
        batches, train = self.batches(split), split == "train"
        sampler = EpochBatchSampler(
            len(batches),
            self.batch_size if train else self.eval_batch_size,
            shuffle=shuffle,
            seed=self.seed,
            drop_last=self.drop_last and train,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            world_size=1 if self.trainer is None else self.trainer.world_size,
            pad=self.pad_shards and train,
            repeats=self.repeat_batches if train else 1,
        )
        if train and not len(sampler):
            raise ValueError(
                f"drop_last=True: {len(batches)} training samples make no full batch of batch_size={self.batch_size} "
                f"on {sampler.world_size} processes: take smaller batches, or drop_last=False"
            )
        return ResumableLoader(batches, sampler, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())


def check_least(name: str, value: float, least: float) -> None:
    """Refuse an argument that is too small.

    Raises:
        ValueError: It is less than ``least``, or no number.
    """
    if not value >= least:
        raise ValueError(f"{name}={value} must be at least {least}")
