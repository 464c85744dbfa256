"""Batch normalisation of quaternions, and its vector-Jacobian products.

*Whitening* takes the covariance of the four components out of each quaternion channel; *scaling* divides by one
standard deviation, that of the quaternion's distance from its mean. Features are component-major along dimension 1.
Half precision is computed in float32.

References:
    Gaudet and Maida, "Deep Quaternion Networks", arXiv 1712.04604. Ioffe and Szegedy, "Batch Normalization",
    arXiv 1502.03167.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.algebra import widened

# The ten numbers of a symmetric matrix are its upper triangle, row by row.
_SYMMETRIC = ((0, 1, 2, 3), (1, 4, 5, 6), (2, 5, 7, 8), (3, 6, 8, 9))


def quaternion_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of each quaternion channel.

    Args:
        x: ``(batch, 4C, ...)``.

    Returns:
        The mean ``(4C,)``, and the covariance of the four components ``(C, 4, 4)``, divided by the number of values.
    """
    with _without_autocast(x.device.type):
        values = _by_channel(x)
        mean = values.mean(-1, keepdim=True)
        centred = values - mean
        return _flat(mean), centred @ centred.mT / values.shape[-1]


def quaternion_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(4C,)`` and variance ``E |q - mean|^2``, ``(C,)``, of each quaternion channel of ``(batch, 4C, ...)``."""
    values = _by_channel(x)
    mean = values.mean(-1, keepdim=True)
    return _flat(mean), (values - mean).square().sum(1).mean(-1)


def quaternion_whiten(
    x: Tensor, mean: Tensor, covariance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """``y = Gamma L^-1 (x - mean) + beta`` in each channel, with ``L L^T = V + e I`` of the covariance V.

    If mean and V are those of ``x``, the mean of y is beta, and its covariance ``Gamma L^-1 V L^-T Gamma^T``: that is
    ``Gamma Gamma^T``, and without a weight the identity, but for e. With e the sum of ``eps`` and of the rounding of V,
    about ``1e-6`` of its trace in float32, components that depend on each other can be whitened too; a direction of
    variance v becomes one of ``v / (v + e)``.

    Args:
        x: ``(batch, 4C, ...)``.
        mean: ``(4C,)``.
        covariance: V, ``(C, 4, 4)``.
        weight: ``(10, C)``, the upper triangles of the symmetric matrices Gamma, row by row; None for the identity.
        bias: beta, ``(4C,)``, or None.
        eps: Added to the diagonal of V.

    Returns:
        The shape and type of ``x``; NaN in channels whose covariance is not finite or has a negative direction.
    """
    with _without_autocast(x.device.type):
        values = _by_channel(x)
        matrix = _whitening(_factor(covariance.to(values), eps), weight)
        # Centred first: a mean far from 0 would cost digits.
        y = matrix @ (values - _column(mean, values))
        return _as_features(y if bias is None else y + _column(bias, y), x)


def quaternion_whiten_vjp(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    covariance: Tensor,
    weight: Tensor | None,
    eps: float = 1e-5,
    *,
    training: bool,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of :func:`quaternion_whiten`, in training through mean and covariance too.

    With ``z = L^-1 (x - mean)``, ``M = Gamma L^-1`` and ``S = Gamma^T sum(g z^T)``, the gradient of L is
    ``-tril(L^-T S)``. That of ``V = L L^T`` is, for the gradient ``Lbar`` of any Cholesky factor, the symmetric part of
    ``L^-T P L^-1``, where P is the lower triangle of ``L^T Lbar`` with half of its diagonal. Here P is that of -S, so
    with the symmetric matrix T that has the lower triangle of S::

        grad_x = M^T (g - mean(g)) - L^-T T L^-1 (x - mean) / n

    for n values a channel, and ``M^T g`` in evaluation. The gradient of Gamma is ``sum(g z^T)``, that of beta
    ``sum(g)``.

    Args:
        grad: Gradient of the output ``g``, ``(batch, 4C, ...)``.
        x: Input, the same shape.
        mean: ``(4C,)``, the mean that normalised.
        covariance: ``(C, 4, 4)``, the covariance that normalised.
        weight: ``(10, C)``, or None.
        eps: As in the forward pass.
        training: Whether the statistics are those of this batch.
        needs_input_grad: Whether to compute the gradient of ``x``.

    Returns:
        The gradients of ``x``, weight and bias; None of ``x`` where not needed, of the weight where there is none.

    References:
        Murray, "Differentiation of the Cholesky decomposition", arXiv 1602.07527.
    """
    with _without_autocast(x.device.type):
        g, values = _by_channel(grad), _by_channel(x)
        centred = values - _column(mean, values)
        lower = _factor(covariance.to(values), eps)
        by_z = torch.linalg.solve_triangular(lower.mT, g @ centred.mT, upper=True, left=False)
        grad_weight = None if weight is None else _upper_triangle(by_z)
        sum_grad = g.sum(-1, keepdim=True)
        if not needs_input_grad:
            return None, grad_weight, _flat(sum_grad)
        back = _whitening(lower, weight).mT
        if training:
            g = g - sum_grad / g.shape[-1]
            triangle = (by_z if weight is None else _symmetric(weight.to(by_z)) @ by_z).tril()
            both = triangle + triangle.tril(-1).mT
            both = torch.linalg.solve_triangular(lower, both / g.shape[-1], upper=False, left=False)
            both = torch.linalg.solve_triangular(lower.mT, both, upper=True)
            grad_x = torch.baddbmm(back @ g, both, centred, alpha=-1)
        else:
            grad_x = back @ g
        return _as_features(grad_x, grad), grad_weight, _flat(sum_grad)


