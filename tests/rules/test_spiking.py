"""SpikeTimingBackprop: the written gradient is that of the loss, and what cannot learn is refused."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from spiking_rules import INF, NETWORKS, assert_autograd_agrees, batch, gradients, make_rule
from torch import nn

from lightning_nobp.functional.spiking import events_from_spikes
from lightning_nobp.functional.spiking.highest import highest_potential
from lightning_nobp.nn import (
    FirstSpike,
    LatencyEncoder,
    SpikeCount,
    SpikingLinear,
    SpikingMLP,
    initialise_from_data,
)
from lightning_nobp.rules import SpikeTimingBackprop


def height(layer, spikes):
    """Mean of the highest potentials of neurons that do not spike."""
    train = events_from_spikes(layer.arrivals(spikes))
    return highest_potential(train, layer.weight, layer.t_max, *layer.time_constants())[0].mean()


def quiet(rule, data, outputs=1):
    """Make some outputs nearly silent, in a network that has begun, and give delays some length."""
    rule.compute_gradients(data)
    last = [m for m in rule.network if isinstance(m, SpikingLinear)][-1]
    with torch.no_grad():
        last.weight[:, :outputs] *= 0.1
        for name, p in rule.named_parameters():
            if name.endswith("delay"):
                p.uniform_(0, 0.2)
    return last


# The gradient


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "options", [{}, {"spike_penalty": 0.3, "gamma": 0.7, "silent_penalty": 0.4, "hidden_silent_penalty": 0.6}]
)
def test_the_written_gradient_is_autograds(network, options):
    if network == "membrane":
        options = {name: value for name, value in options.items() if name not in ("gamma", "silent_penalty")}
    rule, data = make_rule(network, **options), batch()
    rule.compute_gradients(data)
    if network not in ("membrane", "cnn"):
        quiet(rule, data)
        silent = rule.outputs(data[0])[f"spikes/{len(list(rule.network)) - 3}"][..., 0] == INF
        assert silent.any()
        assert not silent.all()
    assert_autograd_agrees(rule, data)


def test_the_written_gradient_of_timed_targets_is_autograds():
    rule, data = make_rule(loss="mse", target_times=(0.5, 1.5)), batch()
    quiet(rule, data)
    assert_autograd_agrees(rule, data)


@pytest.mark.parametrize("network", ["mlp", "all that can be learned", "cnn", "trace", "membrane"])
def test_finite_differences_of_the_loss_agree(network):
    made = partial(NETWORKS[network], p_max=None)
    rule, data = make_rule(made, spike_penalty=0.3), batch()
    rule.compute_gradients(data)
    _, found = gradients(rule, data)
    torch.manual_seed(3)
    steps = {name: torch.randn_like(p) for name, p in rule.named_parameters()}
    counts, losses = [], []
    for size in (1e-7, -1e-7):
        moved = copy.deepcopy(rule)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                # Delays are 0, from where they can only grow.
                p.add_(size * steps[name] + (1e-7 * steps[name].abs() if name.endswith("delay") else 0))
            losses.append(float(moved.global_loss(data)))
            spikes = moved.outputs(data[0])
            counts.append([int((s < INF).sum()) for n, s in spikes.items() if n.startswith("spikes/")])
    assert counts[0] == counts[1]
    expected = float(sum((found[name] * step).sum() for name, step in steps.items()))
    assert (losses[0] - losses[1]) / 2e-7 == pytest.approx(expected, rel=1e-4)


def test_no_autograd_graph_is_built(monkeypatch):
    rule, data = make_rule("all that can be learned", spike_penalty=0.1), batch()
    rule.compute_gradients(data)
    quiet(rule, data)
    grad_modes = []
    for layer in rule.network:
        inner = layer.forward
        monkeypatch.setattr(layer, "forward", lambda x, f=inner: grad_modes.append(torch.is_grad_enabled()) or f(x))
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("autograd runs"))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: pytest.fail("autograd runs"))
    monkeypatch.setattr(torch.autograd.Function, "apply", lambda *_, **__: pytest.fail("a graph is begun"))
    values, found = gradients(rule, data)
    assert not any(grad_modes)
    assert not any(v.requires_grad for v in [*values.values(), *found.values()])
    # The same traps close on a pass that does build one.
    with pytest.raises(pytest.fail.Exception, match="a graph is begun"):
        rule.global_loss(data)


def test_frozen_layers_stay_without_gradient():
    rule, data = make_rule(), batch()
    rule.compute_gradients(data)
    rule.zero_grad()
    layers = [m for m in rule.network if isinstance(m, SpikingLinear)]
    layers[0].weight.requires_grad_(False)
    rule.compute_gradients(data)
    assert layers[0].weight.grad is None
    assert all(layer.weight.grad.abs().max() > 0 for layer in layers[1:])


def test_silent_outputs_are_driven_to_their_threshold():
    rule, (x, target) = make_rule("leaky"), batch()
    output = quiet(rule, (x, target), outputs=3)
    assert bool((rule.outputs(x)["spikes/2"] == INF).all())
    hidden = rule.outputs(x)["spikes/1"]
    before = height(output, hidden)
    optimizer = torch.optim.SGD([output.weight], lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        rule.compute_gradients((x, target))
        optimizer.step()
    assert height(output, hidden) > before + 0.1
    without = make_rule("leaky", silent_penalty=0.0)
    quiet(without, (x, target), outputs=3)
    without.zero_grad()
    without.compute_gradients((x, target))
    assert all((p.grad == 0).all() for p in without.parameters())


def test_a_penalty_leaves_fewer_spikes():
    counts = []
    for penalty in (0.0, 3.0):
        rule, data = make_rule(spike_penalty=penalty), batch()
        optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            values = rule.compute_gradients(data)
            optimizer.step()
        counts.append(float(values["spikes_per_neuron"]))
    assert counts[1] < 0.7 * counts[0]


# The first batch


def test_weights_are_scaled_on_the_first_batch_and_only_then():
    rule, data = make_rule(), batch()
    twin = copy.deepcopy(rule)
    rule.compute_gradients(data)
    initialise_from_data(twin.network, data[0])
    after = [p.clone() for p in rule.parameters()]
    assert all(map(torch.equal, after, twin.parameters()))
    rule.compute_gradients(batch(seed=1))
    assert all(map(torch.equal, after, rule.parameters()))


def test_weights_are_left_alone_if_so_wished():
    rule, data = make_rule(initialise="none"), batch()
    initialise_from_data(rule.network, data[0], gain=1.5)
    before = [p.clone() for p in rule.parameters()]
    rule.compute_gradients(data)
    assert all(map(torch.equal, before, rule.parameters()))


def test_a_network_that_is_silent_from_the_start_is_refused_by_name():
    rule = make_rule(initialise="none")
    with torch.no_grad():
        rule.network[3].weight.zero_()
    message = r"network\.3, a SpikingLinear, is silent: none of its neurons .*initialise_from_data"
    with pytest.raises(ValueError, match=message):
        rule.compute_gradients(batch())


def test_neurons_that_run_out_of_spikes_are_told_of_once():
    made = partial(SpikingMLP, hidden_dims=(20,), max_spikes=2)
    rule, data = make_rule(made, gain=20.0), batch()
    with pytest.warns(UserWarning, match=r"\d+ of 276 neurons in a batch .* have all max_spikes that they may have"):
        values = rule.compute_gradients(data)
    assert values["saturated_fraction"] > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule.compute_gradients(data)
        # One spike is all there is in the methods of a single spike.
        make_rule("one spike", gain=20.0).compute_gradients(data)


def test_what_is_logged_is_what_the_spikes_say():
    rule, data = make_rule(), batch()
    values = rule.compute_gradients(data)
    outputs = rule.outputs(data[0])
    hidden = torch.cat([outputs["spikes/1"].flatten(0, 1), outputs["spikes/2"].flatten(0, 1)])
    assert float(values["spikes_per_neuron"]) == pytest.approx(float((hidden < INF).sum(1).double().mean()))
    assert float(values["silent_fraction"]) == pytest.approx(float((hidden[:, 0] == INF).double().mean()))
    first = outputs["spikes/3"][..., 0].amin(1).clamp(max=2.0)
    assert float(values["decision_time"]) == pytest.approx(float(first.mean()))
    events = [(outputs[f"spikes/{n}"] < INF).flatten(1).sum(1) for n in range(3)]
    operations = sum(count * width for count, width in zip(events, (20, 15, 3), strict=True))
    assert torch.equal(outputs["synaptic_operations"], operations)
    assert float(values["synaptic_operations"]) == pytest.approx(float(operations.double().mean()))


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' is not one of 'cross_entropy', 'mse', 'trace_mse'"),
        ({"initialise": "random"}, "initialise='random' is not one of 'data', 'none'"),
        ({"gamma": -1.0}, "gamma=-1.0 must be at least 0"),
        ({"silent_penalty": INF}, "silent_penalty=inf must be at least 0, and finite"),
        ({"spike_penalty": math.nan}, "spike_penalty=nan must be finite"),
        ({"t_ref": 0.0}, "t_ref=0.0 must be positive"),
        ({"gain": 0.0}, "gain=0.0 must be positive"),
        ({"t_ref": 3.0}, r"t_ref=3\.0 is after the end of the window, t_max=2\.0"),
        ({"loss": "mse", "target_times": (1.0,)}, r"target_times=\(1\.0,\): give two times"),
        ({"loss": "mse", "target_times": (0.5, 3.0)}, r"target_times=\(0\.5, 3\.0\) is after the end of the window"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_rule(**options)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), "network ends in a Linear: give spiking layers"),
        (nn.Sequential(LatencyEncoder(), FirstSpike()), "network ends in a FirstSpike: give spiking layers"),
        (nn.Sequential(SpikingLinear(16, 3), nn.Bilinear(2, 2, 2), FirstSpike()), r"'network\.1', a Bilinear"),
        (nn.Sequential(*SpikingMLP((1, 4, 4), 3)[:-1], SpikeCount()), r"network\.4: SpikeCount has no gradient"),
    ],
)
def test_networks_that_cannot_learn_are_refused(network, message):
    with pytest.raises(TypeError, match=message):
        SpikeTimingBackprop(network=network, num_classes=3)


def test_windows_that_differ_are_refused():
    network = nn.Sequential(SpikingLinear(16, 3, t_max=1.0), FirstSpike(t_max=2.0))
    with pytest.raises(ValueError, match=r"t_max=2\.0 of the read-out is not that of its neurons, 1\.0"):
        SpikeTimingBackprop(network=network, num_classes=3)
