"""A user's own images, a folder a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_nobp.datamodules.augment import RandomHorizontalFlip, RandomShift
from lightning_nobp.datamodules.base import ImageDataModule, ImageSource, TensorSource, Transform
from lightning_nobp.datamodules.images import FileSource, decode_cached
from lightning_nobp.datamodules.plain import plain

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
IN_MEMORY_BYTES = 2 * 2**30


class ImageFolderDataModule(ImageDataModule):
    """Images in ``root/{train,test}/<class>/*``, and if there is one ``root/val/<class>/*``.

    Sets of up to 2 GiB of pixels are decoded once into a file under ``root`` and held in memory; larger ones are
    decoded while they are used, by ``num_workers`` processes. Files and folders whose names start with a dot are left
    out.

    Args:
        root: The folder.
        image_size: Height and width to which images are scaled; one number, or two.
        in_memory: Whether to hold all images in memory; None decides by size.
        mean: Of each channel, in units of the largest value.
        std: Of each channel, likewise.
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.

    Raises:
        FileNotFoundError: There is no ``train`` folder with a folder a class.
        ValueError: A file is no image, or a class of one split is missing in another.
    """

    def __init__(
        self,
        *,
        root: str | Path = "data",
        image_size: int | Sequence[int] = 64,
        in_memory: bool | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        image_size = plain(image_size)
        sizes = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"image_size={image_size} must be one positive whole number, or height and width")
        height, width = sizes
        self.class_names = self._classes("train")
        self.num_classes = len(self.class_names)
        self.input_shape = (3, height, width)
        self.in_memory = in_memory
        self.mean, self.std = tuple(mean), tuple(std)

    def has_own_validation(self) -> bool:
        """Whether there is a folder ``val``."""
        return (self.root / "val").is_dir()

    def prepare_data(self) -> None:
        """Decode the images into their cache, if they are to be held in memory."""
        for split in ("train", "val", "test"):
            if (self.root / split).is_dir():
                self.load(split)

    def load(self, split: str) -> ImageSource:
        """The images of ``root/<split>``."""
        if self._classes(split) != self.class_names:
            differing = sorted(set(self._classes(split)) ^ set(self.class_names))
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise ValueError(
                f"{self.root / split} and {self.root / 'train'} differ in classes: {', '.join(differing[:5])}{more}"
            )
        files: list[Path] = []
        labels: list[int] = []
        for number, name in enumerate(self.class_names):
            images = [p for p in _visible(self.root / split / name) if p.suffix.lower() in SUFFIXES]
            if not images:
                raise FileNotFoundError(f"{self.root / split / name} has no images")
            files += images
            labels += [number] * len(images)
        source = FileSource(files, torch.tensor(labels), self.input_shape[1:], resize=True)
        size = len(files) * 3 * self.input_shape[1] * self.input_shape[2]
        if self.in_memory or (self.in_memory is None and size <= IN_MEMORY_BYTES):
            height, width = self.input_shape[1:]
            return TensorSource(decode_cached(source, self.root / f"{split}-{height}x{width}.pt"), source.labels)
        return source

    def augmentation(self) -> Transform:
        """Shifts by up to an eighth of the image, and mirror images."""
        return nn.Sequential(RandomShift(max(1, min(self.input_shape[1:]) // 8)), RandomHorizontalFlip())

    def _classes(self, split: str) -> tuple[str, ...]:
        folder = self.root / split
        names = tuple(p.name for p in _visible(folder) if p.is_dir()) if folder.is_dir() else ()
        if not names:
            raise FileNotFoundError(f"{folder} has no folder a class: images belong in {folder}/<class>/ (root=...)")
        unreadable = next((name for name in names if not name.isprintable()), None)
        if unreadable is not None:
            raise ValueError(f"{folder}: the name of a class must be text without line ends, not {unreadable!r}")
        return names


def _visible(folder: Path) -> list[Path]:
    """What lies in ``folder`` in order of the names, without what notebooks and file managers hide there."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
