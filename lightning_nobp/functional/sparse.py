"""Layers with few weights: products and gradients whose cost is that of the weights that there are.

With an unstructured mask of density d, the output, the gradient of the input and the gradient of the weights each cost
d times what a dense layer's do. A gradient of absent weights is never computed. The kernels are vectorised over samples
or pixels, so that any pattern of weights reads contiguous memory; see ``csrc/``.

Every function here is differentiable once, and visible to ``torch.compile`` and ``torch.export``.

References:
    Nikdan, Pegolotti, Iofinova, Kurtic and Alistarh, "SparseProp: Efficient Sparse Backpropagation for Faster Training
    of Neural Networks", arXiv 2302.04852.
"""

import warnings
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.csrc import KernelsUnavailableError, library
from lightning_nobp.functional import backprop as dense
from lightning_nobp.functional import sparse_native as native
from lightning_nobp.functional.sparse_operators import sparse_layer
from lightning_nobp.functional.sparse_structure import SparseStructure

__all__ = [
    "Backend",
    "SparseStructure",
    "sparse_conv2d",
    "sparse_conv2d_vjp",
    "sparse_linear",
    "sparse_linear_vjp",
]

Backend = Literal["auto", "native", "torch"]
Pair = int | tuple[int, int]


def sparse_linear(
    x: Tensor, values: Tensor, structure: SparseStructure, bias: Tensor | None = None, *, backend: Backend = "auto"
) -> Tensor:
    """``y = x @ weight.T + bias`` of a sparse weight.

    Args:
        x: ``(..., in_features)``.
        values: ``(nnz,)``, the weights that there are, ``weight[mask]``.
        structure: Where they are.
        bias: ``(out_features,)`` or None.
        backend: ``'native'``, the compiled kernels: CPU, float32 and float64. ``'torch'``, a dense product with zeros:
            every device and type, differentiable any number of times. ``'auto'`` takes the first where it can.

    Returns:
        ``(..., out_features)``.

    Raises:
        TypeError: Tensors that are not floating point, or of several types.
        ValueError: Shapes that do not fit the structure, or an unknown backend.
        RuntimeError: ``backend='native'`` for tensors that the kernels cannot take, or where there are no kernels.
    """
    _check(x, values, structure, bias, backend, dims=2)
    if not _is_native(x, values, bias, backend):
        return F.linear(x, structure.to_dense(values), bias)
    # A view costs as much as a small product.
    if x.dim() == 2:
        return sparse_layer(x, values, bias, structure)
    y = sparse_layer(x.reshape(-1, x.shape[-1]), values, bias, structure)
    return y.reshape(*x.shape[:-1], structure.shape[0])


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    structure: SparseStructure,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """A two-dimensional convolution with a sparse weight.

    Args:
        x: ``(batch, in_channels, height, width)``.
        values: ``(nnz,)``, the weights that there are, ``weight[mask]``.
        structure: Where they are, of shape ``(out_channels, in_channels / groups, kernel_height, kernel_width)``.
        bias: ``(out_channels,)`` or None.
        stride: Of the convolution.
        padding: Zeros on each side.
        dilation: Of the kernel.
        groups: Of channels.
        backend: See :func:`sparse_linear`.

    Returns:
        ``(batch, out_channels, out_height, out_width)``.

    Raises:
        TypeError: Tensors that are not floating point, or of several types.
        ValueError: Shapes that do not fit the structure, numbers out of range, or an unknown backend.
        RuntimeError: ``backend='native'`` for tensors that the kernels cannot take, or where there are no kernels.
    """
    _check(x, values, structure, bias, backend, dims=4)
    geometry = _geometry(x, structure, stride, padding, dilation, groups)
    if not _is_native(x, values, bias, backend):
        return F.conv2d(x, structure.to_dense(values), bias, *geometry)
    return sparse_layer(x, values, bias, structure, geometry)


