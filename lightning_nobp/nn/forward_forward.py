"""Layers that learn by Forward-Forward: each by a loss on its own activity.

References:
    Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.
    Lee and Song, "SymBa: Symmetric Backpropagation-Free Contrastive Learning with Forward-Forward Algorithm for
    Optimizing Convergence", arXiv 2303.08418.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional import forward_forward as ff
from lightning_nobp.functional.backprop import conv2d_vjp, max_pool2d_vjp
from lightning_nobp.functional.forward_forward import GoodnessKind, NormaliseKind
from lightning_nobp.nn.backprop import accumulate_grad
from lightning_nobp.typed import Typed

_OTHER_ACTIVATIONS = ("elu", "leaky_relu", "mish", "sigmoid", "silu")
GROUP = 2**20
"""Bytes of activity that labels are tried on together: it stays in a core's cache."""


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


Slope = Callable[[Tensor, Tensor], Tensor]

SLOPES: dict[str, Slope] = {
    "relu": lambda z, h: (h > 0).to(h.dtype),
    # Hinton's: units that are silent learn too, where a loss has more than a goodness in it.
    "relu_full_grad": lambda z, h: torch.ones_like(h),
    "gelu": lambda z, h: 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * _normal_density(z),
    "tanh": lambda z, h: 1 - h.square(),
    "softplus": lambda z, h: torch.sigmoid(z),
}
"""phi'(z) of the activations that have a closed form, from z and h = phi(z)."""


class FFLayer(Typed, nn.Module):
    """A layer ``h = phi(u W^T + c V^T + b)`` of normalised data u and a label's pattern c.

    A subclass defines the product and its weight gradient.

    Args:
        weight_shape: Of the weight W; the first entry is the number of units or channels.
        label_features: Entries of c, 0 for no label.
        label_cells: Of a map, into how many cells it is divided, down and across, each of which has a label weight V
            of its own.
        activation: ``'relu'``, ``'gelu'``, ``'tanh'``, ``'softplus'`` or ``'relu_full_grad'`` (whose slope counts as
            one everywhere); others (``'elu'``, ``'leaky_relu'``, ``'mish'``, ``'sigmoid'``, ``'silu'``) only autograd
            can train.
        normalise: How data are normalised, see :func:`~lightning_nobp.functional.forward_forward.normalise_activity`.
        goodness: See :func:`~lightning_nobp.functional.forward_forward.goodness`.
        batch_norm: Whether the next layer's data are batch-normalised, unit by unit, before they are normalised.

    Raises:
        ValueError: An unknown name.
    """

    peer_means: Tensor
    """Running mean activity of each unit, for peer normalisation."""

    def __init__(
        self,
        weight_shape: Sequence[int],
        *,
        label_features: int = 0,
        label_cells: tuple[int, ...] = (),
        activation: str = "relu",
        normalise: NormaliseKind = "rms",
        goodness: GoodnessKind = "mean_square",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if activation not in (*SLOPES, *_OTHER_ACTIVATIONS):
            raise ValueError(
                f"activation={activation!r} is not one of {', '.join(map(repr, (*SLOPES, *_OTHER_ACTIVATIONS)))}"
            )
        if min(*weight_shape, *label_cells) < 1:
            raise ValueError(f"{type(self).__name__} of {tuple(weight_shape)}: every size must be at least 1")
        for name, value, kinds in (("normalise", normalise, NormaliseKind), ("goodness", goodness, GoodnessKind)):
            if value not in get_args(kinds):
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, get_args(kinds)))}")
        self.label_features, self.activation = label_features, activation
        self.normalise, self.goodness = normalise, goodness
        units = weight_shape[0]
        self.weight = nn.Parameter(torch.empty(*weight_shape))
        self.bias = nn.Parameter(torch.empty(units))
        label_shape = (units, label_features, *label_cells)
        self.label_weight = nn.Parameter(torch.empty(label_shape)) if label_features else None
        self.register_buffer("peer_means", torch.zeros(units))
        kind = nn.BatchNorm2d if len(weight_shape) > 2 else nn.BatchNorm1d
        self.batch_norm = kind(units, affine=False) if batch_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal numbers as He draws them for ReLU: with normalised data, the mean goodness starts near one."""
        of_labels = 0 if self.label_weight is None else self.label_weight[0].numel()
        deviation = math.sqrt(2 / (self.fan_in + of_labels))
        for weight in (self.weight, self.label_weight):
            if weight is not None:
                nn.init.normal_(weight, std=deviation)
        nn.init.zeros_(self.bias)

    @property
    def fan_in(self) -> int:
        """Values of the data that a unit sees."""
        return self.weight[0].numel()

    @abstractmethod
    def product(self, x: Tensor) -> tuple[Tensor, Any]:
        """Product of data and weight, ``(batch, units, ...)``, without the bias, and what its gradient needs."""

    @abstractmethod
    def weight_gradient(self, x: Tensor, error: Tensor, context: Any) -> Tensor:
        """Gradient of the weight.

        Args:
            x: The data.
            error: Derivative with respect to :meth:`product`.
            context: What that left behind.
        """

    def label_product(self, patterns: Tensor) -> Tensor:
        """Product of patterns and label weight.

        Args:
            patterns: ``(labels, label_features)``.

        Returns:
            ``(labels, units)``, or of a map ``(labels, units, *label_cells)``.
        """
        if self.label_weight is None:  # added to the data, and so under the data's weight
            return self.product(patterns)[0]
        return torch.einsum("kp,up...->ku...", patterns, self.label_weight)

    def add_label_gradient(self, patterns: Tensor, error: Tensor) -> None:
        """Add the gradient of the label's weight, from the derivative with respect to :meth:`label_product`."""
        if self.label_weight is None:
            accumulate_grad(self.weight, self.weight_gradient(patterns, error, None))
        else:
            accumulate_grad(self.label_weight, torch.einsum("kp,ku...->up...", patterns, error))

    def phi(self, z: Tensor) -> Tensor:
        """The activation; written over ``z`` where neither autograd nor a slope needs it."""
        if self.activation == "relu" and not torch.is_grad_enabled():
            return F.relu_(z)
        if self.activation == "relu_full_grad":
            return z + (F.relu(z) - z).detach()
        h: Tensor = getattr(F, self.activation)(z)
        return h

    def normalised(self, h: Tensor) -> Tensor:
        """Data for the next layer, ``(batch, ...)``."""
        return ff.normalise_activity(h if self.batch_norm is None else self.batch_norm(h), self.normalise)

    def forward(self, u: Tensor, label: Tensor | None = None) -> Tensor:
        """The activity, readably.

        Args:
            u: Normalised data, ``(batch, ...)``.
            label: A pattern for each sample, ``(batch, label_features)``.
        """
        z, _ = self.product(u)
        if label is not None:
            z = z + spread(self.label_product(label), z.shape[2:])
        return self.phi(z + per_unit(self.bias, z))


