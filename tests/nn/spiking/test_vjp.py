"""What all layers of spikes have in common: pullbacks like autograd's and like finite differences, and checkpoints."""

import math

import pytest
import torch
from torch import nn

from lightning_nobp.functional.spiking import events_from_spikes, latency_encode, regular_encode, threshold_encode
from lightning_nobp.nn import (
    EarliestSpikePool2d,
    FirstSpike,
    LatencyEncoder,
    MembraneReadout,
    RegularEncoder,
    SpikeCount,
    SpikeTrace,
    SpikingConv2d,
    SpikingLinear,
    ThresholdCrossingEncoder,
    initialise_from_data,
    vjp,
)
from lightning_nobp.rules.hyperparameters import to_plain

INF = math.inf
F64 = torch.float64
TAUS = [(INF, INF), (INF, 0.5), (1.0, INF), (1.0, 0.5), (0.5, 1.0), (0.7, 0.7), (1.0, 0.5 + 1e-9)]


def spikes(*shape, seed=0, missing=0.3, t_last=1.0):
    """Spike times of a shape, ascending along the last dimension, some missing."""
    generator = torch.Generator().manual_seed(seed)
    times = t_last * torch.rand(shape, generator=generator, dtype=F64)
    times[torch.rand(shape, generator=generator) < missing] = INF
    return times.sort(-1).values


def linear(tau_v=INF, tau_i=INF, seed=0, **options):
    """A layer of 6 inputs and 5 neurons that spikes; its spikes have the exact gradient."""
    torch.manual_seed(seed)
    layer = SpikingLinear(6, 5, tau_v, tau_i, **{"max_spikes": 4, "p_max": None, "dtype": F64} | options)
    with torch.no_grad():
        layer.weight.uniform_(-0.5, 2.5)
        if layer.delay is not None:
            layer.delay.uniform_(0.01, 0.3)
    return layer


LAYERS = {
    "linear": (linear, (4, 6, 3)),
    "linear, one spike": (lambda: linear(max_spikes=1), (4, 6, 3)),
    "linear, leaky": (lambda: linear(1.0, 0.5), (4, 6, 3)),
    "linear, delays": (lambda: linear(1.0, 0.5, delays=True), (4, 6, 3)),
    "linear, learned constants": (lambda: linear(1.0, 0.5, learn_tau=True, delays=True), (4, 6, 3)),
    "linear, equal constants": (lambda: linear(0.7, 0.7, learn_tau=True), (4, 6, 3)),
    "convolution": (lambda: conv(2, 3, 3), (2, 2, 5, 4, 2)),
    "convolution, padded": (lambda: conv(2, 3, 3, 1, 1, tau_v=1.0, tau_i=0.5), (2, 2, 5, 4, 2)),
    "convolution, strided": (lambda: conv(2, 3, 2, 2, 1, delays=True), (2, 2, 5, 4, 2)),
    "pool": (lambda: EarliestSpikePool2d(2), (2, 3, 4, 6, 2)),
    "pool, uneven": (lambda: EarliestSpikePool2d(2), (2, 3, 5, 7, 3)),
    "first spike": (lambda: FirstSpike(0.1), (4, 5, 3)),
    "trace": (lambda: SpikeTrace(0.3), (4, 5, 3)),
    "membrane": (lambda: MembraneReadout(6, 3, dtype=F64), (4, 6, 3)),
    "membrane, leaky": (lambda: MembraneReadout(6, 3, 1.0, 0.5, 0.8, dtype=F64), (4, 6, 3)),
}
ENCODERS = {
    "latency": lambda: LatencyEncoder(0.8, 0.1, value_range=(-1.0, 2.0)),
    "latency, both ways": lambda: LatencyEncoder(inverse=True, value_range=(-1.0, 2.0)),
    "thresholds": lambda: ThresholdCrossingEncoder((0.2, 0.6), value_range=(-1.0, 2.0)),
    "thresholds, both ways": lambda: ThresholdCrossingEncoder(inverse=True, value_range=(-1.0, 2.0)),
    "regular": lambda: RegularEncoder(3, value_range=(-1.0, 2.0)),
}


