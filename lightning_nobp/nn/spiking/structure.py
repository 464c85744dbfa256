"""Which networks of spiking layers make sense: what may follow what, and when."""

from torch import nn

from lightning_nobp.nn.spiking.dropout import SpikeDropout
from lightning_nobp.nn.spiking.encoding import SpikeEncoder
from lightning_nobp.nn.spiking.layer import SpikingLayer
from lightning_nobp.nn.spiking.passes import leaves
from lightning_nobp.nn.spiking.pooling import EarliestSpikePool2d
from lightning_nobp.nn.spiking.readout import FirstSpike, MembraneReadout, SpikeTrace

ReadOut = FirstSpike | SpikeTrace | MembraneReadout
_ON_SPIKES = SpikingLayer | EarliestSpikePool2d | SpikeDropout | nn.Flatten | nn.Identity


def output_number(network: nn.Module) -> int | None:
    """Which of the :func:`leaves` holds the output neurons; None if the read-out has neurons of its own."""
    layers = [layer for _, layer in leaves(network)]
    if isinstance(layers[-1], MembraneReadout):
        return None
    return max(number for number, layer in enumerate(layers) if isinstance(layer, SpikingLayer))


def output_layer(network: nn.Module) -> SpikingLayer | None:
    """The spiking layer that the read-out reads; None if that has neurons of its own."""
    number = output_number(network)
    layer = None if number is None else leaves(network)[number][1]
    return layer if isinstance(layer, SpikingLayer) else None


def check_structure(network: nn.Module) -> None:
    """Refuse a network that does not lead from inputs over spikes to scores.

    Args:
        network: An ``nn.Sequential``, nested ones too.

    Raises:
        TypeError: Layers that are missing, or that mean nothing where they stand.
        ValueError: Windows that end before the spikes that they are for.
    """
    layers = leaves(network)
    if not layers or not (
        isinstance(layers[-1][1], ReadOut) and any(isinstance(layer, SpikingLayer) for _, layer in layers)
    ):
        ends = f"ends in a {type(layers[-1][1]).__name__}" if layers else "is empty"
        raise TypeError(
            f"network {ends}: give spiking layers (SpikingLinear, SpikingConv2d), and a FirstSpike, SpikeTrace or "
            "MembraneReadout behind them"
        )
    encoders = [number for number, (_, layer) in enumerate(layers) if isinstance(layer, SpikeEncoder)]
    for name, layer in layers[encoders[0] + 1 if encoders else 0 : -1]:
        if not isinstance(layer, _ON_SPIKES):
            raise TypeError(
                f"{name}, a {type(layer).__name__}, means nothing on spike times: between the encoder and the read-out "
                "stand spiking layers, EarliestSpikePool2d, SpikeDropout, nn.Flatten and nn.Identity"
            )
    _check_output(layers, output_number(network))
    _check_windows(layers)


def _check_output(layers: list[tuple[str, nn.Module]], output: int | None) -> None:
    for name, layer in [] if output is None else layers[output + 1 : -1]:
        if not isinstance(layer, nn.Flatten | nn.Identity):
            raise TypeError(
                f"{name}, a {type(layer).__name__}, stands between the output neurons and the read-out, which would "
                "not read their spikes: put it before the last spiking layer"
            )
    readout = layers[-1][1]
    neurons = None if output is None else layers[output][1]
    if isinstance(readout, FirstSpike) and isinstance(neurons, SpikingLayer) and readout.t_max != neurons.t_max:
        raise ValueError(f"t_max={readout.t_max} of the read-out is not that of its neurons, {neurons.t_max}")


def _check_windows(layers: list[tuple[str, nn.Module]]) -> None:
    end, what, before = 0.0, "", ""
    for name, layer in layers:
        if isinstance(layer, SpikingLayer | MembraneReadout):
            if layer.t_max < end or (what == "encoder" and layer.t_max == end):
                raise ValueError(
                    f"t_max={layer.t_max} of {name} must be after the last spike of {before}, which may come at {end}"
                )
            end, what, before = layer.t_max, "neurons", name
        elif isinstance(layer, SpikeEncoder):
            end, what, before = layer.t_last, "encoder", f"{name}, the encoder"
