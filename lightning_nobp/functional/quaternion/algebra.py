"""The quaternions: q = a + b i + c j + d k with i^2 = j^2 = k^2 = ijk = -1.

Four real components lie along one dimension of a tensor, the real one first; every other dimension broadcasts. With
the components in front (``dim=0``) the products run over contiguous memory and are several times faster.
"""

import torch
from torch import Tensor


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


def conjugate(q: Tensor, dim: int = -1) -> Tensor:
    """``q*``: the imaginary components negated."""
    _check_components(q, dim, "q")
    real, imaginary = torch.split(q, [1, 3], dim)
    return torch.cat([real, -imaginary], dim)


def norm(q: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """``|q|``, the root of ``q q*``; its gradient at 0 is 0."""
    _check_components(q, dim, "q")
    return _root(q.square().sum(dim, keepdim=keepdim))


def inverse(q: Tensor, dim: int = -1) -> Tensor:
    """``q* / |q|^2``; that of 0 is infinite or NaN, as 1 / 0 is."""
    return conjugate(q, dim) / q.square().sum(dim, keepdim=True)


def normalize(q: Tensor, dim: int = -1) -> Tensor:
    """``q / |q|``; 0 stays 0, with gradient 0.

    Args:
        q: Quaternions, 4 components along ``dim``.
        dim: Where the components lie.
    """
    length = norm(q, dim, keepdim=True)
    is_zero = length == 0
    # Divided by 1 there: autograd would multiply the masked gradient by infinity.
    return torch.where(is_zero, torch.zeros_like(q), q / torch.where(is_zero, torch.ones_like(length), length))


def exp(q: Tensor, dim: int = -1) -> Tensor:
    """``e^q = e^a (cos |v| + v / |v| sin |v|)`` for ``q = a + v``."""
    _check_components(q, dim, "q")
    real, imaginary = torch.split(q, [1, 3], dim)
    angle = _root(imaginary.square().sum(dim, keepdim=True))
    # sinc is smooth where the imaginary part is 0.
    return real.exp() * torch.cat([angle.cos(), imaginary * torch.sinc(angle / torch.pi)], dim)


def log(q: Tensor, dim: int = -1) -> Tensor:
    """The principal logarithm ``ln |q| + v / |v| arccos(a / |q|)``, inverse to :func:`exp` for ``|v| < pi``.

    A negative real number has no distinguished direction ``v``: its logarithm has the angle pi along ``i``.
    """
    _check_components(q, dim, "q")
    real, imaginary = torch.split(q, [1, 3], dim)
    length = _root(imaginary.square().sum(dim, keepdim=True))
    is_real = length == 0
    safe = torch.where(is_real, torch.ones_like(length), length)
    # atan2 is exact near 0 and pi, where arccos loses half the digits; on the positive axis its slope is 1 / a.
    factor = torch.where(is_real, 1 / real, torch.atan2(safe, real) / safe)
    along_i = torch.cat([torch.full_like(real, torch.pi), torch.zeros_like(imaginary).narrow(dim, 0, 2)], dim)
    vector = torch.where(is_real & (real < 0), along_i, imaginary * factor)
    return torch.cat([norm(q, dim, keepdim=True).log(), vector], dim)


def rotate(q: Tensor, mu: Tensor, dim: int = -1) -> Tensor:
    """``q^mu = mu q mu^-1``: the imaginary part turned by twice the angle of ``mu``; its length does not matter.

    Args:
        q: Quaternions, 4 components along ``dim``.
        mu: Quaternions other than 0, broadcast against ``q``.
        dim: Where the components lie.
    """
    return hamilton_product(hamilton_product(mu, q, dim), inverse(mu, dim), dim)


def pack(q: Tensor, channel_dim: int = -1) -> Tensor:
    """Quaternions ``(..., N, 4)`` as features ``(..., 4N)``, component-major: all real parts, all i, all j, all k.

    Args:
        q: ``(..., N, 4)``.
        channel_dim: Where the features go, counted in the result; ``1`` for images ``(batch, 4N, height, width)`` from
            ``(batch, height, width, N, 4)``.

    Raises:
        ValueError: The last dimension is not 4.
    """
    _check_components(q, -1, "q")
    if q.dim() < 2:
        raise ValueError(f"q of shape {tuple(q.shape)}: pack takes (..., N, 4); for one quaternion, q.unsqueeze(-2)")
    return q.transpose(-1, -2).flatten(-2).movedim(-1, channel_dim)


def unpack(x: Tensor, channel_dim: int = -1) -> Tensor:
    """Component-major features as quaternions ``(..., N, 4)``: the inverse of :func:`pack`.

    Args:
        x: Features ``4N`` along ``channel_dim``.
        channel_dim: Where they lie.

    Raises:
        ValueError: Their number is not divisible by 4.
    """
    check_features(x.shape[channel_dim], "x")
    return torch.unflatten(x.movedim(channel_dim, -1), -1, (4, -1)).transpose(-1, -2)


def to_complex(q: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """The Cayley-Dickson pair ``(u, v)`` of ``q = u + v j``: ``u = a + b i``, ``v = c + d i``."""
    a, b, c, d = components(q, dim, "q")
    return torch.complex(a, b), torch.complex(c, d)


def from_complex(u: Tensor, v: Tensor, dim: int = -1) -> Tensor:
    """The quaternions ``u + v j`` of two complex tensors of one shape, components along ``dim`` of the result."""
    if not (u.is_complex() and v.is_complex()):
        raise ValueError(f"u and v of types {u.dtype} and {v.dtype}: from_complex takes two complex tensors")
    return torch.stack([u.real, u.imag, v.real, v.imag], dim)


def components(q: Tensor, dim: int, name: str) -> tuple[Tensor, ...]:
    """The four components of a quaternion tensor.

    Raises:
        ValueError: Not four along ``dim``; the message calls the tensor ``name``.
    """
    _check_components(q, dim, name)
    return q.unbind(dim)


def check_features(number: int, name: str) -> None:
    """Refuse a number of features that does not hold whole quaternions.

    Raises:
        ValueError: It is not divisible by 4; the message calls them ``name``.
    """
    if number % 4:
        raise ValueError(
            f"{name} has {number} features: quaternions take four each, all real parts first, then all i, j, k"
        )


def _root(square: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0; ``torch.linalg.vector_norm`` is slow along most dimensions."""
    is_zero = square == 0
    # Of 1 there: autograd would multiply the masked gradient by infinity.
    root = torch.where(is_zero, torch.ones_like(square), square).sqrt()
    return torch.where(is_zero, torch.zeros_like(root), root)


def _check_components(q: Tensor, dim: int, name: str) -> None:
    if q.dim() == 0 or q.shape[dim] != 4:
        raise ValueError(
            f"{name} of shape {tuple(q.shape)} has not 4 components along dim={dim}; pack and unpack change between "
            "(..., N, 4) and features (..., 4N)"
        )
