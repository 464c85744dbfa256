"""From ordinary networks to quaternion layers, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_nobp.functional.quaternion.products import hamilton_block, hamilton_block_vjp
from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv,
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConv3d,
    QuaternionConvTranspose1d,
    QuaternionConvTranspose2d,
    QuaternionConvTranspose3d,
)
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv1d, PHMConv2d, PHMConv3d, PHMLayer, PHMLinear
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, QuaternionLinear
from lightning_nobp.nn.quaternion.recurrent import QuaternionGRU, QuaternionLSTM, QuaternionRecurrent, QuaternionRNN
from lightning_nobp.nn.sparsify import match_names

_Counterpart = QuaternionLayer | QuaternionRecurrent

_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_RECURRENT = ("input_size", "hidden_size", "num_layers", "batch_first", "dropout", "bidirectional")
# What becomes what, and its arguments, which are attributes of both; inputs and outputs first.
_COUNTERPARTS: dict[type[nn.Module], tuple[type[_Counterpart], tuple[str, ...]]] = {
    nn.Linear: (QuaternionLinear, ("in_features", "out_features")),
    nn.Conv1d: (QuaternionConv1d, (*_CONVOLUTION, "padding_mode")),
    nn.Conv2d: (QuaternionConv2d, (*_CONVOLUTION, "padding_mode")),
    nn.Conv3d: (QuaternionConv3d, (*_CONVOLUTION, "padding_mode")),
    nn.ConvTranspose1d: (QuaternionConvTranspose1d, (*_CONVOLUTION, "output_padding")),
    nn.ConvTranspose2d: (QuaternionConvTranspose2d, (*_CONVOLUTION, "output_padding")),
    nn.ConvTranspose3d: (QuaternionConvTranspose3d, (*_CONVOLUTION, "output_padding")),
    nn.LSTM: (QuaternionLSTM, _RECURRENT),
    nn.GRU: (QuaternionGRU, _RECURRENT),
    nn.RNN: (QuaternionRNN, (*_RECURRENT, "nonlinearity")),
}
# The way back, of layers with a weight that is a real one in fewer numbers.
_REAL: dict[type[nn.Module], tuple[Any, tuple[str, ...]]] = {
    PHMLinear: (nn.Linear, ("in_features", "out_features")),
    PHMConv1d: (nn.Conv1d, _CONVOLUTION),
    PHMConv2d: (nn.Conv2d, _CONVOLUTION),
    PHMConv3d: (nn.Conv3d, _CONVOLUTION),
    **{made: (kind, names) for kind, (made, names) in _COUNTERPARTS.items() if issubclass(made, QuaternionLayer)},
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# In evaluation these read the weights of their layers as real matrices, unless the attribute is false.
_FAST_PATHS = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}


def to_quaternion(
    model: nn.Module,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    weights: Literal["new", "project"] = "new",
    **options: Any,
) -> nn.Module:
    """Replace linear, convolutional and recurrent layers by quaternion ones of the same width, in place.

    A layer is replaced if inputs and outputs are divisible by 4 (and by 4 times its groups); the first layer of an
    image network and the readout usually are not, and stay real. All others stay as they are: activations and batch
    normalisation act on the components. Weights are a quarter as many; what was frozen stays so.

    Recurrent layers are ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` without ``proj_size``; the new ones do not take packed
    sequences. Bidirectional ones give both directions within each component, not one behind the other: what follows
    has to be learned anew with them. Transformers leave torch's fast path of evaluation, which passes over the layers.

    Args:
        model: An ordinary network.
        include: Patterns of the names of layers to replace, like ``'layer1.*'``.
        exclude: Patterns of names of layers to leave.
        weights: ``'new'`` draws them; ``'project'`` takes the quaternion weights that are closest to the real ones in
            squared distance, and the biases.
        **options: Of the quaternion layers: ``side``, ``algorithm``, ``init``, ``criterion``.

    Returns:
        ``model``, or the new layer if the model is a single one.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: An unknown ``weights``, a pattern that matches no layer, no layer can be replaced, a layer has
            what would be lost (hooks, parametrizations, pruning, a weight that another layer uses too), or a layer has
            no counterpart (projected groups, projected recurrent layers, uneven padding).
    """
    _check_module(model)
    if weights not in ("new", "project"):
        raise ValueError(f"weights={weights!r} is not one of 'new', 'project'")
    # A layer that stands in several places has a name for each, and is replaced by one layer.
    candidates = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if _fits(layer)}
    if not candidates:
        raise ValueError(
            "model: no layer can be replaced; nn.Linear, nn.Conv1d, 2d, 3d, nn.ConvTranspose1d, 2d, 3d, nn.LSTM, "
            "nn.GRU and nn.RNN can be whose inputs and outputs are divisible by 4, in every group"
        )
    chosen = {name: candidates[name] for name in match_names(candidates, include, exclude)}
    _check_nothing_is_lost(model, chosen)
    # All are made before one is set: a layer that cannot be made leaves the model as it was.
    made = {layer: _converted(layer, name, weights, options) for layer, name in _first_names(chosen).items()}
    for name, layer in chosen.items():
        if not name:
            return made[layer]
        model.set_submodule(name, made[layer])
    _leave_fast_paths(model)
    return model


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} is a {type(model).__name__}: give a network, an nn.Module")


def _fits(layer: nn.Module) -> bool:
    kind = parametrize.type_before_parametrizations(layer)
    if kind not in _COUNTERPARTS:
        return False
    whole = 4 * getattr(layer, "groups", 1)
    sizes = [getattr(layer, name) for name in _COUNTERPARTS[kind][1][:2]]
    return getattr(layer, "proj_size", 0) == 0 and all(size > 0 and size % whole == 0 for size in sizes)


def _first_names(layers: Mapping[str, nn.Module]) -> dict[nn.Module, str]:
    names: dict[nn.Module, str] = {}
    for name, layer in layers.items():
        names.setdefault(layer, name)
    return names


def _check_nothing_is_lost(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    users: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(name)
    converted = set(chosen.values())
    for name, module in model.named_modules(remove_duplicate=False):
        if module in converted and name not in chosen:
            raise ValueError(f"layer {name!r} stands elsewhere too, where it would be replaced: leave all or none")
    for name, layer in chosen.items():
        if parametrize.is_parametrized(layer) or any(getattr(layer, hooks) for hooks in _HOOKS):
            raise ValueError(
                f"layer {name!r} has hooks or parametrizations, as weight_norm and pruning leave them, which a new "
                f"layer would lose: remove them first, or let to_quaternion leave it, exclude=[{name!r}]"
            )
        for parameter in layer.parameters(recurse=False):
            if len(users[parameter]) > 1:
                shared = " and ".join(map(repr, users[parameter]))
                raise ValueError(
                    f"{shared} share a weight, which new layers would not: give each its own, or let to_quaternion "
                    f"leave one, exclude=[{name!r}]"
                )


def _converted(layer: nn.Module, name: str, weights: str, options: dict[str, Any]) -> _Counterpart:
    made, arguments = _COUNTERPARTS[type(layer)]
    # Each has a constructor of its own.
    make: Callable[..., _Counterpart] = made
    parameters = dict(layer.named_parameters())
    first = next(iter(parameters.values()))
    found: _Counterpart = make(
        **{argument: getattr(layer, argument) for argument in arguments},
        bias=any("bias" in parameter for parameter in parameters),
        device=first.device,
        dtype=first.dtype,
        **options,
    )
    if weights == "project":
        _project(layer, found, name)
    for new, old in _successors(layer, found):
        if new is not None:
            new.requires_grad_(any(parameter.requires_grad for parameter in old))
    return found.train(layer.training)


def _project(layer: Any, found: _Counterpart, name: str) -> None:
    """Take the quaternions whose block matrix is closest: each is the mean of the four entries that it fills."""
    if isinstance(found, QuaternionRecurrent):
        raise ValueError(
            f"weights='project' is for linear layers and convolutions, and {name!r} is a {type(layer).__name__}: "
            f"exclude=[{name!r}], or draw all weights, weights='new'"
        )
    if getattr(found, "groups", 1) > 1:
        raise ValueError(
            f"weights='project' has no meaning for grouped convolutions, whose channels are not in that order: "
            f"exclude=[{name!r}]"
        )
    transposed = isinstance(found, QuaternionConv) and found.transposed
    with torch.no_grad():
        # Transposed convolutions have inputs before outputs.
        weight = hamilton_block_vjp(layer.weight.transpose(0, 1) if transposed else layer.weight, found.side) / 4
        found.weight.copy_(weight.transpose(1, 2) if transposed else weight)
        if found.bias is not None:
            found.bias.copy_(layer.bias)


def _successors(layer: Any, found: _Counterpart) -> list[tuple[nn.Parameter | None, list[nn.Parameter]]]:
    """New parameters, and the old ones that each stands for."""
    if isinstance(found, QuaternionLayer):
        return [(found.weight, [layer.weight]), (found.bias, [layer.bias])]
    pairs: list[tuple[Any, list[nn.Parameter]]] = []
    for inputs, recurrent, old in zip(found.inputs, found.recurrent, layer.all_weights, strict=True):
        pairs += [(inputs.weight, old[:1]), (recurrent.weight, old[1:2])]
        pairs += [(inputs.bias, old[2:]), (recurrent.bias, old[2:])]
    return pairs


def _leave_fast_paths(model: nn.Module) -> None:
    for module in model.modules():
        for kind, switch in _FAST_PATHS.items():
            if isinstance(module, kind) and any(isinstance(part, QuaternionLayer) for part in module.modules()):
                setattr(module, switch, False)


def to_real(model: nn.Module) -> nn.Module:
    """Replace quaternion and hypercomplex layers by the real ones that compute the same, in place.

    For running a trained network elsewhere, or many times: the real weights, four times as many, are written once and
    not at every call. Recurrent layers and rotations stay what they are. The real weights are parameters of their own:
    trained on, they would no longer be quaternions. Subclasses of these layers may compute something else, and stay.

    Args:
        model: A network with :class:`QuaternionLinear`, :class:`PHMLinear`, or convolutions of either kind.

    Returns:
        ``model``, or the new layer if the model is a single one.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: There is no such layer, or one has groups, hooks, a parametrization or a weight that another layer
            uses too.
    """
    _check_module(model)
    chosen = {
        name: layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if parametrize.type_before_parametrizations(layer) in _REAL
    }
    if not chosen:
        raise ValueError("model: there is no layer of quaternions to replace, QuaternionLinear, PHMConv2d and so on")
    _check_nothing_is_lost(model, chosen)
    made = {layer: _real(layer, name) for layer, name in _first_names(chosen).items()}
    for name, layer in chosen.items():
        if not name:
            return made[layer]
        model.set_submodule(name, made[layer])
    return model


@torch.no_grad()
def _real(layer: Any, name: str) -> nn.Module:
    if getattr(layer, "groups", 1) > 1:
        raise ValueError(
            f"layer {name!r} has groups={layer.groups}, whose channels do not lie side by side as those of a real "
            "layer's groups do: there is no real layer with the same outputs"
        )
    kind, arguments = _REAL[type(layer)]
    options = {argument: getattr(layer, argument) for argument in arguments}
    options |= {"device": layer.weight.device, "dtype": layer.weight.dtype}
    found = kind(**options, bias=layer.bias is not None)
    pairs = [(found.weight, _real_weight(layer), layer.weight), (found.bias, layer.bias, layer.bias)]
    for new, value, old in pairs:
        if new is not None:
            new.copy_(value).requires_grad_(old.requires_grad)
    real: nn.Module = found.train(layer.training)
    return real


def _real_weight(layer: Any) -> Tensor:
    if isinstance(layer, PHMLayer):
        return layer.real_weight()
    if isinstance(layer, QuaternionLinear):
        return hamilton_block(layer.weight, layer.side)
    return layer.geometry.block(layer.weight, layer.side)  # type: ignore[no-any-return]
