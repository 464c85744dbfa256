"""Dropout of whole quaternions."""

import torch
from torch import Tensor, nn

from lightning_nobp.functional.quaternion.algebra import check_features
from lightning_nobp.nn.backprop import Pullback, register_vjp
from lightning_nobp.typed import Typed


class QuaternionDropout(Typed, nn.Module):
    """Drops quaternions in training, all four components together, and divides the others by ``1 - p``.

    Args:
        p: Probability with which a quaternion of ``(batch, 4N, ...)`` is dropped.

    Raises:
        ValueError: ``p`` is no probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p} is no probability: give 0 to 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Features of the shape of ``x``, ``(batch, 4N, ...)``, component-major.

        Raises:
            ValueError: The features do not hold whole quaternions.
        """
        mask = _draw(self, x)
        return x if mask is None else _masked(x, mask)

    def _mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """One number for each quaternion of ``(batch, 4N, ...)``."""
        return (x.shape[0], x.shape[1] // 4, *x.shape[2:])

    def extra_repr(self) -> str:
        """The probability, for printing."""
        return f"p={self.p}"


class QuaternionDropout2d(QuaternionDropout):
    """Drops whole quaternion channels of maps ``(batch, 4N, height, width)`` in training.

    Args:
        p: Probability with which a channel, all four components of its maps, is dropped.

    Raises:
        ValueError: ``p`` is no probability.
    """

    def _mask_shape(self, x: Tensor) -> tuple[int, ...]:
        if x.dim() != 4:
            raise ValueError(f"x of shape {tuple(x.shape)} holds no maps: give (batch, 4N, height, width)")
        return (x.shape[0], x.shape[1] // 4, 1, 1)


@register_vjp(QuaternionDropout)
def _dropout(layer: QuaternionDropout, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    # Drawn as in the forward pass, so that both engines drop the same quaternions from the same seed.
    mask = _draw(layer, x)
    if mask is None:
        return x, lambda grad: grad
    return _masked(x, mask), lambda grad: _masked(grad, mask)


def _draw(layer: QuaternionDropout, x: Tensor) -> Tensor | None:
    """What quaternions are multiplied by, 0 or ``1 / (1 - p)``; None where all stay."""
    if x.dim() < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} has no features: give (batch, 4N, ...)")
    check_features(x.shape[1], "x")
    shape = layer._mask_shape(x)
    if not layer.training or layer.p == 0:
        return None
    keep = 1 - layer.p
    mask = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep)
    return mask.div_(keep) if keep > 0 else mask


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return (torch.unflatten(x, 1, (4, mask.shape[1])) * mask.unsqueeze(1)).flatten(1, 2)
