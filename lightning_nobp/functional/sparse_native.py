"""Sparse layers and their gradients by the compiled kernels: plain functions on CPU tensors."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lightning_nobp.csrc import library
from lightning_nobp.functional.sparse_structure import SparseStructure

_SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}

# Pointers and integers of the kernels, in order.
_SIGNATURES = {
    "linear": "ppppp" + "iiii" + "p",
    "linear_backward": "ppp" + "ppppp" + "iiii" + "pp",
    "conv2d": "ppppp" + "pi" + "p",
    "conv2d_backward": "ppp" + "ppppp" + "pi" + "pp",
}

_NO_MEMORY = 1

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""Stride, padding, dilation and groups of a convolution."""


def supports(x: Tensor, values: Tensor, other: Tensor | None) -> bool:
    """Whether the kernels can take these tensors: on the CPU, all float32 or all float64, outside of torch.func."""
    # Spelled out, since every layer is asked twice at every step.
    dtype = x.dtype
    if dtype not in _SUFFIXES or values.dtype is not dtype or not (x.is_cpu and values.is_cpu):
        return False
    if other is not None and (other.dtype is not dtype or not other.is_cpu):
        return False
    if torch.compiler.is_compiling():
        return True
    # Neither torch.func nor forward-mode differentiation reaches into a kernel.
    return torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0


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
    # The arguments live until the kernel is done, and with them every tensor that a pointer is taken of.
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in (first, *others)]
    code = _function(name, first.dtype)(*pointers)
    if code == _NO_MEMORY:
        raise MemoryError(f"no memory for the scratch space of a sparse {name}")
    if code:
        raise ValueError(f"x of shape {tuple(first.shape)} is too large for 32-bit offsets: take backend='torch'")


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(library("sparse"), f"nobp_sparse_{name}_{_SUFFIXES[dtype]}")
    function.argtypes = [ctypes.c_void_p if kind == "p" else ctypes.c_int64 for kind in _SIGNATURES[name]]
    return function
