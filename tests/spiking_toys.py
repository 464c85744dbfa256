"""Random layers of spiking neurons, and the ways to hold them against each other."""

import math

import pytest
import torch

from lightning_nobp.csrc import KernelsUnavailableError, library
from lightning_nobp.functional.spiking import SpikeTrain, lif_record

INF = math.inf
# No leak, one of the two, both, equal, two to one either way, and nearly equal.
TAUS = [(INF, INF), (INF, 0.5), (1.0, INF), (1.0, 0.4), (0.7, 0.7), (1.0, 0.5), (0.5, 1.0), (0.7, 0.7 + 1e-9)]


def _why_no_kernel():
    try:
        library("spiking")
    except KernelsUnavailableError as error:
        return str(error)
    return ""


compiled = pytest.mark.skipif(bool(_why_no_kernel()), reason=_why_no_kernel() or "there are kernels")
BACKENDS = [pytest.param("native", marks=compiled), "torch"]


def random_train(batch, events, inputs, dtype=torch.float64, *, ragged=True):
    """Input spikes in the first half of the window; of ragged samples the first has all and the last none."""
    counts = torch.randint(0, events + 1, (batch,)) if ragged else torch.full((batch,), events)
    if ragged and batch:
        counts[-1] = 0
        counts[0] = events
    times = torch.rand(batch, events, dtype=dtype).sort(1).values
    times = torch.where(torch.arange(events) < counts[:, None], times, INF)
    return SpikeTrain(times, torch.randint(0, inputs, (batch, events)), counts)


def events(train):
    """The first arguments of every function."""
    return train.times, train.index, train.counts


def random_weight(inputs, neurons, dtype=torch.float64):
    """Some neurons fire often, some once and some never."""
    return torch.randn(inputs, neurons, dtype=dtype) + 1.5 * torch.rand(neurons, dtype=dtype)


def spikes_of(record):
    return record.times[record.times < INF]


def single_input(weights, max_spikes, tau_v, tau_i, *, at=0.0, t_max=50.0, backend="auto"):
    """Spike times ``(neurons, max_spikes)`` of neurons that get one input spike."""
    weight = torch.tensor([weights], dtype=torch.float64)
    times, index, counts = torch.tensor([[at]], dtype=torch.float64), torch.zeros(1, 1).long(), torch.ones(1).long()
    return lif_record(times, index, counts, weight, max_spikes, tau_v, tau_i, t_max=t_max, backend=backend).times[0]
