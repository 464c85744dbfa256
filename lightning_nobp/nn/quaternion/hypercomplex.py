"""Layers of parameterized hypercomplex multiplication: n components, and how they multiply is learned."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.backprop import bias_vjp, conv2d_vjp, linear_vjp
from lightning_nobp.functional.quaternion.convolution import Size, per_dimension
from lightning_nobp.functional.quaternion.hypercomplex import phm_weight, phm_weight_vjp
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp


class PHMLayer(nn.Module):
    """What layers of hypercomplex multiplication share: a rule, a weight ``(n, M, N, ...)`` and a bias.

    Attributes:
        n: Number of components.
        rule: ``(n, n, n)``, a parameter; a buffer where it was given.
        weight: ``(n, M, N, ...)``.
        bias: ``(n M,)``, component-major, or None.
    """

    rule: Tensor
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, n: int, shape: tuple[int, ...], bias: bool, rule: Tensor | None, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        self.n = n
        where = {"device": device, "dtype": dtype}
        if rule is None:
            self.rule = nn.Parameter(torch.empty(n, n, n, **where))
        else:
            if rule.shape != (n, n, n):
                raise ValueError(f"rule of shape {tuple(rule.shape)} does not fit n={n}: give ({n}, {n}, {n})")
            self.register_buffer("rule", torch.empty(n, n, n, **where).copy_(rule.detach()))
        self.weight = nn.Parameter(torch.empty(n, *shape, **where))
        self.bias = nn.Parameter(torch.empty(n * shape[0], **where)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights and a learned rule anew; biases become 0.

        The real weight starts with the variance of that of torch's own layer: entries of the rule have the variance
        ``1 / n``, and each entry of the real weight is a sum of n products.
        """
        if isinstance(self.rule, nn.Parameter):
            nn.init.normal_(self.rule, std=1 / math.sqrt(self.n))
        fan_in = self.n * math.prod(self.weight.shape[2:])
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def real_weight(self) -> Tensor:
        """``W = sum_i A_i (x) S_i``, ``(n M, n N, ...)``."""
        return phm_weight(self.rule, self.weight)

    def _accumulate(self, grad: Tensor | None) -> None:
        """Hand the gradient of the real weight on to rule and weight."""
        if grad is None:
            return
        needs = {"needs_rule_grad": self.rule.requires_grad, "needs_weight_grad": self.weight.requires_grad}
        grad_rule, grad_weight = phm_weight_vjp(grad, self.rule, self.weight, **needs)
        accumulate_grad(self.rule, grad_rule)
        accumulate_grad(self.weight, grad_weight)

    def _learns(self) -> bool:
        return self.rule.requires_grad or self.weight.requires_grad


class PHMLinear(PHMLayer):
    """A fully connected layer whose weight is a sum of Kronecker products, with about 1/n of the weights.

    Args:
        n: Number of components; 4 with :func:`hamilton_rule` makes quaternions.
        in_features: Real features of the input, divisible by n, component-major.
        out_features: Real features of the output, divisible by n.
        bias: Whether to add a bias.
        rule: ``(n, n, n)``, how components multiply, which then is not learned; None to learn it.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
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
        rule: Tensor | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_divisible(n, in_features=in_features, out_features=out_features)
        super().__init__(n, (out_features // n, in_features // n), bias, rule, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(..., out_features)`` of ``(..., in_features)``, component-major both."""
        return F.linear(x, self.real_weight(), self.bias)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"n={self.n}, {self.in_features}, {self.out_features}, bias={self.bias is not None}"


class PHMConv2d(PHMLayer):
    """A convolution whose kernel is a sum of Kronecker products, with about 1/n of the weights.

    Args:
        n: Number of components; 4 with :func:`hamilton_rule` makes quaternions.
        in_channels: Real channels of the input, divisible by n, component-major.
        out_channels: Real channels of the output, divisible by n.
        kernel_size: One number or two.
        stride: Likewise.
        padding: Zeros on each side, likewise.
        dilation: Of the kernel, likewise.
        bias: Whether to add a bias.
        rule: ``(n, n, n)``, how components multiply, which then is not learned; None to learn it.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: Channels that are not divisible by ``n``, a rule of another shape, or a size outside its range.

    References:
        Grassucci, Zhang and Comminiello, "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex
        Convolutions", arXiv 2110.04176.
    """

    def __init__(
        self,
        n: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        bias: bool = True,
        *,
        rule: Tensor | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_divisible(n, in_channels=in_channels, out_channels=out_channels)
        kernel = per_dimension("kernel_size", kernel_size, 2, least=1)
        super().__init__(n, (out_channels // n, in_channels // n, *kernel), bias, rule, device, dtype)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride = per_dimension("stride", stride, 2, least=1)
        self.padding = per_dimension("padding", padding, 2, least=0)
        self.dilation = per_dimension("dilation", dilation, 2, least=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, out_channels, ...)`` of ``(batch, in_channels, ...)``, channels component-major."""
        return F.conv2d(x, self.real_weight(), self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        geometry = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"n={self.n}, {self.in_channels}, {self.out_channels}, {geometry}, bias={self.bias is not None}"


@register_vjp(PHMLinear)
def _linear(layer: PHMLinear, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
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


@register_vjp(PHMConv2d)
def _conv2d(layer: PHMConv2d, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    weight = layer.real_weight()

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight = conv2d_vjp(
            grad,
            x,
            weight,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=1,
            needs_input_grad=needs_input_grad,
            needs_weight_grad=layer._learns(),
        )
        layer._accumulate(grad_weight)
        if layer.bias is not None and layer.bias.requires_grad:
            accumulate_grad(layer.bias, bias_vjp(grad, channel_dim=1))
        return grad_x

    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation), pull


def _check_divisible(n: int, **sizes: int) -> None:
    if n < 1:
        raise ValueError(f"n={n} components: give at least one")
    for name, value in sizes.items():
        if value < 1 or value % n:
            raise ValueError(f"{name}={value} must be a positive multiple of n={n}: each number has n components")
