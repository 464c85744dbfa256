"""Sums over image patches, for filters in closed form."""

import torch
from torch import Tensor

from lightning_nobp.functional.filters import ClassTotals
from lightning_nobp.functional.patches import PatchMoments, patch_second_moment, patch_total
from lightning_nobp.metrics.summed import SummedMetric


class PatchStatistics(SummedMetric):
    """Second moment and sum of all patches of all images, and the sum by class if there are classes.

    Args:
        channels: Of the images.
        kernel_size: Height and width of a patch.
        padding: Zeros around each image.
        num_classes: Classes to sum for, 0 for none.
        dtype: In which products are computed, see :func:`~lightning_nobp.functional.patches.patch_second_moment`.
    """

    second_moment: Tensor
    total: Tensor
    count: Tensor
    class_total: Tensor
    class_count: Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        padding: int = 0,
        num_classes: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.padding, self.num_classes = kernel_size, padding, num_classes
        self.product_dtype = dtype
        size = channels * kernel_size**2
        self.add_sum("second_moment", size, size)
        self.add_sum("total", size)
        self.add_sum("count")
        self.add_sum("class_total", num_classes, size)
        self.add_sum("class_count", num_classes)

    def update(self, x: Tensor, target: Tensor | None = None) -> None:
        """Count the patches of images ``(batch, channels, height, width)``, of classes ``(batch,)``.

        Raises:
            ValueError: Images smaller than a patch, or no classes where they are summed.
        """
        moments = patch_second_moment(x, self.kernel_size, self.padding, dtype=self.product_dtype)
        self.second_moment += moments.second_moment
        self.total += moments.total
        self.count += moments.count
        if self.num_classes:
            if target is None:
                raise ValueError(f"num_classes={self.num_classes}: sums by class need the images' classes")
            patches = moments.count // max(1, len(x))
            for label in set(target.tolist()):
                chosen = x[target == label]
                self.class_total[label] += patch_total(chosen, self.kernel_size, self.padding)
                self.class_count[label] += len(chosen) * patches

    def compute(self) -> tuple[PatchMoments, ClassTotals | None]:
        """Sums over all patches of all processes, and by class if there are classes."""
        moments = PatchMoments(self.second_moment, self.total, round(float(self.count)))
        return moments, ClassTotals(self.class_total, self.class_count) if self.num_classes else None
