"""Pictures of convolution filters."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_nobp.callbacks.figures import log_figure
from lightning_nobp.nn.pcanet import PCAConv2d
from lightning_nobp.typed import Typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FilterFigure(Typed, Callback):
    """Draw the filters of the first convolutions at the end of a fit, as ``filters/<number>``.

    Filters on one or three channels are drawn as images, others by their first channels, a row each.

    Args:
        num_layers: How many convolutions.

    Raises:
        ValueError: ``num_layers`` is not positive.
    """

    def __init__(self, num_layers: int = 2) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} must be at least 1")
        self.num_layers = num_layers

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        layers = [m for m in pl_module.modules() if isinstance(m, nn.Conv2d | PCAConv2d)]
        for number, layer in enumerate(layers[: self.num_layers], start=1):
            title = f"filters of convolution {number}"
            log_figure(trainer, f"filters/{number}", filter_figure(layer.weight.detach().cpu(), title))


def filter_figure(weight: Tensor, title: str = "", most_filters: int = 32, most_channels: int = 4) -> "Figure":
    """Filters side by side, each scaled to the same largest weight; grey is zero.

    Args:
        weight: ``(filters, channels, height, width)``.
        title: Of the picture.
        most_filters: Only so many are drawn; half of them if they have several rows.
        most_channels: Of filters on more than three channels, only so many are drawn, a row each.
    """
    from matplotlib.figure import Figure

    total, channels = weight.shape[:2]
    weight = weight[: most_filters if channels in (1, 3) else most_filters // 2].float()
    scaled = 0.5 + 0.5 * weight / weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    colour = channels == 3
    rows = [scaled.permute(0, 2, 3, 1)] if colour else list(scaled[:, :most_channels].unbind(1))
    columns = min(8, len(weight)) if len(rows) == 1 else len(weight)
    tiles = torch.cat([_pad_to(row, columns) for row in rows]) if len(rows) > 1 else _pad_to(rows[0], columns)
    lines = len(tiles) // columns
    figure = Figure(figsize=(max(0.55 * columns + 0.2, 4), 0.55 * lines + 0.6), layout="constrained")
    rows_are = f", a row for each of {len(rows)} of {channels} channels" if len(rows) > 1 else ""
    figure.suptitle(f"{title}: {len(weight)} of {total}{rows_are}".lstrip(": "), fontsize=9)
    for axes, tile in zip(figure.subplots(lines, columns, squeeze=False).flat, tiles, strict=True):
        axes.axis("off")
        if not torch.isnan(tile).any():
            axes.imshow(tile.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    return figure


def _pad_to(tiles: Tensor, columns: int) -> Tensor:
    """Empty tiles at the end, so that all rows are full."""
    empty = tiles.new_full((-len(tiles) % columns, *tiles.shape[1:]), float("nan"))
    return torch.cat([tiles, empty])
