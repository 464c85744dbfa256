"""Neurons that are silent, and what they lack to their threshold where they come closest to it."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.spiking import SpikeTrain, events_from_spikes
from lightning_nobp.functional.spiking.highest import Moments, highest_potential, potential_at, potential_at_vjp
from lightning_nobp.nn.spiking.layer import SpikingLayer


class Silence(NamedTuple):
    """Silent neurons of a layer, each at the time at which its membrane is highest."""

    layer: SpikingLayer
    rows: Tensor
    """Which rows of what is seen they are of, ``(seen rows,)``, bool."""
    arrivals: Tensor
    """What those rows see, ``(rows, inputs, spikes)``."""
    train: SpikeTrain
    """The same as events."""
    moments: Moments

    def lack(self) -> Tensor:
        """What each membrane lacks to the threshold, ``(moments,)``; differentiable."""
        potential = potential_at(self.moments, self.train, self.layer.weight, *self.layer.time_constants())
        # Of a silent neuron it is positive but for rounding.
        return (self.layer.theta - potential).clamp(min=0)

    def pull(self, grad: Tensor, inputs: Tensor) -> Tensor:
        """Add the parameters' gradients for that of the potentials, and return that of the layer's inputs."""
        constants = self.layer.time_constants()
        grads = potential_at_vjp(
            grad, self.moments, self.train, self.layer.weight, *constants, needs_tau_grad=self.layer.learn_tau
        )
        by_row = self.layer.pull_events(grads, self.train, self.arrivals.shape)
        assert by_row is not None
        whole = by_row.new_zeros(len(self.rows), *by_row.shape[1:])
        whole[self.rows] = by_row
        return self.layer.seen_vjp(whole, inputs.shape)


def silent_in_a_sample(layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Silence | None:
    """All neurons without a spike in a sample; None if there are none.

    Args:
        layer: The layer.
        inputs: Its spikes.
        outputs: Those that it has sent.
    """
    silent = layer.by_row(outputs)[..., 0] == torch.inf
    rows = silent.any(1)
    if not bool(rows.any()):
        return None
    arrivals = layer.arrivals(layer.seen(inputs)[rows])
    train = events_from_spikes(arrivals)
    _, time = highest_potential(train, layer.weight, layer.t_max, *layer.time_constants())
    row, neuron = silent[rows].nonzero(as_tuple=True)
    return Silence(layer, rows, arrivals, train, Moments(row, neuron, time[row, neuron]))


def silent_in_all_samples(layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Silence | None:
    """Neurons without a spike in the whole batch, each in the sample in which it is closest; None if there are none."""
    silent = layer.by_row(outputs)[..., 0] == torch.inf
    neuron = silent.all(0).nonzero(as_tuple=True)[0]
    if not neuron.numel() or not len(silent):
        return None
    arrivals = layer.arrivals(layer.seen(inputs))
    train = events_from_spikes(arrivals)
    value, time = highest_potential(train, layer.weight[:, neuron], layer.t_max, *layer.time_constants())
    row = value.argmax(0)
    moments = Moments(row, neuron, time.gather(0, row.unsqueeze(0)).squeeze(0))
    return Silence(layer, torch.ones_like(silent[:, 0]), arrivals, train, moments)
