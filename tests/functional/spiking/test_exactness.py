"""Spike times against closed forms, root finding on a dense grid, a clock-driven simulation, and invariances."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw
from spiking_toys import BACKENDS, INF, TAUS, events, random_train, random_weight, single_input, spikes_of

from lightning_nobp.functional.spiking import SpikeTrain, lif_record, time_stepped_reference

WEIGHTS = [1.2, 3.0, 7.5, 40.0]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def assert_times(found, expected, tolerance=1e-14):
    """Spikes of one neuron; the rest of ``found`` must be padding."""
    expected = torch.tensor(expected, dtype=torch.float64)
    assert int((found < INF).sum()) == len(expected)
    assert torch.allclose(found[: len(expected)], expected, rtol=tolerance, atol=0)


def chain(first_spike, decay, weight, max_spikes):
    """Spike times if each spike leaves a decayed current behind, and the next is the first spike of that."""
    times, now = [], 0.0
    for _ in range(max_spikes):
        step = first_spike(weight)
        if step is None:
            break
        now, weight = now + step, weight * decay(step)
        times.append(now)
    return times


# Closed forms


def test_without_leak_the_k_th_spike_comes_at_k_over_w(backend):
    for weight, found in zip(WEIGHTS, single_input(WEIGHTS, 6, INF, INF, backend=backend), strict=True):
        assert_times(found, [k / weight for k in range(1, 7)])


def test_a_constant_current_makes_a_leaky_neuron_fire_regularly(backend):
    tau = 2.0
    for weight, found in zip(WEIGHTS, single_input(WEIGHTS, 6, tau, INF, backend=backend), strict=True):
        period = -tau * math.log1p(-1 / (weight * tau))
        assert_times(found, [k * period for k in range(1, 7)])


def test_a_current_that_fades_has_a_charge_for_so_many_spikes(backend):
    tau = 0.9
    for weight, found in zip(WEIGHTS, single_input(WEIGHTS, 9, INF, tau, backend=backend), strict=True):
        number = min(9, math.floor(weight * tau))
        assert_times(found, [-tau * math.log1p(-k / (weight * tau)) for k in range(1, number + 1)])


def test_equal_time_constants_fire_at_lamberts_function(backend):
    tau = 0.8

    def first(weight):
        argument = -1 / (weight * tau)
        return -tau * float(lambertw(argument).real) if argument > -1 / math.e else None

    for weight, found in zip(WEIGHTS, single_input(WEIGHTS, 9, tau, tau, backend=backend), strict=True):
        assert_times(found, chain(first, lambda s: math.exp(-s / tau), weight, 9))


def test_time_constants_of_two_to_one_fire_at_the_root_of_a_square(backend):
    tau = 1.5

    def first(weight):
        square = 1 - 4 / (weight * tau)
        return -tau * math.log((1 + math.sqrt(square)) / 2) if square > 0 else None

    for weight, found in zip(WEIGHTS, single_input(WEIGHTS, 9, tau, tau / 2, backend=backend), strict=True):
        assert_times(found, chain(first, lambda s: math.exp(-2 * s / tau), weight, 9))


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_the_weakest_input_that_fires_is_found_to_nine_digits(backend, tau):
    weakest = math.e / tau
    below, above = single_input([weakest * (1 - 1e-9), weakest * (1 + 1e-9)], 3, tau, tau, backend=backend)
    assert (below == INF).all()
    assert_times(above, [tau], tolerance=1e-4)


@pytest.mark.parametrize("tau", [1e-4, 1e-2])
def test_a_spike_is_found_though_all_has_decayed_at_the_end(backend, tau):
    (found,) = single_input([math.e / tau * 1.5], 1, tau, tau, at=0.5, backend=backend)
    assert_times(found, [0.5 - tau * float(lambertw(-1 / 1.5 / math.e).real)], tolerance=1e-13)


def test_a_spike_at_an_event_belongs_to_the_interval_before(backend):
    times = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    record = lif_record(times, torch.arange(2)[None], torch.tensor([2]), weight, 3, INF, INF, backend=backend)
    assert torch.allclose(record.times[0, 0], torch.tensor([1.0, 1.2, 1.4], dtype=torch.float64))
    assert record.event[0, 0].tolist() == [0, 1, 1]


# Root finding


def potential(t, times, weights, spikes, taus):
    rate_v, rate_i = (0 if math.isinf(tau) else 1 / tau for tau in taus)
    s = np.maximum(np.asarray(t)[..., None] - times, 0)
    kernel = s * np.exp(-s * rate_v)
    if rate_v != rate_i:
        kernel = (np.exp(-s * rate_v) - np.exp(-s * rate_i)) / (rate_i - rate_v)
    resets = sum(np.exp(-(t - spike) * rate_v) for spike in spikes)
    return kernel @ weights - resets


def scanned_spikes(times, weights, taus, max_spikes, t_max=2.0):
    """Crossings of a grid, refined by Brent's method."""
    spikes, begin = [], 0.0
    while len(spikes) < max_spikes:
        grid = np.linspace(begin, t_max, 4001)[1:]
        above = np.nonzero(potential(grid, times, weights, spikes, taus) >= 1)[0]
        if not len(above):
            break
        low = grid[above[0] - 1] if above[0] else begin
        args = (times, weights, tuple(spikes), taus)
        begin = brentq(lambda t, *args: potential(t, *args) - 1, low, grid[above[0]], args, xtol=1e-15)
        spikes.append(begin)
    return spikes


