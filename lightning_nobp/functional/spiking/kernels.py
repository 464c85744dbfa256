"""The compiled library: whether it can be used, and how its functions are called."""

import ctypes
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.csrc import KernelsUnavailableError, have_memory, library

_SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}

# Pointers and integers of the kernels, in order.
_LAYER = "pppp" + "pp" + "i" + "p" + "pppp"
_SIGNATURES = {
    "forward": _LAYER,
    "backward": _LAYER + "p" + "i" + "ppp" + "pp",
    "count": "piii" + "p",
    "order": "piii" + "ip",
}


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors: on the CPU, all float32 or all float64."""
    dtype = tensors[0].dtype
    fits = dtype in _SUFFIXES and all(tensor.is_cpu and tensor.dtype is dtype for tensor in tensors)
    return fits and have_memory(*tensors)


def are_built() -> bool:
    """Whether there are kernels; where there are none, one warning says why."""
    reason = _why_none()
    if reason:
        _warn_once(f"{reason}. Until then spiking layers run as a loop over events in torch: right, but much slower.")
    return not reason


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Run a kernel on tensors, numbers and None.

    Raises:
        KernelsUnavailableError: There are no kernels.
        MemoryError: There is no memory for its scratch space.
    """
    # The arguments live until the kernel is done, and with them every tensor that a pointer is taken of.
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if _function(name, dtype)(*pointers):
        raise MemoryError(f"no memory for the scratch space of the kernel {name!r} of spiking layers")


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(library("spiking"), f"nobp_spiking_{name}_{_SUFFIXES[dtype]}")
    function.argtypes = [ctypes.c_void_p if kind == "p" else ctypes.c_int64 for kind in _SIGNATURES[name]]
    return function


@cache
def _why_none() -> str:
    try:
        library("spiking")
    except KernelsUnavailableError as error:
        return str(error)
    return ""


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
