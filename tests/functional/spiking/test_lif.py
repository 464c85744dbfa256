"""What spiking layers promise beside their numbers: two backends, threads, shapes, autograd, errors."""

import math
import warnings

import pytest
import torch
from spiking_toys import BACKENDS, INF, TAUS, compiled, events, random_train, random_weight, spikes_of

from lightning_nobp import csrc
from lightning_nobp.functional.spiking import (
    SpikeRecord,
    SpikeTrain,
    kernels,
    lif,
    lif_record,
    lif_spike_times,
    lif_spike_times_vjp,
    saturated,
)


def both_ways(train, weight, max_spikes, taus, backend, **options):
    """The record and all gradients."""
    record = lif_record(*events(train), weight, max_spikes, *taus, backend=backend, **options)
    grad = torch.linspace(-1, 1, record.times.numel(), dtype=weight.dtype).view_as(record.times)
    found = lif_spike_times_vjp(
        grad, record, *events(train), weight, *taus, needs_tau_grad=True, backend=backend, **options
    )
    return record, found


# Two backends


@compiled
@pytest.mark.parametrize("taus", TAUS)
@pytest.mark.parametrize(
    ("batch", "events_", "inputs", "neurons", "max_spikes"),
    [(5, 25, 12, 20, 4), (1, 1, 1, 1, 1), (3, 6, 1, 17, 2), (4, 9, 5, 1, 3), (2, 40, 30, 150, 16), (3, 8, 4, 300, 1)],
)
def test_the_kernels_compute_what_the_loop_does(batch, events_, inputs, neurons, max_spikes, taus):
    train, weight = random_train(batch, events_, inputs, ragged=batch > 1), random_weight(inputs, neurons)
    one, one_grads = both_ways(train, weight, max_spikes, taus, "native")
    other, other_grads = both_ways(train, weight, max_spikes, taus, "torch")
    assert torch.equal(one.counts, other.counts)
    assert torch.allclose(one.times, other.times, rtol=0, atol=1e-12)
    is_spike = one.times < INF
    assert torch.equal(one.event[is_spike], other.event[is_spike])
    assert torch.allclose(one.slope[is_spike], other.slope[is_spike], rtol=1e-9)
    for found, expected in zip(one_grads, other_grads, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-10 * (1 + expected.norm())


@compiled
@pytest.mark.parametrize("taus", TAUS)
def test_the_kernels_compute_it_in_single_precision_too(taus):
    train, weight = random_train(6, 25, 12, torch.float32), random_weight(12, 40, torch.float32)
    one, one_grads = both_ways(train, weight, 4, taus, "native")
    assert {tensor.dtype for tensor in (one.times, one.slope, *one_grads)} == {torch.float32}
    double = SpikeTrain(train.times.double(), train.index, train.counts)
    record = type(one)(one.times.double(), one.counts, one.event, one.slope.double())
    grad = torch.linspace(-1, 1, one.times.numel()).view_as(one.times).double()
    options = {"needs_tau_grad": True, "backend": "torch"}
    others = lif_spike_times_vjp(grad, record, *events(double), weight.double(), *taus, **options)
    for found, expected in zip(one_grads, others, strict=True):
        assert (found - expected).norm() <= 1e-4 * (1e-3 + expected.norm())


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neurons", [10, 300])
def test_results_do_not_depend_on_the_number_of_threads(neurons, dtype):
    train, weight = random_train(150, 60, 20, dtype), random_weight(20, neurons, dtype)
    record, found = both_ways(train, weight, 5, (1.0, 0.5), "native")
    for number in (2, 3, 5):
        torch.set_num_threads(number)
        again, gradients = both_ways(train, weight, 5, (1.0, 0.5), "native")
        assert torch.equal(record.times, again.times)
        assert torch.equal(record.counts, again.counts)
        assert all(map(torch.equal, found, gradients))


# Shapes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("batch", "events_", "inputs", "neurons"),
    [(0, 5, 3, 4), (3, 0, 3, 4), (0, 0, 3, 4), (2, 5, 3, 0), (2, 0, 0, 4)],
)
def test_nothing_in_gives_nothing_out(batch, events_, inputs, neurons, backend):
    train, weight = random_train(batch, events_, max(1, inputs)), random_weight(inputs, neurons)
    record, found = both_ways(train, weight, 2, (1.0, 0.5), backend)
    assert record.times.shape == (batch, neurons, 2)
    assert (record.counts == 0).all()
    assert found.times.shape == (batch, events_)
    assert found.weight.shape == (inputs, neurons)
    assert all((gradient == 0).all() for gradient in found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_may_lie_in_memory_as_they_like(backend):
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    expected = both_ways(train, weight, 3, (1.0, 0.5), backend)
    strided = SpikeTrain(
        train.times.T.contiguous().T, train.index.repeat_interleave(2, 1)[:, ::2].int(), train.counts.int()
    )
    found = both_ways(strided, weight.T.contiguous().T, 3, (1.0, 0.5), backend)
    assert torch.equal(found[0].times, expected[0].times)
    assert all(map(torch.equal, found[1], expected[1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", [INF, math.nan, -1.0, 0.0])
def test_what_follows_the_events_does_not_count(padding, backend):
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    times = torch.where(train.is_spike, train.times, padding)
    index = torch.where(train.is_spike, train.index, 10**9)
    expected = both_ways(train, weight, 3, (1.0, 0.5), backend)
    found = both_ways(SpikeTrain(times, index, train.counts), weight, 3, (1.0, 0.5), backend)
    assert torch.equal(found[0].times, expected[0].times)
    assert all(map(torch.equal, found[1], expected[1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_neuron_that_has_fired_often_enough_is_silent(backend):
    train, weight = random_train(6, 20, 6), random_weight(6, 9)
    many = lif_record(*events(train), weight, 50, 1.0, 0.5, backend=backend)
    assert not saturated(many.counts, 50).any()
    few = lif_record(*events(train), weight, 2, 1.0, 0.5, backend=backend)
    assert torch.equal(few.times, many.times[..., :2])
    assert torch.equal(few.counts, many.counts.clamp(max=2))
    assert torch.equal(saturated(few.counts, 2), many.counts >= 2)
    assert saturated(few.counts, 2).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_simultaneous_inputs_are_one_input(backend):
    times = torch.tensor([[0.1, 0.1, 0.1, 0.4]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [2.0], [-0.5]], dtype=torch.float64)
    index, one = torch.tensor([[0, 1, 2, 1]]), torch.tensor([[0, 1]])
    together = torch.tensor([[2.5], [2.0]], dtype=torch.float64)
    found = lif_record(times, index, torch.tensor([4]), weight, 1, 1.0, 0.5, backend=backend)
    alone = lif_record(times[:, 2:], one, torch.tensor([2]), together, 1, 1.0, 0.5, backend=backend)
    assert torch.allclose(spikes_of(found), spikes_of(alone), rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_spikes_end_with_the_window(backend):
    train, weight = random_train(6, 20, 6), random_weight(6, 9)
    long, short = (lif_record(*events(train), weight, 50, 1.0, 0.5, t_max=t, backend=backend) for t in (2.0, 1.2))
    assert long.counts.sum() > short.counts.sum() > 0
    assert torch.allclose(spikes_of(short), long.times[long.times <= 1.2], rtol=1e-12)


# Autograd


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_gives_the_explicit_gradients(backend):
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    record, found = both_ways(train, weight, 3, (1.0, 0.5), backend)
    grad = torch.linspace(-1, 1, record.times.numel(), dtype=weight.dtype).view_as(record.times)
    taus = [torch.tensor(tau, dtype=torch.float64) for tau in (1.0, 0.5)]
    leaves = [x.clone().requires_grad_() for x in (train.times, weight, *taus)]
    times, counts = lif_spike_times(
        leaves[0], train.index, train.counts, leaves[1], 3, leaves[2], leaves[3], backend=backend
    )
    assert torch.equal(times, record.times)
    assert torch.equal(counts, record.counts)
    assert times.requires_grad
    assert not counts.requires_grad
    assert all(map(torch.equal, torch.autograd.grad(times, leaves, grad), found))


def test_only_what_needs_a_gradient_gets_one(monkeypatch):
    train, weight = random_train(4, 10, 6), random_weight(6, 8).requires_grad_()
    asked = []
    monkeypatch.setattr(lif, "_backward", lambda *inputs: (asked.append(inputs[-1]), (None,) * 4)[1])
    times, _ = lif_spike_times(*events(train), weight, 2, torch.tensor(1.0), 0.5)
    times.backward(torch.ones_like(times))
    assert asked == [(False, True, False)]


def test_gradients_have_no_gradients():
    train, weight = random_train(4, 10, 6), random_weight(6, 8).requires_grad_()
    times, _ = lif_spike_times(*events(train), weight, 2, 1.0, 0.5)
    (grad,) = torch.autograd.grad(times[times < INF].sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


def test_function_transforms_are_refused():
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    for transform in (torch.func.vmap, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=r"torch\.func.*lif_spike_times_vjp"):
            transform(lambda w: lif_spike_times(*events(train), w, 2, 1.0, 0.5)[0])(weight.expand(3, 6, 8))


def test_compilers_pass_it_over():
    train, weight = random_train(4, 10, 6), random_weight(6, 8)

    def run(weight):
        times, _ = lif_spike_times(*events(train), 2 * weight, 2, 1.0, 0.5)
        return times.clamp(max=3).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value, grad = (x.requires_grad_() for x in (weight.clone(), weight.clone()))
        torch.compile(run, backend="eager")(value).backward()
    run(grad).backward()
    assert torch.equal(value.grad, grad.grad)


def test_tensors_without_numbers_have_shapes():
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    leaves = [x.to("meta").requires_grad_() for x in (train.times, weight)]
    times, counts = lif_spike_times(leaves[0], train.index.to("meta"), train.counts.to("meta"), leaves[1], 3, 1.0, 0.5)
    assert (times.shape, counts.shape, counts.dtype) == ((4, 8, 3), (4, 8), torch.int64)
    assert [g.shape for g in torch.autograd.grad(times.sum(), leaves)] == [(4, 10), (6, 8)]


# Without kernels


@pytest.fixture
def no_kernels(monkeypatch, tmp_path):
    def forget():
        for cached in (csrc.library, kernels._why_none, kernels._warn_once, kernels._function):
            cached.cache_clear()

    monkeypatch.setattr(csrc, "_FOLDER", tmp_path)
    forget()
    yield
    forget()


def test_without_kernels_torch_computes_after_one_warning(no_kernels):
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    with pytest.warns(UserWarning, match=r"no compiled kernels .*C\+\+ compiler\. Until then") as caught:
        found = both_ways(train, weight, 2, (1.0, 0.5), "auto")
    assert len(caught) == 1
    expected = both_ways(train, weight, 2, (1.0, 0.5), "torch")
    assert torch.equal(found[0].times, expected[0].times)
    assert all(map(torch.equal, found[1], expected[1]))
    with pytest.raises(csrc.KernelsUnavailableError, match=r"C\+\+ compiler"):
        both_ways(train, weight, 2, (1.0, 0.5), "native")


# Errors


def call(**changes):
    """A small layer with one argument changed."""
    arguments = {
        "times": torch.tensor([[0.1, 0.2, 0.4], [0.3, 0.5, INF]]),
        "index": torch.tensor([[0, 3, 1], [2, 2, 0]]),
        "num_events": torch.tensor([3, 2]),
        "weight": torch.randn(4, 5),
        "max_spikes": 2,
        "tau_v": 1.0,
        "tau_i": 0.5,
    }
    return lif_spike_times(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": torch.tensor([[0.1, 0.2, 0.4], [0.5, 0.3, INF]])}, "times of sample 1 are not sorted: sort them"),
        ({"times": torch.tensor([[-0.1, 0.2, 0.4], [0.3, 0.5, INF]])}, r"times begin at -0\.1: .* shift them"),
        ({"times": torch.tensor([[0.1, math.nan, 0.4], [0.3, 0.5, INF]])}, "times hold nan or infinity"),
        ({"num_events": torch.tensor([3, 3])}, "times hold nan or infinity among the events: num_events counts"),
        ({"num_events": torch.tensor([4, 2])}, "num_events from 2 to 4: each must be from 0 to the 3 events"),
        ({"num_events": torch.tensor([3, -1])}, "num_events from -1 to 3"),
        ({"index": torch.tensor([[0, 4, 1], [2, 2, 0]])}, "index from 0 to 4: weight has 4 inputs, 0 to 3"),
        ({"index": torch.tensor([[0, 3, 1], [2, -1, 0]])}, "index from -1 to 3: weight has 4 inputs"),
        ({"index": torch.tensor([[0, 3], [2, 2]])}, r"index of \(2, 2\).*give \(batch, events\) twice and \(batch,\)"),
        ({"weight": torch.randn(4)}, r"weight of shape \(4,\): give \(inputs, neurons\)"),
        ({"max_spikes": 0}, "max_spikes=0 must be at least 1"),
        ({"tau_v": 0.0}, r"tau_v=0 must be positive; float\('inf'\) is no decay"),
        ({"tau_i": -0.5}, r"tau_i=-0\.5 must be positive"),
        ({"tau_i": math.nan}, "tau_i=nan must be positive"),
        ({"tau_v": torch.tensor(-1.0)}, "tau_v=-1 must be positive"),
        ({"tau_v": torch.ones(5)}, r"tau_v of shape \(5,\): all neurons of a layer share one"),
        ({"theta": 0.0}, "theta=0 must be positive and finite"),
        ({"t_max": 0.45}, r"t_max=0\.45 is before the last event at 0\.5: give a longer window"),
        ({"t_max": INF}, "t_max=inf must be positive and finite"),
        ({"p_max": 0.0}, "p_max=0 must be positive; None is no bound"),
        ({"backend": "cuda"}, "backend='cuda' is not one of"),
    ],
)
def test_bad_input_is_refused_at_the_door(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.randn(4, 5).double()}, "times of type torch.float32 and weight of torch.float64"),
        ({"index": torch.zeros(2, 3)}, r"index of type torch.float32: give whole numbers, int32"),
        ({"num_events": torch.ones(2)}, r"num_events, a train's counts, of type torch.float32: give whole"),
        ({"times": torch.zeros(2, 3).long()}, "times of type torch.int64: spike times are floating point"),
    ],
)
def test_wrong_types_are_refused_at_the_door(changes, message):
    with pytest.raises(TypeError, match=message):
        call(**changes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_refuse_types_that_they_do_not_have(dtype):
    changes = {"times": torch.zeros(2, 3, dtype=dtype), "weight": torch.zeros(4, 5, dtype=dtype)}
    with pytest.raises(RuntimeError, match=r"backend='native' takes float32 or float64.*take backend='torch'"):
        call(backend="native", **changes)


def test_a_record_of_other_arguments_is_refused():
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    record = lif_record(*events(train), weight, 3, 1.0, 0.5)
    with pytest.raises(ValueError, match=r"record of \(4, 8\).*\(4, 7\), so give those"):
        lif_spike_times_vjp(record.times, record, *events(train), weight[:, :7], 1.0, 0.5)


def test_a_gradient_of_another_shape_is_refused():
    train, weight = random_train(4, 10, 6), random_weight(6, 8)
    record = lif_record(*events(train), weight, 3, 1.0, 0.5)
    with pytest.raises(ValueError, match=r"grad of shape \(4, 8\).*\(4, 8, 3\)"):
        lif_spike_times_vjp(torch.zeros(4, 8), record, *events(train), weight, 1.0, 0.5)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_weights_that_are_not_what_their_memory_says(backend):
    train, weight = random_train(3, 9, 5), random_weight(5, 4)
    found = lif_spike_times(*events(train), torch._neg_view(-weight), 3, INF, 1.0, backend=backend)
    for mine, other in zip(found, lif_spike_times(*events(train), weight, 3, INF, 1.0, backend=backend), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


RECORDS = {
    "grad of another type": ({}, {"grad": lambda g: g.float()}, TypeError, r"grad of torch\.float32"),
    "a record of other samples": ({"batch": 2}, {}, ValueError, r"record of \(2, 4\) samples and neurons"),
    "events of another type": (
        {},
        {"event": lambda e: e.long()},
        TypeError,
        r"counts of torch\.int64 and events of torch\.int64",
    ),
    "slopes of another type": ({}, {"slope": lambda s: s.float()}, TypeError, r"record\.slope of torch\.float32"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_and_gradients_of_something_else_are_refused(name):
    made_of, changes, error, message = RECORDS[name]
    train, weight = random_train(3, 9, 5), random_weight(5, 4)
    record = lif_record(*events(random_train(made_of.get("batch", 3), 9, 5)), weight, 3, INF, 1.0)
    grad = changes.get("grad", lambda g: g)(torch.ones_like(record.times))
    parts = {
        part: changes.get(part, lambda t: t)(getattr(record, part)) for part in ("times", "counts", "event", "slope")
    }
    with pytest.raises(error, match=message):
        lif_spike_times_vjp(grad, SpikeRecord(**parts), *events(train), weight, INF, 1.0)


@compiled
def test_a_record_of_more_events_touches_no_memory_of_others():
    train, weight = random_train(3, 200, 5, ragged=False), random_weight(5, 40)
    record = lif_record(*events(train), weight, 8, INF, 1.0, backend="native")
    few = train.times, train.index, torch.full((3,), 2)
    found = lif_spike_times_vjp(torch.ones_like(record.times), record, *few, weight, INF, 1.0, backend="native")
    assert torch.equal(found.times[:, 2:], torch.zeros(3, 198, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad):
    train, weight = random_train(3, 9, 5), random_weight(5, 4)
    weight[2, 1] = bad
    with pytest.raises(ValueError, match="weight holds nan or infinity"):
        lif_spike_times(*events(train), weight, 3, INF, 1.0)


def test_gradients_that_are_not_what_their_memory_says():
    train, weight = random_train(3, 9, 5), random_weight(5, 4)
    record = lif_record(*events(train), weight, 3, INF, 1.0)
    grad = torch.randn_like(record.times)
    found = [lif_spike_times_vjp(g, record, *events(train), weight, INF, 1.0) for g in (grad, torch._neg_view(-grad))]
    assert torch.allclose(found[0].weight, found[1].weight, rtol=0, atol=1e-12)
