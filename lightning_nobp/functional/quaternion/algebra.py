"""The quaternions: q = a + b i + c j + d k with i^2 = j^2 = k^2 = ijk = -1.

Four real components lie along one dimension of a tensor, the real one first; every other dimension broadcasts. With
the components in front (``dim=0``) the products run over contiguous memory and are several times faster.

Where lengths are taken, half precision is computed in float32. :func:`norm`, :func:`normalize`, :func:`inverse` and
:func:`log` take quaternions as large or as small as the type holds: no square overflows or vanishes on the way.
"""

import math

import torch
from torch import Tensor

from lightning_nobp.typed import explained


@explained
def hamilton_product(p: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """The product ``p q``.

    Args:
        p: Quaternions, 4 components along ``dim``.
        q: Quaternions, broadcast against ``p``.
        dim: Where the components lie.

    Returns:
        The products, 4 components along ``dim``.

    Raises:
        ValueError: Not 4 components.
    """
    p0, p1, p2, p3 = components(p, dim, "p")
    q0, q1, q2, q3 = components(q, dim, "q")
    return torch.stack(
        [
            p0 * q0 - p1 * q1 - p2 * q2 - p3 * q3,
            p1 * q0 + p0 * q1 - p3 * q2 + p2 * q3,
            p2 * q0 + p3 * q1 + p0 * q2 - p1 * q3,
            p3 * q0 - p2 * q1 + p1 * q2 + p0 * q3,
        ],
        dim,
    )


@explained
def conjugate(q: Tensor, dim: int = -1) -> Tensor:
    """``q*``: the imaginary components negated."""
    check_components(q, dim, "q")
    real, imaginary = torch.split(q, [1, 3], dim)
    return torch.cat([real, -imaginary], dim)


@explained
def norm(q: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """``|q|``, the root of ``q q*``; its gradient at 0 is 0."""
    check_components(q, dim, "q")
    length = narrow(_length(widened(q), dim), q)
    return length if keepdim else length.squeeze(dim)


@explained
def inverse(q: Tensor, dim: int = -1) -> Tensor:
    """``q* / |q|^2``; that of 0 is infinite or NaN, as 1 / 0 is."""
    scaled, scale = in_range(widened(conjugate(q, dim)), dim)
    return narrow(scaled / scaled.square().sum(dim, keepdim=True) * scale, q)


@explained
def normalize(q: Tensor, dim: int = -1) -> Tensor:
    """``q / |q|``; 0 stays 0, with gradient 0.

    Args:
        q: Quaternions, 4 components along ``dim``.
        dim: Where the components lie.
    """
    check_components(q, dim, "q")
    scaled, _ = in_range(widened(q), dim)
    length = root(scaled.square().sum(dim, keepdim=True))
    is_zero = length == 0
    # Divided by 1 there: autograd would multiply the masked gradient by infinity.
    unit = scaled / torch.where(is_zero, torch.ones_like(length), length)
    return narrow(torch.where(is_zero, torch.zeros_like(unit), unit), q)


@explained
def exp(q: Tensor, dim: int = -1) -> Tensor:
    """``e^q = e^a (cos |v| + v / |v| sin |v|)`` for ``q = a + v``, twice differentiable on the real axis too."""
    check_components(q, dim, "q")
    real, imaginary = torch.split(widened(q), [1, 3], dim)
    square = imaginary.square().sum(dim, keepdim=True)
    # The root has no second derivative at 0; there both are 1 to rounding, and the series have the right derivatives.
    is_small = square < torch.finfo(square.dtype).eps ** 2
    angle = torch.where(is_small, torch.ones_like(square), square).sqrt()
    cosine = torch.where(is_small, 1 - square / 2, angle.cos())
    sinc = torch.where(is_small, 1 - square / 6, torch.sinc(angle / torch.pi))
    return narrow(real.exp() * torch.cat([cosine, imaginary * sinc], dim), q)


@explained
def log(q: Tensor, dim: int = -1) -> Tensor:
    """The principal logarithm ``ln |q| + v / |v| arccos(a / |q|)``, inverse to :func:`exp` for ``|v| < pi``.

    A negative real number has no distinguished direction ``v``: its logarithm has the angle pi along ``i``. That of 0
    is minus infinity, a real number, with gradient 0.
    """
    check_components(q, dim, "q")
    scaled, scale = in_range(widened(q), dim)
    real, imaginary = torch.split(scaled, [1, 3], dim)
    length = _length(imaginary, dim)
    is_real, is_zero = length == 0, (length == 0) & (real == 0)
    # Of 1 where nothing is to be divided by: autograd would multiply the masked gradient by infinity.
    one = torch.ones_like(length)
    safe, divisor = torch.where(is_real, one, length), torch.where(is_real & ~is_zero, real, one)
    # atan2 is exact near 0 and pi, where arccos loses half the digits; on the positive axis its slope is 1 / a.
    factor = torch.where(is_real, 1 / divisor, torch.atan2(safe, real) / safe)
    along_i = torch.cat([(real < 0).to(real.dtype) * torch.pi, torch.zeros_like(imaginary).narrow(dim, 0, 2)], dim)
    vector = torch.where(is_real & (real <= 0), along_i, imaginary * factor)
    whole = torch.where(is_zero, one, root(scaled.square().sum(dim, keepdim=True)))
    size = torch.where(is_zero, -torch.inf, whole.log() - scale.log())
    return narrow(torch.cat([size, vector], dim), q)


@explained
def rotate(q: Tensor, mu: Tensor, dim: int = -1) -> Tensor:
    """``q^mu = mu q mu^-1``: the imaginary part turned by twice the angle of ``mu``; its length does not matter.

    Args:
        q: Quaternions, 4 components along ``dim``.
        mu: Quaternions other than 0, broadcast against ``q``.
        dim: Where the components lie.
    """
    return hamilton_product(hamilton_product(mu, q, dim), inverse(mu, dim), dim)


@explained
def pack(q: Tensor, channel_dim: int = -1) -> Tensor:
    """Quaternions ``(..., N, 4)`` as features ``(..., 4N)``, component-major: all real parts, all i, all j, all k.

    Args:
        q: ``(..., N, 4)``.
        channel_dim: Where the features go, counted in the result; ``1`` for images ``(batch, 4N, height, width)`` from
            ``(batch, height, width, N, 4)``.

    Raises:
        ValueError: The last dimension is not 4.
    """
    check_components(q, -1, "q")
    if q.dim() < 2:
        raise ValueError(f"q of shape {tuple(q.shape)}: pack takes (..., N, 4); for one quaternion, q.unsqueeze(-2)")
    return q.transpose(-1, -2).flatten(-2).movedim(-1, channel_dim)


@explained
def unpack(x: Tensor, channel_dim: int = -1) -> Tensor:
    """Component-major features as quaternions ``(..., N, 4)``: the inverse of :func:`pack`.

    Args:
        x: Features ``4N`` along ``channel_dim``.
        channel_dim: Where they lie.

    Raises:
        ValueError: Their number is not divisible by 4, or ``x`` has no such dimension.
    """
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(f"x of shape {tuple(x.shape)} has no dimension channel_dim={channel_dim}: give (..., 4N)")
    check_features(x.shape[channel_dim], "x")
    return torch.unflatten(x.movedim(channel_dim, -1), -1, (4, -1)).transpose(-1, -2)


@explained
def to_complex(q: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """The Cayley-Dickson pair ``(u, v)`` of ``q = u + v j``: ``u = a + b i``, ``v = c + d i``."""
    a, b, c, d = components(q, dim, "q")
    return torch.complex(a, b), torch.complex(c, d)


@explained
def from_complex(u: Tensor, v: Tensor, dim: int = -1) -> Tensor:
    """The quaternions ``u + v j`` of two complex tensors of one shape, components along ``dim`` of the result.

    Raises:
        ValueError: They are not complex, or of different shapes.
    """
    if not (u.is_complex() and v.is_complex()):
        raise ValueError(f"u and v of types {u.dtype} and {v.dtype}: from_complex takes two complex tensors")
    if u.shape != v.shape:
        raise ValueError(f"u of shape {tuple(u.shape)} and v of shape {tuple(v.shape)}: give two of one shape")
    return torch.stack([u.real, u.imag, v.real, v.imag], dim)


def components(q: Tensor, dim: int, name: str) -> tuple[Tensor, ...]:
    """The four components of a quaternion tensor.

    Raises:
        ValueError: Not four along ``dim``; the message calls the tensor ``name``.
    """
    check_components(q, dim, name)
    return q.unbind(dim)


def check_components(q: Tensor, dim: int, name: str) -> None:
    """Refuse a tensor that holds no quaternions.

    Raises:
        ValueError: Not four components along ``dim``; the message calls the tensor ``name``.
    """
    if q.dim() == 0 or q.shape[dim] != 4:
        raise ValueError(
            f"{name} of shape {tuple(q.shape)} has not 4 components along dim={dim}; pack and unpack change between "
            "(..., N, 4) and features (..., 4N)"
        )


def check_features(number: int, name: str) -> None:
    """Refuse a number of features that does not hold whole quaternions.

    Raises:
        ValueError: It is not divisible by 4; the message calls them ``name``.
    """
    if number % 4:
        raise ValueError(
            f"{name} has {number} features: quaternions take four each, all real parts first, then all i, j, k"
        )


def check_types(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Refuse an input of another type than the weight or the bias, unless autocast converts them.

    Raises:
        ValueError: Names both types.
    """
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and x.dtype != parameter.dtype and not autocasts(x):
            raise ValueError(f"x is {x.dtype}, but {name} {parameter.dtype}: convert one of them")


def autocasts(x: Tensor) -> bool:
    """Whether products with ``x`` are taken in half precision."""
    # torch has no answer for the meta device, but an error.
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 where it is half precision, or whole numbers.

    Raises:
        TypeError: Complex numbers.
    """
    if x.is_complex():
        raise TypeError(f"quaternions of type {x.dtype}: give real components, by from_complex for pairs of numbers")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def root(square: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0; ``torch.linalg.vector_norm`` is slow along most dimensions."""
    is_zero = square == 0
    # Of 1 there: autograd would multiply the masked gradient by infinity.
    found = torch.where(is_zero, torch.ones_like(square), square).sqrt()
    return torch.where(is_zero, torch.zeros_like(found), found)


def in_range(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``s x`` whose squares neither overflow nor vanish, and the factors ``s``, one along ``dim``.

    They are powers of two, and 1 but for very large and very small ``x``: nothing is rounded.
    """
    # Half of the exponents: numbers of up to that can be squared.
    half = math.frexp(torch.finfo(x.dtype).max)[1] // 2
    factor = 2.0 ** (half * 11 // 8)
    largest = x.detach().abs().amax(dim, keepdim=True)
    one = torch.ones_like(largest)
    scale = torch.where(largest > 2.0 ** (half - 4), one / factor, one)
    scale = torch.where(largest < 2.0 ** (-half // 2), one * factor, scale)
    return x * scale, scale


def narrow(y: Tensor, like: Tensor) -> Tensor:
    """``y`` in the type of ``like``, but for whole numbers."""
    return y.to(like.dtype) if like.is_floating_point() else y


def _length(x: Tensor, dim: int) -> Tensor:
    scaled, scale = in_range(x, dim)
    return root(scaled.square().sum(dim, keepdim=True)) / scale