def conv(*args, **options):
    torch.manual_seed(0)
    layer = SpikingConv2d(*args, **{"max_spikes": 3, "p_max": None, "dtype": F64} | options)
    with torch.no_grad():
        layer.weight.uniform_(-0.3, 1.2)
        if layer.delay is not None:
            layer.delay.uniform_(0.01, 0.3)
    return layer


def autograd(layer, x, grad):
    """Output, and gradients of the input and the parameters, by autograd."""
    x = x.clone().requires_grad_()
    y = layer(x)
    wanted = [x, *layer.parameters()]
    y = torch.where(y < INF, y, 0.0) * grad
    return [g if g is not None else torch.zeros_like(w) for g, w in zip(_grads(y.sum(), wanted), wanted, strict=True)]


def _grads(y, wanted):
    return torch.autograd.grad(y, wanted, allow_unused=True) if y.requires_grad else [None] * len(wanted)


def explicit(layer, x, grad):
    layer.zero_grad()
    _, pullback = vjp(layer, x, needs_input_grad=True)
    grad_x = pullback(grad.clone())
    return [grad_x, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("name", [*LAYERS, *ENCODERS])
def test_the_pullback_is_autograds(name):
    make, shape = LAYERS.get(name, (ENCODERS.get(name), (4, 3, 2)))
    layer, x = make(), spikes(*shape) if name in LAYERS else torch.randn(shape, dtype=F64)
    y, _ = vjp(layer, x)
    assert not y.requires_grad
    assert torch.equal(y, layer(x))
    assert bool((y < INF).any())
    grad = torch.randn(y.shape, dtype=F64)
    for found, expected in zip(explicit(layer, x, grad), autograd(layer, x, grad), strict=True):
        torch.testing.assert_close(torch.where(x < INF, found, 0.0) if found.shape == x.shape else found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_finite_differences_at_fixed_counts_agree(name):
    make, shape = LAYERS[name]
    layer, x = make(), spikes(*shape)
    y = layer(x).detach()
    grad = torch.randn(y.shape, dtype=F64)
    found = explicit(layer, x, grad)
    torch.manual_seed(1)
    steps = [torch.randn_like(t) for t in (x, *layer.parameters())]
    values = []
    for sign in (1, -1):
        moved = make()
        with torch.no_grad():
            for p, q, step in zip(moved.parameters(), layer.parameters(), steps[1:], strict=True):
                p.copy_(q + sign * 1e-6 * step)
        out = moved(x + sign * 1e-6 * steps[0]).detach()
        assert torch.equal(out < INF, y < INF)
        values.append((torch.where(out < INF, out, 0.0) * grad).sum())
    slope = (values[0] - values[1]) / 2e-6
    expected = sum((torch.where(g.isfinite(), g, 0.0) * s).sum() for g, s in zip(found, steps, strict=True))
    assert float(slope) == pytest.approx(float(expected), rel=1e-5)


def test_a_convolution_is_the_linear_layer_on_patches():
    layer, x = conv(2, 3, 3, 2, 1), spikes(2, 2, 6, 5, 2)
    small = SpikingLinear(18, 3, max_spikes=3, dtype=F64)
    small.weight = layer.weight
    y = layer(x)
    padded = torch.full((2, 2, 8, 7, 2), INF, dtype=F64)
    padded[:, :, 1:-1, 1:-1] = x
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            assert torch.equal(y[:, :, row, column], small(window.flatten(1, 3)))


def test_a_pool_of_single_spikes_is_the_minimum():
    x = spikes(3, 2, 6, 5, 1, missing=0.5)
    expected = -nn.functional.max_pool2d(-x.squeeze(-1), 2)
    assert torch.equal(EarliestSpikePool2d(2)(x).squeeze(-1), expected)


def test_a_pool_keeps_the_earliest_spikes_of_its_window():
    x = spikes(1, 1, 2, 2, 3)
    assert torch.equal(EarliestSpikePool2d(2)(x).flatten(), x.flatten().sort().values[:3])


# Delays and windows


def test_a_delay_moves_the_spikes_of_its_input():
    layer, x = linear(1.0, 0.5, delays=True), spikes(4, 6, 3)
    plain = SpikingLinear(6, 5, 1.0, 0.5, max_spikes=4, dtype=F64)
    plain.weight = layer.weight
    assert torch.equal(layer(x), plain(x + layer.delay.unsqueeze(1)))


def test_spikes_that_arrive_after_the_window_are_dropped():
    layer, x = linear(t_max=0.7), spikes(4, 6, 3)
    assert torch.equal(layer(x), layer(torch.where(x > 0.7, INF, x)))
    assert bool((layer(x)[layer(x) < INF] <= 0.7).all())


@pytest.mark.parametrize("training", [True, False])
def test_a_negative_delay_is_0_and_can_grow_again_in_training(training):
    layer, x = linear(delays=True).train(training), spikes(4, 6, 3)
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([-0.1, 0.0, 0.1, 0.0, -0.2, 0.3]))
    y = layer(x).detach()
    assert bool((layer.delay >= 0).all()) == training
    grad = torch.randn(y.shape, dtype=F64)
    found, expected = explicit(layer, x, grad), autograd(layer, x, grad)
    which = 1 + [name for name, _ in layer.named_parameters()].index("delay")
    torch.testing.assert_close(found[which], expected[which])
    assert (found[which] != 0).tolist() == [training, True, True, True, training, True]


def test_looking_at_a_layer_does_not_move_its_delays():
    layer, x = linear(delays=True), spikes(4, 6, 3)
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([-0.1, 0.0, 0.1, 0.0, -0.2, 0.3]))
    before = layer.delay.clone()
    layer.operations(x)
    layer.arrivals(x)
    assert torch.equal(layer.delay, before)