def per_unit(values: Tensor, like: Tensor) -> Tensor:
    """A value for each unit, ``(units,)``, in a shape that broadcasts with an activity ``(batch, units, ...)``."""
    return values.view(-1, *[1] * (like.dim() - 2))


def by_candidate(rows: Tensor, labels: Tensor) -> Tensor:
    """Rows ordered by label first, as ``(candidates, batch, ...)``; one candidate where they serve all labels."""
    return rows.view(-1, labels.shape[1], *rows.shape[1:])


def spread(cells: Tensor, size: torch.Size) -> Tensor:
    """Each cell, ``(rows, units, *label_cells)``, over its part of a map of ``size``, or what broadcasts so."""
    return F.interpolate(cells, size) if cells.shape[2:].numel() > 1 else cells


def gathered(values: Tensor, cells: torch.Size) -> Tensor:
    """The adjoint of :func:`spread`: sums of a map, ``(rows, units, ...)``, over its cells."""
    if not cells:
        return values
    if cells.numel() == 1:
        return values.sum((2, 3), keepdim=True)
    shape = (*values.shape[:2], *cells)
    sums: Tensor = torch.ops.aten.upsample_nearest2d_backward(values, values.shape[2:], shape)
    return sums


class FFLinear(FFLayer):
    """A dense Forward-Forward layer.

    Args:
        in_features: Entries of the data.
        out_features: Units.
        **kwargs: See :class:`FFLayer`.
    """

    def __init__(self, in_features: int, out_features: int, **kwargs: Any) -> None:
        super().__init__((out_features, in_features), **kwargs)

    def product(self, x: Tensor) -> tuple[Tensor, None]:
        """``x W^T``, ``(batch, out_features)``."""
        return F.linear(x.flatten(1), self.weight), None

    def weight_gradient(self, x: Tensor, error: Tensor, context: None) -> Tensor:
        """``error^T x``."""
        return error.t() @ x.flatten(1)


