"""Convolutions whose filters are principal components of patches, and the classical network of two of them.

References:
    Chan et al., "PCANet: A Simple Deep Learning Baseline for Image Classification?", arXiv 1404.3606.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.filters import FILTERS, ClassTotals, choose_filters, whitened
from lightning_nobp.functional.patches import PatchMoments, patch_covariance
from lightning_nobp.functional.pooling import binary_codes, block_histograms, power_norm
from lightning_nobp.functional.ridge import LinearReadout
from lightning_nobp.typed import Typed


class PCAConv2d(Typed, nn.Module):
    """A convolution at stride 1 that is fitted to sums over the patches it sees.

    Its bias makes every channel zero-mean over all positions of all images; with ``whiten`` the channels of principal
    components have unit variance too. Weights start at random; :meth:`fit` replaces them.

    Args:
        in_channels: Channels of the input.
        out_channels: Filters.
        kernel_size: Height and width of a filter.
        padding: Zeros around each image.
        filters: Kind of filters, see :func:`~lightning_nobp.functional.filters.choose_filters`.
        whiten: Whether responses are scaled to unit variance.
        remove_patch_mean: Whether the mean of each channel is taken off each patch first.

    Raises:
        ValueError: An unknown kind, or more filters than patches have dimensions.
    """

    eigenvalues: Tensor
    """Variance along each filter's direction, before whitening, ``(out_channels,)``."""
    explained_variance_ratio: Tensor
    """Share of the patches' variance along each filter's direction, ``(out_channels,)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int = 0,
        filters: str = "pca",
        whiten: bool = False,
        remove_patch_mean: bool = False,
    ) -> None:
        super().__init__()
        if filters not in FILTERS:
            raise ValueError(f"filters={filters!r} is not one of {', '.join(map(repr, FILTERS))}")
        rank = in_channels * (kernel_size**2 - remove_patch_mean)
        if not 1 <= out_channels <= rank:
            raise ValueError(
                f"channels={out_channels} must be from 1 to {rank}: patches of {in_channels} channels with "
                f"kernel_size={kernel_size}{' less their means' if remove_patch_mean else ''} have no more dimensions. "
                "Give fewer channels, a larger kernel or more channels in the layer before"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.padding = kernel_size, padding
        self.filters, self.whiten, self.remove_patch_mean = filters, whiten, remove_patch_mean
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("eigenvalues", torch.zeros(out_channels))
        self.register_buffer("explained_variance_ratio", torch.zeros(out_channels))
        nn.init.kaiming_normal_(self.weight)

    def extra_repr(self) -> str:
        """Channels, kernel and kind of filters."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, filters={self.filters!r}"

    def forward(self, x: Tensor) -> Tensor:
        """Zero-mean responses ``(batch, out_channels, height, width)``, channels last in memory."""
        z = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        # Of one channel torch's convolution forgets the layout.
        return z.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def fit(
        self, moments: PatchMoments, classes: ClassTotals | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Take the filters that follow from sums over patches.

        Args:
            moments: Of the patches of the input, with this layer's kernel size and padding.
            classes: Sums by class, for ``filters='lda'``.
            generator: Of random filters, on the CPU.

        Returns:
            The eigenvalues of the patches' covariance, ``(m,)``, float64.

        Raises:
            ValueError: Patches that vary in fewer directions than there are filters, if these are to be whitened.
        """
        found = choose_filters(
            self.filters,
            moments,
            self.out_channels,
            self.kernel_size,
            remove_patch_mean=self.remove_patch_mean,
            classes=classes,
            generator=generator,
        )
        spectrum: Tensor = torch.linalg.eigvalsh(patch_covariance(*moments)).clamp(min=0)
        self.eigenvalues.copy_(found.eigenvalues)
        self.explained_variance_ratio.copy_(found.eigenvalues / spectrum.sum().clamp(min=1e-300))
        if self.whiten:
            # Of more channels the products are summed in single precision, whose noise must not pass for a direction.
            exact = self.in_channels < 8 or self.weight.dtype is torch.float64
            found = whitened(found, 1e-12 if exact else 1e-7)
        self.weight.copy_(found.filters.view_as(self.weight))
        self.bias.copy_(-found.filters @ found.mean)
        return spectrum


class Readout(Typed, nn.Module):
    """A linear read-out ``features @ weight + bias`` in closed form; zero until it is fitted.

    Args:
        num_features: Features ``D`` of a sample.
        num_classes: Scores ``K``.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_features, self.num_classes = num_features, num_classes
        self.weight = nn.Parameter(torch.zeros(num_features, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def extra_repr(self) -> str:
        """Features and classes."""
        return f"{self.num_features}, {self.num_classes}"

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(batch, num_classes)`` of features ``(batch, num_features)``."""
        return torch.addmm(self.bias, features, self.weight)

    @torch.no_grad()
    def fit(self, found: LinearReadout, shrinkage: float = 1.0) -> None:
        """Take a solution, ``shrinkage`` times."""
        self.weight.copy_(shrinkage * found.weight)
        self.bias.copy_(shrinkage * found.bias)


class HashingNetwork(Typed, nn.Module):
    """The classical PCANet: two layers of principal components, signs as binary numbers, histograms, a linear read-out.

    The first layer's ``L1`` maps go through the second layer's ``L2`` filters one by one; the signs of the ``L2``
    responses at a place are one number, and the histograms of these numbers in blocks are the features.

    Args:
        input_shape: ``(channels, height, width)``.
        num_classes: Number of scores.
        channels: Filters of the two layers, ``(L1, L2)``.
        kernel_size: Of both layers; odd.
        block: Height and width of a block; whole maps if None.
        block_stride: From one block to the next; half a block, rounded up, if None.
        pyramid: Grids of a spatial pyramid over the blocks, of which the maximum is taken, like ``(4, 2, 1)``; None
            for the blocks themselves.
        sketch_dim: Features are added up, with random signs, into so many (CountSketch, which keeps inner products in
            the mean); None keeps them all. The sketch is a fixed random one.
        power: Exponent of the histograms' counts; 0.5 makes frequent codes count less.
        filters: Kind of filters, see :func:`~lightning_nobp.functional.filters.choose_filters`.

    Raises:
        ValueError: Images smaller than the kernel or a block, or more filters than patches have dimensions.
    """

    bucket: Tensor
    sign: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (8, 8),
        kernel_size: int = 7,
        block: int | None = 7,
        block_stride: int | None = None,
        pyramid: Sequence[int] | None = None,
        sketch_dim: int | None = None,
        power: float = 1.0,
        filters: str = "pca",
    ) -> None:
        super().__init__()
        colours, height, width = check_image_shape(input_shape, kernel_size)
        if len(channels) != 2:
            raise ValueError(f"channels={list(channels)}: the classical network has two layers, give two numbers")
        if channels[1] > 16:
            raise ValueError(f"channels={list(channels)}: histograms of {channels[1]} bits are too long, at most 16")
        for name, value in (("block", block), ("block_stride", block_stride), ("sketch_dim", sketch_dim)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or None")
        if not power > 0:
            raise ValueError(f"power={power} must be positive")
        if pyramid is not None and (not pyramid or min(pyramid) < 1):
            raise ValueError(f"pyramid={list(pyramid)} must be grids of at least 1 cell, or None")
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.channels, self.kernel_size, self.filters = tuple(channels), kernel_size, filters
        self.block, self.block_stride = block, block_stride
        self.sketch_dim, self.power = sketch_dim, power
        self.pyramid = None if pyramid is None else tuple(pyramid)
        side = min(height, width) if block is None else block
        if side > min(height, width):
            raise ValueError(f"block={block} is larger than images of {height}x{width}: take a smaller one")
        self._window, self._stride = side, block_stride or -(-side // 2)
        padding = kernel_size // 2
        self.first = PCAConv2d(colours, channels[0], kernel_size, padding, filters, remove_patch_mean=True)
        self.second = PCAConv2d(1, channels[1], kernel_size, padding, filters, remove_patch_mean=True)
        rows, columns = ((size - side) // self._stride + 1 for size in (height, width))
        cells = rows * columns if pyramid is None else sum(grid**2 for grid in pyramid)
        if pyramid is not None and max(pyramid) > min(rows, columns):
            raise ValueError(f"pyramid={list(pyramid)} is finer than {rows}x{columns} blocks: take smaller grids")
        self.num_histogram_features = channels[0] * cells * 2 ** channels[1]
        if sketch_dim is not None:
            self._draw_sketch(sketch_dim)
        self.readout = Readout(sketch_dim or self.num_histogram_features, num_classes)

    def _draw_sketch(self, sketch_dim: int) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        drawn = {"generator": generator, "device": "cpu"}
        count = self.num_histogram_features
        bucket = torch.randint(sketch_dim, (count,), **drawn)  # type: ignore[call-overload]
        sign = 2 * torch.randint(2, (count,), **drawn) - 1  # type: ignore[call-overload]
        self.register_buffer("bucket", bucket.to(torch.empty(0).device))
        self.register_buffer("sign", sign.to(torch.empty(0)))

    def maps(self, x: Tensor) -> Tensor:
        """The first layer's maps as images of one channel, ``(batch * L1, 1, height, width)``."""
        maps: Tensor = self.first(x)
        return maps.contiguous().flatten(0, 1).unsqueeze(1)

    def histograms(self, x: Tensor) -> Tensor:
        """Features before any sketch, ``(batch, num_histogram_features)``; counts."""
        codes = binary_codes(self.second(self.maps(x)), self.channels[1])
        codes = codes.view(x.shape[0], self.channels[0], *codes.shape[2:])
        blocks = block_histograms(codes, self.channels[1], self._window, self._stride).to(x.dtype)
        if self.pyramid is None:
            return blocks.flatten(1)
        # (batch, maps * bins, rows, columns): the pyramid pools over blocks.
        planes = blocks.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return torch.cat([F.adaptive_max_pool2d(planes, grid).flatten(1) for grid in self.pyramid], 1)

    def features(self, x: Tensor) -> Tensor:
        """What the read-out sees: powers of the histograms' counts, sketched if there is a sketch."""
        features = power_norm(self.histograms(x), self.power)
        if self.sketch_dim is None:
            return features
        sketched = features.new_zeros(features.shape[0], self.sketch_dim)
        return sketched.index_add(1, self.bucket, features * self.sign)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(batch, num_classes)`` of images ``(batch, channels, height, width)``."""
        scores: Tensor = self.readout(self.features(x))
        return scores


def check_image_shape(input_shape: Sequence[int], kernel_size: int) -> tuple[int, int, int]:
    """Channels, height and width, if a filter of odd size fits into the image.

    Raises:
        ValueError: It does not.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape={tuple(input_shape)}: images (channels, height, width) are needed")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size} must be odd: the maps keep the size of the image")
    if kernel_size > min(input_shape[1:]):
        raise ValueError(
            f"kernel_size={kernel_size} is larger than images of {input_shape[1]}x{input_shape[2]}: take a smaller one"
        )
    channels, height, width = input_shape
    return channels, height, width
