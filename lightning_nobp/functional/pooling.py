"""Features of feature maps: what a linear classifier reads of a convolution's output.

Every function maps ``(batch, channels, height, width)`` to ``(batch, features)``. A grid of ``g`` divides the map into
``g x g`` cells as torch's adaptive pooling does.

References:
    Second-order pooling: Tian et al., "PCANet-II: When PCANet Meets the Second Order Pooling", arXiv 1710.00166.
    Mean of both signs: Coates and Ng, "The Importance of Encoding Versus Training with Sparse Coding and Vector
    Quantization", ICML 2011.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

POOLINGS = ("second_order", "crelu_mean", "mean", "max", "histogram")
"""Names that :func:`pooled_features` knows."""


def second_order_pool(z: Tensor, grid: int, power: float = 0.5) -> Tensor:
    """Mean products of each pair of channels over each cell, with the power norm ``sign(g) * abs(g) ** power``.

    Args:
        z: ``(batch, channels, height, width)``.
        grid: Cells on a side.
        power: 1 for none.

    Returns:
        ``(batch, grid ** 2 * channels * (channels + 1) / 2)``.
    """
    channels = z.shape[1]
    means = [_mean_product(cell) for cell in _cells(z, grid)]
    row, column = torch.triu_indices(channels, channels, device=z.device)
    features = torch.stack([mean[:, row, column] for mean in means], 1).flatten(1)
    return power_norm(features, power)


def crelu_mean_pool(z: Tensor, grid: int) -> Tensor:
    """Means over each cell of the positive and of the negative part of each channel.

    Args:
        z: ``(batch, channels, height, width)``.
        grid: Cells on a side.

    Returns:
        ``(batch, 2 * grid ** 2 * channels)``.
    """
    positive = F.adaptive_avg_pool2d(z.relu(), grid).flatten(1)
    # relu(-z) = relu(z) - z, and means of it likewise.
    negative = positive - F.adaptive_avg_pool2d(z, grid).flatten(1)
    return torch.cat([positive, negative], 1)


def power_norm(features: Tensor, power: float) -> Tensor:
    """``sign(g) * abs(g) ** power``."""
    if power == 1:
        return features
    size = features.abs()
    return torch.copysign(size.sqrt_() if power == 0.5 else size.pow_(power), features)


def binary_codes(z: Tensor, bits: int) -> Tensor:
    """Signs of each ``bits`` successive channels as one number, the first channel the lowest bit.

    Args:
        z: ``(batch, channels, height, width)``, channels a multiple of ``bits``.
        bits: Channels in a code.

    Returns:
        ``(batch, channels / bits, height, width)``, int64, from 0 to ``2 ** bits - 1``.

    Raises:
        ValueError: Channels are no multiple of ``bits``.
    """
    if z.shape[1] % bits:
        raise ValueError(f"channels={z.shape[1]} must be a multiple of bits={bits}: {bits} signs make a code")
    weights = 2 ** torch.arange(bits, device=z.device)
    signs = (z > 0).reshape(z.shape[0], z.shape[1] // bits, bits, *z.shape[2:])
    return torch.sum(signs * weights.view(-1, 1, 1), 2)


def block_histograms(codes: Tensor, bits: int, block: int, stride: int) -> Tensor:
    """How often each code occurs in each block of each map.

    Args:
        codes: ``(batch, maps, height, width)``, see :func:`binary_codes`.
        bits: Of a code.
        block: Height and width of a block.
        stride: From one block to the next.

    Returns:
        ``(batch, maps, rows, columns, 2 ** bits)``, float32; the counts of a block sum to ``block ** 2``.

    Raises:
        ValueError: The maps are smaller than a block.
    """
    if min(codes.shape[2:]) < block:
        raise ValueError(f"block={block} is larger than maps of {codes.shape[2]}x{codes.shape[3]}: take a smaller one")
    blocks = codes.unfold(2, block, stride).unfold(3, block, stride).flatten(4)
    counts = torch.zeros(*blocks.shape[:-1], 2**bits, device=codes.device)
    return counts.scatter_add_(-1, blocks, torch.ones((), device=codes.device).expand(blocks.shape))


def histogram_pool(z: Tensor, grid: int, bits: int = 8) -> Tensor:
    """Shares of each binary code in each cell, a code for each ``bits`` channels.

    Args:
        z: ``(batch, channels, height, width)``.
        grid: Cells on a side.
        bits: Channels in a code.

    Returns:
        ``(batch, grid ** 2 * channels / bits * 2 ** bits)``.
    """
    codes = binary_codes(z, bits)
    found = []
    for cell in _cells(codes, grid):
        places = cell.flatten(2)
        counts = z.new_zeros(*places.shape[:2], 2**bits)
        counts.scatter_add_(2, places, z.new_ones(()).expand(places.shape))
        found.append(counts.flatten(1) / places.shape[2])
    return torch.cat(found, 1)


def pooled_features(z: Tensor, pooling: Mapping[str, int | Sequence[int]], power: float = 0.5) -> Tensor:
    """Several poolings side by side.

    Args:
        z: ``(batch, channels, height, width)``.
        pooling: By name, the grid, or several grids (a spatial pyramid).
        power: Of the second-order power norm.

    Returns:
        ``(batch, features)``.
    """
    features = [_pool(name, z, grid, power) for name, grids in pooling.items() for grid in grid_list(grids)]
    return features[0] if len(features) == 1 else torch.cat(features, 1)


def num_pooled_features(channels: int, pooling: Mapping[str, int | Sequence[int]]) -> int:
    """How many features :func:`pooled_features` gives for so many channels.

    Raises:
        ValueError: An unknown name, a grid below 1, or channels that do not fit.
    """
    per_cell = {
        "second_order": channels * (channels + 1) // 2,
        "crelu_mean": 2 * channels,
        "mean": channels,
        "max": channels,
        "histogram": channels // 8 * 256,
    }
    count = 0
    for name, grids in pooling.items():
        if name not in per_cell:
            raise ValueError(f"pooling={name!r} is not one of {', '.join(map(repr, POOLINGS))}")
        if name == "histogram" and channels % 8:
            raise ValueError(f"pooling='histogram' makes a code of 8 channels: channels={channels} is no multiple of 8")
        for grid in grid_list(grids):
            if grid < 1:
                raise ValueError(f"pooling={{{name!r}: {grid}}}: a grid has at least 1 cell on a side")
            count += per_cell[name] * grid**2
    if not count:
        raise ValueError(f"pooling={dict(pooling)!r} gives no features: name at least one of {', '.join(POOLINGS)}")
    return count


def grid_list(grids: int | Sequence[int]) -> list[int]:
    """One grid or several, as a list."""
    return [grids] if isinstance(grids, int) else list(grids)


def _pool(name: str, z: Tensor, grid: int, power: float) -> Tensor:
    if name == "second_order":
        return second_order_pool(z, grid, power)
    if name == "crelu_mean":
        return crelu_mean_pool(z, grid)
    if name == "mean":
        return F.adaptive_avg_pool2d(z, grid).flatten(1)
    if name == "max":
        return F.adaptive_max_pool2d(z, grid).flatten(1)
    if name == "histogram":
        return histogram_pool(z, grid)
    raise ValueError(f"pooling={name!r} is not one of {', '.join(map(repr, POOLINGS))}")


def _cells(z: Tensor, grid: int) -> list[Tensor]:
    """The cells of a map, row by row; where the grid does not divide the map they overlap as in adaptive pooling."""
    height, width = z.shape[2:]
    rows = [(i * height // grid, -(-(i + 1) * height // grid)) for i in range(grid)]
    columns = [(i * width // grid, -(-(i + 1) * width // grid)) for i in range(grid)]
    return [z[:, :, top:bottom, left:right] for top, bottom in rows for left, right in columns]


def _mean_product(cell: Tensor) -> Tensor:
    pixels = cell.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.bmm(pixels.transpose(1, 2), pixels) / pixels.shape[1]
