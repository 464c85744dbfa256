"""Layers of parameterized hypercomplex multiplication: n components, and how they multiply is learned."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.backprop import bias_vjp, linear_vjp
from lightning_nobp.functional.quaternion.algebra import check_types
from lightning_nobp.functional.quaternion.convolution import Size, convolution, per_dimension
from lightning_nobp.functional.quaternion.hypercomplex import (
    closest_side,
    hamilton_rule,
    phm_to_quaternion,
    phm_weight,
    phm_weight_vjp,
)
from lightning_nobp.functional.quaternion.products import Side
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.nn.quaternion.convolution import QuaternionConv1d, QuaternionConv2d, QuaternionConv3d, WithGeometry
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, QuaternionLinear, check_whole
from lightning_nobp.typed import Typed

Rule = Tensor | Sequence[Sequence[Sequence[float]]]
"""How n components multiply: ``(n, n, n)``, which matrix, component of the output, component of the input."""
_QuaternionConv = QuaternionConv1d | QuaternionConv2d | QuaternionConv3d
_Layer = TypeVar("_Layer", bound="PHMLayer | QuaternionLayer")
_PHMConv = TypeVar("_PHMConv", bound="PHMConv")


class PHMLayer(Typed, nn.Module):
    """What layers of hypercomplex multiplication share: matrices, a weight ``(n, M, N / groups, ...)`` and a bias.

    Attributes:
        n: Number of components.
        rule: As it was given, in lists; None where it is learned.
        matrices: The rule, ``(n, n, n)``: a parameter, or a buffer where it was given.
        weight: ``(n, M, N / groups, ...)``.
        bias: ``(n M,)``, component-major, or None.
        groups: Of channels; 1 but for convolutions.
    """

    matrices: Tensor
    weight: nn.Parameter
    bias: nn.Parameter | None
    groups: int = 1

    def __init__(self, n: int, shape: tuple[int, ...], bias: bool, rule: Rule | None, device: Any, dtype: Any) -> None:
        super().__init__()
        self.n, self.rule = n, None if rule is None else _as_lists(rule, n)
        where = {"device": device, "dtype": dtype}
        matrices = torch.empty(n, n, n, **where)
        if rule is None:
            self.matrices = nn.Parameter(matrices)
        else:
            self.register_buffer("matrices", matrices)
        self.weight = nn.Parameter(torch.empty(n, *shape, **where))
        self.bias = nn.Parameter(torch.empty(n * shape[0], **where)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights and a learned rule anew; a given rule is restored, biases become 0.

        The real weight starts with the variance of that of torch's own layer: entries of the rule have the variance
        ``1 / n``, and each entry of the real weight is a sum of n products.
        """
        if self.rule is None:
            nn.init.normal_(self.matrices, std=1 / math.sqrt(self.n))
        else:
            self.matrices.copy_(torch.tensor(self.rule, dtype=torch.float64, device="cpu"))
        fan_in = self.n * math.prod(self.weight.shape[2:])
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def real_weight(self) -> Tensor:
        """``W = sum_i A_i (x) S_i``, ``(n M, n N / groups, ...)``, outputs group by group."""
        return phm_weight(self.matrices, self.weight, self.groups)

    def _quaternions(self) -> tuple[Side, Tensor]:
        """The weight of the same layer of quaternions, and from which side it multiplies."""
        side = closest_side(self.matrices.detach()) if self.n == 4 else "left"
        return side, phm_to_quaternion(self.matrices.detach(), self.weight.detach(), side)

    def _accumulate(self, grad: Tensor | None) -> None:
        """Hand the gradient of the real weight on to rule and weight."""
        if grad is None:
            return
        needs = {"needs_rule_grad": self.matrices.requires_grad, "needs_weight_grad": self.weight.requires_grad}
        grad_rule, grad_weight = phm_weight_vjp(grad, self.matrices, self.weight, self.groups, **needs)
        accumulate_grad(self.matrices, grad_rule)
        accumulate_grad(self.weight, grad_weight)

    def _learns(self) -> bool:
        return self.matrices.requires_grad or self.weight.requires_grad

    def _options(self) -> str:
        given = "" if self.rule is None else ", rule=given"
        return f", bias={self.bias is not None}{given}"


