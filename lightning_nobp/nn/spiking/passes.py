"""A network layer by layer: what went into each and came out of it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_nobp.nn.backprop import Pullback, vjp
from lightning_nobp.nn.spiking.layer import SpikingLayer
from lightning_nobp.nn.spiking.readout import MembraneReadout


class Pass(NamedTuple):
    """What a layer did with a batch."""

    name: str
    layer: nn.Module
    inputs: Tensor
    outputs: Tensor
    pullback: Pullback | None
    """See :func:`~lightning_nobp.nn.vjp`; None if there is none."""


def leaves(network: nn.Module, name: str = "network") -> list[tuple[str, nn.Module]]:
    """The layers of nested ``nn.Sequential``, in order, by name."""
    if not isinstance(network, nn.Sequential):
        return [(name, network)]
    # named_children would leave out a layer where it stands a second time.
    children = [(n, child) for n, child in network._modules.items() if child is not None]
    return [leaf for n, child in children for leaf in leaves(child, f"{name}.{n}")]


def passes(network: nn.Module, x: Tensor) -> list[Pass]:
    """Run a network, with its autograd graph."""
    found = []
    for name, layer in leaves(network):
        y = layer(x)
        found.append(Pass(name, layer, x, y, None))
        x = y
    return found


def passes_vjp(network: nn.Module, x: Tensor) -> list[Pass]:
    """Run a network without an autograd graph; each layer leaves its pullback."""
    found, needs_input_grad = [], False
    for name, layer in leaves(network):
        y, pullback = vjp(layer, x, needs_input_grad)
        needs_input_grad = needs_input_grad or any(p.requires_grad for p in layer.parameters())
        found.append(Pass(name, layer, x, y, pullback))
        x = y
    return found


def spiking(found: list[Pass]) -> list[Pass]:
    """Those of spiking layers."""
    return [p for p in found if isinstance(p.layer, SpikingLayer)]


def synaptic_operations(found: list[Pass]) -> Tensor:
    """How many synapses the spikes of each sample reach, in all layers together, ``(batch,)``."""
    parts = [p.layer.operations(p.inputs) for p in found if isinstance(p.layer, SpikingLayer | MembraneReadout)]
    return torch.stack(parts).sum(0)
