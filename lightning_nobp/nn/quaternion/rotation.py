"""The fully connected layer of rotations."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.functional.backprop import bias_vjp
from lightning_nobp.functional.quaternion.rotation import quaternion_rotation, quaternion_rotation_vjp
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.nn.quaternion.linear import check_whole
from lightning_nobp.typed import Typed


class QuaternionRotation(Typed, nn.Module):
    """A fully connected layer over vectors of three components: each weight turns its vector, and scales it.

    ``y_m = sum_n s_mn u_mn x_n u_mn^-1 + b_m`` with ``u = w / |w|``: colours and directions stay vectors. The length of
    w does not matter; w = 0 is the identity. Rotations start uniformly distributed, scales at ``1 / sqrt(N)``, such
    that the mean squared length of a vector stays as it is.

    Args:
        in_features: Real features of the input, three a vector: ``3N``, component-major: all i, all j, all k.
        out_features: Real features of the output: ``3M``.
        bias: Whether to add a bias.
        scale: Whether scales are learned; else they stay at ``1 / sqrt(N)``.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        weight: ``(4, M, N)``: component, output, input.
        scale: Whether scales are learned.
        scales: ``(M, N)``; a buffer ``()`` where they are not learned.
        bias: ``(3M,)``, component-major, or None.

    Raises:
        TypeError: Features that are no whole number.
        ValueError: Features that are not divisible by 3.

    References:
        Zhu et al., "Quaternion Convolutional Neural Networks", arXiv 1903.00658.
    """

    weight: nn.Parameter
    scales: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scale: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_whole(in_features=in_features, out_features=out_features)
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 3 or value % 3:
                raise ValueError(f"{name}={value}: vectors take three features each, all i first, then all j, all k")
        self.in_features, self.out_features, self.scale = in_features, out_features, scale
        where = {"device": device, "dtype": dtype}
        outputs, inputs = out_features // 3, in_features // 3
        self.weight = nn.Parameter(torch.empty(4, outputs, inputs, **where))
        if scale:
            self.scales = nn.Parameter(torch.empty(outputs, inputs, **where))
        else:
            self.register_buffer("scales", torch.empty((), **where))
        self.bias = nn.Parameter(torch.empty(out_features, **where)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the rotations anew; scales and biases go back to where they start."""
        nn.init.normal_(self.weight)
        self.weight.div_(torch.linalg.vector_norm(self.weight, dim=0))
        self.scales.fill_(1 / math.sqrt(self.in_features // 3))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(..., out_features)`` of ``(..., in_features)``, component-major both.

        Raises:
            ValueError: Another number of features, or another type than the weight's.
        """
        return quaternion_rotation(x, self.weight, self.scales, self.bias)

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, scale={self.scale}"


@register_vjp(QuaternionRotation)
def _rotation(layer: QuaternionRotation, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight, grad_scale = quaternion_rotation_vjp(
            grad,
            x,
            layer.weight,
            layer.scales,
            needs_input_grad=needs_input_grad,
            needs_weight_grad=layer.weight.requires_grad or layer.scales.requires_grad,
        )
        accumulate_grad(layer.weight, grad_weight)
        accumulate_grad(layer.scales, grad_scale)
        if layer.bias is not None and layer.bias.requires_grad:
            accumulate_grad(layer.bias, bias_vjp(grad))
        return grad_x

    return layer(x), pull
