"""Activations of whole quaternions, and their vector-Jacobian products.

Most have the form ``y = s(q) q`` with a real gain s: lengths change, directions stay. The two phases turn a quaternion
``q = r (cos t + n sin t)``, t from 0 to pi, to another angle and keep its length r and its axis n. Half precision is
computed in float32. Where an activation has no derivative at 0, its gradient there is finite, as said with each.

References:
    Poeppelbaum and Schwung, "Improving Quaternion Neural Networks with Quaternionic Activation Functions",
    arXiv 2406.16481. Virtue, Yu and Lustig, "Better than Real: Complex-valued Neural Nets for MRI Fingerprinting",
    arXiv 1707.00070 (cardioid). Arjovsky, Shah and Bengio, "Unitary Evolution Recurrent Neural Networks",
    arXiv 1511.06464 (modReLU).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.algebra import check_components, narrow, root, widened
from lightning_nobp.typed import explained


@explained
def magnitude_tanh(q: Tensor, dim: int = -1) -> Tensor:
    """``tanh(|q|) / |q| q``: lengths shrink below 1.

    Args:
        q: Quaternions, 4 components along ``dim``.
        dim: Where the components lie.

    Raises:
        ValueError: Not 4 components.
    """
    wide = widened(q)
    length, inverse = _length(wide, dim)
    gain = torch.where(inverse == 0, torch.ones_like(length), length.tanh() * inverse)
    return narrow(gain * wide, q)


def magnitude_tanh_vjp(grad: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """Gradient through :func:`magnitude_tanh`: ``s g + (1 - tanh(r)^2 - s) (g.n) n`` with ``s = tanh(r) / r``.

    Args:
        grad: Gradient of the output ``g``, the shape of ``q``.
        q: Input; ``r`` is its length, ``n = q / r``.
        dim: Where the components lie.
    """
    wide, g = widened(q), widened(grad)
    length, inverse = _length(wide, dim)
    tanh = length.tanh()
    gain = torch.where(inverse == 0, torch.ones_like(length), tanh * inverse)
    along = _dot(g, wide, dim) * inverse
    return torch.addcmul(gain * g, (1 - tanh * tanh - gain) * along * inverse, wide).to(grad.dtype)


@explained
def cardioid(q: Tensor, dim: int = -1) -> Tensor:
    """``(1 + cos t) / 2 q``, ``cos t = a / |q|``: positive real numbers pass, negative ones vanish.

    It is a ReLU of the real part that fades over the angle t. At 0 the cosine counts as 0, and the gradient is halved.

    Args:
        q: Quaternions, 4 components along ``dim``, the real one ``a`` first.
        dim: Where the components lie.

    Raises:
        ValueError: Not 4 components.
    """
    wide = widened(q)
    _, inverse = _length(wide, dim)
    cosine = wide.narrow(dim, 0, 1) * inverse
    return narrow((0.5 + 0.5 * cosine) * wide, q)


def cardioid_vjp(grad: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """Gradient through :func:`cardioid`: ``(1 + c) / 2 g + (g.n) / 2 (e_0 - c n)``.

    Args:
        grad: Gradient of the output ``g``, the shape of ``q``.
        q: Input; ``n`` is its direction, ``c`` the real part of that, ``e_0`` the quaternion 1.
        dim: Where the components lie.
    """
    wide, g = widened(q), widened(grad)
    _, inverse = _length(wide, dim)
    cosine = wide.narrow(dim, 0, 1) * inverse
    half_along = 0.5 * _dot(g, wide, dim) * inverse
    found = torch.addcmul((0.5 + 0.5 * cosine) * g, -half_along * cosine * inverse, wide)
    found.narrow(dim, 0, 1).add_(half_along)
    return found.to(grad.dtype)


@explained
def mod_relu(q: Tensor, bias: Tensor, dim: int = -1) -> Tensor:
    """``relu(|q| + b) q / |q|``; 0 stays 0, with gradient 0.

    With a negative bias quaternions shorter than it vanish; with a positive one the activation jumps at 0.

    Args:
        q: Quaternions, 4 components along ``dim``.
        bias: ``b``, broadcast against ``q`` with one component in the place of four.
        dim: Where the components lie.

    Raises:
        ValueError: Not 4 components.
    """
    wide = widened(q)
    length, inverse = _length(wide, dim)
    return narrow(torch.relu(length + bias) * inverse * wide, q)


def mod_relu_vjp(grad: Tensor, q: Tensor, bias: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Gradients through :func:`mod_relu`, with ``r = |q|``, ``n = q / r`` and H = 1 where ``r + b > 0``, 0 elsewhere.

    Of the input ``relu(r + b) / r (g - (g.n) n) + H (g.n) n``, of the bias ``H (g.n)``.

    Args:
        grad: Gradient of the output ``g``, the shape of ``q``.
        q: Input.
        bias: As in the forward pass.
        dim: Where the components lie.

    Returns:
        The gradient of ``q``, and that of the bias at every quaternion: one component along ``dim``, not summed.
    """
    wide, g = widened(q), widened(grad)
    length, inverse = _length(wide, dim)
    # Cut off by the sum itself: the bias may be half precision, the sum not.
    output = torch.relu(length + bias)
    along = _dot(g, wide, dim) * inverse
    passed = torch.where(output > 0, along, torch.zeros_like(along))
    gain = output * inverse
    return torch.addcmul(gain * g, (passed - gain * along) * inverse, wide).to(grad.dtype), passed


