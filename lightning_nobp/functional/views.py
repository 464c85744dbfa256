"""Deterministic changes of images: every image is seen in each of a few ways, the same in every pass."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Images moved by so many pixels; what comes in from outside is zero."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    return padded[..., max(-down, 0) : max(-down, 0) + height, max(-right, 0) : max(-right, 0) + width]


_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "original": lambda x: x,
    "flip": lambda x: x.flip(-1),
    "up": lambda x: _shifted(x, -1, 0),
    "down": lambda x: _shifted(x, 1, 0),
    "left": lambda x: _shifted(x, 0, -1),
    "right": lambda x: _shifted(x, 0, 1),
}


def image_view(x: Tensor, name: str) -> Tensor:
    """Images as a view shows them.

    Args:
        x: ``(batch, channels, height, width)``.
        name: ``'original'``, ``'flip'`` (left to right), ``'up'``, ``'down'``, ``'left'``, ``'right'`` (moved by a
            pixel, zeros come in), or several of them joined by ``+``, like ``'flip+left+left'``.

    Raises:
        ValueError: An unknown name.
    """
    for part in view_parts(name):
        x = _VIEWS[part](x)
    return x


def view_parts(name: str) -> list[str]:
    """The steps of a view's name.

    Raises:
        ValueError: An unknown one.
    """
    parts = name.split("+")
    for part in parts:
        if part not in _VIEWS:
            raise ValueError(f"views={name!r}: {part!r} is not one of {', '.join(map(repr, _VIEWS))}")
    return parts
