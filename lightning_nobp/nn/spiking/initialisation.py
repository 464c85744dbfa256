"""Weights at which neurons fire: scaled by what the data do to the membranes."""

import torch
from torch import Tensor, nn

from lightning_nobp.functional.spiking.highest import window_times
from lightning_nobp.functional.spiking.potential import drive, free_potential
from lightning_nobp.nn.spiking.dropout import SpikeDropout
from lightning_nobp.nn.spiking.encoding import SpikeEncoder
from lightning_nobp.nn.spiking.layer import SpikingLayer
from lightning_nobp.nn.spiking.passes import leaves
from lightning_nobp.nn.spiking.readout import MembraneReadout

# Rows of data that are looked at.
_ROWS = 2000


@torch.no_grad()
def initialise_from_data(
    network: nn.Module,
    x: Tensor,
    t_ref: float | None = None,
    gain: float = 3.0,
    spread: float = 0.35,
    *,
    only_new: bool = False,
) -> None:
    """Scale the weights of spiking layers, one after the other, so that they fire on data; whatever time constants.

    The weights of a hidden layer keep their pattern: their scale makes the standard deviation over samples of the
    membranes, would they not fire, ``gain`` times the threshold at its best time. Those of a last layer get a mean at
    which the mean membrane reaches the threshold at ``t_ref``. An encoder takes the range of its inputs from the data.
    No random numbers are drawn: the weights that there are give the pattern. A layer that stands twice is scaled where
    it stands first.

    Args:
        network: An ``nn.Sequential`` that begins with inputs and ends with scores; nested ones too.
        x: Inputs ``(batch, ...)``, a few hundred samples.
        t_ref: When outputs are to spike; None for six tenths of their window.
        gain: Of hidden layers.
        spread: Standard deviation of a last layer's weights over their mean.
        only_new: Leave layers that have been scaled before, as their state remembers, as they are: to go on with a
            trained network of which some layers are new.

    Raises:
        ValueError: A layer stays silent, or all samples are the same; the message names the layer.
    """
    layers, done = leaves(network), set[nn.Module]()
    spiking = [number for number, (_, layer) in enumerate(layers) if isinstance(layer, SpikingLayer)]
    membranes = [layer for _, layer in layers if isinstance(layer, MembraneReadout)]
    last = spiking[-1] if spiking and not membranes else -1
    for number, (name, layer) in enumerate(layers):
        if isinstance(layer, SpikeDropout):
            continue
        if isinstance(layer, SpikeEncoder) and not (only_new and layer.is_measured):
            layer.measure(x)
        if isinstance(layer, SpikingLayer | MembraneReadout) and not (layer in done or (only_new and layer.is_scaled)):
            if isinstance(layer, MembraneReadout):
                _scale_readout(layer, name, x)
            elif number == last:
                _scale_last(layer, name, x, 0.6 * layer.t_max if t_ref is None else t_ref, spread)
            else:
                _scale_hidden(layer, name, x, gain)
            layer.is_scaled = True
            done.add(layer)
        x = layer(x)
        if isinstance(layer, SpikingLayer):
            check_fires(name, layer, x)


@torch.no_grad()
def measure_ranges(network: nn.Module, x: Tensor) -> None:
    """Let encoders that do not know the range of their inputs take it from data.

    Args:
        network: An ``nn.Sequential``, nested ones too.
        x: Its inputs ``(batch, ...)``.
    """
    for _, layer in leaves(network):
        if isinstance(layer, SpikeEncoder):
            if not layer.is_measured:
                layer.measure(x)
            return
        x = layer(x)


def check_fires(name: str, layer: SpikingLayer, spikes: Tensor) -> None:
    """Refuse a layer of which no neuron spikes in a batch: nothing can be learned through it.

    Args:
        name: Of the layer, for the message.
        layer: The layer.
        spikes: Its spikes ``(batch, ..., spikes)``.

    Raises:
        ValueError: All are silent.
    """
    if spikes.numel() and not bool((spikes[..., 0] < torch.inf).any()):
        raise ValueError(
            f"{name}, a {type(layer).__name__}, is silent: none of its neurons spikes in this batch, so nothing can be "
            "learned. Scale its weights (initialise_from_data, initialise='data' of the rule, a larger gain), lower "
            "theta, or give a longer t_max"
        )


def _rows(layer: SpikingLayer, x: Tensor) -> Tensor:
    """What the neurons see, ``(rows, inputs, spikes)``; of many rows, those of a convolution's windows, some."""
    rows = layer.seen(x)
    return layer.arrivals(rows[:: max(1, len(rows) // _ROWS)])


def _scale_hidden(layer: SpikingLayer, name: str, x: Tensor, gain: float) -> None:
    rows, taus = _rows(layer, x), layer.time_constants()
    best = max(_spread_over_samples(free_potential(rows, layer.weight, t, *taus)) for t in window_times(layer.t_max))
    layer.weight.mul_(gain * layer.theta / _positive(best, name, layer.weight))


def _scale_last(layer: SpikingLayer, name: str, x: Tensor, t_ref: float, spread: float) -> None:
    total = float(drive(_rows(layer, x), t_ref, *layer.time_constants()).sum(1).mean())
    if not total > 0:
        raise ValueError(f"{name} gets no spike before t_ref={t_ref:g}: give a later one")
    pattern = layer.weight - layer.weight.mean()
    if float(pattern.square().sum()) > 0:  # weights that are all the same stay so
        pattern = pattern / pattern.std()
    layer.weight.copy_(layer.theta / total * (1 + spread * pattern))


def _scale_readout(layer: MembraneReadout, name: str, x: Tensor) -> None:
    spread = _spread_over_samples(layer(x))
    layer.weight.div_(_positive(spread, name, layer.weight))


def _spread_over_samples(potential: Tensor) -> float:
    """Root mean square over neurons of the standard deviation over samples."""
    return float(potential.var(0, correction=0).mean().sqrt())


def _positive(spread: float, name: str, weight: Tensor) -> float:
    if not bool(weight.any()):
        raise ValueError(f"{name}: its weights are all 0, and give no pattern to scale: draw them, reset_parameters()")
    if not spread > 0:
        raise ValueError(
            f"{name}: its inputs are silent or the same in all samples, so their spread says nothing about the scale "
            "of its weights: give a larger batch to initialise_from_data, or initialise='none'"
        )
    return spread
