"""Convolutions of quaternions, and transposed ones, over one, two or three dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional.quaternion.algebra import check_features
from lightning_nobp.functional.quaternion.linear import check_bias
from lightning_nobp.functional.quaternion.products import (
    Algorithm,
    Side,
    check_options,
    hamilton_block,
    hamilton_block_vjp,
    quaternion_product,
    quaternion_product_vjp,
)
from lightning_nobp.typed import explained

Size = int | Sequence[int]
"""A number for every dimension, or one for each."""
_FORWARD = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Convolution:
    """Real convolutions of one geometry, the product behind the quaternion ones.

    Args:
        stride: Of each dimension.
        padding: Zeros on each side.
        dilation: Of the kernel.
        groups: Of channels.
        transposed: Whether it is the transposed convolution.
        output_padding: Of a transposed one: what is added to one side of the output.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    # Maps are large enough to fill the cache by themselves, and torch's kernels go sample by sample.
    chunk = 2**31

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of ``x`` ``(batch, channels, *size)`` with a bias of one number a channel."""
        # Not torch.convolution, which autocast passes over on the CPU.
        dims = len(self.stride) - 1
        if not self.transposed:
            return _FORWARD[dims](x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        extra = self.output_padding or (0,) * len(self.stride)
        return _TRANSPOSED[dims](x, weight, bias, self.stride, self.padding, extra, self.groups, self.dilation)

    def forward(
        self, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1, keep: float = 1
    ) -> Tensor:
        """The convolution without a bias."""
        y = self.layer(x, weight, None)
        if onto is None:
            return y
        return (onto if keep == 1 else onto.mul_(keep)).add_(y, alpha=factor)

    def input_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1
    ) -> Tensor:
        """Gradient of the input."""
        found = self._backward(grad, x, weight, [True, False, False])[0]
        return found if onto is None else onto.add_(found, alpha=factor)

    def weight_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1
    ) -> Tensor:
        """Gradient of the kernel."""
        found = self._backward(grad, x, weight, [False, True, False])[1]
        return found if onto is None else onto.add_(found, alpha=factor)

    def _backward(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
            wanted,
        )
        return found

    def block(self, weight: Tensor, side: Side) -> Tensor:
        """The kernels of a real convolution of four times the channels, group by group."""
        return torch.cat([self._turned(hamilton_block(self._turned(w, 1), side)) for w in self._grouped(weight, 1)])

    def block_vjp(self, grad: Tensor, side: Side) -> Tensor:
        """The gradient of the quaternion kernels for that of :meth:`block`."""
        parts = [self._turned(hamilton_block_vjp(self._turned(g), side), 1) for g in self._grouped(grad, 0)]
        return torch.cat(parts, dim=1)

    def _grouped(self, weight: Tensor, dim: int) -> tuple[Tensor, ...]:
        return weight.chunk(self.groups, dim)

    def _turned(self, weight: Tensor, dim: int = 0) -> Tensor:
        # Transposed convolutions have inputs before outputs.
        return weight.transpose(dim, dim + 1) if self.transposed else weight

    def gather(self, x: Tensor, *, back: bool = False) -> Tensor:
        """All four components of each group together; ``back`` component-major."""
        if self.groups == 1:
            return x
        parts = (self.groups, 4, -1) if back else (4, self.groups, -1)
        return torch.unflatten(x, 1, parts).transpose(1, 2).flatten(1, 3)

    def gains(self, x: Tensor, weight: Tensor) -> bool:
        """Measured for kernels of 3x3."""
        return min(weight.shape[1] // self.groups, weight.shape[2]) >= 32


@explained
def quaternion_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """:func:`quaternion_conv2d` over sequences ``(batch, 4N, length)``, with kernels ``(4, M, N / groups, k)``."""
    geometry = convolution(1, weight, stride, padding, dilation, groups)
    return quaternion_conv(x, weight, bias, geometry, side, algorithm)


@explained
def quaternion_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """Convolve maps of quaternions with kernels of quaternions.

    Args:
        x: ``(batch, 4N, height, width)``, or without the batch; channels component-major.
        weight: ``(4, M, N / groups, kernel_height, kernel_width)``.
        bias: ``(4M,)``, component-major, or None.
        stride: One number or one a dimension.
        padding: Zeros on each side, likewise; or ``'valid'`` for none, ``'same'`` for outputs as large as inputs.
        dilation: Of the kernel.
        groups: Of quaternion channels; each holds all four components of its quaternions.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: See :func:`quaternion_linear`.

    Returns:
        ``(batch, 4M, out_height, out_width)``.

    Raises:
        ValueError: Shapes or numbers that do not fit, or an unknown side or algorithm.
    """
    geometry = convolution(2, weight, stride, padding, dilation, groups)
    return quaternion_conv(x, weight, bias, geometry, side, algorithm)


@explained
def quaternion_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """:func:`quaternion_conv2d` over volumes ``(batch, 4N, depth, height, width)``."""
    geometry = convolution(3, weight, stride, padding, dilation, groups)
    return quaternion_conv(x, weight, bias, geometry, side, algorithm)


@explained
def quaternion_conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """:func:`quaternion_conv_transpose2d` over sequences ``(batch, 4N, length)``."""
    geometry = convolution(1, weight, stride, padding, dilation, groups, transposed=True, output_padding=output_padding)
    return quaternion_conv(x, weight, bias, geometry, side, algorithm)


@explained
def quaternion_conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """The transposed convolution, ``F.conv_transpose2d`` with Hamilton products ``w x`` or ``x w``.

    Args:
        x: ``(batch, 4N, height, width)``, or without the batch; channels component-major.
        weight: ``(4, N, M / groups, kernel_height, kernel_width)``.
        bias: ``(4M,)``, component-major, or None.
        stride: One number or one a dimension.
        padding: What is cut off each side of the output, likewise.
        output_padding: What is added to one side of it, likewise.
        groups: Of quaternion channels.
        dilation: Of the kernel.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: See :func:`quaternion_linear`.

    Returns:
        ``(batch, 4M, out_height, out_width)``.

    Raises:
        ValueError: Shapes or numbers that do not fit, or an unknown side or algorithm.
    """
    geometry = convolution(2, weight, stride, padding, dilation, groups, transposed=True, output_padding=output_padding)
    return quaternion_conv(x, weight, bias, geometry, side, algorithm)


@explained
def quaternion_conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """:func:`quaternion_conv_transpose2d` over volumes ``(batch, 4N, depth, height, width)``."""
    geometry = convolution(3, weight, stride, padding, dilation, groups, transposed=True, output_padding=output_padding)
    return quaternion_conv(x, weight, bias, geometry, side, algorithm)


def convolution(
    dims: int,
    weight: Tensor,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Size = 0,
) -> Convolution:
    """The geometry of a convolution over ``dims`` dimensions, checked against its weight.

    Raises:
        ValueError: A number outside its range, or a weight of another number of dimensions.
    """
    if weight.dim() != dims + 3 or weight.shape[0] != 4:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} is not (4, M, N / groups, ...) with {dims} kernel dimensions"
        )
    if not isinstance(groups, Integral) or groups < 1 or weight.shape[1] % groups:
        raise ValueError(f"groups={groups} does not divide the {weight.shape[1]} quaternion channels of the weight")
    dilations = per_dimension("dilation", dilation, dims, least=1)
    strides = per_dimension("stride", stride, dims, least=1)
    pads = (
        _named_padding(padding, tuple(weight.shape[3:]), strides, dilations)
        if isinstance(padding, str)
        else per_dimension("padding", padding, dims, least=0)
    )
    extra = per_dimension("output_padding", output_padding, dims, least=0)
    return Convolution(strides, pads, dilations, groups, transposed, extra)


def quaternion_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Convolution,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """A convolution of quaternions of any geometry; see :func:`quaternion_conv2d`."""
    check_options(side, algorithm)
    batched = _check(x, weight, bias, geometry)
    y = quaternion_product(x if batched else x.unsqueeze(0), weight, bias, geometry, side, algorithm)
    return y if batched else y.squeeze(0)


def quaternion_conv_vjp(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Convolution,
    *,
    side: Side = "left",
    algorithm: Algorithm = "auto",
    needs_input_grad: bool = True,
    needs_weight_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`quaternion_conv` for ``grad``, that of its output, None where not needed.

    Args:
        grad: ``(batch, 4M, ...)``.
        x: ``(batch, 4N, ...)``.
        weight: As in the forward pass, and so are the next three.
        geometry: See :func:`convolution`.
        side: Of the weights.
        algorithm: See :func:`quaternion_linear`.
        needs_input_grad: Whether to compute the gradient of ``x``.
        needs_weight_grad: Whether to compute the gradient of ``weight``.
    """
    wanted = (needs_input_grad, needs_weight_grad)
    return quaternion_product_vjp(grad, x, weight, geometry, side, algorithm, wanted)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Convolution) -> bool:
    dims = len(geometry.stride)
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(
            f"x of shape {tuple(x.shape)} is not (batch, 4N, ...) or (4N, ...) with {dims} more dimensions"
        )
    channels = x.shape[-dims - 1]
    check_features(channels, "x")
    inputs = weight.shape[1] if geometry.transposed else weight.shape[2] * geometry.groups
    if channels != 4 * inputs:
        raise ValueError(
            f"x has {channels} channels, {channels // 4} quaternions: weight of shape {tuple(weight.shape)} with "
            f"groups={geometry.groups} takes {inputs} quaternions"
        )
    check_bias(bias, weight.shape[2] * geometry.groups if geometry.transposed else weight.shape[1])
    return x.dim() == dims + 2


def per_dimension(name: str, value: Size, dims: int, least: int) -> tuple[int, ...]:
    """One number for each of ``dims`` dimensions.

    Raises:
        ValueError: Another count of numbers, or one below ``least``; the message calls them ``name``.
    """
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(numbers) != dims or any(not isinstance(n, Integral) or n < least for n in numbers):
        raise ValueError(f"{name}={value!r} must be one whole number of at least {least}, or {dims} of them")
    return tuple(map(int, numbers))


def _named_padding(
    padding: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    if padding == "valid":
        return (0,) * len(kernel)
    if padding != "same":
        raise ValueError(f"padding={padding!r} is not 'same', 'valid' or numbers")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in total) or any(s != 1 for s in stride):
        raise ValueError(
            f"padding='same' needs stride 1 and an odd kernel, not stride {stride} and kernel {kernel} with dilation "
            f"{dilation}: give the padding as numbers"
        )
    return tuple(t // 2 for t in total)
