"""Layers of activations of whole quaternions; those of single components are torch's own, ``nn.ReLU`` and so on."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.functional.quaternion.activations import (
    cardioid,
    cardioid_vjp,
    magnitude_tanh,
    magnitude_tanh_vjp,
    mod_relu,
    mod_relu_vjp,
    norm_gate,
    norm_gate_vjp,
    phase_sin,
    phase_sin_vjp,
    phase_tanh,
    phase_tanh_vjp,
)
from lightning_nobp.functional.quaternion.algebra import check_features
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.typed import Typed


class MagnitudeTanh(Typed, nn.Module):
    """``tanh(|q|) / |q| q``: lengths shrink below 1, directions stay.

    References:
        Poeppelbaum and Schwung, "Improving Quaternion Neural Networks with Quaternionic Activation Functions",
        arXiv 2406.16481.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(batch, 4N, ...)`` of features of the same shape, component-major."""
        return magnitude_tanh(_quaternions(x), dim=1).flatten(1, 2)


class Cardioid(Typed, nn.Module):
    """``(1 + cos t) / 2 q`` with the polar angle t: a ReLU of the real part that fades over the angle.

    References:
        Poeppelbaum and Schwung, "Improving Quaternion Neural Networks with Quaternionic Activation Functions",
        arXiv 2406.16481. Virtue, Yu and Lustig, "Better than Real: Complex-valued Neural Nets for MRI
        Fingerprinting", arXiv 1707.00070.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(batch, 4N, ...)`` of features of the same shape, component-major."""
        return cardioid(_quaternions(x), dim=1).flatten(1, 2)


class PhaseTanh(Typed, nn.Module):
    """The polar angle t becomes ``pi/2 (1 - tanh(cot t))``; length and axis stay.

    The idea is the paper's, the curve this package's: see :func:`lightning_nobp.functional.quaternion.phase_tanh`.

    References:
        Poeppelbaum and Schwung, "Improving Quaternion Neural Networks with Quaternionic Activation Functions",
        arXiv 2406.16481.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(batch, 4N, ...)`` of features of the same shape, component-major."""
        return phase_tanh(_quaternions(x), dim=1).flatten(1, 2)


class PhaseSin(Typed, nn.Module):
    """The polar angle t becomes ``t - sin(2 t) / 2``; length and axis stay.

    The idea is the paper's, the curve this package's: see :func:`lightning_nobp.functional.quaternion.phase_sin`.

    References:
        Poeppelbaum and Schwung, "Improving Quaternion Neural Networks with Quaternionic Activation Functions",
        arXiv 2406.16481.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(batch, 4N, ...)`` of features of the same shape, component-major."""
        return phase_sin(_quaternions(x), dim=1).flatten(1, 2)


class _PerQuaternion(Typed, nn.Module):
    """Activations with parameters, one a quaternion channel."""

    def __init__(self, num_quaternions: int) -> None:
        super().__init__()
        if num_quaternions < 1:
            raise ValueError(
                f"num_quaternions={num_quaternions}: there must be at least one, a quarter of the features"
            )
        self.num_quaternions = num_quaternions

    def extra_repr(self) -> str:
        """The number of quaternions, for printing."""
        return f"{self.num_quaternions}"


