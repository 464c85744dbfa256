"""What output neurons are to do, each with its gradient written out."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional import backprop as formulas
from lightning_nobp.functional.spiking import SpikeLoss, spike_time_mse, trace_mse

Train = Sequence[float]
"""When a neuron is to spike, ascending."""


class Objective(NamedTuple):
    """A loss, and what it is the gradient of."""

    value: Tensor
    """0-dimensional."""
    scores: Tensor | None
    """Gradient of the read-out's scores ``(batch, classes)``."""
    spikes: Tensor | None
    """Gradient of the spikes ``(batch, classes, max_spikes)`` that the read-out reads."""


class CrossEntropy(NamedTuple):
    """Of the scores, whatever the read-out."""

    def value(self, scores: Tensor, spikes: Tensor, target: Tensor) -> Tensor:
        """The loss, 0-dimensional; differentiable.

        Args:
            scores: ``(batch, classes)``.
            spikes: What the read-out reads.
            target: ``(batch,)``, class numbers.
        """
        return F.cross_entropy(scores, target)

    def vjp(self, scores: Tensor, spikes: Tensor, target: Tensor) -> Objective:
        """The loss without an autograd graph, and its gradient."""
        value, grad = formulas.cross_entropy(scores, target)
        return Objective(value, grad, None)


class SpikeTimes(NamedTuple):
    """Squared distance of spike times to wanted ones: summed over a neuron's, mean over samples and neurons.

    Args:
        right: When the neuron of the right class is to spike; later spikes of it are of no interest.
        others: When all others are.
        t_max: Stands in for a missing spike, which has no gradient.
    """

    right: Train
    others: Train
    t_max: float

    def value(self, scores: Tensor, spikes: Tensor, target: Tensor) -> Tensor:
        """The loss, 0-dimensional; differentiable. See :class:`CrossEntropy`."""
        return self._loss(spikes, target).value

    def vjp(self, scores: Tensor, spikes: Tensor, target: Tensor) -> Objective:
        """The loss without an autograd graph, and its gradient."""
        value, grad = self._loss(spikes, target)
        return Objective(value, None, grad)

    def _loss(self, spikes: Tensor, target: Tensor) -> SpikeLoss:
        trains = spikes.new_full((2, spikes.shape[2]), torch.inf)
        for row, train in zip(trains, (self.right, self.others), strict=True):
            row[: len(train)] = row.new_tensor(train)
        is_right = F.one_hot(target, spikes.shape[1]).bool().unsqueeze(2)
        return _mean(spike_time_mse(spikes, torch.where(is_right, trains[0], trains[1]), self.t_max), spikes.shape[1])


class Traces(NamedTuple):
    """Squared distance of the traces of all spikes to those of wanted ones, mean over samples and neurons.

    Args:
        right: When the neuron of the right class is to spike.
        others: When all others are.
        tau_out: Of the traces.
    """

    right: Train
    others: Train
    tau_out: float

    def value(self, scores: Tensor, spikes: Tensor, target: Tensor) -> Tensor:
        """The loss, 0-dimensional; differentiable. See :class:`CrossEntropy`."""
        return self._loss(spikes, target).value

    def vjp(self, scores: Tensor, spikes: Tensor, target: Tensor) -> Objective:
        """The loss without an autograd graph, and its gradient."""
        value, grad = self._loss(spikes, target)
        return Objective(value, None, grad)

    def _loss(self, spikes: Tensor, target: Tensor) -> SpikeLoss:
        right, others = (sum(math.exp(-t / self.tau_out) for t in train) for train in (self.right, self.others))
        is_right = F.one_hot(target, spikes.shape[1]).bool()
        wanted = torch.where(is_right, spikes.new_tensor(right), spikes.new_tensor(others))
        return _mean(trace_mse(spikes, wanted, self.tau_out), spikes.shape[1])


def _mean(loss: SpikeLoss, neurons: int) -> SpikeLoss:
    """Of the squares, where half of them were summed over neurons."""
    return SpikeLoss(2 / neurons * loss.value, 2 / neurons * loss.grad)
