"""Masks of weights: how many a layer keeps, which ones, and when that changes.

A mask is a bool tensor of the shape of its weight, True where a weight is kept. Sparsity is the fraction of weights
that are zero, density the fraction that is not. All counts are exact: a sparsity is read as the decimal number that it
prints as, so that 0.9 of 1000 weights leaves 100. Nothing here is random, and equal scores are told apart by position,
so that a mask is the same on any number of threads.

References:
    SET: Mocanu, Mocanu, Stone, Nguyen, Gibescu and Liotta, "Scalable training of artificial neural networks with
    adaptive sparse connectivity inspired by network science", arXiv 1707.04780.

    RigL: Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets Winners", arXiv 1911.11134.

    Lee, Ajanthan and Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", arXiv 1810.02340.

    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", arXiv
    1710.01878.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

Distribution = Literal["uniform", "erk"]


def check_sparsity(sparsity: float, name: str = "sparsity") -> None:
    """Raise a ValueError that calls it ``name`` unless ``sparsity`` is in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"{name}={sparsity} is not in [0, 1): it is the fraction of weights that are zero")


def layer_sparsities(
    shapes: Sequence[Sequence[int]], sparsity: float, distribution: Distribution = "uniform"
) -> list[float]:
    """Sparsity of every layer; their mean, weighted by the layers' numbers of weights, is ``sparsity``.

    Args:
        shapes: Of the weights, ``(out, in)`` or ``(out, in, kernel_height, kernel_width)``.
        sparsity: Of the whole, in [0, 1).
        distribution: ``'uniform'``: the same for every layer. ``'erk'``, Erdos-Renyi-Kernel (RigL, section 3): the
            density of a layer is proportional to ``sum(shape) / prod(shape)``, so that small layers keep more. A layer
            that would keep more weights than it has is dense, and the others are rescaled.

    Raises:
        ValueError: No such sparsity or distribution, no layers, or a layer without weights.
    """
    return [float(1 - density) for density in _densities(shapes, sparsity, distribution)]


def kept_count(numel: int, sparsity: float) -> int:
    """How many of ``numel`` weights are kept: ``round((1 - sparsity) * numel)``, but at least 1 if there are any.

    A half is rounded to the even number.

    Raises:
        ValueError: A sparsity outside [0, 1), or a negative number of weights.
    """
    check_sparsity(sparsity)
    if numel < 0:
        raise ValueError(f"numel={numel} is a number of weights: it must not be negative")
    return min(numel, max(1, round((1 - _exact(sparsity)) * numel)))


def kept_counts(shapes: Sequence[Sequence[int]], sparsity: float, distribution: Distribution = "uniform") -> list[int]:
    """How many weights each layer keeps: :func:`layer_sparsities` in whole numbers that add up exactly.

    The sum is :func:`kept_count` of all weights, or the number of layers if that is more. Each share is rounded down,
    and the largest remainders up. A layer keeps at least 1 weight, at the cost of the layers that keep most. Arguments
    and errors are those of :func:`layer_sparsities`.
    """
    numels = [math.prod(shape) for shape in shapes]
    densities = _densities(shapes, sparsity, distribution)
    shares = [density * numel for density, numel in zip(densities, numels, strict=True)]
    return _rounded(shares, max(len(shares), kept_count(sum(numels), sparsity)))


def keep_largest(scores: Tensor, kept: int) -> Tensor:
    """Mask of the ``kept`` largest scores, of any shape; of equal ones the first in row-major order.

    Raises:
        ValueError: NaN scores, or a ``kept`` out of range.
    """
    _refuse_nan(scores, "scores")
    if not 0 <= kept <= scores.numel():
        raise ValueError(f"kept={kept} of {scores.numel()} scores: it must be from 0 to {scores.numel()}")
    return _largest_in_rows(scores.reshape(1, -1), kept).view(scores.shape)


