"""What a loss may ask of spikes beside the right answer, each with its gradient written out."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.spiking import first_time_penalty
from lightning_nobp.nn.spiking.layer import SpikingLayer
from lightning_nobp.nn.spiking.silence import Silence, silent_in_a_sample, silent_in_all_samples


class Penalty(NamedTuple):
    """A penalty and its gradients."""

    value: Tensor
    """0-dimensional."""
    outputs: Tensor | None
    """Gradient of the layer's spikes."""
    inputs: Tensor | None
    """Gradient of the spikes that go into the layer."""


class OutputPenalty(NamedTuple):
    """Keeps the first spikes of output neurons inside the window, and wakes those that are silent.

    Args:
        gamma: Of the mean over samples and neurons of ``(t_1 - t_ref)^2``, silent ones left out.
        t_ref: Where first spikes are to be.
        silent: Of what a sample's silent neurons lack to the threshold where their membrane is highest, summed over
            them: a neuron without spike has no other gradient.
    """

    gamma: float
    t_ref: float
    silent: float

    def value(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The penalty, 0-dimensional; differentiable.

        Args:
            layer: The output layer.
            inputs: Its spikes.
            outputs: Those that it has sent.
        """
        found = silent_in_a_sample(layer, inputs, outputs) if self.silent else None
        total = self.gamma * first_time_penalty(outputs, self.t_ref).value
        return total if found is None else total + self.silent / len(outputs) * found.lack().sum()

    def vjp(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Penalty:
        """The penalty without an autograd graph; the layer's parameters get their gradients."""
        found = silent_in_a_sample(layer, inputs, outputs) if self.silent else None
        first = first_time_penalty(outputs, self.t_ref)
        value, by_inputs = _pulled(found, self.silent / max(1, len(outputs)), inputs)
        return Penalty(self.gamma * first.value + value, self.gamma * first.grad, by_inputs)


class HiddenPenalty(NamedTuple):
    """Fewer and later spikes, and no neurons that never spike.

    Args:
        spikes: Of what is left of the window after each spike, as a share of it, summed over a neuron's spikes, mean
            over samples and neurons. Counts themselves have no gradient; a spike that is pushed beyond the window is
            gone.
        silent: Of what neurons that are silent in the whole batch lack to the threshold, each in the sample and at the
            time at which its membrane is highest, mean over all neurons.
    """

    spikes: float
    silent: float

    def value(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The penalty, 0-dimensional; differentiable. See :class:`OutputPenalty`."""
        total = self._share(layer, outputs) * _left(layer, outputs).sum()
        found = silent_in_all_samples(layer, inputs, outputs) if self.silent else None
        return total if found is None else total + self.silent / layer.weight.shape[1] * found.lack().sum()

    def vjp(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Penalty:
        """The penalty without an autograd graph; the layer's parameters get their gradients."""
        value, by_outputs = outputs.new_zeros(()), None
        if self.spikes:
            share = self._share(layer, outputs)
            value, by_outputs = share * _left(layer, outputs).sum(), (outputs < torch.inf).to(outputs) * -share
        found = silent_in_all_samples(layer, inputs, outputs) if self.silent else None
        lack, by_inputs = _pulled(found, self.silent / layer.weight.shape[1], inputs)
        return Penalty(value + lack, by_outputs, by_inputs)

    def _share(self, layer: SpikingLayer, outputs: Tensor) -> float:
        return self.spikes / (layer.t_max * max(1, outputs[..., 0].numel()))


def _left(layer: SpikingLayer, outputs: Tensor) -> Tensor:
    """What is left of the window after each spike."""
    return torch.where(outputs < torch.inf, layer.t_max - outputs, 0.0)


def _pulled(found: Silence | None, share: float, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """A share of the sum of what silent neurons lack, and its gradient by the layer's inputs."""
    if found is None:
        return inputs.new_zeros(()), None
    lack = found.lack()
    return share * lack.sum(), found.pull(-share * (lack > 0).to(lack), inputs)