def quaternion_scale(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """``y = gamma (x - mean) / sqrt(v + eps) + beta``, with one real v and gamma a quaternion channel.

    Args:
        x: ``(batch, 4C, ...)``.
        mean: ``(4C,)``.
        variance: v, ``(C,)``.
        weight: gamma, ``(C,)``, or None for 1.
        bias: beta, ``(4C,)``, or None.
        eps: Added to the variance.

    Returns:
        The shape and type of ``x``.
    """
    values = _by_channel(x)
    gain = torch.rsqrt(variance.to(values) + eps)
    gain = gain if weight is None else gain * weight
    y = (values - _column(mean, values)) * gain[:, None, None]
    return _as_features(y if bias is None else y + _column(bias, y), x)


def quaternion_scale_vjp(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    eps: float = 1e-5,
    *,
    training: bool,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of :func:`quaternion_scale`, in training through mean and variance too.

    With ``s = 1 / sqrt(v + eps)``, n values a channel and ``<a, b>`` the sum over components and values::

        grad_x = gamma s (g - mean(g) - s^2 <g, x - mean> (x - mean) / n)

    and ``gamma s g`` in evaluation; that of gamma is ``s <g, x - mean>``, that of beta ``sum(g)``.

    Args:
        grad: Gradient of the output ``g``, ``(batch, 4C, ...)``.
        x: Input, the same shape.
        mean: ``(4C,)``, the mean that normalised.
        variance: ``(C,)``, the variance that normalised.
        weight: ``(C,)``, or None.
        eps: As in the forward pass.
        training: Whether the statistics are those of this batch.
        needs_input_grad: Whether to compute the gradient of ``x``.

    Returns:
        The gradients of ``x``, weight and bias; None of ``x`` where not needed, of the weight where there is none.
    """
    g, values = _by_channel(grad), _by_channel(x)
    centred = values - _column(mean, values)
    inv_std = torch.rsqrt(variance.to(values) + eps)[:, None, None]
    product = (g * centred).sum((1, 2), keepdim=True)
    grad_weight = None if weight is None else (product * inv_std).flatten()
    sum_grad = g.sum(-1, keepdim=True)
    if not needs_input_grad:
        return None, grad_weight, _flat(sum_grad)
    if training:
        g = g - sum_grad / g.shape[-1] - inv_std.square() * product / g.shape[-1] * centred
    gain = inv_std if weight is None else inv_std * weight[:, None, None]
    return _as_features(g * gain, grad), grad_weight, _flat(sum_grad)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Covariances are no matter for half precision."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def _factor(covariance: Tensor, eps: float) -> Tensor:
    """``L``, and NaN where the covariance is not that of finite numbers."""
    # Of components that depend on each other, as of grey images, rounding alone can make the covariance indefinite.
    rounding = 16 * torch.finfo(covariance.dtype).eps * covariance.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
    identity = torch.eye(4, dtype=covariance.dtype, device=covariance.device)
    # Not cholesky, whose check of the result waits for the device.
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance + (eps + rounding)[:, None, None] * identity)
    return torch.where(info[:, None, None] == 0, factor, torch.full_like(factor, torch.nan))


def _whitening(lower: Tensor, weight: Tensor | None) -> Tensor:
    """``Gamma L^-1``."""
    matrix: Tensor
    if weight is None:
        identity = torch.eye(4, dtype=lower.dtype, device=lower.device).expand_as(lower)
        matrix = torch.linalg.solve_triangular(lower, identity, upper=False)
    else:
        matrix = torch.linalg.solve_triangular(lower, _symmetric(weight.to(lower)), upper=False, left=False)
    return matrix


def _symmetric(weight: Tensor) -> Tensor:
    """The matrices ``(C, 4, 4)`` of upper triangles ``(10, C)``."""
    parts = weight.unbind(0)
    return torch.stack([torch.stack([parts[k] for k in row], -1) for row in _SYMMETRIC], -2)


def _upper_triangle(grad: Tensor) -> Tensor:
    """The gradient of upper triangles ``(10, C)``: what lies off the diagonal is in the matrix twice."""
    both = grad + grad.mT
    entries = [(grad if i == j else both)[:, i, j] for i in range(4) for j in range(i, 4)]
    return torch.stack(entries)


def _by_channel(x: Tensor) -> Tensor:
    """``(C, 4, n)``, all values of a channel side by side, in float32 or wider."""
    # All sizes given: torch does not guess one of an empty batch.
    by_sample = widened(x).reshape(x.shape[0], 4, x.shape[1] // 4, math.prod(x.shape[2:]))
    return by_sample.permute(2, 1, 0, 3).flatten(2)


def _as_features(values: Tensor, like: Tensor) -> Tensor:
    channels = like.shape[1] // 4
    by_sample = values.reshape(channels, 4, like.shape[0], math.prod(like.shape[2:])).permute(2, 1, 0, 3)
    return by_sample.reshape(like.shape).to(like.dtype)


def _column(features: Tensor, values: Tensor) -> Tensor:
    """``(4C,)`` as ``(C, 4, 1)``."""
    return features.to(values.dtype).view(4, -1).t().unsqueeze(-1)


def _flat(column: Tensor) -> Tensor:
    """``(C, 4, 1)`` as ``(4C,)``."""
    return column.squeeze(-1).t().flatten()
