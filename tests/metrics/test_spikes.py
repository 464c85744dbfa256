"""Metrics of spikes, against sums by hand; batches add up."""

import pytest
import torch

from lightning_nobp.metrics import DecisionTime, SilentFraction, SpikesPerNeuron, SynapticOperations
from lightning_nobp.nn import SpikingConv2d, SpikingLinear

INF = float("inf")
SPIKES = torch.tensor([[[0.1, 0.5], [INF, INF], [0.3, INF]], [[INF, INF], [INF, INF], [INF, INF]]])


@pytest.mark.parametrize(
    ("metric", "expected"), [(SpikesPerNeuron(), 3 / 6), (SilentFraction(), 4 / 6), (DecisionTime(2.0), (0.1 + 2) / 2)]
)
def test_batches_add_up(metric, expected):
    metric.update(SPIKES)
    assert float(metric.compute()) == pytest.approx(expected)
    metric.reset()
    for part in (SPIKES[:1], SPIKES[1:]):
        metric.update(part)
    assert float(metric.compute()) == pytest.approx(expected)


def test_layers_count_as_often_as_they_have_neurons():
    metric = SpikesPerNeuron()
    metric.update(SPIKES)
    metric.update(torch.zeros(2, 5, 4))
    assert float(metric.compute()) == pytest.approx((3 + 40) / 16)


def test_a_spike_reaches_every_neuron_of_a_dense_layer():
    operations = SpikingLinear(3, 7).operations(SPIKES)
    assert operations.tolist() == [21, 0]
    metric = SynapticOperations()
    metric.update(operations)
    assert float(metric.compute()) == 10.5


def test_spikes_after_the_window_reach_nobody():
    assert SpikingLinear(3, 7, t_max=0.4).operations(SPIKES).tolist() == [14, 0]


def test_a_spike_reaches_the_windows_it_lies_in():
    spikes = torch.full((1, 1, 4, 4, 1), INF)
    layer = SpikingConv2d(1, 5, 3, padding=1)
    for place, windows in (((0, 0), 4), ((0, 1), 6), ((1, 2), 9)):
        alone = spikes.clone()
        alone[0, 0, *place] = 0.5
        assert layer.operations(alone).tolist() == [5 * windows]