def keep_largest_globally(scores: Sequence[Tensor], kept: int) -> list[Tensor]:
    """Masks of the ``kept`` largest scores of all layers together, all on one device; of equal ones the first.

    There is one threshold for all. But the largest score of every layer is kept, so that no layer is cut off.

    Raises:
        ValueError: NaN scores, a layer without scores, or a ``kept`` out of range.
    """
    total = sum(layer.numel() for layer in scores)
    for index, layer in enumerate(scores):
        _refuse_nan(layer, f"scores[{index}]")
        if layer.numel() == 0:
            raise ValueError(f"scores[{index}] of shape {tuple(layer.shape)} is empty: leave that layer out")
    if not len(scores) <= kept <= total:
        raise ValueError(f"kept={kept} must be from {len(scores)}, one for each layer of scores, to {total}")
    if not scores:
        return []
    flat = torch.cat([layer.flatten() for layer in scores])
    mask = torch.cat([keep_largest(layer, 1).flatten() for layer in scores])
    mask |= _largest_among(~mask, flat, kept - len(scores))
    parts = torch.split(mask, [layer.numel() for layer in scores])
    return [part.reshape(layer.shape) for part, layer in zip(parts, scores, strict=True)]


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask of the ``n`` largest scores of every ``m`` consecutive inputs; of equal ones the first.

    Inputs are those of dimension 1. In a convolution a group is thus ``m`` neighbouring channels at one place of the
    kernel, and not neighbours in the flattened weight: what sparse tensor cores read in the channels-last layout.

    Args:
        scores: ``(out, in)`` or ``(out, in, kernel_height, kernel_width)``.
        n: From 1 to ``m``.
        m: It divides ``in``.

    Raises:
        ValueError: NaN scores, fewer than two dimensions, no such ``n``, or an ``m`` that does not divide.
    """
    _refuse_nan(scores, "scores")
    if scores.ndim < 2:
        raise ValueError(f"scores of shape {tuple(scores.shape)} must have at least two dimensions, (out, in)")
    if not 0 < n <= m:
        raise ValueError(f"n={n} of m={m} cannot be kept: n must be from 1 to m")
    if scores.shape[1] % m:
        raise ValueError(
            f"m={m} does not divide the {scores.shape[1]} inputs of scores of shape {tuple(scores.shape)}: take an m "
            "that does, or leave that layer out"
        )
    inputs_last = scores.movedim(1, -1)
    mask = _largest_in_rows(inputs_last.reshape(-1, m), n)
    return mask.view(inputs_last.shape).movedim(-1, 1).contiguous()


def cubic_sparsity(step: int, *, begin: int, end: int, initial: float, final: float) -> float:
    """Sparsity of gradual pruning (Zhu and Gupta), fast at first: ``s_t = s_f + (s_i - s_f) (1 - t / T) ** 3``.

    ``t = step - begin`` and ``T = end - begin``. Until ``begin`` it is ``initial`` (s_i), from ``end`` on exactly
    ``final`` (s_f), both in [0, 1). With ``begin == end`` it jumps.

    Raises:
        ValueError: A sparsity outside [0, 1), or an end before the beginning.
    """
    check_sparsity(initial, "initial")
    check_sparsity(final, "final")
    progress = _progress(step, begin, end)
    if progress in (0, 1):
        return final if progress else initial
    return final + (initial - final) * (1 - progress) ** 3


def cosine_drop_fraction(step: int, *, begin: int = 0, end: int, initial: float) -> float:
    """Fraction of the kept weights that RigL exchanges at a step: ``f / 2 (1 + cos(pi t / T))``.

    ``t = step - begin`` and ``T = end - begin``. Until ``begin`` it is ``initial`` (f, in [0, 1]; the paper's alpha),
    from ``end`` on exactly 0.

    Raises:
        ValueError: A fraction outside [0, 1], or an end before the beginning.
    """
    _check_fraction(initial, "initial")
    return initial / 2 * (1 + math.cos(math.pi * _progress(step, begin, end)))


def drop_and_grow(
    mask: Tensor, magnitude: Tensor, growth_scores: Tensor, fraction: float, *, regrow: bool = False
) -> Tensor:
    """A new mask with as many weights, some of them exchanged for others.

    ``round(fraction * kept)`` of the kept weights are dropped, those of the smallest magnitude; of equal ones the last
    in row-major order. As many are grown, those of the largest growth scores. RigL scores by the absolute gradient of
    the dense weight, SET by random numbers.

    Args:
        mask: Bool, of any shape, which the others share.
        magnitude: ``weight.abs()``.
        growth_scores: Any numbers.
        fraction: In [0, 1].
        regrow: What may grow. False: what was not kept before; dropped weights, the largest growth scores first, come
            back only where there are not enough others. True: dropped weights compete with the others, as in RigL's
            own code; those that come back lessen the exchange.

    Raises:
        ValueError: A mask that is not bool, other shapes, NaN, negative magnitudes, or a fraction outside [0, 1].
    """
    _check_exchange(mask, magnitude, growth_scores, fraction)
    kept = int(mask.sum())
    dropped = round(_exact(fraction) * kept)
    stay = _largest_among(mask, magnitude, kept - dropped)
    candidates = ~stay if regrow else ~mask
    grown = min(dropped, int(candidates.sum()))
    returning = _largest_among(mask & ~stay, growth_scores, dropped - grown)
    return stay | _largest_among(candidates, growth_scores, grown) | returning


def saliency(weight: Tensor, grad: Tensor) -> Tensor:
    """``|w g|``: how much the loss changes, to first order, if a weight is taken away (SNIP, there over its sum).

    Raises:
        ValueError: The shapes of ``weight`` (w) and ``grad`` (g) differ.
    """
    _check_shape(grad, "grad", weight, "weight")
    return (weight * grad).abs()


def _densities(shapes: Sequence[Sequence[int]], sparsity: float, distribution: str) -> list[Fraction]:
    check_sparsity(sparsity)
    if distribution not in get_args(Distribution):
        raise ValueError(f"distribution={distribution!r} is not one of {', '.join(map(repr, get_args(Distribution)))}")
    if not shapes:
        raise ValueError(f"shapes={shapes} has no layer: give the shape of at least one weight")
    for index, shape in enumerate(shapes):
        if not shape or min(shape) < 1:
            raise ValueError(f"shapes[{index}]={tuple(shape)} is a layer without weights: leave it out")
    density = 1 - _exact(sparsity)
    return [density] * len(shapes) if distribution == "uniform" else _erk_densities(shapes, density)


def _erk_densities(shapes: Sequence[Sequence[int]], density: Fraction) -> list[Fraction]:
    """Density of every layer, in the order in which layers become dense as the common scale grows."""
    numels, widths = [math.prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    kept, width = density * sum(numels), sum(widths)
    densities = [Fraction(1)] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda index: Fraction(numels[index], widths[index])):
        # From the first layer that is not dense on, this scale stays as it is.
        scale = kept / width
        densities[index] = min(Fraction(1), scale * widths[index] / numels[index])
        kept -= densities[index] * numels[index]
        width -= widths[index]
    return densities


def _rounded(shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole numbers of at least 1 with a given sum, by largest remainders."""
    counts = [max(1, math.floor(share)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - shares[index])
    for index in by_remainder[: max(0, total - sum(counts))]:
        counts[index] += 1
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return counts


def _exact(number: float) -> Fraction:
    """The decimal number that was meant: 9/10 for 0.9, which as a binary number is a little more."""
    return Fraction(repr(float(number)))


def _progress(step: int, begin: int, end: int) -> float:
    if end < begin:
        raise ValueError(f"end={end} is before begin={begin}: give an end of at least {begin}")
    return 1.0 if step >= end else max(0, step - begin) / max(1, end - begin)


def _largest_in_rows(rows: Tensor, kept: int) -> Tensor:
    """Mask ``(rows, columns)`` of the ``kept`` largest of every row, of equal ones the first."""
    if kept == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    # Only the value of topk is used: which of equal scores it picks depends on device and threads.
    threshold = rows.topk(kept, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = rows > threshold, rows == threshold
    return above | equal & (equal.cumsum(-1) <= kept - above.sum(-1, keepdim=True))


def _largest_among(candidates: Tensor, scores: Tensor, kept: int) -> Tensor:
    """Mask of the ``kept`` largest scores where the mask ``candidates`` is True."""
    chosen = torch.zeros_like(candidates)
    chosen[candidates] = _largest_in_rows(scores[candidates].unsqueeze(0), kept).squeeze(0)
    return chosen


def _check_exchange(mask: Tensor, magnitude: Tensor, growth_scores: Tensor, fraction: float) -> None:
    _check_fraction(fraction, "fraction")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask of dtype {mask.dtype} must be of torch.bool: give mask != 0")
    for name, values in (("magnitude", magnitude), ("growth_scores", growth_scores)):
        _check_shape(values, name, mask, "mask")
        _refuse_nan(values, name)
    if (magnitude < 0).any():
        raise ValueError(f"magnitude has negative values, down to {float(magnitude.min()):.3g}: give weight.abs()")


def _check_fraction(fraction: float, name: str) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"{name}={fraction} is not in [0, 1]: it is the fraction of kept weights that are dropped")


def _check_shape(values: Tensor, name: str, other: Tensor, other_name: str) -> None:
    if values.shape != other.shape:
        raise ValueError(
            f"{name} of shape {tuple(values.shape)} must have the shape {tuple(other.shape)} of {other_name}"
        )


def _refuse_nan(values: Tensor, name: str) -> None:
    count = int(values.isnan().sum())
    if count:
        raise ValueError(
            f"{name} has {count} NaN of {values.numel()}, which are neither large nor small: mend what they come from"
        )
