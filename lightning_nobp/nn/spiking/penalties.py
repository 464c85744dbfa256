"""What a loss may ask of spikes beside the right answer, each with its gradient written out."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.spiking import first_time_penalty
from lightning_nobp.nn.spiking.layer import SpikingLayer


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
        silent: Of what a sample's silent neurons lack to the threshold at the end of the simulation, ``(theta -
            v(t_max))_+``, summed over them: a neuron without spike has no other gradient.
    """

    gamma: float
    t_ref: float
    silent: float

    def value(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The penalty, 0-dimensional; differentiable.

        Args:
            layer: The output layer.
            inputs: Its spikes ``(batch, inputs, spikes)``.
            outputs: ``(batch, classes, max_spikes)``.
        """
        total = self.gamma * first_time_penalty(outputs, self.t_ref).value
        is_silent = outputs[..., 0] == torch.inf
        rows = is_silent.any(1)
        if not self.silent or not bool(rows.any()):
            return total
        lacking = (layer.theta - layer.final_potential(inputs[rows])).clamp(min=0)
        return total + self.silent * (lacking * is_silent[rows]).sum() / len(outputs)

    def vjp(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Penalty:
        """The penalty without an autograd graph; the layer's parameters get their gradients."""
        first = first_time_penalty(outputs, self.t_ref)
        value, by_outputs = self.gamma * first.value, self.gamma * first.grad
        is_silent = outputs[..., 0] == torch.inf
        # Few samples have a silent output, once training has begun.
        rows = is_silent.any(1)
        if not self.silent or not bool(rows.any()):
            return Penalty(value, by_outputs, None)
        # Most places for spikes are empty in all neurons.
        seen = inputs[rows]
        is_used = (seen < torch.inf).flatten(0, 1).any(0)
        part = seen[..., is_used]
        lacking = (layer.theta - layer.final_potential(part)) * is_silent[rows]
        share = self.silent / len(outputs)
        by_part, by_inputs = torch.zeros_like(seen), torch.zeros_like(inputs)
        by_part[..., is_used] = layer.final_potential_vjp(-share * (lacking > 0).to(lacking), part)
        by_inputs[rows] = by_part
        return Penalty(value + share * lacking.clamp(min=0).sum(), by_outputs, by_inputs)


class HiddenPenalty(NamedTuple):
    """Fewer and later spikes: what is left of the window after each spike, summed over a neuron's, as a share of it.

    Counts themselves have no gradient; a spike that is pushed beyond the window is gone.

    Args:
        weight: Of the mean over samples and neurons.
    """

    weight: float

    def value(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The penalty, 0-dimensional; differentiable. See :class:`OutputPenalty`."""
        left = torch.where(outputs < torch.inf, layer.t_max - outputs, 0.0)
        return self._share(layer, outputs) * left.sum()

    def vjp(self, layer: SpikingLayer, inputs: Tensor, outputs: Tensor) -> Penalty:
        """The penalty without an autograd graph."""
        if not self.weight:
            return Penalty(outputs.new_zeros(()), None, None)
        by_outputs = (outputs < torch.inf).to(outputs) * -self._share(layer, outputs)
        return Penalty(self.value(layer, inputs, outputs), by_outputs, None)

    def _share(self, layer: SpikingLayer, outputs: Tensor) -> float:
        return self.weight / (layer.t_max * max(1, outputs[..., 0].numel()))