def test_operations_are_of_spikes_that_arrive_in_time():
    layer, x = linear(delays=True), torch.tensor([[[1.0], [0.1], [INF], [2.0], [1.9], [0.0]]], dtype=F64)
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([1.5, 1.5, 0.0, 0.0, 0.2, 2.0]))
    assert layer.operations(x).tolist() == [3 * 5]
    # A spike at the very end arrives, at whatever is behind it.
    assert MembraneReadout(6, 5).operations(x).tolist() == [5 * 5]
    assert conv(2, 3, 3).operations(torch.zeros(2, 2, 5, 4, 2, dtype=F64)).tolist() == [3 * 2 * 18 * 2 * 3] * 2


def test_times_that_are_no_numbers_are_refused_by_the_next_layer():
    with pytest.raises(ValueError, match="spike_times hold nan"):
        SpikingLinear(2, 2)(torch.full((1, 2, 1), math.nan))
    with pytest.raises(ValueError, match="spike_times hold nan"):
        vjp(SpikingLinear(2, 2), torch.tensor([[[0.1], [math.nan]]]))


def test_the_state_says_whether_weights_are_scaled():
    network = nn.Sequential(linear(), MembraneReadout(5, 3, dtype=F64))
    initialise_from_data(network, spikes(4, 6, 3))
    twin = nn.Sequential(linear(), MembraneReadout(5, 3, dtype=F64))
    assert not any(layer.is_scaled for layer in twin)
    twin.load_state_dict(network.state_dict())
    assert all(layer.is_scaled for layer in twin)
    for layer in twin:
        layer.reset_parameters()
        assert not layer.is_scaled


