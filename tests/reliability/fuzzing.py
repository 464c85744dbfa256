"""Valid arguments at random, what may be wrong with them, and when two results are the same."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

Arguments = dict[str, Any]


class Case(NamedTuple):
    """A function, and what it is held against."""

    call: Callable[..., Any]
    make: Callable[[Random], Arguments]
    """Valid arguments, of random sizes; float64 where they are real."""
    reference: Callable[..., Any]
    """The same, written in another way; it may be slow."""
    fixed: tuple[str, ...] = ()
    """Numbers that stay: more of them would take time or memory alone."""
    without: tuple[str, ...] = ()
    """Kinds of changes after which the reference itself has no digits left."""


def numbers(chance: Random, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed."""
    generator = torch.Generator().manual_seed(chance.getrandbits(32))
    return torch.randn(shape, dtype=dtype, generator=generator)


def leading(chance: Random, most: int = 2) -> tuple[int, ...]:
    """Sizes of up to so many dimensions, 0 and 1 among them."""
    return tuple(chance.choice((0, 1, 1, 2, 3, 3)) for _ in range(chance.randint(0, most)))


# What may be wrong


def strided(x: Tensor, chance: Random) -> Tensor:
    """The same numbers in another order of memory."""
    if not x.dim():
        return x
    if chance.random() < 0.5:
        place = chance.randrange(x.dim())
        return x.transpose(0, place).contiguous().transpose(0, place)
    doubled = torch.stack([x, torch.full_like(x, 1)], dim=-1)
    return doubled[..., 0]


def expanded(x: Tensor, chance: Random) -> Tensor:
    """One slice in the place of all, without memory of its own."""
    if not x.numel():
        return x
    place = chance.randrange(x.dim()) if x.dim() else 0
    return x.narrow(place, 0, 1).expand_as(x) if x.dim() else x


def converted(x: Tensor, chance: Random) -> Tensor:
    """Another type."""
    return x.to(chance.choice((torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)))


def reshaped(x: Tensor, chance: Random) -> Tensor:
    """A dimension more or less, or of another size."""
    if not x.dim() or chance.random() < 0.2:
        return x.unsqueeze(chance.randint(0, x.dim()))
    place = chance.randrange(x.dim())
    how = chance.randrange(4)
    if how == 0 and x.shape[place]:
        return x.select(place, 0)
    if how == 1:
        return x.narrow(place, 0, 0)
    if how == 2 and x.shape[place]:
        return x.narrow(place, 0, 1)
    return torch.cat([x, x], place)


def spoiled(x: Tensor, chance: Random) -> Tensor:
    """A number that is none, or far from the others."""
    if not x.numel() or x.dtype == torch.bool:
        return x
    whole = not (x.is_floating_point() or x.is_complex())
    value = chance.choice((-1, 2**40) if whole else (float("nan"), float("inf"), 1e30, 1e-30, 0.0, -1.0))
    found = x.clone()
    found.reshape(-1)[chance.randrange(x.numel())] = value
    return found


TENSORS = {"strides": strided, "expanded": expanded, "type": converted, "shape": reshaped, "values": spoiled}
NO_TENSORS = (None, [], "nonsense", 1.0)
NO_NUMBERS = (0, -1, float("nan"), float("inf"), 1e30, 0.5, "nonsense", None, True)


def mutated(case: Case, arguments: Arguments, kind: str, chance: Random) -> Arguments:
    """One argument, changed."""
    tensors = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    others = [
        name
        for name, value in arguments.items()
        if isinstance(value, int | float | str | bool | type(None)) and name not in case.fixed
    ]
    if kind in TENSORS and tensors:
        name = chance.choice(tensors)
        return arguments | {name: TENSORS[kind](arguments[name], chance)}
    if kind == "no tensor" and tensors:
        return arguments | {chance.choice(tensors): chance.choice(NO_TENSORS)}
    if kind == "number" and others:
        return arguments | {chance.choice(others): chance.choice(NO_NUMBERS)}
    return arguments


