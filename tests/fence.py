"""Memory between pages that nobody may touch, and processes on a processor of fewer abilities."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


class Fence:
    """Makes tensors that end, or begin, at a page that nobody may touch."""

    def __init__(self, at_end):
        self.at_end = at_end
        self.made = set()

    def empty(self, shape, dtype):
        numel, page = torch.Size(shape).numel(), mmap.PAGESIZE
        if not numel:
            return torch.empty(shape, dtype=dtype)
        inside = -(-numel * dtype.itemsize // page) * page
        memory = mmap.mmap(-1, inside + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (address, address + page + inside):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), page, 0) == 0
        offset = page + (inside - numel * dtype.itemsize if self.at_end else 0)
        tensor = torch.frombuffer(memory, dtype=dtype, count=numel, offset=offset).view(shape)
        self.made.add(tensor.data_ptr())
        return tensor.fill_(float("nan") if dtype.is_floating_point else -1)

    def copy(self, tensor):
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)


def run_with_capability(capability, program, path):
    """Run ``program path`` where torch, and with it the choice of a library, sees a processor of fewer abilities."""
    if capability == "avx2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    # The program imports this file too.
    folders = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": folders}
    process = subprocess.run(
        [sys.executable, program, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert path.exists(), process.stderr
    return torch.load(path, weights_only=False), process
