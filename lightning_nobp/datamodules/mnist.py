"""MNIST and Fashion-MNIST."""

from pathlib import Path
from typing import Any, ClassVar

from lightning_nobp.datamodules.augment import RandomShift
from lightning_nobp.datamodules.base import ImageDataModule, TensorSource, Transform
from lightning_nobp.datamodules.download import provide
from lightning_nobp.datamodules.idx import read_idx


class MNISTDataModule(ImageDataModule):
    """60,000 training and 10,000 test digits of 28x28 pixels, held in memory.

    Files lie in ``root/MNIST/raw`` as torchvision leaves them; they are downloaded with torchvision's checksums.

    Args:
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.

    References:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 86
        (1998).
    """

    num_classes = 10
    input_shape = (1, 28, 28)
    class_names: tuple[str, ...] = tuple("0123456789")
    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)
    dataset: ClassVar[str] = "MNIST"
    """Name of torchvision's class, and of the folder."""

    def __init__(self, *, val_size: int | float = 5000, **kwargs: Any) -> None:
        super().__init__(val_size=val_size, **kwargs)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.root / self.dataset / "raw"

    def prepare_data(self) -> None:
        """Download what is missing."""
        if self.download:
            provide(self.root / self.dataset, self._complete, self._fetch, self._by_hand())

    def load(self, split: str) -> TensorSource:
        """Read both files of a split."""
        if not self._complete():
            raise FileNotFoundError(f"{self.dataset} is not complete in {self.folder}. {self._by_hand()}")
        image_file, label_file = (self.folder / name for name in self._files(split))
        images, labels = read_idx(image_file, self.input_shape[1:]), read_idx(label_file)
        if len(images) != len(labels):
            raise ValueError(f"{label_file} has {len(labels)} labels for the {len(images)} images of {image_file.name}")
        if (labels >= self.num_classes).any():
            raise ValueError(
                f"{label_file} has the label {int(labels.max())}, not 0 to {self.num_classes - 1}: "
                "delete it, it is downloaded again"
            )
        return TensorSource(images.unsqueeze(1), labels.long())

    def augmentation(self) -> Transform:
        """Shifts by up to two pixels."""
        return RandomShift(2)

    def _files(self, split: str) -> tuple[str, str]:
        prefix = "t10k" if split == "test" else "train"
        return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"

    def _complete(self) -> bool:
        names = (*self._files("train"), *self._files("test"))
        return all((self.folder / name).is_file() for name in names)

    def _fetch(self, part: Path) -> Path:
        from torchvision import datasets

        getattr(datasets, self.dataset)(part, download=True)
        return part / self.dataset

    def _by_hand(self) -> str:
        names = ", ".join((*self._files("train"), *self._files("test")))
        return f"To do it by hand, put the unpacked files {names} into {self.folder} (or say where: root=...)."


class FashionMNISTDataModule(MNISTDataModule):
    """60,000 training and 10,000 test images of clothing, 28x28 pixels, held in memory.

    Files lie in ``root/FashionMNIST/raw`` as torchvision leaves them.

    Args:
        **kwargs: See :class:`MNISTDataModule`.

    References:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms", arXiv 1708.07747.
    """

    class_names = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    mean, std = (0.2860,), (0.3530,)
    dataset = "FashionMNIST"
