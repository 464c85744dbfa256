r"""A perturbation of its own for every sample, as cheap as a layer's bias.

A perturbation :math:`s = u v^\top` of a weight matrix is a product of a code of the outputs and one of the inputs. Then
:math:`(W + s) h = W h + u (v \cdot h)`: two products of vectors a sample, and no weight matrix a sample. Signs in ``u``
and ``v`` make signs in ``s``, whose entries are uncorrelated in pairs: as good as independent signs for finding
gradients. Weights of a convolution are products of three: outputs, inputs, and places in the kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def separable_linear(h: Tensor, inputs: Tensor) -> Tensor:
    r"""Contract each sample's input with its code: :math:`v \cdot h`.

    Args:
        h: ``(blocks, batch, ..., in_features)``; the same codes serve every block.
        inputs: ``(batch, in_features)``, the code ``v`` of each sample.

    Returns:
        ``(blocks, batch, ..., 1)``.
    """
    batch, features = inputs.shape
    code = inputs.view(batch, *[1] * (h.dim() - 3), features)
    # A multiplication and a sum: a batch of products of two vectors each takes four times as long.
    return (h * code).sum(-1, keepdim=True)


def separable_conv(
    h: Tensor,
    inputs: Tensor,
    kernel: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve each sample's input with its code of inputs and places: one channel a group.

    Args:
        h: ``(blocks, batch, channels, *size)``; the same codes serve every block.
        inputs: ``(batch, channels / groups)``.
        kernel: ``(batch, *kernel_size)``.
        stride: Of the convolution.
        padding: Of the convolution.
        dilation: Of the convolution.
        groups: Of the convolution.

    Returns:
        ``(blocks, batch, groups, *output_size)``.
    """
    blocks, batch, channels, *size = h.shape
    grouped = h.reshape(blocks, batch, groups, channels // groups, -1)
    maps = (inputs.view(batch, 1, 1, -1) @ grouped).view(1, -1, *size)
    weights = kernel.unsqueeze(1).expand(batch, groups, *kernel.shape[1:]).flatten(0, 1)
    weights = weights.unsqueeze(1).repeat(blocks, *[1] * (weights.dim()))
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    # A channel a sample: what is a batch to the network is one image to this convolution.
    found = _CONVOLUTIONS[len(size)](maps, weights, None, groups=maps.shape[1], **settings)
    return found.view(blocks, batch, groups, *found.shape[2:])


def separable_gradient(coefficients: Tensor, outputs: Tensor, *inputs: Tensor) -> Tensor:
    r"""Sum over samples of coefficient times code, :math:`\sum_b c_b u_b v_b^\top`.

    Args:
        coefficients: ``(batch,)``.
        outputs: ``(batch, out)``, the code ``u``.
        *inputs: ``(batch, in)``, the code ``v``, and for convolutions ``(batch, places)``.

    Returns:
        ``(out, in)`` or ``(out, in, places)``.
    """
    weighted = (outputs * coefficients.unsqueeze(1)).t()
    if len(inputs) == 1:
        return weighted @ inputs[0]
    joined = torch.einsum("bi,bk->bik", *inputs)
    return (weighted @ joined.flatten(1)).view(-1, *joined.shape[1:])
