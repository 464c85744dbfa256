"""Backpropagation written out: the vector-Jacobian product of every common layer, and the gradient of two losses.

Each ``*_vjp`` takes the gradient of a scalar loss with respect to a layer's output and what the layer's forward
pass left behind, and returns the gradients with respect to its inputs and parameters. Nothing here records an
autograd graph. Where one pass over memory counts (convolution, normalisation, GELU, average pooling), the formula in
the docstring is evaluated by torch's own fused kernel.

References:
    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323 (1986).
    Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167. Ba, Kiros and Hinton, "Layer Normalization",
    arXiv 1607.06450. Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_vjp(
    grad: Tensor, x: Tensor, weight: Tensor, *, needs_input_grad: bool = True, needs_weight_grad: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``y = x @ weight.T`` for the gradient ``grad`` of ``y``.

    Args:
        grad: ``(..., out_features)``.
        x: ``(..., in_features)``.
        weight: ``(out_features, in_features)``.
        needs_input_grad: Whether to compute the gradient of ``x``.
        needs_weight_grad: Whether to compute the gradient of ``weight``.

    Returns:
        The gradients of ``x`` and ``weight``, None where not needed.
    """
    grad_x = grad @ weight.to(grad.dtype) if needs_input_grad else None
    if not needs_weight_grad:
        return grad_x, None
    return grad_x, grad.flatten(0, -2).t() @ x.flatten(0, -2).to(grad.dtype)


