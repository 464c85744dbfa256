"""Pooling of spikes: the earliest win."""

import torch
from torch import Tensor, nn

from lightning_nobp.functional.spiking.events import whole
from lightning_nobp.nn.backprop import Pullback, register_vjp
from lightning_nobp.typed import Typed


class EarliestSpikePool2d(Typed, nn.Module):
    """Of each window of maps the earliest spikes, as many as one neuron may have had.

    Of maps with one spike a neuron that is the minimum. Rows and columns that fill no window are left out, as
    ``nn.MaxPool2d`` does.

    Args:
        kernel_size: Side of the square windows, which lie side by side.

    Raises:
        ValueError: ``kernel_size`` is not positive.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        if whole(kernel_size, "kernel_size") < 1:
            raise ValueError(f"kernel_size={kernel_size} must be at least 1")
        self.kernel_size = kernel_size

    def forward(self, spikes: Tensor) -> Tensor:
        """``(batch, channels, height / k, width / k, spikes)`` of ``(batch, channels, height, width, spikes)``."""
        return self._earliest(spikes)[0]

    def extra_repr(self) -> str:
        """The size, for printing."""
        return f"kernel_size={self.kernel_size}"

    def _earliest(self, spikes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The spikes, where they stand in their window, and the windows."""
        if spikes.dim() != 5 or min(spikes.shape[2:4]) < self.kernel_size:
            raise ValueError(
                f"spikes of shape {tuple(spikes.shape)}: give (batch, channels, height, width, spikes), height and "
                f"width at least kernel_size={self.kernel_size}"
            )
        k = self.kernel_size
        height, width = (size // k for size in spikes.shape[2:4])
        whole = spikes[:, :, : height * k, : width * k]
        rows = torch.unflatten(torch.unflatten(whole, 3, (width, k)), 2, (height, k))
        tiles = rows.transpose(3, 4).flatten(4)
        times, place = tiles.sort(dim=-1, stable=True)
        return times[..., : spikes.shape[4]], place[..., : spikes.shape[4]], tiles


@register_vjp(EarliestSpikePool2d)
def _earliest_spike_pool2d(
    layer: EarliestSpikePool2d, spikes: Tensor, needs_input_grad: bool
) -> tuple[Tensor, Pullback]:
    times, place, tiles = layer._earliest(spikes)
    shape, k = spikes.shape, layer.kernel_size

    def pull(grad: Tensor) -> Tensor:
        by_tile = grad.new_zeros(tiles.shape).scatter(-1, place, grad)
        maps = torch.unflatten(by_tile, -1, (k, k, shape[4])).transpose(3, 4).flatten(4, 5).flatten(2, 3)
        whole = grad.new_zeros(shape)
        whole[:, :, : maps.shape[2], : maps.shape[3]] = maps
        return whole

    return times, pull
