"""A network run backwards by a rule that does not hold for quaternions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_nobp.functional.quaternion.folk import (
    FolkRule,
    folk_bias_vjp,
    folk_product_vjp,
    truncated_activation_vjp,
)
from lightning_nobp.functional.quaternion.linear import PRODUCT
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, vjp
from lightning_nobp.nn.quaternion.convolution import QuaternionConv, check_zero_padding
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, QuaternionLinear

_ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Hardtanh)


@torch.no_grad()
def folk_vjp(network: nn.Module, x: Tensor, rule: FolkRule) -> tuple[Tensor, Pullback]:
    """As :func:`lightning_nobp.nn.vjp`, but quaternion layers and activations go back by a folk rule.

    Args:
        network: An ``nn.Sequential``, nested ones included; layers without quaternions go back as ever.
        x: Input, ``(batch, ...)``.
        rule: See :func:`lightning_nobp.functional.quaternion.folk.folk_product_vjp`.

    Returns:
        The output and the pullback.

    Raises:
        TypeError: A layer that is neither known nor a container of such.
    """
    if isinstance(network, nn.Sequential):
        pullbacks = []
        for child in network:
            x, pullback = folk_vjp(child, x, rule)
            pullbacks.append(pullback)
        return x, lambda grad: _pull(pullbacks, grad)
    if isinstance(network, QuaternionLayer):
        check_folk(network)
        return network(x), torch.no_grad()(lambda grad: _layer(network, x, grad, rule))
    if rule == "truncated" and isinstance(network, _ACTIVATIONS) and x.shape[1] % 4 == 0:
        # Not by the layer itself: in place, it would write over what the layer before has kept.
        y = vjp(network, x)[0]
        return y, torch.no_grad()(lambda grad: truncated_activation_vjp(grad, _true_way_back(network, x)))
    return vjp(network, x, needs_input_grad=True)


def check_folk(network: nn.Module, name: str = "network") -> None:
    """Refuse a network with quaternion layers that :func:`folk_vjp` would not see.

    Raises:
        TypeError: Names the container; or a convolution that pads with something else than zeros.
    """
    for child_name, child in network.named_children() if isinstance(network, nn.Sequential) else ():
        check_folk(child, f"{name}.{child_name}")
    if isinstance(network, QuaternionConv):
        check_zero_padding(network, name)
    if isinstance(network, nn.Sequential | QuaternionLinear | QuaternionConv):
        return
    if any(isinstance(module, QuaternionLayer) for module in network.modules()):
        raise TypeError(
            f"{name} is a {type(network).__name__} with quaternion layers inside: backward_mode other than 'ghr' and "
            "'autograd' goes through nn.Sequential only"
        )


def _pull(pullbacks: list[Pullback], grad: Tensor) -> Tensor | None:
    found: Tensor | None = grad
    while pullbacks and found is not None:
        found = pullbacks.pop()(found)
    return found


def _layer(layer: QuaternionLayer, x: Tensor, grad: Tensor, rule: FolkRule) -> Tensor:
    product = layer.geometry if isinstance(layer, QuaternionConv) else PRODUCT
    grad_x, grad_weight = folk_product_vjp(
        grad, x.to(grad.dtype), layer.weight.to(grad.dtype), product, layer.side, rule
    )
    accumulate_grad(layer.weight, grad_weight)
    if layer.bias is not None:
        accumulate_grad(layer.bias, folk_bias_vjp(grad, rule))
    return grad_x


def _true_way_back(activation: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    def way_back(grad: Tensor) -> Tensor:
        found = vjp(activation, x, needs_input_grad=True)[1](grad)
        assert found is not None
        return found

    return way_back
