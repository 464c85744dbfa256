"""A network run backwards by a rule that does not hold for quaternions."""

import copy
from collections.abc import Iterator

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
from lightning_nobp.nn.quaternion.activations import (
    Cardioid,
    MagnitudeTanh,
    ModReLU,
    NormGate,
    PhaseSin,
    PhaseTanh,
)
from lightning_nobp.nn.quaternion.convolution import QuaternionConv, check_zero_padding
from lightning_nobp.nn.quaternion.encoding import ColourToQuaternions, PatchesToQuaternions, QuaternionsToReal
from lightning_nobp.nn.quaternion.hypercomplex import PHMLayer
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, QuaternionLinear
from lightning_nobp.nn.quaternion.rotation import QuaternionRotation

_SPLIT = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Hardtanh)
_WHOLE = (MagnitudeTanh, Cardioid, PhaseTanh, PhaseSin, ModReLU, NormGate)
_TO_REAL = (QuaternionsToReal, QuaternionRotation, PHMLayer, nn.Linear, nn.Conv2d)
_TO_QUATERNIONS = (QuaternionLayer, PatchesToQuaternions, ColourToQuaternions)


@torch.no_grad()
def folk_vjp(network: nn.Module, x: Tensor, rule: FolkRule) -> tuple[Tensor, Pullback]:
    """As :func:`lightning_nobp.nn.vjp`, but quaternion layers and activations go back by a folk rule.

    Args:
        network: An ``nn.Sequential``, nested ones included; layers without quaternions go back as ever, and so do
            activations of what is no longer quaternions, behind a real layer, a rotation or :class:`QuaternionsToReal`.
        x: Input, ``(batch, ...)``.
        rule: See :func:`lightning_nobp.functional.quaternion.folk.folk_product_vjp`.

    Returns:
        The output and the pullback.

    Raises:
        TypeError: A layer that is neither known nor a container of such.
    """
    pullbacks, quaternions = [], True
    for layer in _flat(network):
        if isinstance(layer, _TO_REAL + _TO_QUATERNIONS):
            quaternions = isinstance(layer, _TO_QUATERNIONS)
        is_activation = isinstance(layer, _SPLIT + _WHOLE)
        truncated = rule == "truncated" and is_activation and quaternions and x.shape[1] % 4 == 0
        if isinstance(layer, QuaternionLayer):
            x, pullback = _layer(layer, x, rule)
        else:
            x, pullback = _truncated_activation(layer, x) if truncated else vjp(layer, x, needs_input_grad=True)
        pullbacks.append(pullback)
    return x, lambda grad: _pull(pullbacks, grad)


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


def _flat(network: nn.Module) -> Iterator[nn.Module]:
    if isinstance(network, nn.Sequential):
        for child in network:
            yield from _flat(child)
    else:
        yield network


def _pull(pullbacks: list[Pullback], grad: Tensor) -> Tensor | None:
    found: Tensor | None = grad
    while pullbacks and found is not None:
        found = pullbacks.pop()(found)
    return found


def _layer(layer: QuaternionLayer, x: Tensor, rule: FolkRule) -> tuple[Tensor, Pullback]:
    check_folk(layer)
    convolution = layer.geometry if isinstance(layer, QuaternionConv) else None

    @torch.no_grad()
    def pull(grad: Tensor) -> Tensor:
        # A fully connected layer takes any number of dimensions before the features.
        samples, rows = (t if convolution else t.reshape(-1, t.shape[-1]) for t in (x.to(grad.dtype), grad))
        weight = layer.weight.to(grad.dtype)
        grad_x, grad_weight = folk_product_vjp(rows, samples, weight, convolution or PRODUCT, layer.side, rule)
        accumulate_grad(layer.weight, grad_weight)
        if layer.bias is not None:
            accumulate_grad(layer.bias, folk_bias_vjp(rows, rule))
        return grad_x.view(x.shape)

    return layer(x), pull


def _truncated_activation(activation: nn.Module, x: Tensor) -> tuple[Tensor, Pullback]:
    # Not by the layer itself: in place, it would write over what the layer before has kept.
    y, true_pullback = vjp(activation, x)
    frozen = copy.deepcopy(activation).requires_grad_(False)

    def row(grad: Tensor) -> Tensor:
        found = vjp(frozen, x, needs_input_grad=True)[1](grad)
        assert found is not None
        return found

    @torch.no_grad()
    def pull(grad: Tensor) -> Tensor:
        # For the gradients of its own parameters, which are real numbers.
        true_pullback(grad.clone())
        return truncated_activation_vjp(grad, row)

    return y, pull
