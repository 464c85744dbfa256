"""The transform ``Had`` of four components, four times its own inverse.

``Had(a) = (a0+a1+a2+a3, a0-a1+a2-a3, a0+a1-a2-a3, a0-a1-a2+a3)`` makes a convolution over the Klein four-group
diagonal, which is what :mod:`~lightning_nobp.functional.quaternion.products` uses it for.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.csrc import KernelsUnavailableError, have_memory, library

_SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}


def hadamard(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``Had`` over four tensors of one shape."""
    first, second, third, fourth = parts
    s, d = first + second, first - second
    t, u = third + fourth, third - fourth
    return s + t, d + u, s - t, d - u


def hadamard_(out: Sequence[Tensor], parts: Sequence[Tensor], *, negate_first: bool = False) -> Sequence[Tensor]:
    """Write ``Had`` of ``parts`` into ``out``, which may be ``parts``: in one pass over memory by a compiled kernel.

    Args:
        out: Four tensors of one layout, ``(rows, ...)``.
        parts: Four tensors of one layout and of the same shape.
        negate_first: Whether the first of ``parts`` is taken with the opposite sign.
    """
    if not (_fits_kernel(parts, parts[0]) and _fits_kernel(out, parts[0]) and have_memory(*parts, *out)):
        found = hadamard((-parts[0], *parts[1:]) if negate_first else parts)
        for into, result in zip(out, found, strict=True):
            into.copy_(result)
        return out
    pointers = [part.data_ptr() for part in (*parts, *out)]
    rows = len(parts[0])
    width = parts[0].numel() // max(1, rows)
    strides = parts[0].stride(0), out[0].stride(0)
    _kernel(parts[0].dtype)(*pointers, *strides, rows, width, negate_first, torch.get_num_threads())
    return out


def _fits_kernel(parts: Sequence[Tensor], like: Tensor) -> bool:
    """Whether they are of one layout, rows without gaps, and of ``like``'s type and shape, for which there is code."""
    first = parts[0]
    if not first.is_cpu or _kernel(like.dtype) is None:
        return False
    if any(part.dtype is not like.dtype or part.shape != like.shape or not part.is_cpu for part in parts):
        return False
    strides = first.stride()
    if any(part.stride() != strides for part in parts):
        return False
    inner = 1
    for size, stride in zip(reversed(first.shape[1:]), reversed(strides[1:]), strict=True):
        if size > 1 and stride != inner:
            return False
        inner *= size
    return True


@cache
def _kernel(dtype: torch.dtype) -> Any:
    """The compiled function, None where there is none."""
    if dtype not in _SUFFIXES:
        return None
    try:
        function = getattr(library("quaternion"), f"nobp_quaternion_hadamard_{_SUFFIXES[dtype]}")
    except KernelsUnavailableError:
        return None
    function.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 6
    function.restype = None
    return function
