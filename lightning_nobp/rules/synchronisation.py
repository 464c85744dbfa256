"""What ranks of a distributed run exchange; on a single process every function is the identity."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_LOST = re.compile("connection (closed|reset)|broken pipe|timed out|socket|communicator was aborted", re.IGNORECASE)
"""What backends say of a process that is gone or does not answer."""


@contextmanager
def _with_others() -> Iterator[None]:
    """Say what it means that another process is gone.

    Raises:
        RuntimeError: It has ended, or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise RuntimeError(
            f"rank {rank()} of {world_size()} has lost another process of this run: it ended, was killed, or did not "
            "answer within DDPStrategy(timeout=...). If it failed, its own error stands in the output; start again "
            f"from the last checkpoint. What {dist.get_backend()} says: {error}"
        ) from error


def is_distributed() -> bool:
    """Whether several processes run together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0 for the only one."""
    return dist.get_rank() if is_distributed() else 0


def is_main_rank() -> bool:
    """Whether this process is the first, or the only one."""
    return rank() == 0


def average_over_ranks(parameters: list[nn.Parameter], num_samples: int, loss: Tensor | None) -> Tensor | None:
    """Average gradients and loss over ranks, weighted by samples, in one all-reduce.

    Weights make ranks with unequal batches equal to one process with the joined batch. A parameter without gradient
    on one rank counts as zero there; without gradient on all ranks it keeps none.

    Args:
        parameters: The same on every rank; ``p.grad`` is overwritten.
        num_samples: Samples behind this rank's gradient.
        loss: This rank's mean loss, a scalar, or None on all ranks.

    Returns:
        The mean loss over all samples.
    """
    device = parameters[0].device
    weight = torch.tensor([float(num_samples)], device=device)
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    mean_loss = weight.new_zeros(1) if loss is None else loss.detach().reshape(1)
    # Joined with float32 numbers, half-precision gradients are summed in float32.
    flat = torch.cat([piece.flatten() for piece in pieces] + [mean_loss, torch.ones_like(weight)]) * weight
    flat = torch.cat([flat, present])
    with _with_others():
        dist.all_reduce(flat)
    total = flat[-len(parameters) - 1]
    start = 0
    for parameter, seen in zip(parameters, flat[-len(parameters) :].tolist(), strict=True):
        piece = flat[start : start + parameter.numel()] / total
        parameter.grad = piece.view_as(parameter).to(parameter.dtype) if seen else None
        start += parameter.numel()
    return None if loss is None else (flat[start] / total).to(loss.dtype)


def average_gradients(gradients: list[Tensor], num_samples: int) -> list[Tensor]:
    """Gradients averaged over ranks, weighted by samples.

    Args:
        gradients: Of this rank; not changed.
        num_samples: Samples behind them.
    """
    if not is_distributed():
        return gradients
    total = sum_over_ranks(torch.tensor(float(num_samples)))
    return [sum_over_ranks(g * num_samples) / total.to(g.device) for g in gradients]


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of ``value`` over ranks; ``value`` itself is untouched."""
    if not is_distributed():
        return value
    total = _to_backend(value.detach().clone())
    with _with_others():
        dist.all_reduce(total)
    return total.to(value.device)


def broadcast_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main rank."""
    if is_distributed():
        for tensor in tensors:
            shared = _to_backend(tensor.detach())
            with _with_others():
                dist.broadcast(shared, 0)
            tensor.detach().copy_(shared)


def gather_from_ranks(value: Any) -> list[Any]:
    """One entry a rank; any picklable value."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    with _with_others():
        dist.all_gather_object(gathered, value)
    return gathered


def ranks_where(condition: bool | Tensor) -> list[int]:
    """The ranks on which a condition holds, the same list on every rank."""
    return [number for number, holds in enumerate(gather_from_ranks(bool(condition))) if holds]


def from_ranks(ranks: Sequence[int]) -> str:
    """', from rank 1' for a message, '' where there is but one rank or none is to blame."""
    return f", from {in_words(ranks)}" if ranks and world_size() > 1 else ""


def in_words(ranks: Sequence[int]) -> str:
    """'rank 1', or 'ranks 0, 2'."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def gather_vectors(vector: Tensor) -> list[Tensor]:
    """One vector a rank, of any length; small, since every rank gets all.

    Args:
        vector: ``(entries,)``, the same dtype on every rank.
    """
    if not is_distributed():
        return [vector]
    own_size = _to_backend(torch.tensor([len(vector)]))
    sizes = [torch.empty_like(own_size) for _ in range(world_size())]
    with _with_others():
        dist.all_gather(sizes, own_size)
    longest = max(int(size) for size in sizes)
    padded = _to_backend(torch.nn.functional.pad(vector.detach(), (0, longest - len(vector))))
    gathered = [torch.empty_like(padded) for _ in sizes]
    with _with_others():
        dist.all_gather(gathered, padded)
    return [row[: int(size)].to(vector.device) for row, size in zip(gathered, sizes, strict=True)]


def world_size() -> int:
    """Number of processes that run together."""
    return dist.get_world_size() if is_distributed() else 1


def check_ranks_agree(parameters: Mapping[str, nn.Parameter]) -> None:
    """Compare a checksum of every parameter over ranks.

    Raises:
        RuntimeError: Ranks hold different values; names the first parameter.
    """
    sums = torch.stack([_checksum(p) for p in parameters.values()]) if parameters else torch.zeros(1)
    everywhere = gather_from_ranks(sums.cpu())
    for name, *values in zip(parameters, *everywhere, strict=False):
        if any(v != values[0] for v in values):
            raise RuntimeError(
                f"parameter {name!r} differs between ranks: the gradient written on each rank was not the average. "
                "If synchronise_gradients is overridden, every rank must end with the same p.grad."
            )


def _checksum(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64)


def _to_backend(value: Tensor) -> Tensor:
    return value.cuda() if dist.get_backend() == "nccl" else value.cpu()