class FFConv2d(FFLayer):
    """A convolutional Forward-Forward layer: convolution, maximum over windows, label, bias, activation.

    Its goodness is one number for the whole map. A label that is constant in each window commutes with the maximum,
    which therefore comes first: on a smaller map, and once for all labels.

    Args:
        in_channels: Channels of the data.
        out_channels: Channels of the activity.
        kernel_size: Height and width of the kernel.
        stride: Of the kernel.
        padding: Zeros at each side.
        pool: Side of the windows; 1 for none.
        label_grid: Cells on a side of the map, each with a label weight of its own.
        **kwargs: See :class:`FFLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        pool: int = 1,
        label_grid: int = 1,
        **kwargs: Any,
    ) -> None:
        if min(stride, pool) < 1 or padding < 0:
            raise ValueError(f"stride={stride} and pool={pool} must be at least 1, padding={padding} at least 0")
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        super().__init__(shape, label_cells=(label_grid, label_grid), **kwargs)
        self.stride, self.padding, self.pool = stride, padding, pool

    def product(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, torch.Size] | None]:
        """The convolution and its maxima, ``(batch, out_channels, height, width)``; where they came from."""
        y = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        if self.pool == 1:
            return y, None
        maxima, indices = F.max_pool2d(y, self.pool, return_indices=True)
        return maxima, (indices, y.shape)

    def weight_gradient(self, x: Tensor, error: Tensor, context: tuple[Tensor, torch.Size] | None) -> Tensor:
        """Correlation of the data and the error, sent back to where the maxima came from."""
        if context is not None:
            error = max_pool2d_vjp(error, *context)
        stride, padding = (self.stride, self.stride), (self.padding, self.padding)
        _, grad = conv2d_vjp(
            error, x, self.weight, stride=stride, padding=padding, dilation=(1, 1), groups=1, needs_input_grad=False
        )
        assert grad is not None
        return grad


@dataclass
class LayerPass:
    """One layer's activity on several labels for each sample, with what its gradient needs.

    Rows of ``z`` and ``h`` are ordered by label first: those of ``labels[0]``, then those of ``labels[1]``.
    """

    drive: "Drive"
    labels: Tensor
    """``(candidates, batch)``."""
    z: Tensor
    """Pre-activation, ``(candidates * batch, units, ...)``; of ReLU without autograd, overwritten by the activity."""
    h: Tensor
    """Activity, in the same shape."""

    @property
    def layer(self) -> FFLayer:
        """The layer."""
        return self.drive.layer

    def goodness(self) -> Tensor:
        """Goodness of each label, ``(candidates, batch)``."""
        h = self.h.float() if self.h.element_size() < 4 else self.h
        return ff.goodness(h, self.layer.goodness).view_as(self.labels)

    def add_gradients(self, q: Tensor, extra: Tensor | None = None) -> None:
        """Add the gradient of the layer's own loss to its parameters.

        Args:
            q: Derivative of the loss with respect to the goodness, ``(candidates, batch)``.
            extra: Derivative with respect to :attr:`h` of what else is in the loss.
        """
        layer = self.layer
        # Where ReLU is flat its activity is zero, and so is the slope of every goodness.
        flat = layer.activation.startswith("relu") and extra is None
        slope = None if flat else SLOPES[layer.activation](self.z, self.h)
        error = ff.local_error(self.h, q.flatten().to(self.h.dtype), layer.goodness, slope, extra)
        self.drive.add_gradients(self.labels, error)


@dataclass
class Drive:
    """What drives a layer, before it is known with which labels.

    The product with the data is computed once for all labels: ``z = r (u W^T + T[y]) + b``, where ``T[y]`` is the
    product of the pattern of y with the label's weight, and r normalises both.
    """

    layer: FFLayer
    data: Tensor
    """u, a row for each sample, or for each label of each sample."""
    patterns: Tensor | None
    """Of each label and the neutral one, ``(num_classes + 1, features)``; None where no label enters."""
    scale: Tensor | None = None
    """r, ``(batch, num_classes + 1)``; None where the data are normalised already."""

    def __post_init__(self) -> None:
        """Compute ``u W^T``."""
        self.product, self._context = self.layer.product(self.data)

    def bytes(self) -> int:
        """Memory of the data, while they are normalised, and of their product."""
        numbers = 3 * self.data.numel() + self.product.numel()
        if self._context is not None:
            indices, before_pooling = self._context
            numbers += before_pooling.numel() + 2 * indices.numel()
        return numbers * self.product.element_size()

    @property
    def unit(self) -> float:
        """Size of the goodness where every unit has the activity one."""
        return float(self.product[0].numel()) if self.layer.goodness == "sum_square" else 1.0

    def run(self, labels: Tensor) -> LayerPass:
        """The layer's activity with ``labels``, ``(candidates, batch)``."""
        # In the dtype of the weights, whatever the products were computed in.
        drive = by_candidate(self.product.to(self.layer.bias.dtype), labels)
        bias = per_unit(self.layer.bias, self.product)
        if self.patterns is None:
            z = drive + bias
        elif self.scale is None:
            z = drive + (self._of_labels(labels) + bias)
        else:
            scale = self._scale_of(labels, drive.dim())
            z = torch.addcmul(drive * scale + bias, scale, self._of_labels(labels))
        z = z.expand(*labels.shape, *z.shape[2:]).flatten(0, 1)
        return LayerPass(self, labels, z, self.layer.phi(z))

    def _of_labels(self, labels: Tensor) -> Tensor:
        """``T[y]``, in a shape that broadcasts with ``(candidates, batch, units, ...)``."""
        # The same labels for all samples, an expanded tensor, need be looked up once.
        few = labels[:, :1] if labels.stride(1) == 0 else labels
        # Kept for other labels, unless autograd must find its way through.
        products = self._label_products() if torch.is_grad_enabled() else self._kept_label_products
        cells = spread(products.index_select(0, few.flatten()), self.product.shape[2:])
        return by_candidate(cells, few)

    @cached_property
    def _kept_label_products(self) -> Tensor:
        return self._label_products()

    def _label_products(self) -> Tensor:
        """T, ``(num_classes + 1, units, ...)``."""
        assert self.patterns is not None
        return self.layer.label_product(self.patterns).to(self.layer.bias.dtype)

    def goodness(self, labels: Tensor) -> Tensor:
        """Goodness of ``labels``, ``(candidates, batch)``, a few candidates at a time."""
        if torch.compiler.is_exporting():  # which a number that depends on the batch would bind to one size
            return self.run(labels).goodness()
        together = max(1, GROUP // (self.product.numel() * self.product.element_size()))
        return torch.cat([self.run(part).goodness() for part in torch.split(labels, together)])

    def add_gradients(self, labels: Tensor, error: Tensor) -> None:
        """Add gradients to the layer's parameters.

        Args:
            labels: ``(candidates, batch)``.
            error: Derivative of the loss with respect to the pre-activation.
        """
        accumulate_grad(self.layer.bias, error.sum([0, *range(2, error.dim())]))
        if self.scale is not None:
            error = (by_candidate(error, labels) * self._scale_of(labels, error.dim() + 1)).flatten(0, 1)
        if self.patterns is not None:
            weight = self.layer.label_weight
            cells = error if weight is None else gathered(error, weight.shape[2:])
            by_label = cells.new_zeros(len(self.patterns), *cells.shape[1:]).index_add_(0, labels.flatten(), cells)
            self.layer.add_label_gradient(self.patterns, by_label)
        if len(self.data) < len(error):
            error = by_candidate(error, labels).sum(0)
        accumulate_grad(self.layer.weight, self.layer.weight_gradient(self.data, error, self._context))

    def _scale_of(self, labels: Tensor, dims: int) -> Tensor:
        assert self.scale is not None
        # Only a label that is added to the data changes their length by more or less than another one.
        few = labels if self.layer.label_weight is None else labels[:1]
        scale = self.scale.t().gather(0, few)
        return scale.view(*scale.shape, *[1] * (dims - 2))
