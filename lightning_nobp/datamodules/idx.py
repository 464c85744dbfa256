"""The IDX format of MNIST."""

import math
import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_MOST_BYTES = 2**30


def read_idx(path: Path, sample: tuple[int, ...] = ()) -> Tensor:
    """Unsigned bytes from an IDX file.

    Args:
        path: The file, not compressed.
        sample: The shape of each sample; none for a number a sample.

    Returns:
        A uint8 tensor ``(samples, ...)``.

    Raises:
        ValueError: It is no such file, truncated, or of other samples; names the file.
    """
    dims = 1 + len(sample)
    with path.open("rb") as file:
        header = file.read(4 + 4 * dims)
        if len(header) < 4 + 4 * dims or header[:4] != bytes([0, 0, 8, dims]):
            raise _wrong(path, f"is not an IDX file of {dims}-dimensional bytes")
        shape = struct.unpack(f">{dims}I", header[4:])
        held, expected = os.fstat(file.fileno()).st_size - len(header), math.prod(shape)
        if held != expected:
            raise _wrong(path, f"holds {held} bytes where its header says {expected}")
        if not shape[0] or shape[1:] != sample or held > _MOST_BYTES:
            wanted = " x ".join(map(str, ("samples", *sample)))
            raise _wrong(path, f"is {' x '.join(map(str, shape))}, not {wanted}")
        return torch.from_numpy(np.fromfile(file, np.uint8)).view(shape)


def _wrong(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} {what}: delete it, it is downloaded again")
