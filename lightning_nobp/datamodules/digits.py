"""scikit-learn's handwritten digits: real data that need no download."""

from typing import Any

import torch

from lightning_nobp.datamodules.augment import RandomShift
from lightning_nobp.datamodules.base import ImageDataModule, TensorSource, Transform
from lightning_nobp.datamodules.split import stratified_split


class DigitsDataModule(ImageDataModule):
    """1,797 digits of 8x8 pixels, embedded in scikit-learn.

    The set has no official test part: 20 % of each class, always the same ones, are the test set.

    Args:
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.

    References:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998).
    """

    num_classes = 10
    input_shape = (1, 8, 8)
    class_names = tuple("0123456789")
    mean, std = (0.3053,), (0.3761,)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def load(self, split: str) -> TensorSource:
        """Pixels of 0 to 16 in scikit-learn become 0 to 255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        # A seed of its own: the test set stays the same whatever the user's seed.
        test, train = stratified_split(labels, 0.2, 0, "test_size")
        chosen = test if split == "test" else train
        return TensorSource(images[chosen], labels[chosen])

    def augmentation(self) -> Transform:
        """Shifts by a pixel."""
        return RandomShift(1)