def test_learned_constants_start_where_they_are_told():
    tau_v, tau_i = linear(1.5, 0.25, learn_tau=True).time_constants()
    assert (float(tau_v), float(tau_i)) == pytest.approx((1.5, 0.25), rel=1e-12)


# Codes and scores


def test_encoders_send_what_the_codes_say():
    x = torch.rand(4, 3, 2, dtype=F64)
    for encoder, train in (
        (LatencyEncoder(0.8, 0.1, value_range=(0, 1)), latency_encode(x, 0.8, 0.1)),
        (ThresholdCrossingEncoder((0.2, 0.6), value_range=(0, 1)), threshold_encode(x, (0.2, 0.6))),
        (RegularEncoder(3, value_range=(0, 1)), regular_encode(x, 3)),
    ):
        found = events_from_spikes(encoder(x).flatten(1, 2))
        assert torch.equal(found.times, train.times)
        assert torch.equal(found.index, train.index)


def test_the_inverse_is_a_second_population():
    x = torch.rand(4, 3, 2, dtype=F64)
    both = LatencyEncoder(inverse=True, value_range=(0, 1))(x)
    plain = LatencyEncoder(value_range=(0, 1))
    assert torch.equal(both, torch.cat([plain(x), plain(1 - x)], dim=1))


def test_a_range_is_measured_once_and_travels_with_the_state():
    encoder, x = LatencyEncoder(), torch.tensor([[-2.0, 0.0, 2.0]])
    assert encoder(x).flatten().tolist() == [INF, 0.5, 0.0]
    encoder.measure(x)
    twin = LatencyEncoder()
    twin.load_state_dict(encoder.state_dict())
    for layer in (encoder, twin):
        assert layer(torch.tensor([[0.0, 5.0, -5.0]])).flatten().tolist() == [0.5, 0.0, INF]
    assert LatencyEncoder(threshold=-1.0)(torch.full((1, 2), 7.0)).flatten().tolist() == [1.0, 1.0]


def test_scores_of_spikes():
    x = torch.tensor([[[0.2, 0.4], [0.1, INF], [INF, INF]]], dtype=F64)
    assert FirstSpike(0.1, 2.0)(x).tolist() == [[pytest.approx(-2.0), pytest.approx(-1.0), pytest.approx(-20.0)]]
    decayed = [math.exp(-0.2) + math.exp(-0.4), math.exp(-0.1), 0.0]
    assert SpikeTrace(1.0, 1.0)(x).tolist() == [[pytest.approx(d) for d in decayed]]
    assert SpikeCount()(x).tolist() == [[2, 1, 0]]


# Checkpoints and bad input


