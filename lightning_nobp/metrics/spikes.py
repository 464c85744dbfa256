"""How much a spiking network fires, and when."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_nobp.typed import Typed


def spikes_per_neuron(spikes: Tensor) -> Tensor:
    """Mean number of spikes of a neuron in a sample, of spike times ``(batch, ..., spikes)`` padded with infinity."""
    return torch.count_nonzero(spikes < torch.inf) / spikes[..., 0].numel()


def silent_fraction(spikes: Tensor) -> Tensor:
    """Fraction of neurons without a spike, over samples, of spike times ``(batch, ..., spikes)``."""
    return (spikes[..., 0] == torch.inf).sum() / spikes[..., 0].numel()


def saturated_fraction(spikes: Tensor) -> Tensor:
    """Fraction of neurons that have all the spikes they may have, of spike times ``(batch, ..., spikes)``."""
    return (spikes[..., -1] < torch.inf).sum() / spikes[..., 0].numel()


def decision_time(spikes: Tensor, t_max: float) -> Tensor:
    """Mean time of a sample's first output spike, of ``(batch, ..., spikes)``; ``t_max`` where there is none."""
    return spikes[..., 0].flatten(1).amin(1).clamp(max=t_max).mean()


class _Mean(Typed, Metric):
    """A mean over samples, added up in float64 over batches and processes."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, mean: Tensor, count: int) -> None:
        self.total += mean.double() * count
        self.count += count

    def compute(self) -> Tensor:
        """The mean; nan before the first batch."""
        return self.total / self.count


class SpikesPerNeuron(_Mean):
    """Mean number of spikes of a neuron in a sample; of one layer, or of several of which each is an update."""

    def update(self, spikes: Tensor) -> None:
        """Count spike times ``(batch, ..., spikes)``, padded with infinity."""
        self._add(spikes_per_neuron(spikes), spikes[..., 0].numel())


class SilentFraction(_Mean):
    """Fraction of neurons that have no spike in a sample; of one layer, or of several of which each is an update."""

    def update(self, spikes: Tensor) -> None:
        """Count spike times ``(batch, ..., spikes)``, padded with infinity."""
        self._add(silent_fraction(spikes), spikes[..., 0].numel())


class SaturatedFraction(_Mean):
    """Fraction of neurons that have all the spikes they may have in a sample, and were perhaps stopped."""

    def update(self, spikes: Tensor) -> None:
        """Count spike times ``(batch, ..., spikes)``, padded with infinity."""
        self._add(saturated_fraction(spikes), spikes[..., 0].numel())


class DecisionTime(_Mean):
    """Mean time of the first output spike of a sample, at which a decision could be taken.

    Args:
        t_max: End of the simulation, for samples without an output spike.
        **kwargs: See ``torchmetrics.Metric``.
    """

    def __init__(self, t_max: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.t_max = t_max

    def update(self, spikes: Tensor) -> None:
        """Count output spikes ``(batch, ..., spikes)``, padded with infinity."""
        self._add(decision_time(spikes, self.t_max), len(spikes))


class SynapticOperations(_Mean):
    """Mean number of synapses that the spikes of a sample reach: what event-driven hardware spends energy on."""

    def update(self, operations: Tensor) -> None:
        """Count the operations of some samples, ``(batch,)``."""
        self._add(operations.double().mean(), len(operations))
