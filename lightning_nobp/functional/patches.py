"""Second moments of image patches, without ever holding the patches, and the filters that follow from them.

A patch is what a convolution multiplies its weights with: ``kernel_size x kernel_size`` pixels of all channels, in the
order of :func:`torch.nn.functional.unfold`, channel by channel. Everything that a principal component analysis of
patches needs are two sums over them, and sums of parts of the data add up: exact for any number of images, in any
order, on any number of machines.

References:
    Chan et al., "PCANet: A Simple Deep Learning Baseline for Image Classification?", arXiv 1404.3606.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Algorithm = Literal["auto", "unfold", "row", "autocorrelation"]

_CHUNK = 200
"""Images that are worked on at once: enough for long products, few enough for the cache. Of small images more."""

_CHUNK_PIXELS = 2**14


class PatchMoments(NamedTuple):
    """Sums over patches of ``m = channels * kernel_size ** 2`` values, in float64."""

    second_moment: Tensor
    """Sum of the patches' outer products, ``(m, m)``."""
    total: Tensor
    """Sum of the patches, ``(m,)``."""
    count: int  # type: ignore[assignment]
    """Number of patches; in place of the tuple's method of that name."""


class PatchFilters(NamedTuple):
    """Filters of a convolution, and what they were derived from."""

    filters: Tensor
    """``(num_filters, m)``, float64."""
    eigenvalues: Tensor
    """Variance of the patches along each filter, ``(num_filters,)``."""
    mean: Tensor
    """Mean patch, ``(m,)``."""


