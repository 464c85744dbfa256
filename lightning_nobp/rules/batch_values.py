"""What is found in a batch, and what a rule found out about it."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def first_tensor(batch: Any) -> Tensor | None:
    """The first tensor with a length, in tuples, lists and dictionaries."""
    if isinstance(batch, Tensor):
        return batch if batch.dim() else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for found in map(first_tensor, parts) if found is not None), None)


def scalar(name: str, value: Any) -> Tensor:
    """A value to log as a tensor without dimensions."""
    if isinstance(value, Real):  # numpy's too
        return torch.tensor(float(value))
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"compute_gradients returned {kind} as {name!r}: a value to log is one number")
    return value.detach().reshape(())
