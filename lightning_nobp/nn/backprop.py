"""Hand-written backpropagation through a module: a forward pass that returns its own pullback.

``vjp(module, x)`` runs the module without an autograd graph and returns its output together with a *pullback*:
a function that takes the gradient of the output, adds the gradients of the module's parameters to ``p.grad`` and
returns the gradient of the input. Containers compose the pullbacks of their children; a new layer joins in by
:func:`register_vjp`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional import backprop as formulas
from lightning_nobp.nn.networks import TwoClasses
from lightning_nobp.nn.residual import Residual

Pullback = Callable[[Tensor], Tensor | None]
VJPRule = Callable[[Any, Tensor, bool], tuple[Tensor, Pullback]]
Check = Callable[[Any, str], object]
_Rule = TypeVar("_Rule", bound=VJPRule)

BY_AUTOGRAD = "let autograd do it: Backprop(engine='autograd'), QuaternionBackprop(backward_mode='autograd')"
"""What to do about a layer without a written backward pass, whichever the rule."""

_RULES: dict[type[nn.Module], VJPRule] = {}
_CHECKS: dict[type[nn.Module], Check] = {}


def register_vjp(module_type: type[nn.Module], *, check: Check | None = None) -> Callable[[_Rule], _Rule]:
    """Teach :func:`vjp` a layer.

    The decorated function gets ``(layer, x, needs_input_grad)`` and returns ``(y, pullback)``. The pullback gets the
    gradient of ``y``, adds the parameters' gradients by :func:`accumulate_grad` and returns the gradient of ``x``
    (it may return None where ``needs_input_grad`` is False). The gradient it gets is in the dtype of ``y`` and its own:
    it may write over it::

        @register_vjp(Scale)
        def scale_vjp(layer, x, needs_input_grad):
            def pullback(grad):
                accumulate_grad(layer.factor, (grad * x).sum())
                return grad * layer.factor
            return layer(x), pullback

    The rule also serves subclasses that do not override ``forward``.

    Args:
        module_type: The class of the layer.
        check: Called with a layer and its name before training; raises ``TypeError`` for a layer of the class that
            the rule cannot go through, and says why.
    """

    def register(rule: _Rule) -> _Rule:
        _RULES[module_type] = rule
        if check is not None:
            _CHECKS[module_type] = check
        return rule

    return register


@torch.no_grad()
def vjp(module: nn.Module, x: Tensor, needs_input_grad: bool = False) -> tuple[Tensor, Pullback]:
    """Run ``module`` on ``x`` without an autograd graph, and return its output and its pullback.

    Args:
        module: A layer with a registered rule, or an ``nn.Sequential`` or ``Residual`` of such.
        x: Input, ``(batch, ...)``.
        needs_input_grad: Whether the pullback must return the gradient of ``x``.

    Returns:
        The output and the pullback. The pullback may be called once, since it frees what the forward pass recorded,
        and it may write over the gradient it is given.

    Raises:
        TypeError: No rule is registered for the module.
    """
    y, pullback = _rule_for(module)(module, x, needs_input_grad)
    dtype = y.dtype
    return y, torch.no_grad()(lambda grad: pullback(_owned(grad, dtype)))


def check_supported(network: nn.Module, name: str = "network") -> None:
    """Raise ``TypeError`` naming the first layer of ``network`` that :func:`vjp` cannot go through."""
    kind = _known_type(network, name)
    if kind in _CHECKS:
        _CHECKS[kind](network, name)
    if kind in (nn.Sequential, Residual):
        # named_children would name a layer that stands twice once.
        for child_name, child in network._modules.items():
            assert child is not None
            check_supported(child, f"{name}.{child_name}")


def accumulate_grad(parameter: Tensor | None, grad: Tensor | None) -> None:
    """Add ``grad`` to ``parameter.grad``; frozen and absent parameters are passed over.

    Args:
        parameter: The parameter, or None.
        grad: Its gradient, the same shape; any floating dtype. None where the parameter is frozen.
    """
    if parameter is None or grad is None or not parameter.requires_grad:
        return
    grad = grad.to(parameter.dtype)
    parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)


def _rule_for(module: nn.Module) -> VJPRule:
    return _RULES[_known_type(module)]


def _known_type(module: nn.Module, name: str = "network") -> type[nn.Module]:
    kind = type(module)
    computed = _has_computed_weights(module)
    if not computed:
        for base in kind.__mro__:
            # A subclass with its own forward computes something else than its base: it needs a rule of its own.
            if base in _RULES and (kind is base or kind.forward is base.forward):
                return base
    why = " with a parametrization" if computed else ""
    raise TypeError(
        f"no vector-Jacobian product is known for layer {name!r}, a {kind.__name__}{why}. Register one with "
        f"@lightning_nobp.nn.register_vjp({kind.__name__}), or {BY_AUTOGRAD}."
    )


def _has_computed_weights(module: nn.Module) -> bool:
    """Whether a weight is computed from other parameters: by a parametrization, or by the hook of an older form."""
    attributes = vars(module)
    # Spelled out, since every layer is asked at every step.
    return (
        "parametrizations" in attributes["_modules"]
        or isinstance(attributes.get("weight"), Tensor)
        or isinstance(attributes.get("bias"), Tensor)
    )


def _owned(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """``grad`` in the dtype of the output that it belongs to, every entry in memory of its own."""
    if grad.dtype is not dtype:
        return grad.to(dtype, memory_format=torch.contiguous_format)
    # Nearly always so, and asked of every layer at every step.
    if grad.is_contiguous():
        return grad
    shared = any(stride == 0 and size > 1 for stride, size in zip(grad.stride(), grad.shape, strict=True))
    return grad.contiguous() if shared else grad


def _trains(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


@register_vjp(nn.Sequential)
def _sequential(module: nn.Sequential, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    pullbacks: list[tuple[Pullback, torch.dtype]] = []
    for child in _in_cheapest_order(module):
        x, pullback = _rule_for(child)(child, x, needs_input_grad)
        needs_input_grad = needs_input_grad or any(p.requires_grad for p in child.parameters())
        # Below the first trainable parameter nothing waits for a gradient.
        if needs_input_grad:
            pullbacks.append((pullback, x.dtype))

    def pull(grad: Tensor | None) -> Tensor | None:
        while pullbacks and grad is not None:
            pullback, dtype = pullbacks.pop()
            grad = pullback(_owned(grad, dtype))
        return grad

    return x, pull


def _in_cheapest_order(module: nn.Sequential) -> list[nn.Module]:
    """The children, each ReLU behind the maximum that follows it.

    The two commute, gradients included. Behind it, the ReLU works on a quarter of the values (windows of 2x2), and
    the large map before the pooling need not be kept.
    """
    children = list(module)
    for i in range(len(children) - 1):
        if type(children[i]) is nn.ReLU and type(children[i + 1]) is nn.MaxPool2d:
            children[i], children[i + 1] = children[i + 1], children[i]
    return children


@register_vjp(Residual)
def _residual(module: Residual, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    y, pull_body = _rule_for(module.body)(module.body, x, needs_input_grad)
    shortcut, pull_shortcut = _rule_for(module.shortcut)(module.shortcut, x, needs_input_grad)
    dtypes = y.dtype, shortcut.dtype

    def pull(grad: Tensor) -> Tensor | None:
        # Each branch owns what it is given, and may write over it.
        grad_body = pull_body(_owned(grad.clone(), dtypes[0]))
        grad_shortcut = pull_shortcut(_owned(grad, dtypes[1]))
        return grad_body + grad_shortcut if grad_body is not None and grad_shortcut is not None else None

    return y + shortcut, pull


@register_vjp(nn.Identity)
def _identity(layer: nn.Identity, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer(x), lambda grad: grad


@register_vjp(nn.Flatten)
def _flatten(layer: nn.Flatten, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    shape = x.shape
    return layer(x), lambda grad: grad.reshape(shape)


@register_vjp(nn.Linear)
def _linear(layer: nn.Linear, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight = formulas.linear_vjp(
            grad,
            x,
            layer.weight,
            needs_input_grad=needs_input_grad,
            needs_weight_grad=layer.weight.requires_grad,
        )
        accumulate_grad(layer.weight, grad_weight)
        if _trains(layer.bias):
            accumulate_grad(layer.bias, formulas.bias_vjp(grad))
        return grad_x

    return layer(x), pull


def _zero_padding(layer: nn.Conv2d, name: str) -> tuple[int, ...]:
    if layer.padding_mode != "zeros":
        raise TypeError(
            f"{name} is a Conv2d with padding_mode={layer.padding_mode!r}: only 'zeros' has a written backward pass; "
            f"register one for a subclass (register_vjp), or {BY_AUTOGRAD}"
        )
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            raise TypeError(
                f"{name} is a Conv2d with padding='same' and an even kernel, which pads unevenly: give the padding as "
                "numbers"
            )
        return tuple(t // 2 for t in total)
    return tuple(int(p) for p in layer.padding)


@register_vjp(nn.Conv2d, check=_zero_padding)
def _conv2d(layer: nn.Conv2d, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    padding = _zero_padding(layer, "network")

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight = formulas.conv2d_vjp(
            grad,
            x,
            layer.weight,
            stride=layer.stride,
            padding=padding,
            dilation=layer.dilation,
            groups=layer.groups,
            needs_input_grad=needs_input_grad,
            needs_weight_grad=layer.weight.requires_grad,
        )
        accumulate_grad(layer.weight, grad_weight)
        if _trains(layer.bias):
            accumulate_grad(layer.bias, formulas.bias_vjp(grad, channel_dim=1))
        return grad_x

    return layer(x), pull


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    training = layer.training or layer.running_mean is None
    y, mean, inv_std = _normalise(layer, x, training)

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight, grad_bias = formulas.batch_norm_vjp(
            grad, x, layer.weight, mean, inv_std, training=training, needs_input_grad=needs_input_grad
        )
        accumulate_grad(layer.weight, grad_weight)
        accumulate_grad(layer.bias, grad_bias)
        return grad_x

    return y, pull


def _normalise(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output of a batch normalisation, with the mean and one over the standard deviation that it used."""
    layer._check_input_dim(x)
    running_mean, running_var = layer.running_mean, layer.running_var
    if not training:
        assert running_mean is not None
        assert running_var is not None
        # Copies: another batch before the pullback may move the layer's buffers.
        return layer(x), running_mean.clone(), torch.rsqrt(running_var + layer.eps)
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"batch normalisation of one value a channel, input {tuple(x.shape)}: it needs larger batches in training; "
            "leave the last one out if it is small (drop_last=True)"
        )
    momentum = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        momentum = 1.0 / float(layer.num_batches_tracked) if momentum is None else momentum
    y, mean, inv_std = torch.native_batch_norm(
        x, layer.weight, layer.bias, running_mean, running_var, True, momentum or 0.0, layer.eps
    )
    return y, mean, inv_std


