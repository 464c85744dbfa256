"""Tiny ImageNet."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_nobp.datamodules.archives import Limits, unpack
from lightning_nobp.datamodules.augment import RandomHorizontalFlip, RandomShift
from lightning_nobp.datamodules.base import ImageDataModule, TensorSource, Transform
from lightning_nobp.datamodules.download import provide
from lightning_nobp.datamodules.images import FileSource, decode_cached

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
ANNOTATIONS = "val/val_annotations.txt"
LIMITS = Limits(files=200_000, size=2**30)
"""The archive unpacks to 120,000 files and folders, and 240 MB."""


class TinyImageNetDataModule(ImageDataModule):
    """100,000 training photographs of 64x64 pixels in 200 classes.

    Files lie in ``root/tiny-imagenet-200`` in the official layout (``train/<wnid>/images``, ``val/images`` with
    ``val/val_annotations.txt``, ``wnids.txt``, ``words.txt``), any number of images a class. They are decoded once
    into a file beside them. The official test images have no labels: the official validation set is the test set
    here, and validation samples are held out of the training set.

    Args:
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.

    References:
        Le and Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N (2015).
    """

    num_classes = 200
    input_shape = (3, 64, 64)
    class_names: tuple[str, ...] = ()
    mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.root / "tiny-imagenet-200"

    def prepare_data(self) -> None:
        """Download what is missing, and decode the images into their cache."""
        if self.download:
            provide(self.folder, self.folder.is_dir, self._fetch, self._by_hand())
        for split in ("train", "test"):
            self.load(split)

    def load(self, split: str) -> TensorSource:
        """Read a split from its cache, or decode it."""
        wnids = self._read("wnids.txt").split()
        if not wnids:
            raise ValueError(f"{self.folder / 'wnids.txt'} is empty. {self._by_hand()}")
        words = dict(line.split("\t", 1) for line in self._read("words.txt").splitlines() if "\t" in line)
        self.class_names = tuple(words.get(wnid, wnid) for wnid in wnids)
        numbers = {wnid: number for number, wnid in enumerate(wnids)}
        found = self._test_files(numbers) if split == "test" else self._train_files(numbers)
        files, labels = zip(*found, strict=True)
        source = FileSource(files, torch.tensor(labels), (64, 64), resize=False)
        return TensorSource(decode_cached(source, self.folder / f"{split}-images.pt"), source.labels)

    def augmentation(self) -> Transform:
        """Shifts by up to eight pixels, and mirror images."""
        return nn.Sequential(RandomShift(8), RandomHorizontalFlip())

    def _read(self, name: str) -> str:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. {self._by_hand()}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is damaged: it is not UTF-8 text ({error}). {self._by_hand()}") from error

    def _train_files(self, numbers: dict[str, int]) -> list[tuple[Path, int]]:
        found: list[tuple[Path, int]] = []
        for wnid, number in numbers.items():
            images = sorted((self.folder / "train" / wnid / "images").glob("*.JPEG"))
            if not images:
                raise FileNotFoundError(f"{self.folder / 'train' / wnid / 'images'} has no images. {self._by_hand()}")
            found += [(image, number) for image in images]
        return found

    def _test_files(self, numbers: dict[str, int]) -> list[tuple[Path, int]]:
        annotations = self.folder / ANNOTATIONS
        wnid_of = self._annotations()
        found = []
        for image in sorted((self.folder / "val" / "images").glob("*.JPEG")):
            if image.name not in wnid_of:
                raise ValueError(f"{annotations} has no line for {image.name}")
            if wnid_of[image.name] not in numbers:
                raise ValueError(f"{annotations} puts {image.name} into {wnid_of[image.name]}, not in wnids.txt")
            found.append((image, numbers[wnid_of[image.name]]))
        if not found:
            raise FileNotFoundError(f"{self.folder / 'val' / 'images'} has no images. {self._by_hand()}")
        missing = sorted(wnid_of.keys() - {image.name for image, _ in found})
        if missing:
            raise FileNotFoundError(
                f"{self.folder / 'val' / 'images' / missing[0]} is missing, the first of {len(missing)} images that "
                f"{annotations} lists and that are not there. {self._by_hand()}"
            )
        return found

    def _annotations(self) -> dict[str, str]:
        wnid_of: dict[str, str] = {}
        for number, line in enumerate(self._read(ANNOTATIONS).splitlines(), 1):
            if not line.strip():
                continue
            image, *rest = line.split("\t")
            if not rest:
                raise ValueError(
                    f"{self.folder / ANNOTATIONS} is damaged: line {number}, {line!r}, is not an image and its class "
                    f"with a tab between. {self._by_hand()}"
                )
            wnid_of[image] = rest[0]
        return wnid_of

    def _fetch(self, part: Path) -> Path:
        import pooch

        archive = pooch.retrieve(URL, known_hash=f"md5:{MD5}", path=part, fname="tiny-imagenet-200.zip")
        unpack(Path(archive), part, LIMITS)
        return part / "tiny-imagenet-200"

    def _by_hand(self) -> str:
        return f"To do it by hand, unpack {URL} into {self.root} (or say where: root=...)."
