"""Convolutions of quaternions, and transposed ones."""

from itertools import chain
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional.backprop import bias_vjp
from lightning_nobp.functional.quaternion.convolution import (
    Convolution,
    Size,
    convolution,
    per_dimension,
    quaternion_conv,
    quaternion_conv_vjp,
)
from lightning_nobp.functional.quaternion.products import Algorithm, Side
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.nn.quaternion.init import Criterion, Initialisation
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, check_quaternions, check_whole

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class WithGeometry:
    """The numbers of a convolution, where torch's layers have them too."""

    geometry: Convolution

    @property
    def stride(self) -> tuple[int, ...]:
        """Of each dimension."""
        return self.geometry.stride

    @property
    def padding(self) -> tuple[int, ...]:
        """Zeros on each side, or what the padding mode puts there."""
        return self.geometry.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        """Of the kernel."""
        return self.geometry.dilation


class QuaternionConv(WithGeometry, QuaternionLayer):
    """Layers with a kernel: :class:`QuaternionConv2d` and :class:`QuaternionConvTranspose2d` and their kin."""

    dims: ClassVar[int]
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        geometry: dict[str, Any],
        bias: bool,
        **options: Any,
    ) -> None:
        check_quaternions(in_channels=in_channels, out_channels=out_channels)
        check_whole(kernel_size=kernel_size)
        groups = geometry["groups"]
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels // 4 % groups:
                raise ValueError(
                    f"groups={groups} does not divide the {channels // 4} quaternions of {name}={channels}"
                )
        kernel = per_dimension("kernel_size", kernel_size, self.dims, least=1)
        inputs, outputs = in_channels // 4, out_channels // 4
        shape = (inputs, outputs // groups) if self.transposed else (outputs, inputs // groups)
        # Looked at before there is a weight, since the geometry may not fit.
        weight = torch.empty(4, *shape, *kernel, device="meta")
        self.geometry = convolution(self.dims, weight, **geometry, transposed=self.transposed)
        super().__init__(tuple(weight.shape), outputs, bias, **options)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel

    @property
    def groups(self) -> int:
        """Of quaternion channels."""
        return self.geometry.groups

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Of a transposed convolution: added to one side of the output."""
        return self.geometry.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, out_channels, ...)`` of ``(batch, in_channels, ...)``, channels component-major."""
        return quaternion_conv(x, self.weight, self.bias, self.geometry, self.side, self.algorithm)

    def _by_group(self, weight: Tensor) -> tuple[Tensor, ...]:
        # The first channels are outputs, those of a transposed convolution inputs; either way they are what is split.
        parts = weight.chunk(self.groups, dim=1)
        return tuple(part.transpose(1, 2) for part in parts) if self.transposed else parts

    def extra_repr(self) -> str:
        """Sizes and options, for printing; what is as usual is left out, as torch does."""
        shown = {"kernel_size": self.kernel_size, "stride": self.stride}
        if any(self.padding):
            shown["padding"] = self.padding
        if any(self.output_padding):
            shown["output_padding"] = self.output_padding
        if any(d != 1 for d in self.dilation):
            shown["dilation"] = self.dilation
        geometry = ", ".join(f"{name}={value}" for name, value in shown.items())
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"{self.in_channels}, {self.out_channels}, {geometry}{groups}{self._options()}"


class _Forward(QuaternionConv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        init: Initialisation = "polar",
        criterion: Criterion = "he",
        side: Side = "left",
        algorithm: Algorithm = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if padding_mode not in get_args(PaddingMode):
            raise ValueError(
                f"padding_mode={padding_mode!r} is not one of {', '.join(map(repr, get_args(PaddingMode)))}"
            )
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        check_whole(**(geometry | {"padding": 0} if isinstance(padding, str) else geometry))
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            geometry,
            bias,
            init=init,
            criterion=criterion,
            side=side,
            algorithm=algorithm,
            device=device,
            dtype=dtype,
        )
        self.padding_mode = padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, out_channels, ...)`` of ``(batch, in_channels, ...)``, channels component-major."""
        if self.padding_mode == "zeros":
            return super().forward(x)
        both_sides = list(chain.from_iterable((p, p) for p in reversed(self.padding)))
        unpadded = Convolution(self.stride, (0,) * self.dims, self.dilation, self.groups)
        x = F.pad(x, both_sides, mode=self.padding_mode)
        return quaternion_conv(x, self.weight, self.bias, unpadded, self.side, self.algorithm)

    def extra_repr(self) -> str:
        """Sizes and options, for printing; what is as usual is left out, as torch does."""
        mode = "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode}"
        return f"{super().extra_repr()}{mode}"


class QuaternionConv1d(_Forward):
    """:class:`QuaternionConv2d` over sequences ``(batch, channels, length)``."""

    dims = 1


class QuaternionConv2d(_Forward):
    """A convolution whose kernels multiply by the Hamilton product, with a quarter of the weights of ``nn.Conv2d``.

    Channels are component-major: the first quarter holds the real parts. The arguments are those of ``nn.Conv2d``,
    and four more.

    Args:
        in_channels: Real channels of the input, four a quaternion: ``4N``.
        out_channels: Real channels of the output: ``4M``.
        kernel_size: One number or one a dimension.
        stride: Likewise.
        padding: Likewise; or ``'valid'``, ``'same'``.
        dilation: Likewise.
        groups: Of quaternion channels: each group holds all components of its quaternions.
        bias: Whether to add a bias.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        init: See :func:`quaternion_init_`.
        criterion: See :func:`quaternion_init_`.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: See :func:`lightning_nobp.functional.quaternion.quaternion_linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: Sizes that are no whole numbers.
        ValueError: Channels that are not divisible by 4 or by groups of 4, or an argument outside its range.

    References:
        Parcollet, Morchid and Linares, "Quaternion Convolutional Neural Networks for Heterogeneous Image Processing",
        arXiv 1811.02656. Gaudet and Maida, "Deep Quaternion Networks", arXiv 1712.04604.
    """

    dims = 2


class QuaternionConv3d(_Forward):
    """:class:`QuaternionConv2d` over volumes ``(batch, channels, depth, height, width)``."""

    dims = 3


class _Transposed(QuaternionConv):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        init: Initialisation = "polar",
        criterion: Criterion = "he",
        side: Side = "left",
        algorithm: Algorithm = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        geometry = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "output_padding": output_padding,
        }
        check_whole(**geometry)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            geometry,
            bias,
            init=init,
            criterion=criterion,
            side=side,
            algorithm=algorithm,
            device=device,
            dtype=dtype,
        )
        for extra, *largest in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(largest):
                raise ValueError(
                    f"output_padding={output_padding} must be smaller than stride or dilation, {stride} and {dilation}"
                )


class QuaternionConvTranspose1d(_Transposed):
    """:class:`QuaternionConvTranspose2d` over sequences ``(batch, channels, length)``."""

    dims = 1


class QuaternionConvTranspose2d(_Transposed):
    """The transposed convolution of quaternions: maps grow by the stride.

    The weight is ``(4, N, M / groups, kernel_height, kernel_width)``, inputs before outputs as in
    ``nn.ConvTranspose2d``; the product is still ``w x``, not that with the conjugate.

    Args:
        in_channels: Real channels of the input, ``4N``.
        out_channels: Real channels of the output, ``4M``.
        kernel_size: One number or one a dimension.
        stride: Likewise.
        padding: Likewise.
        output_padding: Added to one side of the output; smaller than the stride or the dilation.
        groups: Of quaternion channels.
        bias: Whether to add a bias.
        dilation: Of the kernel.
        init: See :func:`quaternion_init_`.
        criterion: See :func:`quaternion_init_`.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: See :func:`lightning_nobp.functional.quaternion.quaternion_linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: Sizes that are no whole numbers.
        ValueError: Channels that are not divisible by 4 or by groups of 4, or an argument outside its range.
    """

    dims = 2


class QuaternionConvTranspose3d(_Transposed):
    """:class:`QuaternionConvTranspose2d` over volumes ``(batch, channels, depth, height, width)``."""

    dims = 3


def check_zero_padding(layer: QuaternionConv, name: str) -> None:
    """Refuse a convolution whose way back is not written.

    Raises:
        TypeError: It pads with something else than zeros; the message calls it ``name``.
    """
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise TypeError(
            f"{name} is a {type(layer).__name__} with padding_mode={layer.padding_mode!r}: only 'zeros' has a written "
            "backward pass; let autograd do it"
        )


@register_vjp(_Forward, check=check_zero_padding)
@register_vjp(_Transposed)
def _convolution(layer: QuaternionConv, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    check_zero_padding(layer, "network")

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight = quaternion_conv_vjp(
            grad,
            x.to(grad.dtype),
            layer.weight.to(grad.dtype),
            layer.geometry,
            side=layer.side,
            algorithm=layer.algorithm,
            needs_input_grad=needs_input_grad,
            needs_weight_grad=layer.weight.requires_grad,
        )
        accumulate_grad(layer.weight, grad_weight)
        if layer.bias is not None and layer.bias.requires_grad:
            accumulate_grad(layer.bias, bias_vjp(grad, channel_dim=1))
        return grad_x

    return layer(x), pull
