"""The base of every image data module: splits and batches."""

import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lightning_nobp.datamodules.batched import BatchedDataModule
from lightning_nobp.datamodules.loader import Batch
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import BatchIndex
from lightning_nobp.datamodules.split import check_size, stratified_split

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
        x = self.pixels(index).float().sub_(self._shift).mul_(self._scale)
        labels = self.source.labels[self.chosen[numbers]]
        return (x, labels, numbers) if self.with_index else (x, labels)

    def pixels(self, index: BatchIndex) -> Tensor:
        """Images ``(batch, channels, height, width)``, uint8, changed at random if they are to be."""
        images = self.source.images(self.chosen[torch.tensor(index)])
        if self.transform is None:
            return images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index.seed)
            return self.transform(images)


class ImageDataModule(BatchedDataModule):
    """Labelled images in batches, with a validation set held out of the training set.

    A subclass says where its images come from (:meth:`load`), and sets ``num_classes``, ``input_shape``,
    ``class_names``, ``mean`` and ``std``. The same seed gives the same split in every run and process; the test set
    is never used to choose anything.

    Args:
        root: Folder of all data sets; by default the environment variable ``NOBP_DATA``, or ``data``.
        val_size: Training samples held out for validation, a number or a fraction; 0 for none.
        subset: Training samples to use at all, a number or a fraction, None for all; chosen before ``val_size``.
        augment: Whether training images are changed at random, in the way usual for the data set.
        transforms: Applied to each uint8 training batch ``(batch, channels, height, width)`` instead: a module, like
            those of :mod:`lightning_nobp.datamodules.augment`, or a function.
        with_index: Whether batches have a third tensor ``(batch,)``: the number of each sample in its split, by which
            a rule knows it again.
        download: Whether to download what is missing.
        **kwargs: Batches, and the seed of split, order and augmentation: see
            :class:`~lightning_nobp.datamodules.batched.BatchedDataModule`.

    Raises:
        ValueError: An argument outside its range.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unsaved: ClassVar[tuple[str, ...]] = ("transforms",)

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        val_size: int | float = 0.1,
        subset: int | float | None = None,
        augment: bool = False,
        transforms: nn.Module | Transform | None = None,
        with_index: bool = False,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # float32 is no float.
        val_size, subset = plain(val_size), plain(subset)
        check_size(val_size, "val_size")
        if subset is not None:
            check_size(subset, "subset")
        self.root = Path(root or os.environ.get("NOBP_DATA", "data"))
        self.val_size, self.subset, self.download = val_size, subset, download
        self.augment, self.transforms, self.with_index = augment, transforms, with_index
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

    def batches(self, split: str) -> ImageBatches:
        """The images of a split; those for training changed at random, if asked for."""
        transform = None
        if split == "train":
            transform = self.augmentation() if self.transforms is None and self.augment else self.transforms
        return ImageBatches(*self._sets[split], self.mean, self.std, transform, self.with_index)
