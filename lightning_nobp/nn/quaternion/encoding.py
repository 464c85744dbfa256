"""From real data to quaternions, and back."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_nobp.functional.quaternion.algebra import check_features
from lightning_nobp.nn.backprop import Pullback, register_vjp
from lightning_nobp.typed import Typed

RealPart = Literal["zero", "mean"]


class PatchesToQuaternions(Typed, nn.Module):
    """Each patch of 2x2 pixels becomes one quaternion: images ``(batch, C, H, W)`` to ``(batch, 4C, H/2, W/2)``.

    The real part is the pixel above left, ``i`` that above right, ``j`` below left, ``k`` below right.
    """

    def __init__(self) -> None:
        # Checkpoints of networks are rebuilt from what constructors take, and that of nn.Module takes anything.
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Component-major maps.

        Raises:
            ValueError: Height or width is odd.
        """
        if x.dim() != 4 or x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError(
                f"x of shape {tuple(x.shape)} has no patches of 2x2: give images (batch, channels, height, width) with "
                "even height and width (torch.nn.ZeroPad2d adds a row)"
            )
        batch, channels, height, width = x.shape
        # Not by F.pixel_unshuffle, which leaves an empty batch as it is.
        corners = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return corners.flatten(1, 3)


@register_vjp(PatchesToQuaternions)
def _patches(layer: PatchesToQuaternions, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    batch, channels, height, width = shape = x.shape

    def pull(grad: Tensor) -> Tensor:
        corners = grad.reshape(batch, 2, 2, channels, height // 2, width // 2)
        return corners.permute(0, 3, 4, 1, 5, 2).reshape(shape)

    return layer(x), pull


class ColourToQuaternions(Typed, nn.Module):
    """A pixel becomes one quaternion: red, green and blue are its imaginary part.

    Args:
        real: The real part: ``'zero'``, or the ``'mean'`` of the colours.

    Raises:
        ValueError: An unknown ``real``.
    """

    def __init__(self, real: RealPart = "mean") -> None:
        super().__init__()
        if real not in get_args(RealPart):
            raise ValueError(f"real={real!r} is not one of {', '.join(map(repr, get_args(RealPart)))}")
        self.real = real

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, 4, height, width)`` of images ``(batch, 3, height, width)``.

        Raises:
            ValueError: There are not three channels.
        """
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x of shape {tuple(x.shape)} is no colour image (batch, 3, height, width)")
        real = x.mean(1, keepdim=True) if self.real == "mean" else torch.zeros_like(x[:, :1])
        return torch.cat([real, x], dim=1)

    def extra_repr(self) -> str:
        """The real part, for printing."""
        return f"real={self.real!r}"


@register_vjp(ColourToQuaternions)
def _colour(layer: ColourToQuaternions, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    share = 1 / 3 if layer.real == "mean" else 0.0
    return layer(x), lambda grad: grad[:, 1:] + share * grad[:, :1]


class QuaternionsToReal(Typed, nn.Module):
    """What a real output takes of quaternions: features ``(batch, 4N, ...)`` along dimension 1.

    Args:
        part: ``'imaginary'``, the 3N of i, j and k; ``'real'``, the N real parts; or ``'norm'``, the N lengths.

    Raises:
        ValueError: An unknown ``part``.
    """

    def __init__(self, part: Literal["imaginary", "real", "norm"] = "imaginary") -> None:
        super().__init__()
        if part not in ("imaginary", "real", "norm"):
            raise ValueError(f"part={part!r} is not one of 'imaginary', 'real', 'norm'")
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """The chosen part.

        Raises:
            ValueError: There is no dimension 1, or no whole quaternions along it.
        """
        if x.dim() < 2:
            raise ValueError(f"x of shape {tuple(x.shape)} is not (batch, 4N, ...)")
        check_features(x.shape[1], "x")
        quarter = x.shape[1] // 4
        if self.part == "norm":
            return torch.linalg.vector_norm(torch.unflatten(x, 1, (4, quarter)), dim=1)  # type: ignore[no-any-return]
        return x[:, :quarter] if self.part == "real" else x[:, quarter:]

    def extra_repr(self) -> str:
        """The part, for printing."""
        return f"part={self.part!r}"


@register_vjp(QuaternionsToReal)
def _to_real(layer: QuaternionsToReal, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    y = layer(x)

    def pull(grad: Tensor) -> Tensor:
        if layer.part == "norm":
            # The gradient of a length at 0 is 0, as torch has it.
            share = torch.where(y == 0, torch.zeros_like(y), grad / y)
            return x * torch.cat([share] * 4, dim=1)
        other = torch.zeros_like(x[:, : x.shape[1] - grad.shape[1]])
        return torch.cat([grad, other] if layer.part == "real" else [other, grad], dim=1)

    return y, pull
