"""The fully connected layer of quaternions."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.functional.backprop import bias_vjp
from lightning_nobp.functional.quaternion.algebra import check_features
from lightning_nobp.functional.quaternion.linear import quaternion_linear, quaternion_linear_vjp
from lightning_nobp.functional.quaternion.products import Algorithm, Side, check_options
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.nn.quaternion.init import Criterion, Initialisation, quaternion_init_
from lightning_nobp.typed import Typed


def check_whole(**sizes: Any) -> None:
    """Refuse what is neither a whole number nor several of them.

    Raises:
        TypeError: Names the argument.
    """
    for name, value in sizes.items():
        if any(isinstance(n, bool) or not isinstance(n, Integral) for n in _numbers(value)):
            raise TypeError(f"{name}={value!r} is no whole number: give an int, like 8")


def check_positive(**sizes: Any) -> None:
    """Refuse what is neither a positive whole number nor several of them.

    Raises:
        TypeError: No whole number; names the argument.
        ValueError: Not positive; likewise.
    """
    check_whole(**sizes)
    for name, value in sizes.items():
        if any(n < 1 for n in _numbers(value)):
            raise ValueError(f"{name}={value!r} must be positive")


def check_quaternions(**features: int) -> None:
    """Refuse numbers of real features that are no whole quaternions, or none.

    Raises:
        TypeError: No whole number; names the argument.
        ValueError: Not positive, or not divisible by 4; likewise.
    """
    check_positive(**features)
    for name, value in features.items():
        check_features(value, name)


def _numbers(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


class QuaternionLayer(Typed, nn.Module):
    """What layers of Hamilton products share: a weight ``(4, ...)``, a bias, and how the products are taken.

    Attributes:
        weight: The weights, component first.
        bias: One quaternion an output, component-major, or None.
        side: Of the weights, ``'left'`` or ``'right'``.
        algorithm: See :func:`lightning_nobp.functional.quaternion.quaternion_linear`.
        init: See :func:`quaternion_init_`.
        criterion: See :func:`quaternion_init_`.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        bias: bool,
        init: Initialisation,
        criterion: Criterion,
        side: Side,
        algorithm: Algorithm,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        check_options(side, algorithm)
        self.init, self.criterion, self.side, self.algorithm = init, criterion, side, algorithm
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(4 * outputs, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; biases become 0."""
        for weight in self._by_group(self.weight):
            quaternion_init_(weight, self.init, self.criterion)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _by_group(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Views ``(4, M, N, ...)`` of the parts whose outputs have no inputs in common."""
        return (weight,)

    def _options(self) -> str:
        other = "" if self.side == "left" else f", side={self.side!r}"
        return f", bias={self.bias is not None}{other}"


class QuaternionLinear(QuaternionLayer):
    """A fully connected layer ``y = w x + b`` whose weights multiply by the Hamilton product.

    It has a quarter of the weights of ``nn.Linear`` of the same width.

    Args:
        in_features: Real features of the input, four a quaternion: ``4N``.
        out_features: Real features of the output: ``4M``.
        bias: Whether to add a bias.
        init: See :func:`quaternion_init_`.
        criterion: See :func:`quaternion_init_`.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: See :func:`lightning_nobp.functional.quaternion.quaternion_linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: Features that are no whole number.
        ValueError: Features that are not positive or not divisible by 4, or an unknown option.

    References:
        Parcollet et al., "Quaternion Recurrent Neural Networks", arXiv 1806.04418. Poeppelbaum and Schwung,
        "Quaternion Backpropagation", arXiv 2212.13082.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        init: Initialisation = "polar",
        criterion: Criterion = "he",
        side: Side = "left",
        algorithm: Algorithm = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_quaternions(in_features=in_features, out_features=out_features)
        shape = (4, out_features // 4, in_features // 4)
        super().__init__(shape, shape[1], bias, init, criterion, side, algorithm, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(..., out_features)`` of ``(..., in_features)``, component-major both."""
        return quaternion_linear(x, self.weight, self.bias, self.side, self.algorithm)

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return f"in_features={self.in_features}, out_features={self.out_features}{self._options()}"


@register_vjp(QuaternionLinear)
def _quaternion_linear(layer: QuaternionLinear, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight = quaternion_linear_vjp(
            grad,
            x.to(grad.dtype),
            layer.weight.to(grad.dtype),
            side=layer.side,
            algorithm=layer.algorithm,
            needs_input_grad=needs_input_grad,
            needs_weight_grad=layer.weight.requires_grad,
        )
        accumulate_grad(layer.weight, grad_weight)
        if layer.bias is not None and layer.bias.requires_grad:
            accumulate_grad(layer.bias, bias_vjp(grad))
        return grad_x

    return layer(x), pull
