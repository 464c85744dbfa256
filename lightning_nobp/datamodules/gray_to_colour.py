"""Images to be reproduced: gray ones in training, coloured ones in the test."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_nobp.datamodules.base import ImageBatches, ImageDataModule
from lightning_nobp.datamodules.batched import BatchedDataModule
from lightning_nobp.datamodules.loader import Batch
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import BatchIndex, mix
from lightning_nobp.datamodules.split import check_size, num_chosen

LUMINANCE = (299, 587, 114)
"""Weights of red, green and blue in ITU-R BT.601, in thousandths."""


class ImagePairs:
    """Batches of images that are their own targets.

    Args:
        images: Where they come from.
        chosen: Which of them, ``(num_samples,)``.
        gray: Whether to give their luminance, on all three channels, instead of their colours.
    """

    def __init__(self, images: ImageBatches, chosen: Tensor, gray: bool) -> None:
        self.images, self.chosen, self.gray = images, chosen, gray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, index: BatchIndex) -> Batch:
        """Inputs and targets, both ``(batch, 3, height, width)``, float32, from 0 to 1."""
        numbers = self.chosen[torch.tensor(index)].tolist()
        pixels = self.images.pixels(BatchIndex(numbers, index.seed))
        x = luminance(pixels) if self.gray else pixels.float() / 255
        # A rule that changes its inputs in place must not change the targets.
        return x, x.clone()


def luminance(images: Tensor) -> Tensor:
    """The luminance of each pixel on all three channels, from 0 to 1.

    Args:
        images: ``(batch, 3, height, width)``, uint8.
    """
    weights = torch.tensor(LUMINANCE, dtype=torch.float32, device=images.device).view(3, 1, 1)
    # Sums of whole numbers below 2^24 are exact: white is exactly 1, and a gray image stays as it is.
    return ((images.float() * weights).sum(1, keepdim=True) / (255 * sum(LUMINANCE))).repeat(1, 3, 1, 1)


class GrayToColourDataModule(BatchedDataModule):
    """Images to be reproduced by a network that has only ever seen gray ones.

    Training and validation batches are ``(gray, gray)``, the luminance of an image repeated on three channels; test
    batches are ``(colour, colour)``. All are ``(batch, 3, height, width)``, float32, from 0 to 1.

    Training and validation images are those of the wrapped data module's own splits, changed at random if it does so
    (``augment``, ``transforms``); of its options those of batches have no effect. On the command line they are
    ``--data.images=CIFAR10DataModule --data.images.root=...``.

    Args:
        images: A data module of colour images.
        num_train: Training images, a number or a fraction of those there are, chosen by ``seed``.
        num_val: Validation images, likewise; 0 for none.
        num_test: Test images, likewise.
        batch_size: Training samples in a batch, on each process.
        eval_batch_size: Samples in a batch of validation, test and prediction.
        **kwargs: See :class:`~lightning_nobp.datamodules.batched.BatchedDataModule`.

    Raises:
        ValueError: An argument outside its range, or images without colours.

    References:
        Parcollet, Morchid and Linares, "Quaternion Convolutional Neural Networks for Heterogeneous Image Processing",
        arXiv 1811.02656.
    """

    input_shape: tuple[int, int, int]
    unsaved: ClassVar[tuple[str, ...]] = ("images",)

    def __init__(
        self,
        images: ImageDataModule,
        *,
        num_train: int | float = 512,
        num_val: int | float = 512,
        num_test: int | float = 512,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **kwargs)
        self.sizes: dict[str, int | float] = {}
        for split, size in (("train", num_train), ("val", num_val), ("test", num_test)):
            self.sizes[split] = plain(size)
            check_size(self.sizes[split], f"num_{split}")
            if split != "val" and not size:
                raise ValueError(f"num_{split}={size} must be positive")
        if images.input_shape[0] != 3:
            raise ValueError(
                f"images={type(images).__name__} has images of shape {images.input_shape}, and those with colours have "
                "three channels: take CIFAR10DataModule, say"
            )
        self.images, self.input_shape = images, images.input_shape
        self._remember(images)
        self._pairs: dict[str, ImagePairs] = {}

    def _remember(self, images: ImageDataModule) -> None:
        """Note ``images`` as the command line writes it: a checkpoint with it loads safely, and rebuilds it."""
        arguments = plain(dict(images.hparams))
        # On the command line, Lightning gives the inner data module the arguments of the outer one.
        described = arguments.get("images") or {
            "class_path": f"{type(images).__module__}.{type(images).__qualname__}",
            "init_args": {name: value for name, value in arguments.items() if not name.startswith("_")},
        }
        self.hparams["images"] = described
        self.hparams["_class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        self.hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.images.prepare_data()

    def setup(self, stage: str) -> None:
        """Load and choose what the stage needs."""
        self.images.setup(stage)
        for split in ("train", "val") if stage in ("fit", "validate") else ("test",):
            if split not in self._pairs:
                self._pairs[split] = self._choose(split)

    def _choose(self, split: str) -> ImagePairs:
        images, name = self.images.batches(split), f"num_{split}"
        count = num_chosen(self.sizes[split], len(images), name)
        if split != "val" and not count:
            raise ValueError(f"{name}={self.sizes[split]!r} chooses none of {len(images)} images")
        generator = torch.Generator().manual_seed(mix(self.seed, list(self.sizes).index(split)))
        chosen = torch.randperm(len(images), generator=generator)[:count]
        return ImagePairs(images, chosen.sort().values, gray=split != "test")

    def batches(self, split: str) -> ImagePairs:
        """The images of a split, each its own target."""
        return self._pairs[split]
