"""NIST7x7: four noisy letters, small enough for hardware."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.datamodules.base import ImageDataModule, TensorSource
from lightning_nobp.datamodules.split import stratified_split

SIDE = 7
GLYPHS = (
    ("10001", "11001", "10101", "10011", "10001"),
    ("11111", "00100", "00100", "00100", "11111"),
    ("11111", "10000", "11111", "00001", "11111"),
    ("11111", "00100", "00100", "00100", "00100"),
)
"""Rows of N, I, S and T."""


class NIST7x7DataModule(ImageDataModule):
    """44,136 images of 7x7 pixels: the letters N, I, S and T with up to two pixels flipped.

    A letter has 5x5 pixels and 9 places; at each there are 1 image without a flip, 49 with one and 1,176 with two.
    Pixels are exactly 0.0 and 1.0. No image comes twice within a letter, but I and T differ in four pixels only, and
    54 images, two flips from either, are in the set as both: nothing gets more than 44,082 of all right.

    The set has no official test part: 10 % of each class, always the same ones, are the test set.

    Args:
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.

    References:
        McCaughan et al., "Multiplexed gradient descent: Fast online training of modern datasets on hardware neural
        networks without backpropagation", arXiv 2303.03986.
    """

    num_classes = 4
    input_shape = (1, SIDE, SIDE)
    class_names = tuple("NIST")
    mean, std = (0.0,), (1.0,)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def load(self, split: str) -> TensorSource:
        """Make all images, and choose those of the split."""
        images = (_letters().unsqueeze(2) ^ _flips()).flatten(1, 2)
        labels = torch.arange(len(GLYPHS)).repeat_interleave(images.shape[1])
        # A seed of its own: the test set stays the same whatever the user's seed.
        test, train = stratified_split(labels, 0.1, 0, "test_size")
        chosen = test if split == "test" else train
        return TensorSource(images.view(-1, *self.input_shape)[chosen].to(torch.uint8).mul(255), labels[chosen])


def _letters() -> Tensor:
    """Each letter at each place, ``(4, 9, 49)``."""
    glyphs = torch.tensor([[[pixel == "1" for pixel in row] for row in glyph] for glyph in GLYPHS])
    room = SIDE - glyphs.shape[-1]
    places = [F.pad(glyphs, (x, room - x, y, room - y)) for y in range(room + 1) for x in range(room + 1)]
    return torch.stack(places, dim=1).flatten(2)


def _flips() -> Tensor:
    """Which pixels are flipped: none, each one, each two, ``(1226, 49)``."""
    one = torch.eye(SIDE**2, dtype=torch.bool)
    first, second = torch.triu_indices(SIDE**2, SIDE**2, offset=1)
    return torch.cat([torch.zeros_like(one[:1]), one, one[first] | one[second]])
