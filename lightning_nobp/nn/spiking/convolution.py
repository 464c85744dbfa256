"""The convolution of spiking neurons: at every place the same small fully connected layer."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.nn.spiking.layer import NeuronOptions, SpikingLayer


class Windows(NamedTuple):
    """Where the windows of a convolution lie."""

    kernel_size: int
    stride: int
    padding: int

    def places(self, shape: torch.Size) -> tuple[int, int, int]:
        """Batch, height and width of the output for maps of a shape."""
        height, width = ((size + 2 * self.padding - self.kernel_size) // self.stride + 1 for size in shape[2:4])
        return shape[0], height, width

    def patches(self, spikes: Tensor) -> Tensor:
        """Windows ``(batch, out_height, out_width, C k k, spikes)`` of maps ``(batch, C, height, width, spikes)``."""
        padded = F.pad(spikes, (0, 0, *(self.padding,) * 4), value=torch.inf)
        windows = padded.unfold(2, self.kernel_size, self.stride).unfold(3, self.kernel_size, self.stride)
        # (batch, channels, out_height, out_width, spikes, k, k)
        return windows.permute(0, 2, 3, 1, 5, 6, 4).flatten(3, 5)

    def patches_vjp(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Gradient of the maps of a shape for that of their :meth:`patches`."""
        batch, channels, height, width, spikes = shape
        columns = grad.flatten(1, 2).permute(0, 3, 2, 1).reshape(batch * spikes, grad.shape[3], -1)
        size = height + 2 * self.padding, width + 2 * self.padding
        maps = F.fold(columns, size, self.kernel_size, stride=self.stride)
        inside = maps[..., self.padding : size[0] - self.padding, self.padding : size[1] - self.padding]
        return inside.reshape(batch, spikes, channels, height, width).permute(0, 2, 3, 4, 1)


class SpikingConv2d(SpikingLayer):
    """A convolution of leaky integrate-and-fire neurons.

    Spikes are ``(batch, channels, height, width, spikes)``, padded with infinity, of inputs and of outputs. Beyond the
    border there are none.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the layer.
        kernel_size: Side of the square window.
        stride: From one window to the next.
        padding: Places without spikes on each side.
        tau_v: Membrane time constant in the unit of the spike times; ``float('inf')`` for no leak.
        tau_i: Time constant of the synaptic current, likewise.
        theta: Threshold.
        t_max: When the simulation ends; spikes that arrive later are dropped.
        max_spikes: After so many spikes a neuron is silent; 1 for the methods of a single spike.
        p_max: Bound of the influence of a spike that only grazes the threshold on the loss of its sample, if that of
            the batch is their mean; None for the exact gradient.
        delays: Whether spikes come later by a delay that is learned, one for each channel and place in the window.
        learn_tau: Whether both time constants, which must be finite, are learned.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        tau_v: float = math.inf,
        tau_i: float = math.inf,
        theta: float = 1.0,
        t_max: float = 2.0,
        max_spikes: int = 16,
        p_max: float | None = 1000.0,
        delays: bool = False,
        learn_tau: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        for name, value, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        options = NeuronOptions(tau_v, tau_i, theta, t_max, max_spikes, p_max, delays, learn_tau)
        super().__init__(in_channels * kernel_size**2, out_channels, options, device, dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    @property
    def windows(self) -> Windows:
        """Where the windows lie."""
        return Windows(self.kernel_size, self.stride, self.padding)

    def patches(self, spikes: Tensor) -> Tensor:
        """What each neuron sees, ``(batch, out_height, out_width, inputs, spikes)``.

        Raises:
            ValueError: Spikes that are no maps of these channels, or smaller than a window.
        """
        if spikes.dim() != 5 or spikes.shape[1] != self.in_channels:
            raise ValueError(
                f"spikes of shape {tuple(spikes.shape)}: give (batch, {self.in_channels}, height, width, spikes), "
                "padded with infinity"
            )
        if min(spikes.shape[2:4]) + 2 * self.padding < self.kernel_size:
            raise ValueError(f"maps of {spikes.shape[2]}x{spikes.shape[3]} hold no kernel_size={self.kernel_size}")
        return self.windows.patches(spikes)

    def seen(self, spikes: Tensor) -> Tensor:
        """The :meth:`patches`, a row for each place of each sample."""
        return self.patches(spikes).flatten(0, 2)

    def seen_vjp(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Gradient of maps of a shape for that of the rows."""
        return self.windows.patches_vjp(torch.unflatten(grad, 0, self.windows.places(shape)), shape)

    def by_row(self, outputs: Tensor) -> Tensor:
        """The maps' spikes, a row for each place of each sample."""
        return outputs.permute(0, 2, 3, 1, 4).flatten(0, 2)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The maps ``(batch, out_channels, out_height, out_width, max_spikes)``."""
        return torch.unflatten(rows, 0, self.windows.places(shape)).permute(0, 3, 1, 2, 4)

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, {self._neuron_repr()}"
        )