def sparse_linear_vjp(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    structure: SparseStructure,
    *,
    needs_input_grad: bool = True,
    needs_values_grad: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`sparse_linear` without bias, for the gradient ``grad`` of its output.

    Args:
        grad: ``(..., out_features)``.
        x: ``(..., in_features)``.
        values: ``(nnz,)``.
        structure: Where they are.
        needs_input_grad: Whether to compute the gradient of ``x``.
        needs_values_grad: Whether to compute the gradient of the values.
        backend: See :func:`sparse_linear`.

    Returns:
        The gradients of ``x`` and of the values ``(nnz,)``, None where not needed.
    """
    _check(x, values, structure, None, backend, dims=2)
    _check_grad(grad, (*x.shape[:-1], structure.shape[0]))
    if _is_native(grad, values, x, backend):
        if x.dim() == 2:
            return native.backward(grad, x, values, structure, None, needs_input_grad, needs_values_grad)
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x, grad_values = native.backward(
            rows, inputs, values, structure, None, needs_input_grad, needs_values_grad
        )
        return None if grad_x is None else grad_x.reshape(x.shape), grad_values
    grad_x, grad_weight = dense.linear_vjp(
        grad,
        x,
        structure.to_dense(values),
        needs_input_grad=needs_input_grad,
        needs_weight_grad=needs_values_grad,
    )
    return grad_x, None if grad_weight is None else structure.from_dense(grad_weight)


def sparse_conv2d_vjp(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    structure: SparseStructure,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    needs_input_grad: bool = True,
    needs_values_grad: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`sparse_conv2d` without bias, for the gradient ``grad`` of its output.

    Args:
        grad: ``(batch, out_channels, out_height, out_width)``.
        x: ``(batch, in_channels, height, width)``.
        values: ``(nnz,)``.
        structure: Where they are.
        stride: Of the convolution.
        padding: Zeros on each side.
        dilation: Of the kernel.
        groups: Of channels.
        needs_input_grad: Whether to compute the gradient of ``x``.
        needs_values_grad: Whether to compute the gradient of the values.
        backend: See :func:`sparse_linear`.

    Returns:
        The gradients of ``x`` and of the values ``(nnz,)``, None where not needed.
    """
    _check(x, values, structure, None, backend, dims=4)
    geometry = _geometry(x, structure, stride, padding, dilation, groups)
    _check_grad(grad, (len(x), structure.shape[0], *native.output_size(x.shape[2:], structure.shape[2:], geometry)))
    if _is_native(grad, values, x, backend):
        return native.backward(grad, x, values, structure, geometry, needs_input_grad, needs_values_grad)
    grad_x, grad_weight = dense.conv2d_vjp(
        grad,
        x,
        structure.to_dense(values),
        stride=geometry[0],
        padding=geometry[1],
        dilation=geometry[2],
        groups=groups,
        needs_input_grad=needs_input_grad,
        needs_weight_grad=needs_values_grad,
    )
    return grad_x, None if grad_weight is None else structure.from_dense(grad_weight)


# At the door


def _check(x: Tensor, values: Tensor, structure: SparseStructure, bias: Tensor | None, backend: str, dims: int) -> None:
    if backend not in ("auto", "native", "torch"):
        raise ValueError(f"backend={backend!r} is not one of 'auto', 'native', 'torch'")
    for name, tensor in (("x", x), ("values", values), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} of type {tensor.dtype}: sparse layers take floating point tensors")
    if (
        values.dtype is not x.dtype or (bias is not None and bias.dtype is not x.dtype)
    ) and not torch.is_autocast_enabled(x.device.type):
        types = ", ".join(str(t.dtype) for t in (x, values, bias) if t is not None)
        raise TypeError(f"x, values and bias of types {types}: give all one type")
    if structure.column.device != x.device and not x.is_meta:
        raise ValueError(
            f"structure on {structure.column.device} and x on {x.device}: give structure.to({x.device.type!r})"
        )
    if len(structure.shape) != dims:
        kind = "sparse_linear takes (out_features, in_features)" if dims == 2 else "sparse_conv2d takes four dimensions"
        raise ValueError(f"structure of a weight of shape {structure.shape}: {kind}")
    if dims == 2 and x.shape[-1:] != structure.shape[1:]:
        raise ValueError(
            f"x of shape {tuple(x.shape)} does not fit a weight of shape {structure.shape}: its last dimension must be "
            f"{structure.shape[1]}"
        )
    if values.shape != (structure.nnz,):
        raise ValueError(
            f"values of shape {tuple(values.shape)}: the structure has {structure.nnz} weights, so give weight[mask]"
        )
    if bias is not None and bias.shape != structure.shape[:1]:
        raise ValueError(
            f"bias of shape {tuple(bias.shape)}: a weight of shape {structure.shape} has {structure.shape[0]}"
        )


def _check_grad(grad: Tensor, shape: tuple[int, ...]) -> None:
    if grad.shape != shape:
        raise ValueError(f"grad of shape {tuple(grad.shape)}: the output's shape is {shape}")


def _geometry(
    x: Tensor, structure: SparseStructure, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> native.Geometry:
    geometry = _pair(stride), _pair(padding), _pair(dilation), groups
    for name, pair, least in (("stride", geometry[0], 1), ("padding", geometry[1], 0), ("dilation", geometry[2], 1)):
        if min(pair) < least:
            raise ValueError(f"{name}={pair} must be at least {least}")
    if groups < 1 or structure.shape[0] % groups:
        raise ValueError(f"groups={groups} does not divide the {structure.shape[0]} output channels")
    channels = structure.shape[1] * groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(
            f"x of shape {tuple(x.shape)} does not fit a weight of shape {structure.shape} with groups={groups}: give "
            f"(batch, {channels}, height, width)"
        )
    if min(native.output_size(x.shape[2:], structure.shape[2:], geometry)) < 1:
        raise ValueError(
            f"x of shape {tuple(x.shape)} is smaller than the kernel of a weight of shape {structure.shape}"
        )
    return geometry


def _pair(value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) for n in pair):
        raise ValueError(f"{value!r} is neither a whole number nor a pair of them: stride, padding and dilation are")
    return pair


def _is_native(x: Tensor, values: Tensor, other: Tensor | None, backend: str) -> bool:
    if backend == "torch":
        return False
    can = native.supports(x, values, other) and not torch.is_autocast_enabled("cpu")
    if backend == "auto":
        return can and _has_kernels()
    if not can:
        raise RuntimeError(
            f"backend='native' takes float32 or float64 tensors of one type on the CPU, outside autocast; here are "
            f"{x.dtype} on {x.device} and {values.dtype} on {values.device}: take backend='torch'"
        )
    return True


def _why_no_kernels() -> str:
    try:
        library("sparse")
    except KernelsUnavailableError as error:
        return str(error)
    return ""


# Asked once and at once: compilers cannot look into files.
_NO_KERNELS = _why_no_kernels()


def _has_kernels() -> bool:
    if _NO_KERNELS and not torch.compiler.is_compiling():
        _warn_once(f"{_NO_KERNELS}. Until then sparse layers run as dense products with zeros: right, but not faster.")
    return not _NO_KERNELS


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=5)
