"""A convolutional network in which every layer corrects what the layers before it got wrong.

References:
    Alotaibi and Wilson, "Deep Residual Compensation Convolutional Network without Backpropagation", arXiv 2301.11663.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.pooling import POOLINGS, grid_list, num_pooled_features, pooled_features
from lightning_nobp.nn.pcanet import PCAConv2d, Readout, check_image_shape
from lightning_nobp.typed import Typed

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "identity": lambda z: z,
}
"""What is done to a layer's responses before the next layer."""

Pooling = Mapping[str, int | Sequence[int]]
"""Grids by kind of pooling."""


class CompensationLayer(Typed, nn.Module):
    """Convolution, features, read-out, and the input of the next layer.

    Args:
        conv: The convolution.
        num_classes: Number of scores.
        pooling: Grids by kind of pooling, see :func:`~lightning_nobp.functional.pooling.pooled_features`.
        power: Of the second-order power norm.
        activation: A key of ``ACTIVATIONS``.
        halve: Whether means over 2x2 pixels go to the next layer.
    """

    def __init__(
        self, conv: PCAConv2d, num_classes: int, pooling: Pooling, power: float, activation: str, halve: bool
    ) -> None:
        super().__init__()
        self.conv = conv
        self.pooling, self.power, self.activation, self.halve = dict(pooling), power, activation, halve
        self.readout = Readout(num_pooled_features(conv.out_channels, pooling), num_classes)

    def features(self, z: Tensor) -> Tensor:
        """Features ``(batch, num_features)`` of responses ``(batch, channels, height, width)``."""
        return pooled_features(z, self.pooling, self.power)

    def next_input(self, z: Tensor) -> Tensor:
        """What the next layer sees of the responses."""
        h = ACTIVATIONS[self.activation](z)
        return F.avg_pool2d(h, 2) if self.halve else h

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the next layer, and features."""
        z = self.conv(h)
        return self.next_input(z), self.features(z)


class ResCNet(Typed, nn.Module):
    """Layers of principal components, each with a read-out of its own; the scores are the sum of all read-outs.

    The network grows: only the first ``num_fitted`` layers are asked. A plain loop fits it, see the page of
    :class:`~lightning_nobp.rules.ResidualCompensation`.

    Args:
        input_shape: ``(channels, height, width)``.
        num_classes: Number of scores.
        depth: Layers.
        channels: Filters of each layer, one number or a list.
        kernel_size: Height and width of a filter, odd.
        first_kernel_size: Of the first layer.
        padding: ``'same'`` keeps the size of the maps, ``'valid'`` leaves out what needs padding.
        pool_after: Layers (the first is 1) after which means over 2x2 pixels are taken; numbers beyond the depth do
            nothing.
        activation: ``'relu'``, ``'abs'``, ``'tanh'`` or ``'identity'``.
        pooling: What the read-outs see: grids by name, of ``'second_order'``, ``'crelu_mean'``, ``'mean'``, ``'max'``,
            ``'histogram'``; a list of grids is a spatial pyramid.
        power: Exponent of the second-order power norm, 1 for none.
        filters: Kind of filters, see :func:`~lightning_nobp.functional.filters.choose_filters`.
        whiten: Whether responses are scaled to unit variance.
        remove_patch_mean: Whether the mean of each channel is taken off each patch first.

    Raises:
        ValueError: Images smaller than the kernel or the grid, more channels than patches have dimensions, or an
            unknown name.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: int = 5,
        channels: int | Sequence[int] = 16,
        kernel_size: int = 3,
        first_kernel_size: int = 5,
        padding: Literal["same", "valid"] = "same",
        pool_after: Sequence[int] = (1,),
        activation: str = "relu",
        pooling: Mapping[str, int | list[int]] | None = None,
        power: float = 0.5,
        filters: str = "pca",
        whiten: bool = True,
        remove_patch_mean: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        if padding not in ("same", "valid"):
            raise ValueError(f"padding={padding!r} is not one of 'same', 'valid'")
        if not power > 0:
            raise ValueError(f"power={power} must be positive")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r} is not one of {', '.join(map(repr, ACTIVATIONS))}")
        widths = [channels] * depth if isinstance(channels, int) else list(channels)
        if len(widths) != depth:
            raise ValueError(f"channels={widths} are {len(widths)} numbers for depth={depth}: give one for each layer")
        if not all(layer >= 1 for layer in pool_after):
            raise ValueError(f"pool_after={list(pool_after)}: layers are numbered from 1")
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.depth, self.kernel_size, self.first_kernel_size = depth, kernel_size, first_kernel_size
        self.channels = channels if isinstance(channels, int) else tuple(channels)
        self.padding, self.pool_after, self.activation = padding, tuple(pool_after), activation
        self.pooling = {"second_order": 2, "crelu_mean": 4} if pooling is None else dict(pooling)
        self.power = power
        if not any(grid_list(grids) for grids in self.pooling.values()):
            raise ValueError(f"pooling={self.pooling} gives no features: name at least one of {', '.join(POOLINGS)}")
        self.filters, self.whiten, self.remove_patch_mean = filters, whiten, remove_patch_mean
        self.num_fitted = 0
        """How many layers, from the first on, have been fitted; the others are not asked."""
        self.layers = nn.ModuleList()
        self.map_shapes = [tuple(input_shape)]
        """Shape ``(channels, height, width)`` of the input, and of what each layer hands on."""
        for number, width in enumerate(widths, start=1):
            self.map_shapes.append(self._append(number, self.map_shapes[-1], width))

    def _append(self, number: int, shape: Sequence[int], width: int) -> tuple[int, int, int]:
        """Add a layer for inputs of a shape, and return the shape of what it hands on."""
        kernel = self.first_kernel_size if number == 1 else self.kernel_size
        try:
            channels, height, breadth = check_image_shape(shape, kernel)
            around = kernel // 2 if self.padding == "same" else 0
            height, breadth = (size + 2 * around - kernel + 1 for size in (height, breadth))
            finest = max(grid for grids in self.pooling.values() for grid in grid_list(grids))
            if finest > min(height, breadth):
                raise ValueError(
                    f"pooling={self.pooling} has finer grids than maps of {height}x{breadth}: take smaller grids, or "
                    f"halve less often (pool_after={list(self.pool_after)})"
                )
            halve = number in self.pool_after
            if halve and min(height, breadth) < 2:
                raise ValueError(f"pool_after={list(self.pool_after)}: maps of {height}x{breadth} cannot be halved")
            conv = PCAConv2d(channels, width, kernel, around, self.filters, self.whiten, self.remove_patch_mean)
            layer = CompensationLayer(conv, self.num_classes, self.pooling, self.power, self.activation, halve)
        except ValueError as error:
            raise ValueError(f"layer {number} of depth={self.depth}: {error}") from None
        self.layers.append(layer)
        return (width, height // 2, breadth // 2) if halve else (width, height, breadth)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Layer by layer the input of the next layer, and the features.

        Args:
            x: Input of the layer behind the first ``start``; of all, the image.
            start: Layers that are passed over.
            stop: Layers in all; by default those that have been fitted.
        """
        h = x.contiguous(memory_format=torch.channels_last)
        for number in range(start, self.num_fitted if stop is None else stop):
            h, features = self.compensation(number + 1)(h)
            yield h, features

    def compensation(self, number: int) -> CompensationLayer:
        """A layer by its number, from 1."""
        return cast(CompensationLayer, self.layers[number - 1])

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        """Class scores ``(batch, num_classes)``: the sum of the read-outs.

        Args:
            x: Images ``(batch, channels, height, width)``.
            depth: Of how many layers; by default of those that have been fitted.

        Raises:
            ValueError: More layers than have been fitted.
        """
        depth = self._known(depth)
        scores = x.new_zeros(x.shape[0], self.num_classes)
        for number, (_, features) in enumerate(self.run(x, stop=depth), start=1):
            scores = scores + self.compensation(number).readout(features)
        return scores

    def staged_predict(self, x: Tensor) -> Tensor:
        """Scores after each fitted layer, ``(num_fitted, batch, num_classes)``."""
        outputs = [self.compensation(n).readout(features) for n, (_, features) in enumerate(self.run(x), start=1)]
        return torch.stack(outputs).cumsum(0) if outputs else x.new_zeros(0, x.shape[0], self.num_classes)

    def features(self, x: Tensor, depth: int | None = None) -> Tensor:
        """The features of the first layers side by side, ``(batch, features)``.

        Raises:
            ValueError: More layers than have been fitted, or none.
        """
        depth = self._known(depth)
        if not depth:
            raise ValueError("no layer has been fitted: there are no features")
        return torch.cat([features for _, features in self.run(x, stop=depth)], 1)

    def _known(self, depth: int | None) -> int:
        if depth is None:
            return self.num_fitted
        if not 0 <= depth <= self.num_fitted:
            raise ValueError(f"depth={depth} must be from 0 to {self.num_fitted}, the layers that have been fitted")
        return depth

    def get_extra_state(self) -> Tensor:
        """``num_fitted``, for ``state_dict``."""
        return torch.tensor(self.num_fitted)

    def set_extra_state(self, state: Tensor) -> None:
        """Take ``num_fitted`` from a ``state_dict``."""
        self.num_fitted = int(state)
