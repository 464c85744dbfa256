"""CIFAR-10 and CIFAR-100."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lightning_nobp.datamodules.archives import Limits, unpack
from lightning_nobp.datamodules.augment import RandomHorizontalFlip, RandomShift
from lightning_nobp.datamodules.base import ImageDataModule, TensorSource, Transform
from lightning_nobp.datamodules.download import provide

LIMITS = Limits(files=100, size=2**28)
"""The archives unpack to some ten files and 186 MB."""


class CIFAR10DataModule(ImageDataModule):
    """50,000 training and 10,000 test photographs of 32x32 pixels in 10 classes, held in memory.

    Files lie in ``root/cifar-10-batches-py`` as torchvision leaves them, and are checked by torchvision's md5 sums.

    Args:
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
    """

    num_classes = 10
    input_shape = (3, 32, 32)
    class_names: tuple[str, ...] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    dataset: ClassVar[str] = "CIFAR10"
    """Name of torchvision's class."""

    def __init__(self, *, val_size: int | float = 5000, **kwargs: Any) -> None:
        super().__init__(val_size=val_size, **kwargs)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.root / str(self._torchvision().base_folder)

    def prepare_data(self) -> None:
        """Download what is missing."""
        if self.download:
            provide(self.folder, self.folder.is_dir, self._fetch, self._by_hand())

    def load(self, split: str) -> TensorSource:
        """Check and read the batches of a split."""
        self._check_files()
        data = self._torchvision()(self.root, train=split == "train")
        return TensorSource(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))

    def augmentation(self) -> Transform:
        """Shifts by up to four pixels, and mirror images."""
        return nn.Sequential(RandomShift(4), RandomHorizontalFlip())

    def _torchvision(self) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.dataset)

    def _check_files(self) -> None:
        from torchvision.datasets.utils import check_integrity

        kind = self._torchvision()
        for name, md5 in (*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])):
            path = self.folder / name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing. {self._by_hand()}")
            if not check_integrity(str(path), md5):
                raise ValueError(
                    f"{path} is damaged: its md5 sum is not {md5}. Delete {self.folder}, it is downloaded again"
                )

    def _fetch(self, part: Path) -> Path:
        import pooch

        kind = self._torchvision()
        archive = pooch.retrieve(kind.url, known_hash=f"md5:{kind.tgz_md5}", path=part, fname=kind.filename)
        # Not by torchvision, whose unpacking knows no limits before Python 3.14.
        unpack(Path(archive), part, LIMITS)
        return part / str(kind.base_folder)

    def _by_hand(self) -> str:
        url = self._torchvision().url
        return f"To do it by hand, unpack {url} into {self.root} (or say where: root=...)."


class CIFAR100DataModule(CIFAR10DataModule):
    """50,000 training and 10,000 test photographs of 32x32 pixels in 100 classes, held in memory.

    Files lie in ``root/cifar-100-python`` as torchvision leaves them.

    Args:
        **kwargs: See :class:`CIFAR10DataModule`.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
    """

    num_classes = 100
    class_names = ()
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    dataset = "CIFAR100"

    def load(self, split: str) -> TensorSource:
        """Check and read a split, and the names of the classes."""
        source = super().load(split)
        self.class_names = tuple(self._torchvision()(self.root, train=False).classes)
        return source
