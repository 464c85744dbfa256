"""Linear and convolutional layers that hold only the weights that they have."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lightning_nobp.functional.backprop import bias_vjp, conv2d_vjp, linear_vjp
from lightning_nobp.functional.sparse import (
    Backend,
    SparseStructure,
    sparse_conv2d,
    sparse_conv2d_vjp,
    sparse_linear,
    sparse_linear_vjp,
)
from lightning_nobp.nn.backprop import BY_AUTOGRAD, Pullback, accumulate_grad, register_vjp
from lightning_nobp.typed import Typed

_THRESHOLD = 0.5
# Putting so few weights between zeros takes longer than any product with them.
_SMALL = 2**14

_Dense = TypeVar("_Dense", nn.Linear, nn.Conv2d)
_ProductVJP = Callable[..., tuple[Tensor | None, Tensor | None]]


class SparseLayer(Typed, nn.Module):
    """What :class:`SparseLinear` and :class:`SparseConv2d` share.

    The parameter ``values`` ``(nnz,)`` holds ``weight[mask]``, and its gradient and an optimizer's state are as small.
    ``state_dict`` holds the dense ``weight`` instead, so that checkpoints load into an ordinary network and those of an
    ordinary network load here. A weight that is there and happens to be zero is written as minus zero: the dense
    tensor alone says what the mask is.

    Loading takes over the mask of what is loaded: ``mask`` if the checkpoint has one (bool), else the weights that are
    not zero. A weight without any zero is a dense network's, and leaves the layer's mask as it is.

    Attributes:
        threshold: From this sparsity on the sparse kernels are used, below it a dense product with zeros. At first one
            half, and nought for weights of less than 16384 entries.
        records_dense_grad: Whether backward passes leave the gradient of the dense weight in ``dense_grad`` too, absent
            weights included, at the price of a dense product. Set it before the forward pass.
        dense_grad: That gradient, summed over backward passes like ``values.grad``; yours to reset.
    """

    # In the metadata of a state: from this version on minus zero is a weight that is there.
    _version = 2
    _sparse_vjp: ClassVar[_ProductVJP]
    _dense_vjp: ClassVar[_ProductVJP]
    _channel_dim: ClassVar[int]

    values: nn.Parameter
    bias: nn.Parameter | None
    structure: SparseStructure
    """Where the weights are; :meth:`set_mask` changes it."""

    def __init__(self, shape: tuple[int, ...], mask: Tensor | None, device: Any, dtype: Any) -> None:
        super().__init__()
        self.threshold = _THRESHOLD if math.prod(shape) >= _SMALL else 0.0
        self._shape = shape
        self._changes = 0
        self.records_dense_grad = False
        self.dense_grad: Tensor | None = None
        # A network that is built without memory has its structure all the same.
        device = torch.empty(0, device=device).device
        here = "cpu" if device.type == "meta" else device
        mask = torch.ones(shape, dtype=torch.bool, device=here) if mask is None else mask
        self._check_mask(mask)
        # No buffers: nobody else must restore or cast them.
        self.structure = SparseStructure.from_mask(mask.to(here))
        self.values = nn.Parameter(torch.empty(self.structure.nnz, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Start as torch's dense layer of as many inputs as each output has on average."""
        weight = torch.empty(self._shape, device=self.values.device, dtype=self.values.dtype)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        density = max(self.structure.density, 1 / weight.numel())
        with torch.no_grad():
            self.values.copy_(self.structure.from_dense(weight) / math.sqrt(density))
            if self.bias is not None:
                bound = 1 / math.sqrt(max(1, weight[0].numel()))
                self.bias.uniform_(-bound, bound)

    @property
    def mask(self) -> Tensor:
        """The bool mask, of the shape of the dense weight."""
        return self.structure.mask()

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew at every access; its gradient flows into ``values``."""
        return self.structure.to_dense(self.values)

    @property
    def sparsity(self) -> float:
        """Fraction of the dense weight that is not there."""
        return 1 - self.structure.density

    @property
    def backend(self) -> Backend:
        """What the products are computed with at the present sparsity."""
        return "auto" if self.sparsity >= self.threshold and not self.structure.is_full else "torch"

    @torch.no_grad()
    def set_mask(self, mask: Tensor, optimizers: Optimizer | Iterable[Optimizer] = ()) -> None:
        """Give the layer other weights: those that stay keep value, gradient and optimizer state, new ones start at 0.

        An autograd graph that was built before can no longer be run backwards.

        Args:
            mask: Bool, the shape of the dense weight.
            optimizers: Those that move ``values``.

        Raises:
            TypeError: The mask is not bool.
            ValueError: It has another shape.
        """
        self._check_mask(mask)
        old, new = self.structure, SparseStructure.from_mask(mask.to(self.values.device))
        move = _mover(old, new)
        for optimizer in [optimizers] if isinstance(optimizers, Optimizer) else optimizers:
            state = optimizer.state.get(self.values, {})
            for name, entry in state.items():
                if isinstance(entry, Tensor) and entry.shape == self.values.shape:
                    state[name] = move(entry)
        grad = self.values.grad
        self.values.grad = None
        self._replace(move(self.values), new)
        self.values.grad = None if grad is None else move(grad)

    def geometry(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups of the product, if it is a convolution."""
        return {}

    def extra_repr(self) -> str:
        """The sizes, and how sparse the layer is."""
        return f"{self._sizes()}, bias={self.bias is not None}, sparsity={self.sparsity:.4g}"

    @abstractmethod
    def _sizes(self) -> str:
        """The layer's own arguments, as torch's layers show them."""

    def _add_bias(self, size: int | None) -> None:
        self.register_parameter("bias", None if size is None else nn.Parameter(self.values.new_empty(size)))

    def _take(self, layer: nn.Linear | nn.Conv2d) -> Self:
        """Values and bias of a dense layer, instead of those that hold nothing yet."""
        weight = layer.weight.detach()
        self.structure = self.structure.to(self.structure.column.device if weight.is_meta else weight.device)
        values = self.structure.from_dense(weight).clone()
        self.values = nn.Parameter(values, requires_grad=layer.weight.requires_grad)
        self.register_parameter("bias", cast(nn.Parameter | None, layer.bias))
        return self.train(layer.training)

    def _give(self, layer: _Dense) -> _Dense:
        layer.weight = nn.Parameter(self.weight.detach(), requires_grad=self.values.requires_grad)
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def _check_mask(self, mask: Tensor) -> None:
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask of type {mask.dtype}: give a bool mask, for example weight != 0")
        if mask.shape != self._shape:
            raise ValueError(f"mask of shape {tuple(mask.shape)}: the weight's shape is {self._shape}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.values.is_meta:
            self.structure = self.structure.to(self.values.device)
        return self

    def _dense_weight(self) -> Tensor | None:
        """What a dense product takes; None where the sparse kernels do it, or ``functional.sparse`` decides."""
        if not (self.values.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return None
        if self.backend == "auto" and not self.records_dense_grad:
            return None
        weight, changes, records = self.weight, self._changes, self.records_dense_grad

        def pass_on(grad: Tensor) -> None:
            self._refuse_change(changes)
            if records:
                self._record(grad)

        weight.register_hook(pass_on)  # type: ignore[no-untyped-call]
        return weight

    def _watched(self, y: Tensor) -> Tensor:
        """The output, whose backward pass refuses to run under another mask."""
        if y.requires_grad and not torch.compiler.is_compiling():
            changes = self._changes
            y.register_hook(lambda _: self._refuse_change(changes))  # type: ignore[no-untyped-call]
        return y

    def _refuse_change(self, changes: int) -> None:
        if self._changes != changes:
            raise RuntimeError(
                f"the mask of a {type(self).__name__} was changed between its forward and its backward pass: change "
                "it after the backward pass"
            )

    def _product_vjp(
        self, grad: Tensor, x: Tensor, values: Tensor, structure: SparseStructure, needs_input_grad: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the input and of the values; that of the dense weight is recorded if it is wanted."""
        needs = {"needs_input_grad": needs_input_grad, **self.geometry()}
        trains = self.values.requires_grad
        if not (self.records_dense_grad and trains):
            return self._sparse_vjp(grad, x, values, structure, needs_values_grad=trains, backend=self.backend, **needs)
        grad_x, grad_weight = self._dense_vjp(grad, x, structure.to_dense(values), **needs)
        assert grad_weight is not None
        self._record(grad_weight)
        return grad_x, structure.from_dense(grad_weight)

    def _record(self, grad: Tensor) -> None:
        grad = grad.detach()
        self.dense_grad = grad.clone() if self.dense_grad is None else self.dense_grad + grad

    def _replace(self, values: Tensor, structure: SparseStructure) -> None:
        dtype = self.values.dtype
        if self.values.grad is not None and self.values.grad.shape != values.shape:
            self.values.grad = None
        if self.values.is_meta and not values.is_meta:
            self.values = nn.Parameter(values, requires_grad=self.values.requires_grad)
        else:
            # By way of another type: autograd then forgets the size that an older graph, still alive, has noted.
            other = torch.float32 if dtype is torch.float64 else torch.float64
            self.values.data = torch.empty(0, dtype=other, device=self.values.device)
            self.values.data = values.to(dtype)
        # Autograd refuses a graph that has kept the values as they were.
        torch.autograd.graph.increment_version(self.values)
        self.structure = structure
        self._changes += 1

    # Checkpoints

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        values, bias = destination.pop(f"{prefix}values"), destination.pop(f"{prefix}bias", None)
        marked = torch.where(values == 0, -torch.zeros_like(values), values)
        destination[f"{prefix}weight"] = self.structure.to_dense(marked)
        if bias is not None:
            destination[f"{prefix}bias"] = bias

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight, mask = state_dict.get(f"{prefix}weight"), state_dict.get(f"{prefix}mask")
        if weight is None:
            missing_keys += [f"{prefix}weight"] * strict
        elif weight.shape != self._shape:
            error_msgs.append(f"{prefix}weight has shape {tuple(weight.shape)}: this layer's is {self._shape}")
        elif mask is not None and (mask.dtype is not torch.bool or mask.shape != self._shape):
            error_msgs.append(
                f"{prefix}mask of type {mask.dtype} and shape {tuple(mask.shape)}: give bool, {self._shape}"
            )
        else:
            self._load_weight(weight, mask, local_metadata)
        names = {f"{prefix}weight", f"{prefix}mask"}
        rest = {name: entry for name, entry in state_dict.items() if name not in names}
        rest[f"{prefix}values"] = self.values.detach()
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    @torch.no_grad()
    def _load_weight(self, weight: Tensor, mask: Tensor | None, metadata: dict[str, Any]) -> None:
        if self.values.is_meta:
            if not metadata.get("assign_to_params_buffers"):
                return
        else:
            weight = weight.to(self.values.device)
        if mask is None:
            # Pruned dense networks have minus zeros too, by multiplication with a mask: there they mean nothing.
            marked = metadata.get("version", 1) >= self._version
            mask = (weight != 0) | (weight.signbit() if marked else False)
            # A dense network's weight is projected on this layer's mask; that of a full sparse layer is full.
            mask = self.mask.to(weight.device) if mask.all() and not marked else mask
        structure = SparseStructure.from_mask(mask.to(weight.device))
        self._replace(structure.from_dense(weight).clone(), structure)


class SparseLinear(SparseLayer):
    """A linear layer with few weights, whose three products cost what its weights cost.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        bias: Whether to add a bias.
        mask: Bool ``(out_features, in_features)``, the weights that there are; None for all.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: The mask is not bool.
        ValueError: It has another shape.

    References:
        Nikdan, Pegolotti, Iofinova, Kurtic and Alistarh, "SparseProp: Efficient Sparse Backpropagation for Faster
        Training of Neural Networks", arXiv 2302.04852.
    """

    _sparse_vjp = staticmethod(sparse_linear_vjp)
    _dense_vjp = staticmethod(linear_vjp)
    _channel_dim = -1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        mask: Tensor | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__((out_features, in_features), mask, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self._add_bias(out_features if bias else None)
        self.reset_parameters()

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor | None = None) -> Self:
        """The weights of ``layer`` where ``mask`` is True, by default where they are not zero, and its very bias."""
        mask = layer.weight != 0 if mask is None else mask
        sparse = cls(layer.in_features, layer.out_features, layer.bias is not None, mask=mask, device="meta")
        return sparse._take(layer)

    def to_dense(self) -> nn.Linear:
        """An ordinary layer with zeros, and this layer's very bias."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return self._give(layer)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., out_features)`` of ``x`` ``(..., in_features)``."""
        weight = self._dense_weight()
        if weight is not None:
            return F.linear(x, weight, self.bias)
        y = sparse_linear(x, self.values, self.structure, self.bias, backend=self.backend)
        return self._watched(y)

    def _sizes(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class SparseConv2d(SparseLayer):
    """A two-dimensional convolution with few weights, whose three products cost what its weights cost.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Of the convolution.
        padding: Zeros on each side, ``'valid'`` or ``'same'``.
        dilation: Of the kernel.
        groups: Of channels.
        bias: Whether to add a bias.
        padding_mode: What is padded: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        mask: Bool ``(out_channels, in_channels / groups, kernel_height, kernel_width)``, the weights that there are;
            None for all.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: The mask is not bool.
        ValueError: It has another shape, or an argument is outside its range.

    References:
        Nikdan, Pegolotti, Iofinova, Kurtic and Alistarh, "SparseProp: Efficient Sparse Backpropagation for Faster
        Training of Neural Networks", arXiv 2302.04852.
    """

    _sparse_vjp = staticmethod(sparse_conv2d_vjp)
    _dense_vjp = staticmethod(conv2d_vjp)
    _channel_dim = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        mask: Tensor | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        # Torch's own layer checks the arguments, and works out what 'same' pads.
        like = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta"
        )
        super().__init__(tuple(like.weight.shape), mask, device, dtype)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = like.kernel_size, like.stride, like.dilation
        self.padding, self.padding_mode = like.padding, padding_mode
        left, right, top, bottom = like._reversed_padding_repeated_twice
        # What the product itself cannot pad is padded before.
        self._pads_before = padding_mode != "zeros" or left != right or top != bottom
        self._pad = [left, right, top, bottom]
        self._add_bias(out_channels if bias else None)
        self.reset_parameters()

    @classmethod
    def from_dense(cls, layer: nn.Conv2d, mask: Tensor | None = None) -> Self:
        """The weights of ``layer`` where ``mask`` is True, by default where they are not zero, and its very bias."""
        mask = layer.weight != 0 if mask is None else mask
        sparse = cls(**_conv_arguments(layer), mask=mask, device="meta")
        return sparse._take(layer)

    def to_dense(self) -> nn.Conv2d:
        """An ordinary layer with zeros, and this layer's very bias."""
        return self._give(nn.Conv2d(**_conv_arguments(self), device="meta"))

    def geometry(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups of the product."""
        padding = (0, 0) if self._pads_before else (self._pad[2], self._pad[0])
        return {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, out_channels, out_height, out_width)`` of ``x`` ``(batch, in_channels, height, width)``."""
        if self._pads_before:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._pad, mode=mode)
        weight = self._dense_weight()
        if weight is not None:
            return F.conv2d(x, weight, self.bias, **self.geometry())
        y = sparse_conv2d(x, self.values, self.structure, self.bias, **self.geometry(), backend=self.backend)
        return self._watched(y)

    def _sizes(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        )


_CONV_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


def _conv_arguments(layer: nn.Conv2d | SparseConv2d) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in _CONV_ARGUMENTS} | {"bias": layer.bias is not None}


def _mover(old: SparseStructure, new: SparseStructure) -> Callable[[Tensor], Tensor]:
    """What takes entries of the old structure to their places in the new one, and fills the others with zeros."""
    before, after = old.flat_index, new.flat_index
    place = torch.searchsorted(before, after).clamp_(max=max(0, old.nnz - 1))
    stayed = before[place] == after if old.nnz else torch.zeros_like(after, dtype=torch.bool)
    return lambda entries: torch.where(stayed, entries[place], 0) if old.nnz else entries.new_zeros(new.nnz)


# Hand-written backward pass


def _even_zeros(layer: SparseConv2d, name: str) -> None:
    if layer._pads_before:
        raise TypeError(
            f"{name} is a SparseConv2d with padding_mode={layer.padding_mode!r} and padding={layer.padding!r}: only "
            f"zeros, as many on both sides, have a written backward pass; {BY_AUTOGRAD}"
        )


@register_vjp(SparseLinear)
@register_vjp(SparseConv2d, check=_even_zeros)
def _sparse_layer(layer: SparseLayer, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    # Those of now: another mask may be set before the pullback, which is refused.
    structure, values, changes = layer.structure, layer.values.detach(), layer._changes

    def pull(grad: Tensor) -> Tensor | None:
        layer._refuse_change(changes)
        grad_x, grad_values = layer._product_vjp(grad, x, values, structure, needs_input_grad)
        accumulate_grad(layer.values, grad_values)
        if layer.bias is not None and layer.bias.requires_grad:
            accumulate_grad(layer.bias, bias_vjp(grad, layer._channel_dim))
        return grad_x

    return layer(x), pull
