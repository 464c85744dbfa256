"""Layers of spiking neurons: spike times ``(batch, neurons, spikes)``, padded with infinity, go through them."""

from lightning_nobp.nn.spiking.convolution import SpikingConv2d
from lightning_nobp.nn.spiking.dropout import SpikeDropout
from lightning_nobp.nn.spiking.encoding import LatencyEncoder, RegularEncoder, SpikeEncoder, ThresholdCrossingEncoder
from lightning_nobp.nn.spiking.initialisation import initialise_from_data
from lightning_nobp.nn.spiking.layer import SpikingLayer
from lightning_nobp.nn.spiking.linear import SpikingLinear
from lightning_nobp.nn.spiking.networks import SpikingCNN, SpikingMLP
from lightning_nobp.nn.spiking.pooling import EarliestSpikePool2d
from lightning_nobp.nn.spiking.readout import FirstSpike, MembraneReadout, SpikeCount, SpikeTrace

__all__ = [
    "EarliestSpikePool2d",
    "FirstSpike",
    "LatencyEncoder",
    "MembraneReadout",
    "RegularEncoder",
    "SpikeCount",
    "SpikeDropout",
    "SpikeEncoder",
    "SpikeTrace",
    "SpikingCNN",
    "SpikingConv2d",
    "SpikingLayer",
    "SpikingLinear",
    "SpikingMLP",
    "ThresholdCrossingEncoder",
    "initialise_from_data",
]
