"""Parity of bits, and XOR: the smallest tasks that no linear classifier solves."""

from typing import Any

import torch

from lightning_nobp.datamodules.base import ImageDataModule, TensorSource
from lightning_nobp.datamodules.plain import plain


class ParityDataModule(ImageDataModule):
    """Whether the number of ones among ``num_bits`` bits is even or odd: every row of the truth table.

    A sample is an 'image' ``(1, 1, num_bits)`` of exactly 0.0 and 1.0, the most significant bit first. A
    training epoch shows the truth table ``repeats`` times, or it would be over after a few samples; validation and
    test show it once.

    Args:
        num_bits: Bits of a sample, 2 to 16.
        repeats: Truth tables in a training epoch.
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.

    Raises:
        ValueError: An argument outside its range.

    References:
        Minsky and Papert, "Perceptrons", MIT Press (1969).
    """

    num_classes = 2
    class_names = ("even", "odd")
    mean, std = (0.0,), (1.0,)

    def __init__(self, *, num_bits: int = 3, repeats: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bits, self.repeats = plain(num_bits), plain(repeats)
        if not 2 <= self.num_bits <= 16:
            raise ValueError(f"num_bits={self.num_bits} must be from 2 to 16")
        if self.repeats < 1:
            raise ValueError(f"repeats={self.repeats} must be at least 1")
        self.input_shape = (1, 1, self.num_bits)

    def has_own_validation(self) -> bool:
        """Always: the truth table, once."""
        return True

    def load(self, split: str) -> TensorSource:
        """The truth table, ``repeats`` times for training."""
        bits = torch.arange(2**self.num_bits).unsqueeze(1) >> torch.arange(self.num_bits).flip(0) & 1
        images, labels = bits.mul(255).to(torch.uint8).view(-1, *self.input_shape), bits.sum(1) % 2
        times = self.repeats if split == "train" else 1
        return TensorSource(images.repeat(times, 1, 1, 1), labels.repeat(times))


class XORDataModule(ParityDataModule):
    """Exclusive or: the parity of two bits.

    Args:
        repeats: Truth tables in a training epoch.
        **kwargs: See :class:`~lightning_nobp.datamodules.ImageDataModule`.
    """

    def __init__(self, *, repeats: int = 100, **kwargs: Any) -> None:
        super().__init__(num_bits=2, repeats=repeats, **kwargs)
        # Lightning collects it from the constructor above, and load_from_checkpoint would hand it to this one.
        self.hparams.pop("num_bits", None)
