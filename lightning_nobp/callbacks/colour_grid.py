"""How well colours are reproduced by a network that maps images to images."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.figures import log_figure
from lightning_nobp.rules.synchronisation import sum_over_ranks
from lightning_nobp.typed import Typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ColourGrid(Typed, Callback):
    """Log PSNR and chroma of reproduced test images, and draw some of them.

    Logged are ``test/psnr`` in decibels, ``-10 log10`` of the mean squared error of the whole test set;
    ``test/psnr_gray``, that of the targets' own gray images, which a network without colours does not surpass;
    ``test/chroma``, the mean standard deviation over the three channels of a pixel, and ``test/chroma_true``, that of
    the targets. Outputs are clipped to [0, 1]. It goes with
    :class:`~lightning_nobp.datamodules.GrayToColourDataModule`.

    Args:
        num_images: Drawn in the figure ``test/colours``, from all over the test set, targets above and outputs below; 0
            for no figure.

    Raises:
        ValueError: ``num_images`` is negative.
    """

    def __init__(self, num_images: int = 10) -> None:
        if num_images < 0:
            raise ValueError(f"num_images={num_images} must not be negative")
        self.num_images = num_images
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._shown: list[Tensor] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._sums, self._shown = torch.zeros(5, dtype=torch.float64), []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch, and keep some of its images."""
        y = outputs.get("scores") if isinstance(outputs, Mapping) else None
        target = batch[1]
        if y is None or y.shape != target.shape or target.dim() != 4 or target.shape[1] != 3:
            raise TypeError(
                "ColourGrid needs targets that are images (batch, 3, height, width), and a rule that hands on outputs "
                "of that shape, like QuaternionBackprop with GrayToColourDataModule"
            )
        y = y.float().clamp(0, 1)
        gray = (target * target.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        values = [_error(y, target), _error(gray, target), _chroma(y), _chroma(target), torch.ones(len(y))]
        self._sums += torch.stack([value.double().sum().cpu() for value in values])
        batches = trainer.num_test_batches[0]
        share = math.ceil(self.num_images / batches) if math.isfinite(batches) else self.num_images
        pairs = zip(target[:share].cpu(), y[:share].cpu(), strict=True)
        self._shown += [torch.cat(pair, dim=1) for pair in pairs][: self.num_images - len(self._shown)]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means, over all ranks, and draw."""
        *sums, count = sum_over_ranks(self._sums)
        error, gray_error, chroma, chroma_true = (float(total / count) for total in sums)
        values = {"psnr": _decibels(error), "psnr_gray": _decibels(gray_error), "chroma": chroma}
        pl_module.log_dict({f"test/{name}": v for name, v in (values | {"chroma_true": chroma_true}).items()})
        if self._shown and trainer.is_global_zero:
            log_figure(trainer, "test/colours", _grid(self._shown))


def _grid(columns: list[Tensor]) -> "Figure":
    # Imported where something is drawn: it takes half a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 * len(columns), 2.6), layout="constrained")
    axes = figure.subplots()
    image = torch.cat(columns, dim=2).permute(1, 2, 0).numpy()
    axes.imshow(image)
    height = len(image)
    axes.set_yticks([height / 4, 3 * height / 4], ["colour image", "reproduction"])
    axes.set_xticks([])
    return figure


def _decibels(error: float) -> float:
    """PSNR of values from 0 to 1; at most 100, where nothing is wrong."""
    return -10 * math.log10(max(error, 1e-10))


def _error(y: Tensor, target: Tensor) -> Tensor:
    return (y - target).square().mean((1, 2, 3))


def _chroma(images: Tensor) -> Tensor:
    return images.std(1, correction=0).mean((1, 2))
