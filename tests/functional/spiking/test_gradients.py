"""Gradients of spike times against differences at equal counts, and against what must hold of them exactly."""

import math

import pytest
import torch
from spiking_toys import BACKENDS, INF, TAUS, events, random_train, random_weight

from lightning_nobp.functional.spiking import SpikeTrain, lif_record, lif_spike_times_vjp

STEP = 1e-6


def projection(times, grad):
    return float((torch.where(times < INF, times, 0.0) * grad).sum())


def difference(run, record, grad, x, place):
    """Of the projected spike times by one number; None where that changes a count."""
    values = []
    for step in (STEP, -STEP):
        moved = x.clone()
        moved[place] += step
        found = run(moved)
        if not torch.equal(found.counts, record.counts):
            return None
        values.append(projection(found.times, grad))
    return (values[0] - values[1]) / (2 * STEP)


def assert_differences(run, record, grad, x, found, places):
    expected = [difference(run, record, grad, x, place) for place in places]
    pairs = [(float(found[place]), e) for place, e in zip(places, expected, strict=True) if e is not None]
    assert len(pairs) > len(places) / 2
    actual, wanted = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    assert wanted.norm() > 0
    assert (actual - wanted).norm() <= 1e-5 * wanted.norm()


def problem(taus, backend, theta=1.3):
    train, weight = random_train(4, 9, 5, ragged=True), 1.5 * random_weight(5, 6)
    record = lif_record(*events(train), weight, 4, *taus, theta, backend=backend)
    grad = torch.randn_like(record.times)
    options = {"p_max": None, "backend": backend, "needs_tau_grad": True}
    return (
        train,
        weight,
        record,
        grad,
        lif_spike_times_vjp(grad, record, *events(train), weight, *taus, theta, **options),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taus", TAUS)
def test_the_gradient_of_weights_is_that_of_differences(taus, backend):
    train, weight, record, grad, found = problem(taus, backend)
    assert record.counts.max() > 1

    def run(weight):
        return lif_record(*events(train), weight, 4, *taus, 1.3, backend="auto")

    places = [(d, n) for d in range(5) for n in range(6)]
    assert_differences(run, record, grad, weight, found.weight, places)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taus", TAUS)
def test_the_gradient_of_times_is_that_of_differences(taus, backend):
    train, weight, record, grad, found = problem(taus, backend)

    def run(times):
        return lif_record(times, train.index, train.counts, weight, 4, *taus, 1.3, backend="auto")

    places = [(b, e) for b in range(4) for e in range(int(train.counts[b]))]
    assert_differences(run, record, grad, train.times, found.times, places)
    assert (found.times[~train.is_spike] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taus", TAUS)
def test_the_gradients_of_time_constants_are_those_of_differences(taus, backend):
    train, weight, record, grad, found = problem(taus, backend)
    for which, tau in enumerate(taus):
        if math.isinf(tau):
            assert found[2 + which] == 0
            continue

        def run(tau, which=which):
            moved = [tau, taus[1]] if which == 0 else [taus[0], tau]
            return lif_record(*events(train), weight, 4, *moved, 1.3, backend="auto")

        expected = difference(run, record, grad, torch.tensor(tau, dtype=torch.float64), ())
        assert expected is not None
        assert math.isclose(found[2 + which], expected, rel_tol=1e-5, abs_tol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taus", TAUS)
def test_all_inputs_together_move_each_spike_as_much_as_themselves(taus, backend):
    train, weight = random_train(3, 10, 5), random_weight(5, 4)
    record = lif_record(*events(train), weight, 3, *taus, backend=backend)
    for place in (record.times < INF).nonzero().tolist():
        grad = torch.zeros_like(record.times)
        grad[tuple(place)] = 1
        found = lif_spike_times_vjp(grad, record, *events(train), weight, *taus, p_max=None, backend=backend)
        assert math.isclose(found.times.sum(), 1, rel_tol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taus", TAUS)
def test_weights_together_move_spikes_as_the_threshold_does(taus, backend):
    train, weight, _, grad, found = problem(taus, backend)
    ends = [lif_record(*events(train), weight, 4, *taus, 1.3 + step, backend=backend) for step in (STEP, -STEP)]
    assert torch.equal(ends[0].counts, ends[1].counts)
    by_theta = (projection(ends[0].times, grad) - projection(ends[1].times, grad)) / (2 * STEP)
    assert math.isclose((weight * found.weight).sum(), -1.3 * by_theta, rel_tol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_spike_that_grazes_the_threshold_pulls_no_more_than_it_may(backend):
    weight = torch.tensor([[math.e * (1 + 1e-10)]], dtype=torch.float64)
    train = SpikeTrain(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1).long(), torch.ones(1).long())
    record = lif_record(*events(train), weight, 1, 1.0, 1.0, backend=backend)
    grad = torch.ones_like(record.times)
    free, bound = (
        lif_spike_times_vjp(grad, record, *events(train), weight, 1.0, 1.0, p_max=p_max, backend=backend).weight
        for p_max in (None, 7.0)
    )
    assert abs(free) > 1000
    assert math.isclose(bound, -7 / math.e, rel_tol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_gradient_holds_at_padding_does_not_count(backend):
    train, weight = random_train(3, 10, 5), random_weight(5, 4)
    record = lif_record(*events(train), weight, 6, 1.0, 0.5, backend=backend)
    assert (record.times == INF).any()
    grad = torch.randn_like(record.times)
    dirty = torch.where(record.times < INF, grad, math.nan)
    clean = torch.where(record.times < INF, grad, 0.0)
    found = [
        lif_spike_times_vjp(g, record, *events(train), weight, 1.0, 0.5, backend=backend, needs_tau_grad=True)
        for g in (dirty, clean)
    ]
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_nobody_needs_are_none(backend):
    train, weight = random_train(3, 10, 5), random_weight(5, 4)
    record = lif_record(*events(train), weight, 2, 1.0, 0.5, backend=backend)
    options = {"needs_times_grad": False, "needs_weight_grad": False, "backend": backend}
    found = lif_spike_times_vjp(torch.ones_like(record.times), record, *events(train), weight, 1.0, 0.5, **options)
    assert found == (None, None, None, None)
