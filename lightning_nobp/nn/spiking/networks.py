"""Spiking networks to start from."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

from torch import nn

from lightning_nobp.nn.networks import Preset
from lightning_nobp.nn.spiking.convolution import SpikingConv2d
from lightning_nobp.nn.spiking.encoding import LatencyEncoder, SpikeEncoder
from lightning_nobp.nn.spiking.linear import SpikingLinear
from lightning_nobp.nn.spiking.pooling import EarliestSpikePool2d
from lightning_nobp.nn.spiking.readout import FirstSpike, MembraneReadout, SpikeTrace

ReadoutName = Literal["first_spike", "trace", "membrane"]


class SpikingMLP(Preset):
    """A spiking multilayer perceptron: an encoder, spiking layers, a read-out.

    Args:
        input_shape: Shape of one sample, for images ``(channels, height, width)``.
        num_classes: Number of scores.
        hidden_dims: Neurons of each hidden layer.
        tau_v: Membrane time constant of all neurons in the unit of the spike times; ``float('inf')`` for no leak.
        tau_i: Time constant of their synaptic current, likewise.
        theta: Threshold.
        t_max: When the simulation ends.
        max_spikes: After so many spikes a neuron is silent; 1 for the methods of a single spike.
        p_max: Bound of the influence of a spike that only grazes the threshold on the loss of its sample; None for the
            exact gradient.
        delays: Whether every input neuron of a layer has a delay that is learned.
        learn_tau: Whether each spiking layer learns its time constants, which must be finite; a membrane read-out keeps
            those that are given.
        encoder: Layer that makes spikes of inputs; None for a :class:`LatencyEncoder` over half the window.
        readout: ``'first_spike'``, :class:`FirstSpike`; ``'trace'``, :class:`SpikeTrace`; ``'membrane'``, a
            :class:`MembraneReadout` in the place of output neurons. :class:`SpikeCount`, which cannot train, is put in
            their place for evaluation: ``nn.Sequential(*network[:-1], SpikeCount())``.
        sigma: Of the first two read-outs.
        tau_out: Of the trace.

    Raises:
        ValueError: An argument out of range, or inputs that may come after ``t_max``.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_dims: Sequence[int] = (800,),
        tau_v: float = math.inf,
        tau_i: float = math.inf,
        theta: float = 1.0,
        t_max: float = 2.0,
        max_spikes: int = 16,
        p_max: float | None = 1000.0,
        delays: bool = False,
        learn_tau: bool = False,
        encoder: SpikeEncoder | None = None,
        readout: ReadoutName = "first_spike",
        sigma: float = 0.05,
        tau_out: float = 0.5,
    ) -> None:
        neuron = (tau_v, tau_i, theta, t_max, max_spikes, p_max, delays, learn_tau)
        encoder = _checked(encoder, t_max)
        layers: list[nn.Module] = [encoder, nn.Flatten(1, -2)]
        widths = [math.prod(input_shape) * (2 if encoder.inverse else 1), *hidden_dims]
        layers += [SpikingLinear(fan_in, fan_out, *neuron) for fan_in, fan_out in pairwise(widths)]
        super().__init__(*layers, *_outputs(widths[-1], num_classes, neuron, readout, sigma, tau_out))
        self.input_shape, self.num_classes, self.hidden_dims = tuple(input_shape), num_classes, tuple(hidden_dims)
        self.tau_v, self.tau_i, self.theta, self.t_max = tau_v, tau_i, theta, t_max
        self.max_spikes, self.p_max, self.delays, self.learn_tau = max_spikes, p_max, delays, learn_tau
        self.readout, self.sigma, self.tau_out = readout, sigma, tau_out

    @property
    def encoder(self) -> nn.Module:
        """The first layer."""
        return next(iter(self))


