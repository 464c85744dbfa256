"""Batch normalisation of quaternions."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.backprop import batch_norm_vjp
from lightning_nobp.functional.quaternion.algebra import check_features, widened
from lightning_nobp.functional.quaternion.normalisation import (
    quaternion_moments,
    quaternion_scale,
    quaternion_scale_vjp,
    quaternion_variance,
    quaternion_whiten,
    quaternion_whiten_vjp,
)
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.typed import Typed

NormMode = Literal["whiten", "norm", "split"]
"""What is normalised: the covariance of the components, the length, or each component by itself."""


class QuaternionBatchNorm(Typed, nn.Module):
    """Batch normalisation of quaternion features ``(batch, 4C)`` or maps ``(batch, 4C, ...)``, component-major.

    - ``'whiten'``: the four components of a channel become uncorrelated and equally large: ``Gamma L^-1 (x - mean) +
      beta`` with ``L L^T`` the covariance and ``eps`` on its diagonal; see
      :func:`lightning_nobp.functional.quaternion.normalisation.quaternion_whiten`. Gamma is symmetric and starts as
      half the identity: a covariance of ``I / 4``, so that quaternions start with a mean squared length of 1.
    - ``'norm'``: each channel is divided by one standard deviation, ``sqrt(E |x - mean|^2)``; gamma is real. It
      keeps the directions of quaternions around their mean.
    - ``'split'``: ``nn.BatchNorm`` of the 4C real channels, and the fastest.

    As in torch, training takes the statistics of the batch and moves running ones, in which the (co)variance is the
    unbiased one; evaluation takes the running ones. An empty batch stays empty, and moves none.

    Args:
        num_features: Real features, four a quaternion: ``4C``.
        eps: Added to variances.
        momentum: Share of a new batch in the running statistics; None for the average of all batches.
        affine: Whether to learn weight and bias.
        mode: ``'whiten'``, ``'norm'`` or ``'split'``.
        track_running_stats: Whether to keep running statistics; else evaluation takes those of the batch.
        device: Of the parameters.
        dtype: Of the parameters.

    Attributes:
        weight: ``(10, C)`` for ``'whiten'``, the upper triangle of Gamma row by row; ``(C,)`` for ``'norm'``; ``(4C,)``
            for ``'split'``.
        bias: ``(4C,)``.
        running_mean: ``(4C,)``.
        running_var: The covariance ``(C, 4, 4)`` for ``'whiten'``, ``(C,)`` for ``'norm'``, ``(4C,)`` for ``'split'``.

    Raises:
        ValueError: Features that are not divisible by 4, an unknown mode, or an argument outside its range.

    References:
        Gaudet and Maida, "Deep Quaternion Networks", arXiv 1712.04604.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        mode: str = "whiten",
        track_running_stats: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_arguments(num_features, eps, momentum, mode)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.mode, self.track_running_stats = affine, mode, track_running_stats
        where = {"device": device, "dtype": dtype}
        channels = num_features // 4
        shape = {"whiten": (10, channels), "norm": (channels,), "split": (num_features,)}[mode]
        variance = (channels, 4, 4) if mode == "whiten" else shape
        self.register_parameter("weight", nn.Parameter(torch.empty(shape, **where)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.empty(num_features, **where)) if affine else None)
        tracked = track_running_stats
        self.register_buffer("running_mean", torch.empty(num_features, **where) if tracked else None)
        self.register_buffer("running_var", torch.empty(variance, **where) if tracked else None)
        count = torch.tensor(0, dtype=torch.long, device=device) if tracked else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, of no batch yet."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.running_mean.zero_()
        self.num_batches_tracked.zero_()
        if self.mode == "whiten":
            self.running_var.zero_().diagonal(dim1=-2, dim2=-1).fill_(1)
        else:
            self.running_var.fill_(1)

    def reset_parameters(self) -> None:
        """Put everything back to its start: Gamma to half the identity, gamma to 1, beta to 0."""
        self.reset_running_stats()
        if self.weight is None or self.bias is None:
            return
        nn.init.zeros_(self.bias)
        nn.init.constant_(self.weight, 0.0 if self.mode == "whiten" else 1.0)
        if self.mode == "whiten":
            with torch.no_grad():
                for diagonal in (0, 4, 7, 9):
                    self.weight[diagonal].fill_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the shape of ``x``.

        Raises:
            ValueError: A wrong number of features, or a single value a channel in training.
        """
        if self.mode != "split":
            return self._normalised(x, *self._statistics(x))
        self._check(x)
        if not self._uses_batch():
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return F.batch_norm(x, *self._tracked(), self.weight, self.bias, True, float(self._count_batch()), self.eps)

    def _uses_batch(self) -> bool:
        return self.training or self.running_mean is None

    def _tracked(self) -> tuple[Tensor | None, Tensor | None]:
        """The running statistics that a batch moves."""
        return (self.running_mean, self.running_var) if self.training else (None, None)

    def _count_batch(self) -> float | Tensor:
        """Count one more batch in training, and return its share in the running statistics."""
        if not self.training or self.num_batches_tracked is None or self.running_mean is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            return self.momentum
        # Of a wide type, and left on its device; torch's own kernel wants a number.
        wide = torch.promote_types(self.running_mean.dtype, torch.float32)
        count = self.num_batches_tracked
        return 1.0 / float(count) if self.mode == "split" else count.to(wide).reciprocal()

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (co)variance that normalise ``x``, after the running ones have moved."""
        self._check(x)
        if not self._uses_batch():
            assert self.running_mean is not None
            assert self.running_var is not None
            return self.running_mean, self.running_var
        if not x.numel():
            self._count_batch()
            return self._of_nothing(x)
        mean, variance = quaternion_moments(x) if self.mode == "whiten" else quaternion_variance(x)
        running_mean, running_var = self._tracked()
        if running_mean is not None and running_var is not None:
            share, values = self._count_batch(), x.numel() // x.shape[1]
            with torch.no_grad():
                running_mean.mul_(1 - share).add_(mean * share)
                running_var.mul_(1 - share).add_(variance * (values / (values - 1)) * share)
        return mean, variance

    def _of_nothing(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Any finite mean and (co)variance: there is nothing to normalise, and gradients of 0 must stay 0."""
        mean, channels = widened(x.new_zeros(self.num_features)), self.num_features // 4
        identity = torch.eye(4, dtype=mean.dtype, device=mean.device).expand(channels, 4, 4)
        return mean, identity if self.mode == "whiten" else mean.new_ones(channels)

    def _normalised(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        normalise = quaternion_whiten if self.mode == "whiten" else quaternion_scale
        return normalise(x, mean, variance, self.weight, self.bias, self.eps)

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"x of shape {tuple(x.shape)} does not fit num_features={self.num_features}: give (batch, "
                f"{self.num_features}, ...)"
            )
        if self._uses_batch() and x.numel() == x.shape[1]:
            raise ValueError(
                f"batch normalisation of one value a channel, input {tuple(x.shape)}: it needs larger batches in "
                "training; leave the last one out if it is small (drop_last=True)"
            )

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"mode={self.mode!r}, track_running_stats={self.track_running_stats}"
        )


def _check_arguments(num_features: int, eps: float, momentum: float | None, mode: str) -> None:
    check_features(num_features, "num_features")
    if num_features < 4:
        raise ValueError(f"num_features={num_features} holds no quaternion: give at least 4")
    if mode not in get_args(NormMode):
        raise ValueError(f"mode={mode!r} is not one of {', '.join(map(repr, get_args(NormMode)))}")
    if eps <= 0:
        raise ValueError(f"eps={eps} is added to variances that may be 0: give a positive number")
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} is the share of a new batch: give 0 to 1, or None for the average")


@register_vjp(QuaternionBatchNorm)
def _batch_norm(layer: QuaternionBatchNorm, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    if layer.mode == "split":
        return _split_batch_norm(layer, x, needs_input_grad)
    training = layer._uses_batch()
    mean, variance = layer._statistics(x)
    if not training:
        # Copies: another batch before the pullback may move the layer's buffers.
        mean, variance = mean.clone(), variance.clone()
    whole_vjp = quaternion_whiten_vjp if layer.mode == "whiten" else quaternion_scale_vjp

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight, grad_bias = whole_vjp(
            grad, x, mean, variance, layer.weight, layer.eps, training=training, needs_input_grad=needs_input_grad
        )
        accumulate_grad(layer.weight, grad_weight)
        accumulate_grad(layer.bias, grad_bias)
        return grad_x

    return layer._normalised(x, mean, variance), pull


def _split_batch_norm(layer: QuaternionBatchNorm, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    training = layer._uses_batch()
    if not x.numel():
        return layer(x), lambda grad: _pull_nothing(layer, grad)
    if training:
        layer._check(x)
        share = float(layer._count_batch())
        y, mean, inv_std = torch.native_batch_norm(
            x, layer.weight, layer.bias, *layer._tracked(), True, share, layer.eps
        )
    else:
        y = layer(x)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, inv_std = layer.running_mean.clone(), torch.rsqrt(layer.running_var + layer.eps)

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight, grad_bias = batch_norm_vjp(
            grad, x, layer.weight, mean, inv_std, training=training, needs_input_grad=needs_input_grad
        )
        accumulate_grad(layer.weight, grad_weight)
        accumulate_grad(layer.bias, grad_bias)
        return grad_x

    return y, pull


def _pull_nothing(layer: QuaternionBatchNorm, grad: Tensor) -> Tensor:
    # torch's kernels refuse empty batches, on some devices by a crash.
    for parameter in layer.parameters():
        accumulate_grad(parameter, torch.zeros_like(parameter))
    return grad
