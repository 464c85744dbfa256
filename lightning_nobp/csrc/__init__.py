"""Compiled kernels: C++ sources, the libraries that were built of them, and what loads the one for this processor."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_VARIANTS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
_FOLDER = Path(__file__).parent


class KernelsUnavailableError(RuntimeError):
    """There are no compiled kernels that this machine can run."""


@cache
def library(name: str) -> ctypes.CDLL:
    """The compiled library ``name``, in the widest form that this processor has registers for.

    It shares torch's OpenMP runtime: the library names none itself, and finds the one that ``import torch`` has loaded.

    Raises:
        KernelsUnavailableError: None was built, or none loads; the message says why.
    """
    # Torch's answer, so that its ATEN_CPU_CAPABILITY holds for these kernels too.
    variants = _VARIANTS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
    reason = "none was built when lightning-nobp was installed"
    for variant in variants:
        path = _FOLDER / f"{name}_{variant}.so"
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                reason = str(error)
    raise KernelsUnavailableError(
        f"no compiled kernels for {name} layers: {reason}. Install them by `pip install --force-reinstall --no-deps "
        "--no-cache-dir lightning-nobp` where there is a C++ compiler"
    )


def have_memory(*tensors: Tensor) -> bool:
    """Whether a kernel may read and write tensors at their addresses.

    Not where one stands in for others (in ``torch.func``, while a graph is traced), has a tangent beside it, or is not
    what its memory says (a negative view).
    """
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_dispatch_stack():
        return False
    return all(
        type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not functorch.is_legacy_batchedtensor(tensor)
        for tensor in tensors
    )