@pytest.mark.parametrize("taus", TAUS[:-1])
def test_a_dense_scan_finds_the_same_spikes(backend, taus):
    train, weight = random_train(6, 12, 8), random_weight(8, 5)
    record = lif_record(*events(train), weight, 7, *taus, backend=backend)
    assert 0 < int(record.counts.sum()) < record.times.numel()
    for sample, neuron in np.ndindex(*record.counts.shape):
        count = int(train.counts[sample])
        weights = weight[train.index[sample, :count], neuron].numpy()
        expected = scanned_spikes(train.times[sample, :count].numpy(), weights, taus, 7)
        found = record.times[sample, neuron]
        assert int((found < INF).sum()) == int(record.counts[sample, neuron]) == len(expected)
        assert torch.allclose(found[: len(expected)], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=3e-13)


@pytest.mark.parametrize("taus", [(INF, INF), (1.0, 0.4), (0.7, 0.7)])
def test_time_steps_that_become_shorter_approach_it_in_first_order(backend, taus):
    train, weight = random_train(3, 8, 6), random_weight(6, 4)
    record = lif_record(*events(train), weight, 4, *taus, backend=backend)
    errors = []
    for dt in (1e-3, 1e-4):
        times, counts = time_stepped_reference(train, weight, 4, *taus, dt=dt)
        assert torch.equal(counts, record.counts)
        errors.append(float((times[times < INF] - spikes_of(record)).abs().median()))
    assert errors[0] < 5e-3
    assert 5 < errors[0] / errors[1] < 20


# Invariances


@pytest.mark.parametrize("taus", TAUS)
def test_threshold_and_weights_may_be_scaled_together(backend, taus):
    train, weight = random_train(5, 15, 8), random_weight(8, 6)
    one = lif_record(*events(train), weight, 5, *taus, backend=backend)
    other = lif_record(*events(train), 3.7 * weight, 5, *taus, theta=3.7, backend=backend)
    assert torch.equal(one.counts, other.counts)
    assert torch.allclose(spikes_of(one), spikes_of(other), rtol=1e-13)


@pytest.mark.parametrize("taus", TAUS)
def test_time_may_be_measured_in_another_unit(backend, taus):
    train, weight = random_train(5, 15, 8), random_weight(8, 6)
    one = lif_record(*events(train), weight, 5, *taus, backend=backend)
    slow = SpikeTrain(10 * train.times, train.index, train.counts)
    scaled = [10 * tau for tau in taus]
    other = lif_record(*events(slow), weight / 10, 5, *scaled, t_max=20, backend=backend)
    assert torch.equal(one.counts, other.counts)
    assert torch.allclose(10 * spikes_of(one), spikes_of(other), rtol=1e-12)


@pytest.mark.parametrize("taus", TAUS)
def test_later_inputs_make_later_spikes(backend, taus):
    train, weight = random_train(5, 15, 8), random_weight(8, 6)
    one = lif_record(*events(train), weight, 5, *taus, backend=backend)
    later = SpikeTrain(train.times + 0.5, train.index, train.counts)
    other = lif_record(*events(later), weight, 5, *taus, t_max=2.5, backend=backend)
    assert torch.equal(one.counts, other.counts)
    assert torch.allclose(spikes_of(one) + 0.5, spikes_of(other), rtol=1e-12)


@pytest.mark.parametrize("taus", [(INF, 0.5), (1.0, 0.4), (1.0, 0.5)])
def test_first_spikes_do_not_tell_the_two_time_constants_apart(backend, taus):
    train, weight = random_train(5, 15, 8), random_weight(8, 6)
    one, other = (lif_record(*events(train), weight, 1, *pair, backend=backend) for pair in (taus, taus[::-1]))
    assert int(one.counts.sum()) > 5
    assert torch.equal(one.counts, other.counts)
    assert torch.allclose(spikes_of(one), spikes_of(other), rtol=1e-13)


@pytest.mark.parametrize("taus", TAUS)
def test_single_precision_finds_nearly_all_spikes(backend, taus):
    train, weight = random_train(20, 30, 12, torch.float32), random_weight(12, 40, torch.float32)
    double = SpikeTrain(train.times.double(), train.index, train.counts)
    one = lif_record(*events(train), weight, 5, *taus, backend=backend)
    other = lif_record(*events(double), weight.double(), 5, *taus, backend=backend)
    agrees = one.counts == other.counts
    assert float(agrees.double().mean()) > 0.995
    found, expected = one.times[agrees], other.times[agrees]
    assert torch.quantile((found - expected)[expected < INF].abs(), 0.98) < 1e-5
