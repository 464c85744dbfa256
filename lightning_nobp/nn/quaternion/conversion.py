"""From ordinary networks, and from checkpoints of other libraries, to quaternion layers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_nobp.functional.quaternion.algebra import conjugate
from lightning_nobp.functional.quaternion.products import hamilton_block_vjp
from lightning_nobp.nn.quaternion.convolution import QuaternionConv1d, QuaternionConv2d, QuaternionConv3d
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, QuaternionLinear
from lightning_nobp.nn.sparsify import match_names

_CONVOLUTIONS = {
    nn.Conv1d: QuaternionConv1d,
    nn.Conv2d: QuaternionConv2d,
    nn.Conv3d: QuaternionConv3d,
}
_COMPONENTS = ("r_weight", "i_weight", "j_weight", "k_weight")


def to_quaternion(
    model: nn.Module,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    weights: Literal["new", "project"] = "new",
    **options: Any,
) -> nn.Module:
    """Replace linear and convolutional layers by quaternion ones of the same width, in place.

    A layer is replaced if inputs and outputs are divisible by 4 (and by 4 times its groups); the first layer of an
    image network and the readout usually are not, and stay real. All others stay as they are: activations and batch
    normalisation act on the components. Weights are a quarter as many.

    Args:
        model: An ordinary network.
        include: Patterns of the names of layers to replace, like ``'layer1.*'``.
        exclude: Patterns of names of layers to leave.
        weights: ``'new'`` draws them; ``'project'`` takes the quaternion weights that are closest to the real ones in
            squared distance, and the biases, and what is frozen stays so.
        **options: Of the quaternion layers: ``side``, ``algorithm``, ``init``, ``criterion``.

    Returns:
        ``model``, or the new layer if the model is a single one.

    Raises:
        ValueError: An unknown ``weights``, a pattern that matches no layer, no layer can be replaced, or a layer has
            no counterpart (projected groups, uneven padding).
    """
    if weights not in ("new", "project"):
        raise ValueError(f"weights={weights!r} is not one of 'new', 'project'")
    # A layer that stands in several places has a name for each, and is replaced by one layer.
    candidates = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if _fits(layer)}
    if not candidates:
        raise ValueError(
            "model: no layer can be replaced; nn.Linear and nn.Conv1d, 2d, 3d can be whose inputs and outputs are "
            "divisible by 4, in every group"
        )
    chosen = match_names(candidates, include, exclude)
    # All are made before one is set: a layer that cannot be made leaves the model as it was.
    made = {layer: _converted(layer, weights, options) for layer in {candidates[name]: None for name in chosen}}
    for name in chosen:
        if not name:
            return made[candidates[name]]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[candidates[name]])
    return model


def _fits(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return layer.in_features % 4 == 0 and layer.out_features % 4 == 0
    if type(layer) in _CONVOLUTIONS:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        whole = 4 * layer.groups
        return layer.in_channels % whole == 0 and layer.out_channels % whole == 0
    return False


def _converted(layer: nn.Module, weights: str, options: dict[str, Any]) -> QuaternionLayer:
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    kind: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    bias = layer.bias is not None
    found: QuaternionLayer
    if isinstance(layer, nn.Linear):
        found = QuaternionLinear(layer.in_features, layer.out_features, bias, **kind, **options)
    else:
        found = _CONVOLUTIONS[type(layer)](
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias,
            layer.padding_mode,
            **kind,
            **options,
        )
    if weights == "project":
        with torch.no_grad():
            found.weight.copy_(_projected(layer.weight, found)).requires_grad_(layer.weight.requires_grad)
            if found.bias is not None and layer.bias is not None:
                found.bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
    return found.train(layer.training)


def _projected(weight: Tensor, layer: QuaternionLayer) -> Tensor:
    """The quaternions whose block matrix is closest: each is the mean of the four entries that it fills."""
    if getattr(layer, "groups", 1) == 1:
        return hamilton_block_vjp(weight, layer.side) / 4
    raise ValueError("weights='project' has no meaning for grouped convolutions, whose channels are not in that order")


def from_component_weights(state: Mapping[str, Tensor], transposed: Sequence[str] = ()) -> dict[str, Tensor]:
    """The ``state_dict`` of this package's layers, from one with a tensor a component.

    Layers of Orkis' Pytorch-Quaternion-Neural-Networks and of ``speechbrain.nnet.quaternion_networks`` hold
    ``r_weight``, ``i_weight``, ``j_weight`` and ``k_weight``, of linear layers ``(inputs, outputs)``. Their layout of
    features is component-major too, so outputs are the same.

    Args:
        state: Such a ``state_dict``; other entries are taken over.
        transposed: Patterns of the names of transposed convolutions, like ``'decoder.*'``. Orkis' multiply by the
            conjugate of their weight, so the weights are conjugated.

    Returns:
        What ``load_state_dict`` of the same network made of this package's layers takes.

    Raises:
        ValueError: A layer lacks a component, components are of different shapes, a layer rotates, or a pattern
            matches no layer.
    """
    found: dict[str, Tensor] = {}
    layers: dict[str, str] = {}
    rotations = [key for key in state if key.rpartition(".")[2] in ("zero_kernel", "scale_param")]
    if rotations:
        raise ValueError(f"state: {rotations[0]!r} belongs to a layer of rotations, which computes something else")
    for key, value in state.items():
        prefix, _, name = key.rpartition(".")
        if name not in _COMPONENTS:
            found[key] = value
        else:
            # A layer is taken at the first of its components, so that no other can be missed.
            start = f"{prefix}." if prefix else ""
            layers.setdefault(prefix, f"{start}weight")
            if layers[prefix] not in found:
                found[layers[prefix]] = _joined(state, start)
    for layer in match_names(layers, transposed, (), "transposed") if transposed else ():
        found[layers[layer]] = conjugate(found[layers[layer]], dim=0)
    return found


def _joined(state: Mapping[str, Tensor], start: str) -> Tensor:
    missing = [name for name in _COMPONENTS if f"{start}{name}" not in state]
    if missing:
        raise ValueError(f"state: layer {start!r} has no {', '.join(missing)}")
    parts = [state[f"{start}{name}"] for name in _COMPONENTS]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"state: components of {start!r} have shapes {[tuple(part.shape) for part in parts]}")
    weight = torch.stack(parts)
    return weight.transpose(1, 2).contiguous() if weight.dim() == 3 else weight
