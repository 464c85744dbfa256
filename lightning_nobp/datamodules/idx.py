"""The IDX format of MNIST."""

import struct
from pathlib import Path

import torch
from torch import Tensor


def read_idx(path: Path, dims: int) -> Tensor:
    """Unsigned bytes from an IDX file.

    Args:
        path: The file, not compressed.
        dims: Number of dimensions it must have.

    Returns:
        A uint8 tensor of the shape in the file's header.

    Raises:
        ValueError: It is no such file, or truncated; names the file.
    """
    content = bytearray(path.read_bytes())
    header = 4 + 4 * dims
    if len(content) < header or content[:4] != bytes([0, 0, 8, dims]):
        raise ValueError(f"{path} is not an IDX file of {dims}-dimensional bytes: delete it, it is downloaded again")
    shape = struct.unpack(f">{dims}I", content[4:header])
    values = torch.frombuffer(content, dtype=torch.uint8)[header:]
    expected = int(torch.tensor(shape).prod())
    if len(values) != expected:
        raise ValueError(
            f"{path} holds {len(values)} bytes where its header says {expected}: delete it, it is downloaded again"
        )
    return values.view(shape)
