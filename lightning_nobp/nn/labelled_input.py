"""How the label of a sample enters a Forward-Forward network."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.forward_forward import NormaliseKind, PatternKind, class_patterns
from lightning_nobp.typed import Typed

LabelMode = Literal["overlay", "append", "icp", "add", "none"]
_MODES = ("overlay", "append", "icp", "add", "none")


class LabelledInput(Typed, nn.Module):
    """An input with a label in it: ``[x ; a c(y)]``, normalised as a whole, or of planes beside a normalised image.

    ``c(y)`` is the pattern of class y, of length one. The *neutral* label, the mean of all patterns, stands for no
    label at all.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of labels.
        mode: ``'overlay'``, one-hot in place of the first values of the sample; ``'append'``, one-hot as further
            features; ``'icp'``, a random pattern as further features (Intrinsic Class Pattern); ``'add'``, a random
            pattern as large as the sample, added to it; ``'none'``, no label.
        planes: Whether samples are images whose features are channels, so that a pattern is a constant plane for each
            of its features; otherwise a sample is one flat vector.
        pattern_dim: Features of a random pattern.
        pattern: Distribution of random patterns: ``'normal'``, ``'uniform'``, ``'bernoulli'`` or ``'orthogonal'``.
        amplitude: Length a of a label in the first layer, in units of the input (of planes, at each position, and of
            the normalised input). None for half the length of what a unit sees of an input with unit variance.
        patterns: Patterns of your own, ``(num_classes, features)``, for ``'icp'`` and ``'add'``: all different, all of
            the same length.
        seed: Of random patterns.

    Raises:
        ValueError: An argument outside its range, or patterns that leak or hide the class.
    """

    patterns: Tensor
    """``(num_classes, features)``, of unit length."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        mode: LabelMode = "overlay",
        *,
        planes: bool = False,
        pattern_dim: int = 100,
        pattern: PatternKind = "normal",
        amplitude: float | None = None,
        patterns: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"label={mode!r} is not one of {', '.join(map(repr, _MODES))}")
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: a label needs at least two")
        if amplitude is not None and not (amplitude > 0 and math.isfinite(amplitude)):
            raise ValueError(f"amplitude={amplitude} must be positive and finite")
        if patterns is not None and mode not in ("icp", "add"):
            raise ValueError(f"patterns with label={mode!r}: patterns of your own are for label='icp' and 'add'")
        self.input_shape, self.num_classes, self.mode, self.planes = tuple(input_shape), num_classes, mode, planes
        # What a position of planes, or the whole sample, holds.
        self.data_features = self.input_shape[0] if planes else math.prod(self.input_shape)
        self.amplitude = amplitude
        self._check_shape()
        if patterns is None:
            patterns = self._patterns(pattern_dim, pattern, seed)
        else:
            patterns = _checked(patterns.float(), self.num_classes, self.data_features if mode == "add" else None)
        # Where the parameters are made, which may be another device or dtype than random numbers come from.
        self.register_buffer("patterns", patterns.to(torch.empty(0)))

    def _check_shape(self) -> None:
        if self.planes and (len(self.input_shape) != 3 or self.mode in ("overlay", "add")):
            raise ValueError(
                f"label={self.mode!r} with input_shape={self.input_shape}: a convolutional network takes images "
                "(channels, height, width), and its labels as planes, label='append' or 'icp'"
            )
        if self.mode == "overlay" and self.data_features < self.num_classes:
            raise ValueError(
                f"label='overlay' needs at least num_classes={self.num_classes} input values, not "
                f"{self.data_features}: use label='append'"
            )

    def _patterns(self, dim: int, kind: PatternKind, seed: int) -> Tensor:
        if self.mode == "none":
            return torch.zeros(self.num_classes, 0)
        if self.mode in ("overlay", "append"):
            return torch.eye(self.num_classes)
        dim = self.data_features if self.mode == "add" else dim
        return class_patterns(self.num_classes, dim, kind, torch.Generator().manual_seed(seed))

    @property
    def features(self) -> int:
        """Features that the label brings to a layer beside its data: none where it is added to them."""
        return 0 if self.mode == "add" else self.patterns.shape[1]

    def with_neutral(self) -> Tensor:
        """The patterns, and the neutral label as one more."""
        return torch.cat([self.patterns, self.patterns.mean(0, keepdim=True)])

    def data(self, x: Tensor) -> Tensor:
        """What of the sample ``x`` stays beside its label: ``(batch, features)``, or ``(batch, channels, ...)``."""
        if self.planes:
            return x
        x = x.flatten(1)
        if self.mode != "overlay":
            return x
        return torch.cat([torch.zeros_like(x[:, : self.num_classes]), x[:, self.num_classes :]], 1)

    def scale(self, data: Tensor, patterns: Tensor, normalise: NormaliseKind, eps: float = 1e-12) -> Tensor:
        """What normalises each flat labelled sample as a whole.

        Args:
            data: From :meth:`data`, ``(batch, features)``.
            patterns: Of each label and the neutral one, ``(num_classes + 1, features)``, as long as they enter.
            normalise: See :func:`~lightning_nobp.functional.forward_forward.normalise_activity`.
            eps: As there.

        Returns:
            ``(batch, num_classes + 1)``.
        """
        lengths = patterns.square().sum(1)
        squares = data.square().sum(1, keepdim=True) + lengths
        if self.mode == "add":
            squares = squares + 2 * data @ patterns.t()
        else:
            # Equal, and so equal to the last bit; only the neutral label is shorter.
            squares[:, :-1] = squares[:, :1]
        size = data.shape[1] + (patterns.shape[1] if self.mode in ("append", "icp") else 0)
        return torch.rsqrt(squares / size + eps) if normalise == "rms" else 1 / (squares.sqrt() + eps)

    def extra_repr(self) -> str:
        """What distinguishes one from another."""
        return f"mode={self.mode!r}, num_classes={self.num_classes}, amplitude={self.amplitude}"


def _checked(patterns: Tensor, num_classes: int, features: int | None) -> Tensor:
    """A user's patterns, of unit length."""
    shape = tuple(patterns.shape)
    if len(shape) != 2 or shape[0] != num_classes or (features is not None and shape[1] != features):
        expected = f"({num_classes}, {'features' if features is None else features})"
        raise ValueError(f"patterns of shape {shape} must have the shape {expected}: a row for each class")
    lengths = patterns.norm(dim=1)
    if not torch.allclose(lengths, lengths[:1].expand_as(lengths), rtol=1e-4) or not lengths[0] > 0:
        raise ValueError(
            f"patterns of lengths from {float(lengths.min()):.3g} to {float(lengths.max()):.3g} would tell the class "
            "by the length of the input: divide each row by its norm"
        )
    unit = F.normalize(patterns, dim=1)
    if F.pdist(unit).min() < 1e-3:
        raise ValueError("patterns has two equal rows: the network could not tell those classes apart")
    return unit