@explained
def norm_gate(q: Tensor, slope: Tensor, shift: Tensor, dim: int = -1) -> Tensor:
    """``tanh(a |q| + c) q``: a gate that depends on the length alone.

    So it commutes with the multiplication of all quaternions by a unit quaternion, from the left or from the right.

    Args:
        q: Quaternions, 4 components along ``dim``.
        slope: ``a``, broadcast against ``q`` with one component in the place of four.
        shift: ``c``, likewise.
        dim: Where the components lie.

    Raises:
        ValueError: Not 4 components.
    """
    wide = widened(q)
    return narrow(torch.tanh(slope * _modulus(wide, dim) + shift) * wide, q)


def norm_gate_vjp(
    grad: Tensor, q: Tensor, slope: Tensor, shift: Tensor, dim: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through :func:`norm_gate`, with ``r = |q|``, ``n = q / r``, ``s = tanh(a r + c)``.

    Of the input ``s g + (1 - s^2) a (g.q) n``, of the slope ``(1 - s^2) r (g.q)``, of the shift ``(1 - s^2) (g.q)``.

    Args:
        grad: Gradient of the output ``g``, the shape of ``q``.
        q: Input.
        slope: As in the forward pass.
        shift: Likewise.
        dim: Where the components lie.

    Returns:
        The gradient of ``q``, and those of slope and shift at every quaternion, one component along ``dim``, not
        summed.
    """
    wide, g = widened(q), widened(grad)
    length, inverse = _length(wide, dim)
    gate = torch.tanh(slope * length + shift)
    of_shift = (1 - gate * gate) * _dot(g, wide, dim)
    grad_q = torch.addcmul(gate * g, slope * of_shift * inverse, wide)
    return grad_q.to(grad.dtype), of_shift * length, of_shift


@explained
def phase_tanh(q: Tensor, dim: int = -1) -> Tensor:
    """The angle t becomes ``pi/2 (1 - tanh(cot t))``; length and axis stay.

    The curve is an S from 0 over ``pi/2`` to ``pi``, and every derivative of it vanishes at both ends: that makes the
    activation smooth where the axis is undefined, on the real line. Only at 0 it has no derivative; the gradient there
    is 0.

    Args:
        q: Quaternions, 4 components along ``dim``, the real one first.
        dim: Where the components lie.

    Raises:
        ValueError: Not 4 components.
    """
    return _turn(q, dim, _tanh_angles)


def phase_tanh_vjp(grad: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """Gradient through :func:`phase_tanh`; the slope of its angle is ``pi/2 / (sin(t) cosh(cot t))^2``.

    With the new angle f, the imaginary axis n, ``g = g_0 + g_v`` and the slope ``f'``::

        radial = g_0 cos f + (g_v.n) sin f
        turn = f' (-g_0 sin f + (g_v.n) cos f)
        real part:      radial cos t - turn sin t
        imaginary part: (radial sin t + turn cos t) n + sin f / sin t (g_v - (g_v.n) n)

    Args:
        grad: Gradient of the output ``g``, the shape of ``q``.
        q: Input.
        dim: Where the components lie.
    """
    return _turn_vjp(grad, q, dim, _tanh_angles, _tanh_slope)


@explained
def phase_sin(q: Tensor, dim: int = -1) -> Tensor:
    """The angle t becomes ``t - sin(2 t) / 2``; length and axis stay.

    The curve is an S from 0 over ``pi/2`` to ``pi``, odd about both ends: that makes the activation smooth where the
    axis is undefined, on the real line. Only at 0 it has no derivative; the gradient there is 0.

    Args:
        q: Quaternions, 4 components along ``dim``, the real one first.
        dim: Where the components lie.

    Raises:
        ValueError: Not 4 components.
    """
    return _turn(q, dim, _sin_angles)


def phase_sin_vjp(grad: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """Gradient through :func:`phase_sin`: as :func:`phase_tanh_vjp`, with the slope ``2 sin(t)^2``.

    Args:
        grad: Gradient of the output, the shape of ``q``.
        q: Input.
        dim: Where the components lie.
    """
    return _turn_vjp(grad, q, dim, _sin_angles, _sin_slope)


# Of cosine and sine of an angle t: pi/2 less the new angle, and how far the new angle is from the nearer end. Each is
# without cancellation where it is small, and so then are its sines.
_Angles = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _tanh_angles(cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    cotangent = cosine / sine
    return math.pi / 2 * cotangent.tanh(), math.pi * torch.sigmoid(-2 * cotangent.abs())


def _tanh_slope(cosine: Tensor, sine: Tensor) -> Tensor:
    return math.pi / 2 / (sine * torch.cosh(cosine / sine)).square()


def _sin_angles(cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    across = cosine.abs()
    return torch.atan2(cosine, sine) + cosine * sine, torch.atan2(sine, across) - across * sine


def _sin_slope(cosine: Tensor, sine: Tensor) -> Tensor:
    return 2 * sine * sine


class _Polar(NamedTuple):
    length: Tensor
    inverse: Tensor
    cosine: Tensor
    sine: Tensor
    """1 where the quaternion is real to rounding, 0 included: the axis is divided by it."""
    imaginary: Tensor
    is_real: Tensor


def _polar(q: Tensor, dim: int) -> _Polar:
    length, inverse = _length(q, dim)
    real, imaginary = torch.split(q, [1, 3], dim)
    sine = root(imaginary.square().sum(dim, keepdim=True)) * inverse
    is_real = sine <= torch.finfo(q.dtype).eps
    sine = torch.where(is_real, torch.ones_like(sine), sine)
    return _Polar(length, inverse, real * inverse, sine, imaginary, is_real)


def _turned(polar: _Polar, angles: _Angles) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the new angle. Real quaternions stay: all slopes are 0 at both ends."""
    complement, to_end = angles(polar.cosine, polar.sine)
    cosine = torch.where(polar.is_real, polar.cosine.sign(), complement.sin())
    return cosine, torch.where(polar.is_real, torch.zeros_like(cosine), to_end.sin())


def _turn(q: Tensor, dim: int, angles: _Angles) -> Tensor:
    polar = _polar(widened(q), dim)
    cosine, sine = _turned(polar, angles)
    return narrow(torch.cat([polar.length * cosine, sine / polar.sine * polar.imaginary], dim), q)


def _turn_vjp(grad: Tensor, q: Tensor, dim: int, angles: _Angles, slope: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    polar = _polar(widened(q), dim)
    new_cosine, new_sine = _turned(polar, angles)
    zeros = torch.zeros_like(polar.sine)
    sine = torch.where(polar.is_real, zeros, polar.sine)
    # n is this times the imaginary part.
    to_axis = torch.where(polar.is_real, zeros, polar.inverse / polar.sine)
    real, imaginary = torch.split(widened(grad), [1, 3], dim)
    along = _dot(imaginary, polar.imaginary, dim) * to_axis
    radial = real * new_cosine + along * new_sine
    turn = slope(polar.cosine, polar.sine) * (along * new_cosine - real * new_sine)
    around = new_sine / polar.sine
    on_axis = (radial * sine + turn * polar.cosine - around * along) * to_axis
    parts = [radial * polar.cosine - turn * sine, torch.addcmul(around * imaginary, on_axis, polar.imaginary)]
    return torch.cat(parts, dim).to(grad.dtype)


def _modulus(q: Tensor, dim: int) -> Tensor:
    """``|q|``, one component along ``dim``, with gradient 0 at 0."""
    check_components(q, dim, "q")
    return root(q.square().sum(dim, keepdim=True))


def _length(q: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``|q|`` and ``1 / |q|``; both 0 at 0, with gradient 0."""
    length = _modulus(q, dim)
    is_zero = length == 0
    # Autograd would multiply the masked gradient of a division by 0 by infinity.
    inverse = 1 / torch.where(is_zero, torch.ones_like(length), length)
    return length, torch.where(is_zero, torch.zeros_like(length), inverse)


def _dot(p: Tensor, q: Tensor, dim: int) -> Tensor:
    return (p * q).sum(dim, keepdim=True)