class SpikingCNN(Preset):
    """A small spiking convolutional network: convolutions, after each the earliest spikes of windows, then a read-out.

    Args:
        input_shape: ``(channels, height, width)``.
        num_classes: Number of scores.
        channels: Output channels of each convolution.
        kernel_size: Side of the convolutions' windows; odd, for maps keep their size.
        pool: Side of the pooling windows.
        tau_v: Membrane time constant of all neurons in the unit of the spike times; ``float('inf')`` for no leak.
        tau_i: Time constant of their synaptic current, likewise.
        theta: Threshold.
        t_max: When the simulation ends.
        max_spikes: After so many spikes a neuron is silent.
        p_max: Bound of the influence of a spike that only grazes the threshold on the loss of its sample; None for the
            exact gradient.
        delays: Whether every input of a layer has a delay that is learned.
        learn_tau: Whether each spiking layer learns its time constants, which must be finite; a membrane read-out keeps
            those that are given.
        encoder: See :class:`SpikingMLP`.
        readout: See :class:`SpikingMLP`.
        sigma: See :class:`SpikingMLP`.
        tau_out: See :class:`SpikingMLP`.

    Raises:
        ValueError: An argument out of range, or an image too small to be pooled so often.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (12, 24),
        kernel_size: int = 5,
        pool: int = 2,
        tau_v: float = math.inf,
        tau_i: float = math.inf,
        theta: float = 1.0,
        t_max: float = 2.0,
        max_spikes: int = 4,
        p_max: float | None = 1000.0,
        delays: bool = False,
        learn_tau: bool = False,
        encoder: SpikeEncoder | None = None,
        readout: ReadoutName = "first_spike",
        sigma: float = 0.05,
        tau_out: float = 0.5,
    ) -> None:
        if len(input_shape) != 3 or min(input_shape[1:]) < pool ** len(channels):
            raise ValueError(
                f"input_shape={tuple(input_shape)}: give images (channels, height, width), large enough to be pooled "
                f"{len(channels)} times by {pool}"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd: maps keep their size")
        neuron = (tau_v, tau_i, theta, t_max, max_spikes, p_max, delays, learn_tau)
        encoder = _checked(encoder, t_max)
        layers: list[nn.Module] = [encoder]
        widths = [input_shape[0] * (2 if encoder.inverse else 1), *channels]
        for fan_in, fan_out in pairwise(widths):
            layers += [
                SpikingConv2d(fan_in, fan_out, kernel_size, 1, kernel_size // 2, *neuron),
                EarliestSpikePool2d(pool),
            ]
        flat = widths[-1] * math.prod(size // pool ** len(channels) for size in input_shape[1:])
        layers.append(nn.Flatten(1, -2))
        super().__init__(*layers, *_outputs(flat, num_classes, neuron, readout, sigma, tau_out))
        self.input_shape, self.num_classes, self.channels = tuple(input_shape), num_classes, tuple(channels)
        self.kernel_size, self.pool = kernel_size, pool
        self.tau_v, self.tau_i, self.theta, self.t_max = tau_v, tau_i, theta, t_max
        self.max_spikes, self.p_max, self.delays, self.learn_tau = max_spikes, p_max, delays, learn_tau
        self.readout, self.sigma, self.tau_out = readout, sigma, tau_out

    @property
    def encoder(self) -> nn.Module:
        """The first layer."""
        return next(iter(self))


def _checked(encoder: SpikeEncoder | None, t_max: float) -> SpikeEncoder:
    if not 0 < t_max < math.inf:
        raise ValueError(f"t_max={t_max} must be positive and finite")
    encoder = LatencyEncoder(t_last=t_max / 2) if encoder is None else encoder
    if not isinstance(encoder, SpikeEncoder):
        raise TypeError(f"encoder={encoder}: give a SpikeEncoder, such as LatencyEncoder()")
    if not encoder.t_last < t_max:
        raise ValueError(f"t_max={t_max} must be after the last input, which the encoder sends at {encoder.t_last}")
    return encoder


def _outputs(
    width: int, num_classes: int, neuron: tuple[Any, ...], readout: ReadoutName, sigma: float, tau_out: float
) -> list[nn.Module]:
    """Output neurons and read-out, or what is both."""
    if readout not in get_args(ReadoutName):
        raise ValueError(f"readout={readout!r} is not one of {', '.join(map(repr, get_args(ReadoutName)))}")
    tau_v, tau_i, _, t_max, *_ = neuron
    if readout == "membrane":
        return [MembraneReadout(width, num_classes, tau_v, tau_i, t_max)]
    readouts: dict[str, nn.Module] = {"first_spike": FirstSpike(sigma, t_max), "trace": SpikeTrace(tau_out, sigma)}
    return [SpikingLinear(width, num_classes, *neuron), readouts[readout]]
