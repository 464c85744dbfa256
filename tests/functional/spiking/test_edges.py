"""Where numbers end: windows that a type cannot hold, ties, currents that are too weak or too strong, no events."""

import math
import subprocess
import sys

import pytest
import torch
from spiking_toys import BACKENDS, INF, compiled, events, random_train, random_weight, single_input, spikes_of

from lightning_nobp.functional.spiking import lif_record, lif_spike_times, lif_spike_times_vjp

# Rounded to single precision the first four become larger, the others smaller or stay.
WINDOWS = [0.3, 0.6, 1.1, 1.2, 0.7, 1.3, 2.0]


def ramp(t_max, dtype=torch.float32, backend="auto"):
    """Spike times of a neuron for a sample of one event and one of two."""
    times = torch.tensor([[0.1, INF], [0.05, 0.08]], dtype=dtype)
    index, counts, weight = torch.zeros(2, 2).long(), torch.tensor([1, 2]), torch.tensor([[5.3]], dtype=dtype)
    return lif_record(times, index, counts, weight, 20, INF, INF, t_max=t_max, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("t_max", WINDOWS)
def test_windows_that_a_type_cannot_hold_are_rounded_as_the_times_are(t_max, backend):
    single, double = (ramp(t_max, dtype, backend) for dtype in (torch.float32, torch.float64))
    assert torch.equal(single.counts, double.counts)
    assert (spikes_of(single) <= t_max).all()
    assert torch.allclose(spikes_of(single).double(), spikes_of(double), rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("t_max", [0.1, *WINDOWS])
def test_an_input_at_the_end_of_the_window_is_in_it(t_max, backend):
    times = torch.tensor([[0.01, t_max], [0.01, INF]])
    arguments = times, torch.zeros(2, 2).long(), torch.tensor([2, 1]), torch.tensor([[1000.0]])
    found, _ = lif_spike_times(*arguments, 2, INF, INF, t_max=t_max, backend=backend)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_before_an_input_is_refused_also_in_single_precision(backend):
    arguments = torch.tensor([[0.2, 0.4]]), torch.zeros(1, 2).long(), torch.tensor([2]), torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"t_max=0\.3 is before the last event at 0\.4"):
        lif_spike_times(*arguments, 2, INF, INF, t_max=0.3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spike_at_the_end_of_the_window_is_on_time_or_lost_to_rounding(backend, dtype):
    weight, zeros = torch.tensor([[1 / 0.3]], dtype=dtype), torch.zeros(1, 1)
    arguments = zeros.to(dtype), zeros.long(), torch.tensor([1]), weight
    found = lif_record(*arguments, 2, INF, INF, t_max=0.3, backend=backend)
    assert int(found.counts) in (0, 1)
    assert (spikes_of(found) <= 0.3).all()
    assert torch.allclose(spikes_of(found), torch.tensor(0.3, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t_max", [5.0, 1e6])
@pytest.mark.parametrize(("weight", "tau_v"), [(10.0, 0.1), (1.0, 1.0), (3.0, 1 / 3)])
def test_a_current_that_only_reaches_the_threshold_in_the_end_never_fires(weight, tau_v, t_max, dtype, backend):
    zeros = torch.zeros(1, 1, dtype=dtype)
    arguments = zeros, zeros.long(), torch.tensor([1]), torch.tensor([[weight]], dtype=dtype)
    found = lif_record(*arguments, 4, tau_v, INF, t_max=t_max, backend=backend)
    assert int(found.counts) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_little_more_current_does(backend):
    (found,) = single_input([1 + 1e-9], 1, 1.0, INF, backend=backend)
    assert float(found) == pytest.approx(-math.log(1e-9), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_whose_sum_overflows_are_refused(backend):
    arguments = torch.tensor([[0.1, 0.1, 0.2]]), torch.arange(3)[None], torch.tensor([3])
    weight = torch.tensor([[3e38], [3e38], [-3e38]])
    with pytest.raises(ValueError, match=r"weight holds numbers up to 3e\+38: .* overflow torch.float32"):
        lif_spike_times(*arguments, weight, 2, 1.0, 0.5, backend=backend)
    found, _ = lif_spike_times(*arguments, weight / 10, 2, 1.0, 0.5, backend=backend)
    assert not found.isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_a_record_with_more_spikes_than_it_has_places_for_is_refused(backend, bad):
    train, weight = random_train(2, 4, 3), random_weight(3, 2)
    record = lif_record(*events(train), weight, 3, 1.0, 0.5, backend=backend)
    record.counts[1, 1] = bad
    with pytest.raises(ValueError, match=rf"record with counts from .*{bad}: |record with counts from {bad} to"):
        lif_spike_times_vjp(torch.ones(2, 2, 3).double(), record, *events(train), weight, 1.0, 0.5, backend=backend)


@compiled
def test_the_gradient_of_no_events_needs_no_memory():
    # In a process of its own, in which no call before it has left scratch space.
    script = """
import torch
from lightning_nobp.nn import SpikingLinear, vjp
layer = SpikingLinear(3, 4)
y, pull = vjp(layer, torch.full((2, 3, 1), torch.inf), needs_input_grad=True)
assert (pull(torch.zeros_like(y)) == 0).all() and (layer.weight.grad == 0).all()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bad", [4.0, 2.5, math.nan, "4"])
def test_numbers_of_spikes_that_are_not_whole_are_refused(bad):
    train, weight = random_train(2, 4, 3), random_weight(3, 2)
    with pytest.raises(TypeError, match=f"max_spikes={bad} is no whole number"):
        lif_spike_times(*events(train), weight, bad, 1.0, 0.5)
    whole = torch.tensor(3)
    assert lif_spike_times(*events(train), weight, whole, 1.0, 0.5)[0].shape[2] == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_spike_that_comes_with_an_input_is_the_same_on_either_side(backend):
    """Which interval it belongs to is left to rounding; its time and its gradient are not."""
    times, index, counts = torch.tensor([[0.0, 0.3]]).double(), torch.arange(2)[None], torch.tensor([2])
    for scale in (1 - 1e-15, 1.0, 1 + 1e-15):
        weight = torch.tensor([[scale / 0.3], [2.0]], dtype=torch.float64)
        record = lif_record(times, index, counts, weight, 1, INF, INF, backend=backend)
        assert float(record.times) == pytest.approx(0.3)
        grads = lif_spike_times_vjp(
            torch.ones_like(record.times), record, times, index, counts, weight, INF, INF, p_max=None, backend=backend
        )
        # The later input has had no time yet; the slope is that before it, or that with it.
        assert float(grads.weight[1]) == pytest.approx(0, abs=1e-9)
        assert float(grads.weight[0]) == pytest.approx(-0.3 / float(record.slope))
        assert any(math.isclose(float(record.slope), slope) for slope in (1 / 0.3, 1 / 0.3 + 2))