class PHMLinear(PHMLayer):
    """A fully connected layer whose weight is a sum of Kronecker products, with about 1/n of the weights.

    Args:
        n: Number of components; 4 with :func:`hamilton_rule` makes quaternions.
        in_features: Real features of the input, divisible by n, component-major.
        out_features: Real features of the output, divisible by n.
        bias: Whether to add a bias.
        rule: ``(n, n, n)``, a tensor or nested lists, how components multiply, which then is not learned; None to learn
            it.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: Sizes that are no whole numbers, or a rule that is not of numbers.
        ValueError: Features that are not divisible by ``n``, or a rule of another shape.

    References:
        Zhang et al., "Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex
        Multiplications with 1/n Parameters", arXiv 2102.08597.
    """

    def __init__(
        self,
        n: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rule: Rule | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_divisible(n, in_features=in_features, out_features=out_features)
        super().__init__(n, (out_features // n, in_features // n), bias, rule, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_quaternion(cls, layer: QuaternionLinear) -> "PHMLinear":
        """The same layer as one of n = 4 with the rule of Hamilton, of weights of its own."""
        _check_kind("layer", layer, QuaternionLinear)
        found = cls(4, layer.in_features, layer.out_features, layer.bias is not None, **_hamilton_options(layer))
        return _filled(found, layer.weight, layer)

    def to_quaternion(self, **options: Any) -> QuaternionLinear:
        """The same layer as one of quaternions, of weights of its own.

        Args:
            **options: Of the layer of quaternions, like ``algorithm``.

        Raises:
            ValueError: The rule is not that of quaternions from either side; says how far it is off.
        """
        side, weight = self._quaternions()
        options |= {"side": side, "device": weight.device, "dtype": weight.dtype}
        found = QuaternionLinear(self.in_features, self.out_features, self.bias is not None, **options)
        return _filled(found, weight, self)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(..., out_features)`` of ``(..., in_features)``, component-major both.

        Raises:
            ValueError: Another number of features, or another type than the weight's.
        """
        self._check(x)
        return F.linear(x, self.real_weight(), self.bias)

    def _check(self, x: Tensor) -> None:
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x of shape {tuple(x.shape)} does not fit in_features={self.in_features}: give "
                f"(..., {self.in_features})"
            )
        check_types(x, self.weight)

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return f"n={self.n}, {self.in_features}, {self.out_features}{self._options()}"


class PHMConv(WithGeometry, PHMLayer):
    """Layers with a kernel: :class:`PHMConv2d` and its kin."""

    convolve: ClassVar[Callable[..., Tensor]]
    quaternion: ClassVar[type[_QuaternionConv]]

    def __init__(
        self,
        n: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        rule: Rule | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_divisible(n, in_channels=in_channels, out_channels=out_channels)
        named = {} if isinstance(padding, str) else {"padding": padding}
        check_whole(kernel_size=kernel_size, stride=stride, dilation=dilation, groups=groups, **named)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels // n % groups:
                raise ValueError(f"groups={groups} does not divide the {channels // n} numbers of {name}={channels}")
        dims = self.quaternion.dims
        kernel = per_dimension("kernel_size", kernel_size, dims, least=1)
        shape = (out_channels // n, in_channels // n // groups, *kernel)
        # Of quaternions, since that is what it asks for; there is no other difference.
        weight = torch.empty(4, *shape, device="meta")
        self.geometry = convolution(dims, weight, stride, padding, dilation, groups)
        self.groups = groups
        super().__init__(n, shape, bias, rule, device, dtype)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel

    @classmethod
    def from_quaternion(cls: type[_PHMConv], layer: _QuaternionConv) -> _PHMConv:
        """The same layer as one of n = 4 with the rule of Hamilton, of weights of its own.

        Raises:
            TypeError: No convolution of quaternions over as many dimensions.
            ValueError: It pads with something else than zeros.
        """
        _check_kind("layer", layer, cls.quaternion)
        if layer.padding_mode != "zeros":
            raise ValueError(f"layer pads with padding_mode={layer.padding_mode!r}: {cls.__name__} knows zeros alone")
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        found = cls(4, *sizes, layer.groups, layer.bias is not None, **_hamilton_options(layer))
        return _filled(found, layer.weight, layer)

    def to_quaternion(self, **options: Any) -> _QuaternionConv:
        """The same layer as one of quaternions, of weights of its own.

        Args:
            **options: Of the layer of quaternions, like ``algorithm``.

        Raises:
            ValueError: The rule is not that of quaternions from either side; says how far it is off.
        """
        side, weight = self._quaternions()
        sizes = (self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation)
        options |= {"side": side, "device": weight.device, "dtype": weight.dtype}
        return _filled(self.quaternion(*sizes, self.groups, self.bias is not None, **options), weight, self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, out_channels, ...)`` of ``(batch, in_channels, ...)``, or without the batch.

        Channels are component-major.

        Raises:
            ValueError: Other channels or dimensions, or another type than the weight's.
        """
        return self._convolved(x, self.real_weight())

    def _convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        channel = self._check(x)
        bias = None if self.bias is None else self._gather(self.bias, 0)
        y = type(self).convolve(
            self._gather(x, channel), weight, bias, self.stride, self.padding, self.dilation, self.groups
        )
        return self._gather(y, channel, back=True)

    def _gather(self, x: Tensor, channel: int, *, back: bool = False) -> Tensor:
        """All n components of each group together; ``back`` component-major."""
        if self.groups == 1:
            return x
        parts = (self.groups, self.n) if back else (self.n, self.groups)
        split = torch.unflatten(x, channel, (*parts, x.shape[channel] // (self.n * self.groups)))
        return split.transpose(channel, channel + 1).flatten(channel, channel + 2)

    def _check(self, x: Tensor) -> int:
        """The dimension of the channels."""
        channel = x.dim() - len(self.kernel_size) - 1
        if channel not in (0, 1) or x.shape[channel] != self.in_channels:
            raise ValueError(
                f"x of shape {tuple(x.shape)} does not fit in_channels={self.in_channels}: give (batch, "
                f"{self.in_channels}, ...) with {len(self.kernel_size)} more dimensions, or that without the batch"
            )
        check_types(x, self.weight)
        return channel

    def extra_repr(self) -> str:
        """Sizes and options, for printing; what is as usual is left out, as torch does."""
        geometry = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        dilation = f", dilation={self.dilation}" if any(d != 1 for d in self.dilation) else ""
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"n={self.n}, {self.in_channels}, {self.out_channels}, {geometry}{dilation}{groups}{self._options()}"


class PHMConv1d(PHMConv):
    """:class:`PHMConv2d` over sequences ``(batch, channels, length)``."""

    convolve, quaternion = staticmethod(F.conv1d), QuaternionConv1d


class PHMConv2d(PHMConv):
    """A convolution whose kernel is a sum of Kronecker products, with about 1/n of the weights.

    Args:
        n: Number of components; 4 with :func:`hamilton_rule` makes quaternions.
        in_channels: Real channels of the input, divisible by n, component-major.
        out_channels: Real channels of the output, divisible by n.
        kernel_size: One number or one a dimension.
        stride: Likewise.
        padding: Zeros on each side, likewise; or ``'valid'``, ``'same'``.
        dilation: Of the kernel, likewise.
        groups: Of numbers of n channels: each group holds all components of its numbers.
        bias: Whether to add a bias.
        rule: ``(n, n, n)``, a tensor or nested lists, how components multiply, which then is not learned; None to learn
            it.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: Sizes that are no whole numbers, or a rule that is not of numbers.
        ValueError: Channels that are not divisible by ``n`` or by groups of n, a rule of another shape, or a size
            outside its range.

    References:
        Grassucci, Zhang and Comminiello, "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex
        Convolutions", arXiv 2110.04176.
    """

    convolve, quaternion = staticmethod(F.conv2d), QuaternionConv2d


class PHMConv3d(PHMConv):
    """:class:`PHMConv2d` over volumes ``(batch, channels, depth, height, width)``."""

    convolve, quaternion = staticmethod(F.conv3d), QuaternionConv3d


@register_vjp(PHMLinear)
def _linear(layer: PHMLinear, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    layer._check(x)
    weight = layer.real_weight()

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight = linear_vjp(
            grad, x, weight, needs_input_grad=needs_input_grad, needs_weight_grad=layer._learns()
        )
        layer._accumulate(grad_weight)
        if layer.bias is not None and layer.bias.requires_grad:
            accumulate_grad(layer.bias, bias_vjp(grad))
        return grad_x

    return F.linear(x, weight, layer.bias), pull


@register_vjp(PHMConv)
def _convolution(layer: PHMConv, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    weight = layer.real_weight()

    def pull(grad: Tensor) -> Tensor | None:
        if layer.bias is not None and layer.bias.requires_grad:
            accumulate_grad(layer.bias, bias_vjp(grad, channel_dim=1))
        grad, values, kernel = layer._gather(grad, 1), layer._gather(x, 1).to(grad.dtype), weight.to(grad.dtype)
        if layer._learns():
            layer._accumulate(layer.geometry.weight_grad(grad, values, kernel))
        if not needs_input_grad:
            return None
        return layer._gather(layer.geometry.input_grad(grad, values, kernel), 1, back=True)

    return layer._convolved(x, weight), pull


def _filled(found: _Layer, weight: Tensor, layer: "PHMLayer | QuaternionLayer") -> _Layer:
    """``found`` with this weight, and all else of ``layer``."""
    with torch.no_grad():
        found.weight.copy_(weight).requires_grad_(layer.weight.requires_grad)
        if found.bias is not None and layer.bias is not None:
            found.bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
    found.train(layer.training)
    return found


def _hamilton_options(layer: QuaternionLayer) -> dict[str, Any]:
    """What the same layer of hypercomplex multiplication is made with."""
    return {"rule": hamilton_rule(layer.side), "device": layer.weight.device, "dtype": layer.weight.dtype}


def _as_lists(rule: Rule, n: int) -> list[Any]:
    try:
        numbers = torch.as_tensor(rule, dtype=torch.float64, device="cpu")
        lists: list[Any] = numbers.tolist()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise TypeError(f"rule={rule!r} holds no numbers: give a tensor or nested lists, ({n}, {n}, {n})") from error
    if numbers.shape != (n, n, n):
        raise ValueError(f"rule of shape {tuple(numbers.shape)} does not fit n={n}: give ({n}, {n}, {n})")
    return lists


def _check_kind(name: str, layer: nn.Module, kind: type[nn.Module]) -> None:
    if not isinstance(layer, kind):
        raise TypeError(f"{name} is a {type(layer).__name__}: give a {kind.__name__}")


def _check_divisible(n: int, **sizes: int) -> None:
    check_whole(n=n, **sizes)
    if n < 1:
        raise ValueError(f"n={n} components: give at least one")
    for name, value in sizes.items():
        if value < 1 or value % n:
            raise ValueError(f"{name}={value} must be a positive multiple of n={n}: each number has n components")
