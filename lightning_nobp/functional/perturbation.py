"""Perturbation codes: what each parameter is told apart by when all are perturbed at once.

A code gives parameter ``i`` the value :math:`c_i(t)` at step ``t``, with mean zero over time. Correlating a cost with
it finds the slope along parameter ``i`` alone, as far as codes are orthogonal. All are functions of ``(seed, step)``,
so no perturbation is ever stored or sent:

========== ============================================ =======================
code        value                                        orthogonal
========== ============================================ =======================
coordinate  1 for one parameter a step, in order         exactly, over ``size`` steps
rademacher  a random sign                                on average
walsh       rows of a Hadamard matrix                    exactly, over a period
sinusoidal  sines of different whole frequencies         exactly, over a period
gaussian    a standard normal number                     on average
========== ============================================ =======================

References:
    McCaughan, Oripov, Ganesh, Nam, Dienstfrey and Buckley, "Multiplexed gradient descent: Fast online training of
    modern datasets on hardware neural networks without backpropagation", arXiv 2303.03986.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.counter_random import random_normal, random_signs, random_uniform, random_words


class Code(NamedTuple):
    """How a kind of code is made."""

    generate: Callable[[int, Tensor, int, int, int, int], Tensor]
    """``(seed, steps, size, period, start, stop)``: codes ``(steps, stop - start)``, float32."""
    period: Callable[[int], int] | None
    """Steps of the shortest period for ``size`` parameters; None where a code never repeats."""


def perturbation_codes(
    kind: str,
    seed: int,
    steps: Tensor,
    size: int,
    *,
    start: int = 0,
    stop: int | None = None,
    period: int | None = None,
) -> Tensor:
    """Codes of some of the parameters at some steps.

    Args:
        kind: A key of :data:`CODES`.
        seed: Any integer.
        steps: ``(steps,)``, int64, numbers from 0 on in any order.
        size: Number of parameters in all.
        start: First parameter wanted.
        stop: One behind the last, None for all.
        period: Of codes that have one, see :func:`code_period`.

    Returns:
        ``(steps, stop - start)``, float32. The mean square over time is :func:`code_power`.

    Raises:
        ValueError: An unknown kind, or a period that cannot tell so many parameters apart.
    """
    steps_in_period = code_period(kind, size, period) or 0
    return CODES[kind].generate(seed, steps, size, steps_in_period, start, size if stop is None else stop)


def code_period(kind: str, size: int, period: int | None = None) -> int | None:
    """Steps after which all codes have been orthogonal, the shortest unless ``period`` asks for a longer one.

    Args:
        kind: A key of :data:`CODES`.
        size: Number of parameters.
        period: For ``'walsh'`` a power of two greater than ``size``; for ``'sinusoidal'`` twice such a number.

    Raises:
        ValueError: An unknown kind, or a period that is too short, no such power, or of a code that has none.
    """
    if kind not in CODES:
        raise ValueError(f"perturbation={kind!r} is not one of {', '.join(map(repr, CODES))}")
    least = CODES[kind].period
    if period is None:
        return None if least is None else least(size)
    if least is None or kind == "coordinate":
        raise ValueError(f"period={period}: {kind} codes have none to choose, leave it out")
    if period < least(size) or period & (period - 1):
        raise ValueError(
            f"period={period} cannot tell {size} parameters apart by {kind} codes: give a power of two of at least "
            f"{least(size)}"
        )
    return period


def code_power(kind: str, size: int) -> float:
    """Mean square of each parameter's code over time."""
    return 1 / size if kind == "coordinate" else 1.0


def _coordinate(seed: int, steps: Tensor, size: int, period: int, start: int, stop: int) -> Tensor:
    return (steps.unsqueeze(1) % size == torch.arange(start, stop, device=steps.device)).to(torch.float32)


def _rademacher(seed: int, steps: Tensor, size: int, period: int, start: int, stop: int) -> Tensor:
    return random_signs(seed, steps, start, stop)


def _gaussian(seed: int, steps: Tensor, size: int, period: int, start: int, stop: int) -> Tensor:
    return random_normal(seed, steps, start, stop)


def _walsh(seed: int, steps: Tensor, size: int, period: int, start: int, stop: int) -> Tensor:
    """``(-1) ** (bits that row and column have in common)``, the row of a parameter and the column of a step.

    Row 0 is constant: no parameter may have it. Two periods share their rows, the second with all signs turned: with
    one-sided differences even orders of the cost then cancel.
    """
    turn = steps // period
    keys = random_words(seed, turn // 2, 0, 3).to(torch.int32)
    rows = _shuffled(torch.arange(start + 1, stop + 1, dtype=torch.int32, device=steps.device), keys[:, :2], period)
    # Any part of a period, too, should be a random sample of it.
    columns = _shuffled((steps % period).to(torch.int32).unsqueeze(1), keys[:, 1:], period)
    parity = rows.bitwise_and_(columns ^ (keys[:, 2:] & (period - 1)))
    for shift in (16, 8, 4, 2, 1):
        if period > 1 << shift:
            parity.bitwise_xor_(parity >> shift)
    signs = parity.bitwise_and_(1).to(torch.float32).mul_(-2).add_(1)
    return signs.mul_((1 - 2 * (turn % 2)).unsqueeze(1))


def _sinusoidal(seed: int, steps: Tensor, size: int, period: int, start: int, stop: int) -> Tensor:
    turn = steps // period
    keys = random_words(seed, turn // 2, 0, 2).to(torch.int32)
    number = torch.arange(start + 1, stop + 1, dtype=torch.int32, device=steps.device)
    # Whole cycles in a period, each parameter others, below the frequency where samples cannot tell them apart.
    cycles = _shuffled(number, keys, period // 2).to(torch.int64)
    phase = random_uniform(seed, turn // 2, start + 4, stop + 4)
    # The product in whole numbers: a sine of a large float32 would have lost its angle.
    angle = (cycles * (steps % period).unsqueeze(1) % period).to(torch.float32) / period + phase
    return (2 * math.pi * angle).sin_().mul_(math.sqrt(2) * (1 - 2 * (turn % 2)).unsqueeze(1))


def _shuffled(numbers: Tensor, keys: Tensor, size: int) -> Tensor:
    """A permutation of ``0 .. size - 1`` that leaves 0 in place, without a table; ``size`` is a power of two.

    Multiplying by an odd number and adding high bits to low ones are both invertible.
    """
    bits = size.bit_length() - 1
    half, mask = max(1, (bits + 1) // 2), size - 1
    x = numbers * (keys[:, :1] | 1) & mask
    x.bitwise_xor_(x >> half)
    x.mul_(keys[:, 1:2] | 1).bitwise_and_(mask)
    return x.bitwise_xor_(x >> half)


def _power_of_two_above(size: int) -> int:
    return 1 << size.bit_length()


CODES: dict[str, Code] = {
    "coordinate": Code(_coordinate, lambda size: size),
    "rademacher": Code(_rademacher, None),
    "walsh": Code(_walsh, _power_of_two_above),
    "sinusoidal": Code(_sinusoidal, lambda size: 2 * _power_of_two_above(size)),
    "gaussian": Code(_gaussian, None),
}