register_vjp(nn.BatchNorm1d)(_batch_norm)
register_vjp(nn.BatchNorm2d)(_batch_norm)


@register_vjp(nn.LayerNorm)
def _layer_norm(layer: nn.LayerNorm, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    shape = list(layer.normalized_shape)
    y, mean, inv_std = torch.native_layer_norm(x, shape, layer.weight, layer.bias, layer.eps)

    def pull(grad: Tensor) -> Tensor | None:
        grad_x, grad_weight, grad_bias = formulas.layer_norm_vjp(
            grad, x, shape, layer.weight, layer.bias, mean, inv_std, needs_input_grad=needs_input_grad
        )
        accumulate_grad(layer.weight, grad_weight)
        accumulate_grad(layer.bias, grad_bias)
        return grad_x

    return y, pull


@register_vjp(nn.ReLU)
def _relu(layer: nn.ReLU, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    # Not in place, even if the layer would be: the layer before may have kept x.
    y = F.relu(x) if layer.inplace else layer(x)
    return y, lambda grad: formulas.relu_vjp(grad, y)


@register_vjp(nn.Sigmoid)
def _sigmoid(layer: nn.Sigmoid, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    y = layer(x)
    return y, lambda grad: formulas.sigmoid_vjp(grad, y)


@register_vjp(nn.Tanh)
def _tanh(layer: nn.Tanh, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    y = layer(x)
    return y, lambda grad: formulas.tanh_vjp(grad, y)


@register_vjp(nn.Hardtanh)
def _hardtanh(layer: nn.Hardtanh, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    low, high = float(layer.min_val), float(layer.max_val)
    # Not in place, even if the layer would be: the layer before may have kept x.
    return F.hardtanh(x, low, high), lambda grad: formulas.hardtanh_vjp(grad, x, low, high)


@register_vjp(TwoClasses)
def _two_classes(layer: TwoClasses, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer(x), lambda grad: grad[:, 1:] - grad[:, :1]


@register_vjp(nn.GELU)
def _gelu(layer: nn.GELU, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer(x), lambda grad: formulas.gelu_vjp(grad, x, layer.approximate)


@register_vjp(nn.Dropout)
def _dropout(layer: nn.Dropout, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    if not layer.training or layer.p == 0:
        return x, lambda grad: grad
    keep = 1 - layer.p
    # Drawn as torch draws it, so that both engines drop the same units from the same seed.
    mask = torch.empty_like(x).bernoulli_(keep)
    mask = mask.div_(keep) if keep > 0 else mask
    return x * mask, lambda grad: grad.mul_(mask)


def _maximum_only(layer: nn.MaxPool2d, name: str) -> None:
    if layer.return_indices:
        raise TypeError(f"{name} is a MaxPool2d(return_indices=True): only the maximum can go on to the next layer")


@register_vjp(nn.MaxPool2d, check=_maximum_only)
def _max_pool2d(layer: nn.MaxPool2d, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    y, indices = F.max_pool2d(
        x,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.ceil_mode,
        return_indices=True,
    )
    shape = x.shape
    return y, lambda grad: formulas.max_pool2d_vjp(grad, indices, shape)


@register_vjp(nn.AvgPool2d)
def _avg_pool2d(layer: nn.AvgPool2d, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(  # type: ignore[no-any-return]
            grad,
            x,
            _pair(layer.kernel_size),
            _pair(layer.stride),
            _pair(layer.padding),
            layer.ceil_mode,
            layer.count_include_pad,
            layer.divisor_override,
        )

    return layer(x), pull


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
