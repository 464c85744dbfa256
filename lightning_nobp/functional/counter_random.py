"""Random numbers that are a function of their number: nothing is stored, and any part can be drawn alone.

Number ``i`` of row ``r`` is a hash of ``(seed, r, i)``, the same in every process and on every device; normal numbers
up to rounding.

References:
    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, for the idea; the hash is the
    finaliser of Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

import torch
from torch import Tensor

_STEP = -7046029254386353131  # the golden ratio's 64 bits, as int64
_STEP_OF_ROWS = -3335678366873096957  # odd, and far from it
_SIGN_BIT, _ONE = -(2**31), 0x3F800000  # of a float32


def random_words(seed: int, rows: Tensor, start: int, stop: int) -> Tensor:
    """64 random bits a number.

    Args:
        seed: Any integer.
        rows: ``(rows,)``, int64.
        start: First number.
        stop: One behind the last.

    Returns:
        ``(rows, stop - start)``, int64.
    """
    numbers = torch.arange(start, stop, device=rows.device) * _STEP
    # The seed is mixed first: neighbouring seeds must not give shifted copies of each other's numbers.
    return _mix((rows * _STEP_OF_ROWS + _mixed_seed(seed)).unsqueeze(1) + numbers)


def random_signs(seed: int, rows: Tensor, start: int, stop: int) -> Tensor:
    """Signs, +1 or -1, 64 of a word.

    Args:
        seed: Any integer.
        rows: ``(rows,)``, int64.
        start: First sign.
        stop: One behind the last.

    Returns:
        ``(rows, stop - start)``, float32.
    """
    first = start // 64
    halves = random_words(seed, rows, first, -(-stop // 64)).view(torch.int32)
    shifts = torch.arange(32, dtype=torch.int32, device=rows.device)
    # Each bit in turn becomes the sign bit of a 1.0: many times faster than comparing and selecting.
    bits = (halves.unsqueeze(-1) << shifts).bitwise_and_(_SIGN_BIT).bitwise_or_(_ONE)
    return bits.view(torch.float32).flatten(1)[:, start - 64 * first : stop - 64 * first]


def random_uniform(seed: int, rows: Tensor, start: int, stop: int) -> Tensor:
    """Uniform numbers between 0 and 1, both excluded; two of a word.

    Args:
        seed: Any integer.
        rows: ``(rows,)``, int64.
        start: First number.
        stop: One behind the last.

    Returns:
        ``(rows, stop - start)``, float32.
    """
    first = start // 2
    halves = random_words(seed, rows, first, -(-stop // 2)).view(torch.int32)
    # 23 bits and a half: the next float32 below 1 is still reached, and 1 is not.
    uniform = ((halves >> 9) & 0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return uniform[:, start - 2 * first : stop - 2 * first]


def random_normal(seed: int, rows: Tensor, start: int, stop: int) -> Tensor:
    """Standard normal numbers, by Box and Muller's transform; two of a word.

    Args:
        seed: Any integer.
        rows: ``(rows,)``, int64.
        start: First number.
        stop: One behind the last.

    Returns:
        ``(rows, stop - start)``, float32.
    """
    first, last = start // 2, -(-stop // 2)
    radius, turn = random_uniform(seed, rows, 2 * first, 2 * last).view(len(rows), -1, 2).unbind(-1)
    radius, angle = radius.log().mul(-2).sqrt_(), turn.mul(2 * torch.pi)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)
    return pairs[:, start - 2 * first : stop - 2 * first]


def _mix(x: Tensor) -> Tensor:
    """Every bit of the result depends on every bit of ``x``; overwrites it. A bijection of 64-bit integers."""
    # The masks clear what the shift of a negative number brings in: with it x and ~x would become the same.
    x.bitwise_xor_((x >> 30).bitwise_and_(0x3FFFFFFFF)).mul_(-4658895280553007687)
    x.bitwise_xor_((x >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(-7723592293110705685)
    return x.bitwise_xor_((x >> 31).bitwise_and_(0x1FFFFFFFF))


def _mixed_seed(seed: int) -> int:
    """The same bijection of a Python number, as int64."""
    x = (seed + 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * factor % 2**64
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x
