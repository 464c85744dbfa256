"""Seeded, stratified choice of samples."""

import math

import torch
from torch import Tensor


def stratified_split(labels: Tensor, size: int | float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Choose ``size`` samples with the classes in proportion, the same in every process.

    Args:
        labels: ``(num_samples,)``, class numbers.
        size: How many to choose; a float is a fraction of all.
        seed: Of the choice.
        name: The argument that gave ``size``, for the error.

    Returns:
        Indices of the chosen samples and of the others, each in ascending order.

    Raises:
        ValueError: ``size`` is not between 0 and the number of samples, or smaller than the number of classes, or a
            class has a single sample.
    """
    total, count = len(labels), num_chosen(size, len(labels), name)
    everything = torch.arange(total)
    if count in (0, total):
        return everything[:count], everything[count:]
    classes, members = labels.unique(return_counts=True)  # type: ignore[no-untyped-call]
    num_classes = len(classes)
    if count < num_classes or total - count < num_classes:
        raise ValueError(
            f"{name}={size!r} splits {total} samples into {count} and {total - count}: "
            f"each part needs at least one sample of each of the {num_classes} classes"
        )
    if members.min() < 2:
        raise ValueError(
            f"{name}={size!r} splits {total} samples, but class number {classes[members.argmin()]} has only one of "
            "them. Add samples of that class or leave it out (val_size=0 and subset=None split nothing)"
        )
    # Imported here: it takes a second, which a run without a split need not wait.
    from sklearn.model_selection import train_test_split

    rest, chosen = train_test_split(everything.numpy(), test_size=count, random_state=seed, stratify=labels.numpy())
    return torch.from_numpy(chosen).sort().values, torch.from_numpy(rest).sort().values


def check_size(size: int | float, name: str) -> None:
    """Refuse what can be neither a number of samples nor a fraction.

    Raises:
        ValueError: It is negative, or a fraction above 1.
    """
    # Where options are read, a whole number may arrive as a float.
    if not 0 <= size < float("inf") or (size > 1 and size != int(size)):
        raise ValueError(f"{name}={size} must be a number of samples, or a fraction from 0.0 to 1.0")


def num_chosen(size: int | float, total: int, name: str) -> int:
    """``size`` as a number of samples.

    Raises:
        ValueError: It is not between 0 and ``total``, or a fraction outside [0, 1].
    """
    if not math.isfinite(size):
        raise ValueError(f"{name}={size!r} must be finite")
    count = round(size * total) if isinstance(size, float) and size <= 1 else int(size)
    if not 0 <= count <= total:
        raise ValueError(
            f"{name}={size!r} must be a number of samples from 0 to {total}, or a fraction from 0.0 to 1.0"
        )
    return count
