"""Pooling of whole quaternions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.backprop import max_pool2d_vjp
from lightning_nobp.functional.quaternion.algebra import check_features
from lightning_nobp.functional.quaternion.convolution import Size, per_dimension
from lightning_nobp.nn.backprop import Pullback, register_vjp
from lightning_nobp.nn.quaternion.linear import check_whole
from lightning_nobp.typed import Typed


class QuaternionMaxPool2d(Typed, nn.Module):
    """Takes the longest quaternion of each window, whole: rotations of all quaternions pass through.

    Args:
        kernel_size: Of the windows, one number or two.
        stride: Of the windows; None for ``kernel_size``.
        padding: On each side, never taken.
        dilation: Of the windows.
        ceil_mode: Whether a window may reach over the edge.

    Raises:
        TypeError: Sizes that are no whole numbers.
        ValueError: A size outside its range.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        strides = kernel_size if stride is None else stride
        check_whole(kernel_size=kernel_size, stride=strides, padding=padding, dilation=dilation)
        self.kernel_size = per_dimension("kernel_size", kernel_size, 2, least=1)
        self.stride = per_dimension("stride", strides, 2, least=1)
        self.padding = per_dimension("padding", padding, 2, least=0)
        self.dilation = per_dimension("dilation", dilation, 2, least=1)
        self.ceil_mode = ceil_mode
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"padding={padding} must be at most half of kernel_size={kernel_size}")

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(batch, 4N, out_height, out_width)`` of ``(batch, 4N, height, width)``, component-major.

        Raises:
            ValueError: ``x`` holds no maps of quaternions.
        """
        return _taken(x, self._longest(x))

    def _longest(self, x: Tensor) -> Tensor:
        """Where the longest quaternion of each window lies in its map: ``(batch, N, out_height, out_width)``."""
        if x.dim() != 4:
            raise ValueError(f"x of shape {tuple(x.shape)} holds no maps: give (batch, 4N, height, width)")
        check_features(x.shape[1], "x")
        wide = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
        # Not vector_norm, which is slow over an inner dimension.
        length = torch.unflatten(wide, 1, (4, x.shape[1] // 4)).square().sum(1).sqrt()
        _, indices = F.max_pool2d(
            length, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, return_indices=True
        )
        return indices

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


@register_vjp(QuaternionMaxPool2d)
def _max_pool2d(layer: QuaternionMaxPool2d, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    longest, shape = layer._longest(x), x.shape
    return _taken(x, longest), lambda grad: max_pool2d_vjp(grad, torch.cat([longest] * 4, dim=1), shape)


def _taken(x: Tensor, longest: Tensor) -> Tensor:
    indices = torch.cat([longest] * 4, dim=1)
    return torch.gather(x.flatten(2), 2, indices.flatten(2)).view(indices.shape)
