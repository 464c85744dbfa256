"""Lists of spikes: sorting, delays, and the way back through two layers."""

import math

import pytest
import torch
from spiking_toys import INF, compiled, events, random_train, random_weight

from lightning_nobp.functional.spiking import (
    SpikeTrain,
    delay_vjp,
    delayed,
    events_from_spikes,
    events_vjp,
    kernels,
    lif_record,
    lif_spike_times,
    lif_spike_times_vjp,
)

STEP = 1e-6


@pytest.fixture(autouse=True, params=[pytest.param("native", marks=compiled), "torch"])
def _sorting(request, monkeypatch):
    """By the kernel, and without it."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "supports", lambda *tensors: False)


def spike_times(batch=5, neurons=7, max_spikes=4, dtype=torch.float64):
    """Sorted for each neuron, padded with infinity; the last sample is silent."""
    counts = torch.randint(0, max_spikes + 1, (batch, neurons))
    counts[-1] = 0
    times = torch.rand(batch, neurons, max_spikes, dtype=dtype).sort(2).values
    return torch.where(torch.arange(max_spikes) < counts[..., None], times, INF)


def test_events_are_all_spikes_by_time():
    times = spike_times()
    train = events_from_spikes(times)
    longest = int((times < INF).sum((1, 2)).max())
    assert train.times.shape == (5, longest)
    for sample, spikes in enumerate(times):
        found = sorted((float(t), n) for n, row in enumerate(spikes) for t in row if t < INF)
        count = int(train.counts[sample])
        assert count == len(found)
        assert (
            list(zip(train.times[sample, :count].tolist(), train.index[sample, :count].tolist(), strict=True)) == found
        )
        assert (train.times[sample, count:] == INF).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_of_every_size_and_sign_are_sorted(dtype):
    times = torch.cat([torch.randn(3, 200, 5, dtype=dtype) * 10.0**power for power in range(-30, 30, 7)], 1)
    times[:, ::3] = INF
    times[:, 1::7] = 0.0
    times[:, 2::7] = -0.0
    train = events_from_spikes(times)
    flat = times.flatten(1)
    order = flat.argsort(dim=1, stable=True)[:, : train.times.shape[1]]
    assert torch.equal(train.source, order)
    assert torch.equal(train.times, flat.gather(1, order))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_does_not_depend_on_the_number_of_threads(dtype):
    times = torch.where(torch.rand(64, 500, 3) < 0.3, torch.rand(64, 500, 3, dtype=dtype), INF)
    expected = events_from_spikes(times)
    torch.set_num_threads(3)
    assert torch.equal(events_from_spikes(times).source, expected.source)


def test_simultaneous_spikes_keep_the_order_of_their_neurons():
    times = torch.full((1, 300, 2), 0.5)
    times[0, :, 1] = 0.75
    assert torch.equal(events_from_spikes(times).index[0], torch.arange(300).repeat(2))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0), (2, 3, 2)])
def test_no_spikes_make_no_events(shape):
    train = events_from_spikes(torch.full(shape, INF))
    assert train.times.shape == train.index.shape == (shape[0], 0)
    assert train.counts.tolist() == [0] * shape[0]
    assert events_vjp(torch.zeros(shape[0], 0), train, shape).shape == shape


def test_gradients_go_back_to_the_spikes_that_they_are_of():
    times = spike_times().requires_grad_()
    train = events_from_spikes(times)
    grad = torch.randn_like(train.times)
    (expected,) = torch.autograd.grad(train.times, times, grad, retain_graph=True)
    assert torch.equal(events_vjp(grad, train, times.shape), expected)
    dirty = torch.where(train.is_spike, grad, math.nan)
    assert torch.equal(events_vjp(dirty, train, times.shape), expected)
    assert (expected[times == INF] == 0).all()
    assert expected[times < INF].abs().min() > 0


def test_delays_sort_again_and_keep_track_of_sources():
    times, delay = spike_times(), torch.rand(7, dtype=torch.float64)
    found = delayed(events_from_spikes(times), delay)
    expected = events_from_spikes(times + delay[:, None])
    assert torch.equal(found.times, expected.times)
    assert torch.equal(found.counts, expected.counts)
    is_spike = found.is_spike
    assert torch.equal(found.index[is_spike], expected.index[is_spike])
    assert torch.equal(found.source[is_spike], expected.source[is_spike])


def test_gradients_of_delays_are_those_of_autograd():
    times, delay = spike_times().requires_grad_(), torch.rand(7, dtype=torch.float64, requires_grad=True)
    train = delayed(events_from_spikes(times), delay)
    grad = torch.randn_like(train.times)
    by_time, by_delay = torch.autograd.grad(train.times, [times, delay], grad)
    assert torch.allclose(delay_vjp(grad, train, 7), by_delay, rtol=1e-12)
    assert torch.equal(events_vjp(grad, train, times.shape), by_time)


def network(train, first, delay, second, tau):
    hidden, hidden_counts = lif_spike_times(*events(train), first, 3, tau, 0.4, p_max=None)
    late = delayed(events_from_spikes(hidden), delay)
    out, counts = lif_spike_times(*events(late), second, 2, tau, 0.4, t_max=3.0, p_max=None)
    return torch.where(out < INF, out, 0.0).square().sum(), hidden_counts.tolist() + counts.tolist()


def test_weights_delays_and_time_constants_learn_through_two_layers():
    train = random_train(4, 12, 6)
    inputs = [random_weight(6, 7), torch.rand(7).double(), random_weight(7, 3), torch.tensor(1.0).double()]
    leaves = [x.clone().requires_grad_() for x in inputs]
    loss, counts = network(train, *leaves)
    grads = torch.autograd.grad(loss, leaves)
    assert all(grad.norm() > 0 for grad in grads)
    for number, grad in enumerate(grads):
        place = tuple(int(i) for i in torch.unravel_index(grad.abs().argmax(), grad.shape))
        values = []
        for step in (STEP, -STEP):
            moved = [x.clone() for x in inputs]
            moved[number][place] += step
            value, moved_counts = network(train, *moved)
            assert moved_counts == counts
            values.append(float(value))
        assert math.isclose(grad[place], (values[0] - values[1]) / (2 * STEP), rel_tol=1e-5)


def test_the_explicit_way_back_through_two_layers_is_that_of_autograd():
    train = random_train(4, 12, 6)
    first, delay, second = random_weight(6, 7), torch.rand(7).double(), random_weight(7, 3)
    taus = 1.0, 0.4
    hidden = lif_record(*events(train), first, 3, *taus)
    late = delayed(events_from_spikes(hidden.times), delay)
    out = lif_record(*events(late), second, 2, *taus, t_max=3.0)
    grad = torch.where(out.times < INF, 2 * out.times, 0.0)
    back = lif_spike_times_vjp(grad, out, *events(late), second, *taus, t_max=3.0, p_max=None)
    to_hidden = events_vjp(back.times, late, hidden.times.shape)
    found = [
        lif_spike_times_vjp(to_hidden, hidden, *events(train), first, *taus, p_max=None).weight,
        delay_vjp(back.times, late, 7),
        back.weight,
    ]
    leaves = [x.clone().requires_grad_() for x in (first, delay, second)]
    loss, _ = network(train, *leaves, taus[0])
    for actual, expected in zip(found, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.allclose(actual, expected, rtol=1e-10, atol=1e-12)


# Errors


def test_spike_times_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"spike_times of shape \(3, 4\): give \(batch, neurons, max_spikes\)"):
        events_from_spikes(torch.rand(3, 4))


def test_a_train_without_sources_leads_nowhere_back():
    train = random_train(2, 5, 3)
    with pytest.raises(ValueError, match="only a train that events_from_spikes made"):
        events_vjp(torch.zeros(2, 5), train, (2, 3, 4))


@pytest.mark.parametrize(
    ("delay", "message"),
    [
        (torch.tensor([0.1, -0.2, 0.3]), r"delay=-0\.2 is negative: give delay.clamp\(min=0\)"),
        (torch.rand(3, 1), r"delay of shape \(3, 1\): give one for every input neuron"),
        (torch.rand(2), "index from 0 to 2: delay has 2 inputs, 0 to 1"),
    ],
)
def test_delays_out_of_range_are_refused(delay, message):
    train = SpikeTrain(torch.rand(1, 3).sort().values, torch.tensor([[0, 1, 2]]), torch.tensor([3]))
    with pytest.raises(ValueError, match=message):
        delayed(train, delay)


def test_trains_move_between_devices():
    train = events_from_spikes(spike_times()).to("meta")
    assert {tensor.device.type for tensor in (*events(train), train.source)} == {"meta"}
