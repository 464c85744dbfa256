"""What may be wrong with numbers: values that are not finite, and batches that do not fit."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def total(values: Iterable[Tensor]) -> Tensor:
    """One number from one pass, on the device of the first: whatever is not finite spoils it.

    The other way round it says little, since a sum of finite entries may overflow.
    """
    sums = [value.detach().sum() for value in values]
    return torch.stack([part.to(sums[0].device) for part in sums]).sum() if sums else torch.zeros(())


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """Names of those with an entry that is not finite."""
    if total(values.values()).isfinite():
        return []
    return [name for name, value in values.items() if not bool(value.detach().isfinite().all())]


def learned(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics, by name: other buffers may be infinite on purpose."""
    running = {n: b for n, b in module.named_buffers() if n.rpartition(".")[2].startswith("running_")}
    return dict(module.named_parameters()) | running


def described(batch: Any) -> str:
    """A batch by its types and shapes."""
    if isinstance(batch, Tensor):
        return f"{batch.dtype} {tuple(batch.shape)}"
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else None
    return type(batch).__name__ if parts is None else f"({', '.join(map(described, parts))})"


def check_labels(labels: Tensor, num_classes: int, what: str = "targets") -> None:
    """Refuse what is no class number.

    Raises:
        ValueError: Names the smallest and the largest.
    """
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{what} from {low} to {high} do not fit num_classes={num_classes}: count from 0")