def conv2d_vjp(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs_input_grad: bool = True,
    needs_weight_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a two-dimensional convolution without bias.

    The gradient of the input is the transposed convolution of ``grad`` with the weight, that of the weight the
    correlation of the input with ``grad``: one kernel of torch computes both.

    Args:
        grad: ``(batch, out_channels, out_height, out_width)``.
        x: ``(batch, in_channels, height, width)``.
        weight: ``(out_channels, in_channels / groups, kernel_height, kernel_width)``.
        stride: Of the convolution, two numbers.
        padding: Zeros on each side, two numbers.
        dilation: Of the kernel, two numbers.
        groups: Of channels.
        needs_input_grad: Whether to compute the gradient of ``x``.
        needs_weight_grad: Whether to compute the gradient of ``weight``.

    Returns:
        The gradients of ``x`` and ``weight``, None where not needed.
    """
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x.to(grad.dtype),
        weight.to(grad.dtype),
        None,
        list(stride),
        list(padding),
        list(dilation),
        False,
        [0, 0],
        groups,
        [needs_input_grad, needs_weight_grad, False],
    )
    return grad_x, grad_weight


def bias_vjp(grad: Tensor, channel_dim: int = -1) -> Tensor:
    """Gradient of a bias that was added along ``channel_dim``: the sum over every other dimension."""
    other = [d for d in range(grad.dim()) if d != channel_dim % grad.dim()]
    return grad.sum(other) if other else grad.clone()


def relu_vjp(grad: Tensor, y: Tensor) -> Tensor:
    """Gradient through ``y = relu(x)``: ``grad`` where the output is positive, written over ``grad``."""
    return torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)  # type: ignore[no-any-return]


def sigmoid_vjp(grad: Tensor, y: Tensor) -> Tensor:
    """Gradient through ``y = sigmoid(x)``: ``grad * y * (1 - y)``."""
    return grad * (y - y * y)


def tanh_vjp(grad: Tensor, y: Tensor) -> Tensor:
    """Gradient through ``y = tanh(x)``: ``grad * (1 - y^2)``."""
    return grad - grad * y * y


def hardtanh_vjp(grad: Tensor, x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Gradient through ``y = max(low, min(x, high))``: ``grad`` where ``x`` lies between the two."""
    return torch.ops.aten.hardtanh_backward(grad, x, low, high)  # type: ignore[no-any-return]


def gelu_vjp(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """Gradient through ``gelu(x) = x Phi(x)``, written over ``grad``: ``grad * (Phi(x) + x phi(x))``.

    Args:
        grad: Gradient of the output, any shape.
        x: Input, the same shape.
        approximate: ``'none'``, or ``'tanh'`` for the derivative of the tanh approximation.
    """
    return torch.ops.aten.gelu_backward.grad_input(  # type: ignore[no-any-return]
        grad, x, approximate=approximate, grad_input=grad
    )


def max_pool2d_vjp(grad: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    """Gradient through a maximum over windows: each maximum hands its gradient to where it came from.

    Args:
        grad: ``(batch, channels, out_height, out_width)``.
        indices: Position of each maximum in its flattened input plane, the shape of ``grad``.
        shape: Shape of the input, ``(batch, channels, height, width)``.
    """
    flat = grad.new_zeros(shape).flatten(-2)
    return flat.scatter_add_(-1, indices.flatten(-2), grad.flatten(-2)).view(shape)


def batch_norm_vjp(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    *,
    training: bool,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of batch normalisation over every dimension but the second.

    With xhat = (x - mean) * inv_std and d = grad * weight, the input's gradient is
    ``inv_std * (d - mean(d) - xhat * mean(d * xhat))`` in training, where the statistics depend on the batch, and
    ``inv_std * d`` in evaluation, where they are constants; the weight's is ``sum(grad * xhat)``, the bias's
    ``sum(grad)``.

    Args:
        grad: ``(batch, channels, ...)``.
        x: The layer's input, the same shape.
        weight: ``(channels,)`` or None.
        mean: ``(channels,)``, the mean that normalised.
        inv_std: ``(channels,)``, one over the standard deviation that normalised.
        training: Whether the statistics are those of this batch.
        needs_input_grad: Whether to compute the gradient of ``x``.

    Returns:
        The gradients of ``x``, weight and bias; the last two None without a weight.
    """
    # In evaluation the kernel wants the variance rather than what it saved.
    running = (None, None) if training else (mean, inv_std.pow(-2))
    wanted = [needs_input_grad, weight is not None, weight is not None]
    grads: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, *running, mean, inv_std, training, 0.0, wanted
    )
    return grads


def layer_norm_vjp(
    grad: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    *,
    needs_input_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of layer normalisation over the last dimensions.

    With xhat = (x - mean) * inv_std and d = grad * weight, the input's gradient is
    ``inv_std * (d - mean(d) - xhat * mean(d * xhat))``, means taken over the normalised dimensions; the weight's is
    ``sum(grad * xhat)``, the bias's ``sum(grad)``, sums taken over the others.

    Args:
        grad: ``(..., *normalized_shape)``.
        x: The layer's input, the same shape.
        normalized_shape: The dimensions that are normalised.
        weight: ``normalized_shape`` or None.
        bias: ``normalized_shape`` or None.
        mean: ``(..., 1, ...)``, as ``torch.native_layer_norm`` returns it.
        inv_std: Likewise.
        needs_input_grad: Whether to compute the gradient of ``x``.

    Returns:
        The gradients of ``x``, weight and bias, None where there is none.
    """
    wanted = [needs_input_grad, weight is not None, bias is not None]
    grads: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.native_layer_norm_backward(
        grad, x, list(normalized_shape), mean, inv_std, weight, bias, wanted
    )
    return grads


def mean_squared_error(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error against one-hot targets, averaged over batch and classes, and its gradient.

    Args:
        scores: ``(batch, num_classes)``.
        target: ``(batch,)``, class numbers.

    Returns:
        The loss, a scalar, and its gradient with respect to ``scores``.
    """
    error = _at_least_float32(scores)
    error = error - F.one_hot(target, scores.shape[-1]).to(error.dtype)
    return error.square().mean(), (error * (2 / error.numel())).to(scores.dtype)


def cross_entropy(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy, averaged over the batch, and its gradient ``(softmax - one_hot) / batch``.

    Args:
        scores: ``(batch, num_classes)``, logits.
        target: ``(batch,)``, class numbers.

    Returns:
        The loss, a scalar, and its gradient with respect to ``scores``.
    """
    log_probabilities = F.log_softmax(_at_least_float32(scores), dim=-1)
    grad = log_probabilities.exp()
    index = target.unsqueeze(-1)
    grad.scatter_add_(-1, index, grad.new_full((1, 1), -1.0).expand(index.shape))
    grad.mul_(1 / len(target))
    return F.nll_loss(log_probabilities, target), grad.to(scores.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