KINDS = ("none", *TENSORS, "no tensor", "number")


# When two results are the same


def widened(valid: Any, given: Any) -> Any:
    """What the reference gets: the same numbers, contiguous and in double precision where they may be."""
    if not isinstance(given, Tensor):
        return given
    if given.is_complex():
        return given.to(torch.complex128).contiguous()
    if isinstance(valid, Tensor) and not (valid.is_floating_point() or valid.is_complex()):
        return given.to(valid.dtype).contiguous()
    return given.double().contiguous()


def tolerance(arguments: Mapping[str, Any]) -> float:
    """Of the least precise tensor."""
    kinds = {value.dtype for value in arguments.values() if isinstance(value, Tensor)}
    for kind, error in ((torch.bfloat16, 0.1), (torch.float16, 2e-2)):
        if kind in kinds:
            return error
    single = {torch.float32, torch.complex64, torch.int64, torch.bool, torch.int32}
    return 1e-4 if kinds & single else 1e-8


def flat(result: Any) -> list[Tensor]:
    """All tensors and numbers of a result."""
    if isinstance(result, Tensor):
        return [result.detach()]
    if dataclasses.is_dataclass(result):
        return [t for f in dataclasses.fields(result) for t in flat(getattr(result, f.name))]
    if isinstance(result, tuple | list):
        return [t for part in result for t in flat(part)]
    return [] if result is None or isinstance(result, str) else [torch.as_tensor(result)]


def finite(arguments: Mapping[str, Any]) -> bool:
    """Whether all that went in is."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    numbers = [value for value in arguments.values() if isinstance(value, float)]
    return all(bool(t.isfinite().all()) for t in tensors) and all(math.isfinite(n) for n in numbers)


def largest(arguments: Mapping[str, Any]) -> float:
    """The size of the largest number that went in: no sum is more precise than its largest part."""
    tensors = [value.abs() for value in arguments.values() if isinstance(value, Tensor) and value.dtype != torch.bool]
    sizes = [float(t[t.isfinite()].max()) for t in tensors if bool(t.isfinite().any())]
    numbers = [abs(value) for value in arguments.values() if isinstance(value, int | float)]
    return max([0.0, *sizes, *(n for n in numbers if math.isfinite(n))])


def difference(found: Any, expected: Any, error: float, of_finite: bool = True, scale: float = 0.0) -> str | None:
    """Where two results differ; None if they agree.

    What is not finite must not come out as a number; of finite arguments nothing else may come out either.

    Args:
        found: Ours.
        expected: The reference's.
        error: Largest difference, relative.
        of_finite: Whether all arguments were finite.
        scale: Size of the largest of them.
    """
    ours, theirs = flat(found), flat(expected)
    if [tuple(t.shape) for t in ours] != [tuple(t.shape) for t in theirs]:
        return f"shapes {[tuple(t.shape) for t in ours]}, expected {[tuple(t.shape) for t in theirs]}"
    for mine, other in zip(ours, theirs, strict=True):
        kind = torch.complex128 if mine.is_complex() or other.is_complex() else torch.float64
        a, b = mine.to(kind), other.to(kind)
        most = float(torch.finfo(mine.dtype).max) / 8 if mine.is_floating_point() or mine.is_complex() else float("inf")
        in_range = b.isfinite() & (b.abs() < most)
        if bool((a.isfinite() & ~b.isfinite()).any() | (of_finite and (~a.isfinite() & in_range).any())):
            return f"finite where the other is not: {mine}, expected {other}"
        both = in_range & a.isfinite()
        if not bool(both.any()) or not (of_finite or bool(b.isfinite().all())):
            continue
        off = (a[both] - b[both]).abs().max()
        if float(off) > error * (1 + scale + float(b[both].abs().max())):
            return f"off by {float(off):.3g}: {mine}, expected {other}"
    return None
