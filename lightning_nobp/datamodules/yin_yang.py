"""The Yin-Yang data set: a task for small networks that a linear classifier does not solve."""

from typing import Any

import torch
from torch import Tensor

from lightning_nobp.datamodules.batched import BatchedDataModule, TensorBatches, check_least
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import mix
from lightning_nobp.datamodules.split import num_chosen

_RADIUS, _DOT = 0.5, 0.1


class YinYangDataModule(BatchedDataModule):
    """Points in a disc of radius 1/2: whether they lie in yin, in yang, or in one of the two dots.

    A sample is ``(x, y, 1 - x, 1 - y)``, numbers from 0 to 1, such as times can stand for. Each class is as likely.
    Shallow networks reach about 98 %, a linear classifier about 64 %. The test set is always the same one, whatever the
    seed.

    Args:
        num_train: Training samples, those for validation among them.
        val_size: Of them held out for validation, a number or a fraction; 0 for none.
        test_size: Test samples.
        **kwargs: See :class:`~lightning_nobp.datamodules.batched.BatchedDataModule`.

    Raises:
        ValueError: An argument outside its range.

    References:
        Kriener, Göltz and Petrovici, "The Yin-Yang dataset", arXiv 2102.08211.
    """

    num_classes = 3
    class_names = ("yin", "yang", "dot")
    input_shape = (4,)

    def __init__(
        self, *, num_train: int = 6000, val_size: int | float = 1000, test_size: int = 1000, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_train, self.val_size, self.test_size = plain(num_train), plain(val_size), plain(test_size)
        for name in ("num_train", "test_size"):
            check_least(name, getattr(self, name), 1)
        if num_chosen(self.val_size, self.num_train, "val_size") == self.num_train:
            raise ValueError(f"val_size={self.val_size!r} leaves no training samples of num_train={self.num_train}")
        self._samples: dict[str, TensorBatches] = {}

    def setup(self, stage: str) -> None:
        """Draw what the stage needs."""
        if stage in ("fit", "validate") and "train" not in self._samples:
            held_out = num_chosen(self.val_size, self.num_train, "val_size")
            points, labels = draw_yin_yang(self.num_train, mix(self.seed, 0))
            # Each sample is drawn for itself: the last of them are as good a choice as any.
            num_rest = self.num_train - held_out
            self._samples["train"] = TensorBatches(points[:num_rest], labels[:num_rest])
            self._samples["val"] = TensorBatches(points[num_rest:], labels[num_rest:])
        if stage in ("test", "predict") and "test" not in self._samples:
            # A seed of its own: the test set stays the same whatever the user's seed.
            self._samples["test"] = TensorBatches(*draw_yin_yang(self.test_size, mix(0, 1)))

    def batches(self, split: str) -> TensorBatches:
        """The samples of a split."""
        return self._samples[split]


def draw_yin_yang(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples ``(num, 4)``, float32, and their classes ``(num,)``.

    Args:
        num: How many.
        seed: Of the points.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num,), generator=generator)
    points = torch.zeros(num, 2, dtype=torch.float64)
    missing = torch.arange(num)
    while len(missing):
        drawn = 2 * _RADIUS * torch.rand(len(missing), 2, generator=generator, dtype=torch.float64)
        is_inside = (drawn - _RADIUS).norm(dim=1) <= _RADIUS
        is_right = is_inside & (yin_yang_class(drawn) == labels[missing])
        points[missing[is_right]] = drawn[is_right]
        missing = missing[~is_right]
    return torch.cat([points, 1 - points], dim=1).float(), labels


def yin_yang_class(points: Tensor) -> Tensor:
    """Class ``(num,)`` of points ``(num, 2)`` in the disc around (1/2, 1/2): 0 is yin, 1 yang, 2 a dot."""
    right = (points - points.new_tensor([1.5 * _RADIUS, _RADIUS])).norm(dim=1)
    left = (points - points.new_tensor([0.5 * _RADIUS, _RADIUS])).norm(dim=1)
    is_dot = (right <= _DOT) | (left <= _DOT)
    # The left of the two half discs belongs to yang, of the upper half all that the right one does not take.
    is_yang = (left <= _RADIUS / 2) | ((points[:, 1] > _RADIUS) & (right > _RADIUS / 2))
    return torch.where(is_dot, 2, is_yang.long())