def patch_second_moment(
    x: Tensor,
    kernel_size: int,
    padding: int = 0,
    *,
    algorithm: Algorithm = "auto",
    dtype: torch.dtype | None = None,
) -> PatchMoments:
    """Sum of outer products and sum over all patches of a batch of images, at stride 1.

    ``'unfold'`` writes out the patches; ``'row'`` writes out their rows and multiplies each pair of rows;
    ``'autocorrelation'`` uses that a product of two pixels counts in many patches: it sums the products for every
    displacement once, and corrects for the border. All three agree up to rounding.

    Args:
        x: Images ``(batch, channels, height, width)``.
        kernel_size: Height and width ``k`` of a patch.
        padding: Zeros around each image.
        algorithm: ``'auto'`` takes rows for one channel and for images that are hardly larger than a patch,
            autocorrelation otherwise.
        dtype: In which products are computed; by default float64 below 8 channels, where it costs little, and ``x``'s
            own above. The sums are float64 always.

    Returns:
        ``second_moment`` ``(m, m)`` and ``total`` ``(m,)``, float64, with ``m = channels * k * k`` values in a patch
        in the order of ``unfold``, and the number of patches.

    Raises:
        ValueError: ``x`` is no batch of images, the padded image is smaller than a patch, or an unknown algorithm.
    """
    _check(x, kernel_size, padding)
    channels = x.shape[1]
    height, width = (size + 2 * padding - kernel_size + 1 for size in x.shape[2:])
    if algorithm == "auto":
        plain = channels == 1 or min(height, width) < kernel_size
        algorithm = "row" if plain else "autocorrelation"
    if algorithm not in _KERNELS:
        raise ValueError(f"algorithm={algorithm!r} is not one of 'auto', {', '.join(map(repr, _KERNELS))}")
    if algorithm == "autocorrelation" and min(height, width) < kernel_size - 1:
        raise ValueError(
            f"algorithm='autocorrelation' needs kernel_size - 1 = {kernel_size - 1} or more patches in each direction, "
            f"not {height}x{width}: take 'row'"
        )
    if dtype is None:
        dtype = torch.float64 if channels < 8 else torch.promote_types(x.dtype, torch.float32)
    size = channels * kernel_size**2
    second_moment = torch.zeros(size, size, dtype=torch.float64, device=x.device)
    images = max(_CHUNK, _CHUNK_PIXELS // ((height + kernel_size) * (width + kernel_size)))
    for chunk in torch.split(x, images):
        padded = F.pad(chunk.to(dtype), (padding,) * 4)
        second_moment += _KERNELS[algorithm](padded, kernel_size)
    return PatchMoments(second_moment, patch_total(x, kernel_size, padding), len(x) * height * width)


def patch_total(x: Tensor, kernel_size: int, padding: int = 0) -> Tensor:
    """Sum of all patches of a batch of images, in float64.

    Args:
        x: Images ``(batch, channels, height, width)``.
        kernel_size: Height and width of a patch.
        padding: Zeros around each image.

    Returns:
        ``(channels * kernel_size ** 2,)``.
    """
    summed = x.sum(0, keepdim=True, dtype=torch.float64)
    return F.unfold(summed, kernel_size, padding=padding).sum((0, 2))


def pca_filters(second_moment: Tensor, total: Tensor, count: int, num_filters: int) -> PatchFilters:
    """Principal components of patches, largest variance first.

    The sign of an eigenvector is arbitrary; here the first of its entries of largest size is positive.

    Args:
        second_moment: Sum of outer products ``(m, m)``, see :func:`patch_second_moment`.
        total: Sum of patches ``(m,)``.
        count: Number of patches.
        num_filters: How many.

    Returns:
        Orthonormal filters ``(num_filters, m)``, the variances ``(num_filters,)`` along them (divided by ``count``),
        and the mean patch ``(m,)``.

    Raises:
        ValueError: No patches, or more filters than a patch has values.
    """
    mean = patch_mean(total, count)
    filters, eigenvalues = principal_components(patch_covariance(second_moment, total, count), num_filters)
    return PatchFilters(filters, eigenvalues, mean)


def patch_mean(total: Tensor, count: int) -> Tensor:
    """Mean patch ``(m,)`` of ``count`` patches whose sum is ``total``."""
    if count < 1:
        raise ValueError(f"count={count}: no patches were counted")
    return total.double() / count


def patch_covariance(second_moment: Tensor, total: Tensor, count: int) -> Tensor:
    """Covariance ``(m, m)`` of patches, divided by ``count``, symmetric to the last bit.

    Raises:
        ValueError: There are no patches, or their squares are too large to be summed.
    """
    mean = patch_mean(total, count)
    covariance = second_moment.double() / count - torch.outer(mean, mean)
    if not covariance.isfinite().all():
        raise ValueError(
            f"sums over {count} patches are not finite: their squares are too large for {second_moment.dtype}. Scale "
            "the inputs down"
        )
    return (covariance + covariance.T) / 2


def principal_components(covariance: Tensor, num_filters: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors as rows ``(num_filters, m)``, and their eigenvalues ``(num_filters,)``.

    Args:
        covariance: ``(m, m)``, symmetric.
        num_filters: How many.

    Raises:
        ValueError: More than there are.
    """
    size = len(covariance)
    if not 1 <= num_filters <= size:
        raise ValueError(
            f"num_filters={num_filters} must be from 1 to {size}, the number of values in a patch "
            "(channels * kernel_size ** 2): give fewer filters or a larger kernel"
        )
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    # A covariance has no negative eigenvalues: what falls below zero is rounding.
    return with_fixed_signs(vectors.T.flip(0)[:num_filters]), eigenvalues.flip(0)[:num_filters].clamp(min=0)


def with_fixed_signs(filters: Tensor) -> Tensor:
    """Filters ``(num_filters, m)``, each turned so that the first of its entries of largest size is positive."""
    sizes = filters.abs()
    # Entries may be equal but for rounding: mirrored images make filters with a and -a in them.
    largest = (sizes > (1 - 1e-6) * sizes.amax(1, keepdim=True)).to(torch.uint8).argmax(1, keepdim=True)
    return filters * filters.gather(1, largest).sign()


def _check(x: Tensor, kernel_size: int, padding: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}: images (batch, channels, height, width) are needed")
    if kernel_size < 1 or padding < 0:
        raise ValueError(f"kernel_size={kernel_size} must be at least 1, and padding={padding} at least 0")
    if min(x.shape[2:]) + 2 * padding < kernel_size:
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} pixels with padding={padding} are smaller than "
            f"kernel_size={kernel_size}: pad more or take a smaller kernel"
        )


def _by_unfold(x: Tensor, k: int) -> Tensor:
    """The patches' moments from the patches themselves."""
    patches = F.unfold(x, k).transpose(0, 1).flatten(1)
    return (patches @ patches.T).double()


def _by_rows(x: Tensor, k: int) -> Tensor:
    """The patches' moments from those of their rows: a pair of rows of a patch at a time."""
    channels, height = x.shape[1], x.shape[2] - k + 1
    size = channels * k
    # (row of the image, batch * position in the row, channel * column of the patch)
    rows = x.permute(2, 0, 3, 1).unfold(2, k, 1).flatten(3).flatten(1, 2).contiguous()
    blocks = x.new_zeros(k, k, size, size, dtype=torch.float64)
    for first in range(k):
        for second in range(first, k):
            ahead, behind = rows[first : first + height], rows[second : second + height]
            block = (ahead.flatten(0, 1).T @ behind.flatten(0, 1)).double()
            blocks[first, second], blocks[second, first] = block, block.T
    by_value = blocks.view(k, k, channels, k, channels, k).permute(2, 0, 3, 4, 1, 5)
    return by_value.reshape(channels * k * k, channels * k * k)


def _by_autocorrelation(x: Tensor, k: int) -> Tensor:
    """The patches' moments from products of pixels, one displacement after another."""
    channels = x.shape[1]
    # (row, column, batch, channel): a stretch of a row is one matrix with a channel a column.
    pixels = x.permute(2, 3, 0, 1).contiguous()
    moments = x.new_zeros(k, k, k, k, channels, channels, dtype=torch.float64)
    for down, right in _half_plane(k):
        windows = _windows(_products(pixels, k, down, right), k, down, right)
        left = max(0, -right)
        for top in range(k - down):
            for column in range(k - abs(right)):
                u, v = top, column + left
                block = windows[top, column]
                moments[u, v, u + down, v + right] = block
                moments[u + down, v + right, u, v] = block.T
    return moments.permute(4, 0, 1, 5, 2, 3).reshape(channels * k * k, channels * k * k)


def _half_plane(k: int) -> Iterator[tuple[int, int]]:
    """Displacements within a patch, one of each pair of opposite ones."""
    for down in range(k):
        for right in range(1 - k if down else 0, k):
            yield down, right


def _products(pixels: Tensor, k: int, down: int, right: int) -> Tensor:
    """Sums of products of pixels that far apart, by row and by stretch of columns.

    Columns that are in every position of the window are one stretch; those at the border are one each.

    Args:
        pixels: ``(height, width, batch, channels)``.
        k: Size of a patch.
        down: Rows from the first pixel to the second.
        right: Columns, likewise; may be negative.

    Returns:
        ``(rows, 2 * (k - 1 - abs(right)) + 1, channels, channels)``, float64.
    """
    height, width, _, channels = pixels.shape
    rows, shift, moves = height - down, max(0, -right), k - 1 - abs(right)
    columns = width - abs(right)
    first, second = pixels[:rows], pixels[down:]
    edges = [*range(moves + 1), *range(columns - moves, columns + 1)]
    sums = []
    for start, end in pairwise(edges):
        a = first[:, start + shift : end + shift].reshape(rows, -1, channels)
        b = second[:, start + shift + right : end + shift + right].reshape(rows, -1, channels)
        sums.append(torch.bmm(a.transpose(1, 2), b).double())
    return torch.stack(sums, dim=1)


def _windows(products: Tensor, k: int, down: int, right: int) -> Tensor:
    """Sums over every position of the window, ``(k - down, k - abs(right), channels, channels)``."""
    rows, moves = len(products), k - 1 - down
    # Rows that are in every position of the window are one stretch, as the columns are.
    core = products[moves : rows - moves].sum(0, keepdim=True)
    stretches = torch.cat([products[:moves], core, products[rows - moves :]])
    by_row = stretches.unfold(0, moves + 1, 1).sum(-1)
    return by_row.unfold(1, k - abs(right), 1).sum(-1)


_KERNELS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "unfold": _by_unfold,
    "row": _by_rows,
    "autocorrelation": _by_autocorrelation,
}
