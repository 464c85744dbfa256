"""Sparse layers and their gradients by the compiled kernels: plain functions on CPU tensors."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.csrc import library
from lightning_nobp.functional.sparse_structure import SparseStructure

_SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""Stride, padding, dilation and groups of a convolution."""


def supports(*tensors: Tensor | None) -> bool:
    """Whether the kernels can take these tensors: on the CPU, all float32 or all float64, none of torch.func's."""
    given = [t for t in tensors if t is not None]
    dtype = given[0].dtype
    if dtype not in _SUFFIXES or not all(t.dtype is dtype and t.device.type == "cpu" for t in given):
        return False
    return torch.compiler.is_compiling() or not any(map(torch._C._functorch.is_functorch_wrapped_tensor, given))


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, structure: SparseStructure, geometry: Geometry | None
) -> Tensor:
    """A convolution of images ``x``, or without geometry a linear layer of ``(batch, in_features)``."""
    x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
    shape = structure.shape
    size = () if geometry is None else output_size(x.shape[2:], shape[2:], geometry)
    y = x.new_empty(x.shape[0], shape[0], *size)
    name = "linear" if geometry is None else "conv2d"
    _call(name, x, values, bias, structure.row_first, structure.column, *_sizes(x.shape, shape, geometry), y)
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    structure: SparseStructure,
    geometry: Geometry | None,
    needs_input: bool,
    needs_values: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and of the values for the gradient of the output; None where not needed."""
    if not (needs_input or needs_values):
        return None, None
    grad, x, values = grad.contiguous(), x.contiguous(), values.contiguous()
    grad_x = torch.empty_like(x) if needs_input else None
    grad_values = torch.empty_like(values) if needs_values else None
    name = "linear_backward" if geometry is None else "conv2d_backward"
    sizes = _sizes(x.shape, structure.shape, geometry)
    _call(name, grad, x, values, *structure.tensors(), *sizes, grad_x, grad_values)
    return grad_x, grad_values


def output_size(size: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> tuple[int, int]:
    """Height and width that a convolution makes of ``size``."""
    stride, padding, dilation, _ = geometry
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


def _sizes(shape: Sequence[int], weight: Sequence[int], geometry: Geometry | None) -> tuple[Any, ...]:
    """What the kernels must know of shapes, and how many threads they may use."""
    threads = torch.get_num_threads()
    if geometry is None:
        return shape[0], shape[1], weight[0], threads
    stride, padding, dilation, groups = geometry
    out = output_size(shape[2:], weight[2:], geometry)
    axes = zip(shape[2:], out, weight[2:], stride, padding, dilation, strict=True)
    numbers = shape[0], shape[1], weight[0], groups, *(n for axis in axes for n in axis)
    return (ctypes.c_int64 * len(numbers))(*numbers), threads


def _call(name: str, first: Tensor, *others: Any) -> None:
    function = getattr(library("sparse"), f"nobp_sparse_{name}_{_SUFFIXES[first.dtype]}")
    # The arguments live until the kernel is done, and with them every tensor that a pointer is taken of.
    if function(*[_c_argument(a) for a in (first, *others)]):
        raise MemoryError(f"no memory for the scratch space of a sparse {name}")


def _c_argument(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return ctypes.c_void_p(arg.data_ptr())
    return ctypes.c_int64(arg) if isinstance(arg, int) else arg