@pytest.mark.parametrize("name", [*LAYERS, *ENCODERS])
def test_a_checkpoint_can_say_how_to_build_the_layer_again(name):
    layer = LAYERS[name][0]() if name in LAYERS else ENCODERS[name]()
    plain = to_plain(nn.Sequential(layer), "network")
    assert plain["init_args"]["layers"][0]["class_path"].endswith(type(layer).__name__)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_built_on_meta(name):
    with torch.device("meta"):
        layer = LAYERS[name][0]()
    assert all(p.is_meta for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpikingLinear(2, 2, tau_v=0), "tau_v=0 must be positive"),
        (lambda: SpikingLinear(2, 2, tau_i=math.nan), "tau_i=nan must be finite"),
        (lambda: SpikingLinear(2, 2, theta=-1.0), "theta=-1.0 must be positive"),
        (lambda: SpikingLinear(2, 2, t_max=INF), "t_max=inf must be finite"),
        (lambda: SpikingLinear(2, 2, max_spikes=0), "max_spikes=0 must be positive"),
        (lambda: SpikingLinear(2, 2, p_max=0), "p_max=0 must be positive; None is no bound"),
        (lambda: SpikingLinear(2, 2, tau_v=1.0, learn_tau=True), "learn_tau=True with tau_v=1.0 and tau_i=inf"),
        (lambda: SpikingLinear(2, 2)(torch.zeros(1, 3, 1)), r"spikes of shape \(1, 3, 1\) do not fit 2 inputs"),
        (lambda: SpikingLinear(2, 2)(torch.full((1, 2, 1), -0.5)), "times begin at -0.5"),
        (lambda: SpikingConv2d(1, 1, 0), "kernel_size=0 must be at least 1"),
        (lambda: SpikingConv2d(1, 1, 3, padding=-1), "padding=-1 must be at least 0"),
        (lambda: SpikingConv2d(1, 1, 3)(torch.zeros(1, 2, 4, 4, 1)), r"give \(batch, 1, height, width, spikes\)"),
        (lambda: SpikingConv2d(1, 1, 3)(torch.zeros(1, 1, 2, 4, 1)), "maps of 2x4 hold no kernel_size=3"),
        (lambda: EarliestSpikePool2d(0), "kernel_size=0 must be at least 1"),
        (lambda: EarliestSpikePool2d(3)(torch.zeros(1, 1, 2, 4, 1)), "at least kernel_size=3"),
        (lambda: LatencyEncoder(0.0), "t_last=0.0 must be positive"),
        (lambda: LatencyEncoder(threshold=1.0), "threshold=1.0 must be below 1"),
        (lambda: LatencyEncoder(value_range=(1.0, 0.0)), "value_range="),
        (lambda: LatencyEncoder()(torch.tensor([[math.nan]])), "inputs hold nan or infinity: give finite numbers"),
        (lambda: LatencyEncoder()(torch.zeros(2, 2, dtype=torch.uint8)), "inputs of type torch.uint8"),
        (lambda: ThresholdCrossingEncoder((0.5, 0.2)), r"thresholds=\[0.5, 0.2\] must ascend"),
        (lambda: RegularEncoder(0), "max_spikes=0 must be at least 1"),
        (lambda: FirstSpike()(torch.zeros(2, 3)), r"spikes of shape \(2, 3\): give \(batch, neurons, spikes\)"),
        (lambda: SpikeTrace()(torch.zeros(2, 3, 0)), "at least one place a neuron"),
        (lambda: FirstSpike()(torch.full((2, 3, 1), math.nan)), "spike_times hold nan"),
        (lambda: SpikeTrace()(torch.full((2, 3, 1), math.nan)), "spike_times hold nan"),
        (lambda: MembraneReadout(3, 2)(torch.full((2, 3, 1), math.nan)), "spike_times hold nan"),
        (lambda: SpikingLinear(2, 2)(torch.full((1, 2, 1), -INF)), "times begin at -inf"),
        (lambda: SpikingLinear(0, 2), "a layer with 0 inputs: give at least one"),
        (lambda: SpikingLinear(2, -1), "a layer with -1 outputs: give at least one"),
        (lambda: FirstSpike(0.0), "sigma=0.0 must be positive"),
        (lambda: SpikeTrace(INF), "tau_out=inf must be positive and finite"),
        (lambda: MembraneReadout(2, 2, tau_v=-1.0), "tau_v=-1.0 must be positive"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [2.5, 4.0, math.nan])
def test_numbers_of_spikes_that_are_not_whole_are_refused(bad):
    for make in (lambda: SpikingLinear(2, 2, max_spikes=bad), lambda: RegularEncoder(bad)):
        with pytest.raises(TypeError, match=f"max_spikes={bad} is no whole number"):
            make()


def test_spikes_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"spikes of torch\.float64 and weights of torch\.float32: convert"):
        SpikingLinear(2, 2)(torch.zeros(1, 2, 1, dtype=F64))


def test_counts_cannot_train():
    with pytest.raises(RuntimeError, match="SpikeCount has no gradient: train with FirstSpike or SpikeTrace"):
        SpikeCount()(torch.zeros(1, 2, 1, requires_grad=True))
