"""Layers of rotations: quaternions turn vectors of three components, ``x -> u x u^-1``.

One Hamilton product cannot do that to a vector; it takes the product from both sides, which is a rotation matrix. Its
entries are written out, so that a layer is one real product and its backward pass is in closed form.

References:
    Zhu et al., "Quaternion Convolutional Neural Networks", arXiv 1903.00658.
"""

import torch
from torch import Tensor

from lightning_nobp.functional.backprop import linear_vjp
from lightning_nobp.functional.quaternion.algebra import check_types, in_range, narrow, root, widened
from lightning_nobp.typed import explained


@explained
def rotation_matrices(weight: Tensor) -> Tensor:
    """The matrices R of ``x -> u x u^-1`` with ``u = w / |w|``.

    The length of w does not matter, however small; 0 is the identity, with gradient 0.

    Args:
        weight: Quaternions w, ``(4, ...)``, components first.

    Returns:
        ``(3, 3, ...)``.

    Raises:
        ValueError: Not 4 components.
    """
    if weight.dim() == 0 or weight.shape[0] != 4:
        raise ValueError(f"weight of shape {tuple(weight.shape)} is not (4, ...): components first")
    a, b, c, d = _directions(weight)[0].unbind(0)
    rows = [
        [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
    ]
    return narrow(torch.stack([torch.stack(row) for row in rows]), weight)


def rotation_matrices_vjp(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight of :func:`rotation_matrices`: ``(h - (h.u) u) / |w|``, where h is that of ``u``.

    Args:
        grad: Gradient of the matrices, ``(3, 3, ...)``.
        weight: ``(4, ...)``.

    Returns:
        ``(4, ...)``.
    """
    unit, length = _directions(weight)
    a, b, c, d = unit.unbind(0)
    (g00, g01, g02), (g10, g11, g12), (g20, g21, g22) = (row.unbind(0) for row in grad.to(unit.dtype).unbind(0))
    of_unit = 2 * torch.stack(
        [
            b * (g21 - g12) + c * (g02 - g20) + d * (g10 - g01),
            a * (g21 - g12) + c * (g01 + g10) + d * (g02 + g20) - 2 * b * (g11 + g22),
            a * (g02 - g20) + b * (g01 + g10) + d * (g12 + g21) - 2 * c * (g00 + g22),
            a * (g10 - g01) + b * (g02 + g20) + c * (g12 + g21) - 2 * d * (g00 + g11),
        ]
    )
    return ((of_unit - (of_unit * unit).sum(0) * unit) / length).to(weight.dtype)


@explained
def quaternion_rotation(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y_m = sum_n s_mn u_mn x_n u_mn^-1 + b_m`` over vectors of three components, with ``u = w / |w|``.

    Args:
        x: ``(..., 3N)``, component-major: all i, all j, all k.
        weight: Quaternions w, ``(4, M, N)``: component, output, input.
        scale: s, broadcast to ``(M, N)``.
        bias: b, ``(3M,)``, component-major, or None.

    Returns:
        ``(..., 3M)``.

    Raises:
        ValueError: Shapes or types that do not fit.
    """
    if weight.dim() != 3 or weight.shape[0] != 4:
        raise ValueError(f"weight of shape {tuple(weight.shape)} is not (4, M, N): component, output, input")
    outputs, inputs = weight.shape[1:]
    if x.dim() == 0 or x.shape[-1] != 3 * inputs:
        raise ValueError(
            f"x of shape {tuple(x.shape)} does not fit weight of shape {tuple(weight.shape)}: give (..., {3 * inputs})"
        )
    if bias is not None and bias.shape != (3 * outputs,):
        raise ValueError(f"bias of shape {tuple(bias.shape)} does not fit {outputs} vectors: give ({3 * outputs},)")
    check_types(x, weight)
    return torch.nn.functional.linear(x, _block(rotation_matrices(weight) * scale), bias)


def quaternion_rotation_vjp(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    *,
    needs_input_grad: bool = True,
    needs_weight_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of :func:`quaternion_rotation`.

    That of the input is ``g`` turned back, that of the scaled matrices ``sum g x^T``; from there it goes on to the
    scale as ``<., R>`` and to the quaternions by :func:`rotation_matrices_vjp`.

    Args:
        grad: ``(..., 3M)``, the gradient of the output.
        x: ``(..., 3N)``.
        weight: ``(4, M, N)``.
        scale: Broadcast to ``(M, N)``.
        needs_input_grad: Whether to compute the gradient of ``x``.
        needs_weight_grad: Whether to compute those of ``weight`` and ``scale``.

    Returns:
        The gradients of ``x``, of ``weight``, and of the scale ``(M, N)``; None where not needed.
    """
    matrices = rotation_matrices(weight)
    block = _block(matrices * scale)
    grad_x, grad_block = linear_vjp(
        grad, x, block, needs_input_grad=needs_input_grad, needs_weight_grad=needs_weight_grad
    )
    if grad_block is None:
        return grad_x, None, None
    outputs, inputs = weight.shape[1:]
    of_scaled = grad_block.to(weight.dtype).view(3, outputs, 3, inputs).transpose(1, 2)
    return grad_x, rotation_matrices_vjp(of_scaled * scale, weight), (of_scaled * matrices).sum((0, 1))


def _directions(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``w / |w|`` and ``|w|``, or 0 and 1 where w is 0; in float32 or wider."""
    scaled, scale = in_range(widened(weight), 0)
    length = root(scaled.square().sum(0, keepdim=True))
    length = torch.where(length == 0, torch.ones_like(length), length)
    return scaled / length, (length / scale).squeeze(0)


def _block(matrices: Tensor) -> Tensor:
    """Matrices ``(3, 3, M, N)`` as the one ``(3M, 3N)`` of component-major features."""
    return matrices.transpose(1, 2).flatten(2, 3).flatten(0, 1)