class ModReLU(_PerQuaternion):
    """``relu(|q| + b) q / |q|``: with a negative bias short quaternions vanish, others shrink.

    Args:
        num_quaternions: A quarter of the features along dimension 1.
        init_bias: Where the biases start; at 0 the activation starts as the identity.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        bias: ``(num_quaternions,)``.

    Raises:
        ValueError: No quaternions.

    References:
        Arjovsky, Shah and Bengio, "Unitary Evolution Recurrent Neural Networks", arXiv 1511.06464.
    """

    def __init__(self, num_quaternions: int, init_bias: float = 0.0, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(num_quaternions)
        self.init_bias = init_bias
        self.bias = nn.Parameter(torch.empty(num_quaternions, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Put the biases back to where they start."""
        nn.init.constant_(self.bias, self.init_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(batch, 4N, ...)`` of features of the same shape, component-major.

        Raises:
            ValueError: The features do not hold ``num_quaternions`` quaternions.
        """
        q = _quaternions(x, self.num_quaternions)
        return mod_relu(q, _beside(self.bias, q), dim=1).flatten(1, 2)


class NormGate(_PerQuaternion):
    """``tanh(a |q| + c) q``: a gate that depends on the length alone.

    It is equivariant: it commutes with the multiplication of all quaternions by a unit quaternion from either side,
    so that a rotation of every input rotates every output.

    Args:
        num_quaternions: A quarter of the features along dimension 1.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        slope: ``a``, ``(num_quaternions,)``, 1 at the start.
        shift: ``c``, ``(num_quaternions,)``, 0 at the start.

    Raises:
        ValueError: No quaternions.
    """

    def __init__(self, num_quaternions: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__(num_quaternions)
        self.slope = nn.Parameter(torch.empty(num_quaternions, device=device, dtype=dtype))
        self.shift = nn.Parameter(torch.empty(num_quaternions, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Slopes 1, shifts 0."""
        nn.init.ones_(self.slope)
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(batch, 4N, ...)`` of features of the same shape, component-major.

        Raises:
            ValueError: The features do not hold ``num_quaternions`` quaternions.
        """
        q = _quaternions(x, self.num_quaternions)
        return norm_gate(q, _beside(self.slope, q), _beside(self.shift, q), dim=1).flatten(1, 2)


@register_vjp(MagnitudeTanh)
def _magnitude_tanh(layer: MagnitudeTanh, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer(x), lambda grad: magnitude_tanh_vjp(_quaternions(grad), _quaternions(x), dim=1).flatten(1, 2)


@register_vjp(Cardioid)
def _cardioid(layer: Cardioid, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer(x), lambda grad: cardioid_vjp(_quaternions(grad), _quaternions(x), dim=1).flatten(1, 2)


@register_vjp(PhaseTanh)
def _phase_tanh(layer: PhaseTanh, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer(x), lambda grad: phase_tanh_vjp(_quaternions(grad), _quaternions(x), dim=1).flatten(1, 2)


@register_vjp(PhaseSin)
def _phase_sin(layer: PhaseSin, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer(x), lambda grad: phase_sin_vjp(_quaternions(grad), _quaternions(x), dim=1).flatten(1, 2)


@register_vjp(ModReLU)
def _mod_relu(layer: ModReLU, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor:
        q = _quaternions(x)
        grad_q, of_bias = mod_relu_vjp(_quaternions(grad), q, _beside(layer.bias, q), dim=1)
        accumulate_grad(layer.bias, _per_channel(of_bias))
        return grad_q.flatten(1, 2)

    return layer(x), pull


@register_vjp(NormGate)
def _norm_gate(layer: NormGate, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor:
        q = _quaternions(x)
        slope, shift = _beside(layer.slope, q), _beside(layer.shift, q)
        grad_q, of_slope, of_shift = norm_gate_vjp(_quaternions(grad), q, slope, shift, dim=1)
        accumulate_grad(layer.slope, _per_channel(of_slope))
        accumulate_grad(layer.shift, _per_channel(of_shift))
        return grad_q.flatten(1, 2)

    return layer(x), pull


def _quaternions(x: Tensor, number: int | None = None) -> Tensor:
    """Features ``(batch, 4N, ...)`` as ``(batch, 4, N, ...)``."""
    if x.dim() < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} has no features: give (batch, 4N, ...)")
    check_features(x.shape[1], "x")
    if number is not None and x.shape[1] != 4 * number:
        raise ValueError(
            f"x has {x.shape[1]} features along dimension 1, {x.shape[1] // 4} quaternions: the layer was made for "
            f"num_quaternions={number}"
        )
    return torch.unflatten(x, 1, (4, x.shape[1] // 4))


def _beside(parameter: Tensor, q: Tensor) -> Tensor:
    """A parameter ``(N,)`` in the shape in which it is broadcast against quaternions ``(batch, 4, N, ...)``."""
    return parameter.view(1, 1, -1, *[1] * (q.dim() - 3))


def _per_channel(grad: Tensor) -> Tensor:
    """The sum of ``(batch, 1, N, ...)`` over all but the channels."""
    return grad.transpose(0, 2).flatten(1).sum(1)
