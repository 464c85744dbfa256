"""Checkpoints of other libraries, as those of the layers of this package."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.algebra import conjugate
from lightning_nobp.nn.sparsify import match_names

_COMPONENTS = ("r_weight", "i_weight", "j_weight", "k_weight")
# The gates of Orkis' QLSTM, in the order of QuaternionLSTM.
_GATES = {"inputs.0": ("wix", "wfx", "wcx", "wox"), "recurrent.0": ("uih", "ufh", "uch", "uoh")}
# By the name of the rule in HyperNets, those of the weight that goes with it.
_WEIGHTS_OF = {"A": ("S", "F"), "a": ("s",)}


def from_component_weights(state: Mapping[str, Tensor], transposed: Sequence[str] = ()) -> dict[str, Tensor]:
    """The ``state_dict`` of this package's layers, from one with a tensor a component.

    Layers of Orkis' Pytorch-Quaternion-Neural-Networks and of ``speechbrain.nnet.quaternion_networks`` hold
    ``r_weight``, ``i_weight``, ``j_weight`` and ``k_weight``, of linear layers ``(inputs, outputs)``. Their layout of
    features is component-major too, so outputs are the same.

    The eight layers of Orkis' ``QLSTM``, ``wfx`` to ``uch``, become the entries of one :class:`QuaternionLSTM`; its
    readout ``fco`` stays beside them. SpeechBrain's recurrent layers split their gates across components, which is no
    layer of this package.

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
    for start in [name.removesuffix("wix") for name in layers if name.rpartition(".")[2] == "wix"]:
        if all(f"{start}{gate}" in layers for gates in _GATES.values() for gate in gates):
            _join_gates(found, start)
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


def _join_gates(found: dict[str, Tensor], start: str) -> None:
    """Put the gates ``start + 'wix'`` and so on beneath one another, within each component."""
    for layer, gates in _GATES.items():
        found[f"{start}{layer}.weight"] = torch.cat([found.pop(f"{start}{gate}.weight") for gate in gates], dim=1)
        biases = [found.pop(f"{start}{gate}.bias").view(4, -1) for gate in gates if f"{start}{gate}.bias" in found]
        if biases:
            found[f"{start}{layer}.bias"] = torch.cat(biases, dim=1).flatten()


def from_hypercomplex_weights(state: Mapping[str, Tensor], *, adds_bias: bool = False) -> dict[str, Tensor]:
    """The ``state_dict`` of :class:`PHMLinear` and :class:`PHMConv2d` and their kin, from one of HyperNets' layers.

    Those hold the rule as ``A`` or ``a`` ``(n, n, n)``, and the weight ``(n, M, N, ...)`` as ``S`` or ``s``, of
    convolutions also as ``F``.

    Args:
        state: Such a ``state_dict``; other entries are taken over.
        adds_bias: Whether its convolutions add their bias. Those of HyperNets have one and never add it, so it becomes
            0; some layers that were made after them do add it.

    Returns:
        What ``load_state_dict`` of the same network made of this package's layers takes.

    Raises:
        ValueError: No layer holds such weights.

    References:
        Grassucci, Zhang and Comminiello, "PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex
        Convolutions", arXiv 2110.04176.
    """
    found = dict(state)
    for key in state:
        prefix, dot, name = key.rpartition(".")
        start = prefix + dot
        weight = next((start + other for other in _WEIGHTS_OF.get(name, ()) if start + other in state), None)
        if weight is None:
            continue
        convolves = state[weight].dim() > 3
        found |= {f"{start}matrices": found.pop(key), f"{start}weight": found.pop(weight)}
        if convolves and not adds_bias and f"{start}bias" in state:
            found[f"{start}bias"] = torch.zeros_like(state[f"{start}bias"])
    if found.keys() == state.keys():
        raise ValueError("state: no layer holds a rule and a weight, A and S or F, or a and s")
    return found
