"""The base of every image data module: splits, batches, loaders."""

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from lightning_nobp.datamodules.loader import Batch, ResumableLoader
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import BatchIndex, EpochBatchSampler
from lightning_nobp.datamodules.split import stratified_split

Transform = Callable[[Tensor], Tensor]


class ImageSource(Protocol):
    """Labelled images, by number."""

    labels: Tensor

    def images(self, index: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)``, uint8."""
        ...


class TensorSource:
    """Images that lie in memory.

    Args:
        images: ``(num_samples, channels, height, width)``, uint8.
        labels: ``(num_samples,)``, int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self.labels = images, labels

    def images(self, index: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)``, uint8."""
        return self._images[index]


class ImageBatches:
    """Normalised batches from some of a source's images.

    Args:
        source: The images.
        chosen: Which of them, ``(num_samples,)``.
        mean: Of each channel, in units of the largest value.
        std: Of each channel, likewise.
        transform: Changes a uint8 batch at random, or None.
        with_index: Whether batches tell the number of each sample, counted among the chosen.
    """

    def __init__(
        self,
        source: ImageSource,
        chosen: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        transform: Transform | None = None,
        with_index: bool = False,
    ) -> None:
        self.source, self.chosen, self.transform = source, chosen, transform
        self.with_index = with_index
        self._shift = torch.tensor(mean).view(1, -1, 1, 1) * 255
        self._scale = 1 / (torch.tensor(std).view(1, -1, 1, 1) * 255)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, index: BatchIndex) -> Batch:
        """Inputs ``(batch, channels, height, width)``, float32, class numbers ``(batch,)``, and sample numbers."""
        numbers = torch.tensor(index)
        samples = self.chosen[numbers]
        images = self.source.images(samples)
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(index.seed)
                images = self.transform(images)
        x = images.float().sub_(self._shift).mul_(self._scale)
        labels = self.source.labels[samples]
        return (x, labels, numbers) if self.with_index else (x, labels)


class ImageDataModule(LightningDataModule):
    """Labelled images in batches, with a validation set held out of the training set.

    A subclass says where its images come from (:meth:`load`), and sets ``num_classes``, ``input_shape``,
    ``class_names``, ``mean`` and ``std``. The same seed gives the same split in every run and process; the test set
    is never used to choose anything.

    Args:
        root: Folder of all data sets; by default the environment variable ``NOBP_DATA``, or ``data``.
        batch_size: Training samples in a batch, on each process.
        eval_batch_size: Samples in a batch of validation, test and prediction.
        val_size: Training samples held out for validation, a number or a fraction; 0 for none.
        subset: Training samples to use at all, a number or a fraction, None for all; chosen before ``val_size``.
        augment: Whether training images are changed at random, in the way usual for the data set.
        transforms: Applied to each uint8 training batch ``(batch, channels, height, width)`` instead: a module, like
            those of :mod:`lightning_nobp.datamodules.augment`, or a function.
        shuffle: Whether each epoch has its own order of training samples. False for rules that sum statistics: the
            order does not matter to them, but each process then sees the same samples in every epoch.
        with_index: Whether batches have a third tensor ``(batch,)``: the number of each sample in its split, by which
            a rule knows it again.
        drop_last: Whether to leave out a last training batch that is not full.
        pad_shards: Whether several processes repeat training samples until all have equally many. False for rules
            that sum statistics, where each sample must count once. Evaluation never pads.
        repeat_batches: How often each training batch comes, in a row and with the same augmentation: for rules whose
            sample stays longer than an update takes.
        num_workers: Processes that load ahead; images in memory need none.
        download: Whether to download what is missing.
        seed: Of split, order and augmentation.

    Raises:
        ValueError: An argument outside its range.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        val_size: int | float = 0.1,
        subset: int | float | None = None,
        augment: bool = False,
        transforms: nn.Module | Transform | None = None,
        shuffle: bool = True,
        with_index: bool = False,
        drop_last: bool = False,
        pad_shards: bool = True,
        repeat_batches: int = 1,
        num_workers: int = 0,
        download: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # A numpy number overflows where Python's does not, and float32 is no float.
        batch_size, eval_batch_size, num_workers = plain(batch_size), plain(eval_batch_size), plain(num_workers)
        val_size, subset, seed, repeat_batches = plain(val_size), plain(subset), plain(seed), plain(repeat_batches)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("repeat_batches", repeat_batches, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        for name, size in (("val_size", val_size), ("subset", subset)):
            if size is not None and (size < 0 or (isinstance(size, float) and size > 1)):
                raise ValueError(f"{name}={size} must be a number of samples, or a fraction from 0.0 to 1.0")
        self.save_hyperparameters(logger=False, ignore=["transforms"])
        # Lightning collects them from the constructors of subclasses too, which know nothing of the lines above.
        self.hparams.update(plain(self.hparams))
        self.root = Path(root or os.environ.get("NOBP_DATA", "data"))
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_size, self.subset = val_size, subset
        self.augment, self.transforms = augment, transforms
        self.shuffle, self.with_index = shuffle, with_index
        self.drop_last, self.pad_shards, self.repeat_batches = drop_last, pad_shards, repeat_batches
        self.num_workers, self.download, self.seed = num_workers, download, seed
        self._sets: dict[str, tuple[ImageSource, Tensor]] = {}

    # What a data set defines

    @abstractmethod
    def load(self, split: str) -> ImageSource:
        """The images of ``'train'`` or ``'test'`` (or ``'val'``, see :meth:`has_own_validation`)."""
        raise NotImplementedError(f"{type(self).__name__} must implement load(split)  (abstract)")

    def has_own_validation(self) -> bool:
        """Whether :meth:`load` has a ``'val'`` split of its own, so that none is held out of the training set."""
        return False

    def augmentation(self) -> Transform:
        """What ``augment=True`` does to a uint8 batch.

        Raises:
            ValueError: Nothing is usual for this data set.
        """
        raise ValueError(f"augment=True: nothing is usual for {type(self).__name__}, give transforms=...")

    # Lightning

    def setup(self, stage: str) -> None:
        """Load and split what the stage needs."""
        if stage in ("fit", "validate") and "train" not in self._sets:
            self._split(self.load("train"))
        if stage in ("test", "predict") and "test" not in self._sets:
            source = self.load("test")
            self._sets["test"] = (source, torch.arange(len(source.labels)))

    def _split(self, source: ImageSource) -> None:
        train = torch.arange(len(source.labels))
        if self.subset is not None:
            train, _ = stratified_split(source.labels, self.subset, self.seed, "subset")
        if self.has_own_validation():
            own = self.load("val")
            self._sets["val"] = (own, torch.arange(len(own.labels)))
        else:
            val, rest = stratified_split(source.labels[train], self.val_size, self.seed, "val_size")
            self._sets["val"], train = (source, train[val]), train[rest]
        if not len(train):
            raise ValueError(f"subset={self.subset!r} and val_size={self.val_size!r} leave no training samples")
        self._sets["train"] = (source, train)

    def state_dict(self) -> dict[str, Any]:
        """What a user of the trained network must know; goes into the checkpoint."""
        state: dict[str, Any] = plain(
            {"mean": list(self.mean), "std": list(self.std), "class_names": list(self.class_names)}
        )
        return state

    def train_dataloader(self) -> ResumableLoader:
        """Training batches, shuffled if ``shuffle``; in order while the Trainer overfits some of them."""
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._loader("train", shuffle=self.shuffle and not overfits)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Validation batches; none if ``val_size`` is 0."""
        return self._loader("val") if len(self._sets["val"][1]) else []

    def test_dataloader(self) -> ResumableLoader:
        """Test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """The test batches."""
        return self._loader("test")

    def _loader(self, split: str, shuffle: bool = False) -> ResumableLoader:
        source, chosen = self._sets[split]
        train = split == "train"
        transform = None
        if train:
            transform = self.augmentation() if self.transforms is None and self.augment else self.transforms
        sampler = EpochBatchSampler(
            len(chosen),
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
                f"drop_last=True: {len(chosen)} training samples make no full batch of batch_size={self.batch_size} on "
                f"{sampler.world_size} processes: take smaller batches, or drop_last=False"
            )
        return ResumableLoader(
            ImageBatches(source, chosen, self.mean, self.std, transform, self.with_index),
            sampler,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
