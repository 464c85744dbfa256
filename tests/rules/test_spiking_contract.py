"""What SpikeTimingBackprop promises beside the gradient: bounds a sample, state, structure, targets, metrics."""

import math
import warnings
from functools import partial

import pytest
import torch
from spiking_rules import INF, NETWORKS, assert_autograd_agrees, batch, gradients, make_rule
from torch import nn
from toys import trainer

from lightning_nobp.nn import (
    EarliestSpikePool2d,
    FirstSpike,
    LatencyEncoder,
    MembraneReadout,
    SpikeDropout,
    SpikeTrace,
    SpikingConv2d,
    SpikingLinear,
    SpikingMLP,
    initialise_from_data,
)
from lightning_nobp.rules import SpikeTimingBackprop


def encoder():
    return LatencyEncoder(value_range=(0, 1))


def sequence(*layers, **options):
    """A rule for layers between an encoder and a read-out."""
    return SpikeTimingBackprop(network=nn.Sequential(encoder(), *layers), num_classes=3, **options).double()


def silenced(rule, data, factor=0.1, number=-2):
    """Weaker weights of a layer, in a network that has begun."""
    rule.compute_gradients(data)
    with torch.no_grad():
        rule.network[number].weight.mul_(factor)
    return rule


# Windows


@pytest.mark.parametrize("t_max", [1.1, 1.2, 0.3, 0.6, 2.0])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_windows_that_single_precision_rounds_up_train(network, t_max):
    rule = make_rule(partial(NETWORKS[network], t_max=t_max)).float()
    x, target = batch()
    values = rule.compute_gradients((x.float(), target))
    assert all(value.isfinite() for value in values.values())


# The bound of a spike that grazes


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_accumulated_batches_are_the_joined_one_also_where_influences_are_bounded(network):
    (x, target), parts = batch(12), 4
    whole = make_rule(partial(NETWORKS[network], p_max=0.5))
    whole.compute_gradients((x, target))
    _, joined = gradients(whole, (x, target))
    for layer in whole.network:
        if isinstance(layer, SpikingLinear | SpikingConv2d):
            layer.p_max = None
    _, free = gradients(whole, (x, target))
    for layer in whole.network:
        if isinstance(layer, SpikingLinear | SpikingConv2d):
            layer.p_max = 0.5
    whole.zero_grad()
    for part in range(parts):
        whole.compute_gradients((x[part::parts], target[part::parts]))
    for name, p in whole.named_parameters():
        torch.testing.assert_close(p.grad / parts, joined[name], rtol=1e-12, atol=1e-12)
        # The bound is felt.
        assert (free[name] - joined[name]).norm() > 1e-3 * free[name].norm()


# Silent neurons


@pytest.mark.parametrize("taus", [(1.0, 0.5), (0.2, 0.1), (0.1, 0.05)])
def test_silent_outputs_wake_whatever_the_time_constants(taus):
    data = batch()
    rule = make_rule(partial(SpikingMLP, hidden_dims=(20,), tau_v=taus[0], tau_i=taus[1]), gamma=0.0)
    rule.compute_gradients(data)
    output = rule.network[-2].weight
    optimizer = torch.optim.Adam([output], lr=0.05 * float(output.detach().abs().mean()))
    silenced(rule, data)
    assert bool((rule.outputs(data[0])["spikes/2"] == INF).all())
    for _ in range(60):
        optimizer.zero_grad()
        rule.compute_gradients(data)
        optimizer.step()
    assert bool((rule.outputs(data[0])["spikes/2"][..., 0] < INF).any(1).all())


@pytest.mark.parametrize("network", ["mlp", "cnn", "leaky", "all that can be learned"])
def test_hidden_neurons_that_never_spike_are_woken_by_the_written_gradient(network):
    data = batch()
    rule = make_rule(network, hidden_silent_penalty=0.7)
    rule.compute_gradients(data)
    hidden = next(layer for layer in rule.network if isinstance(layer, SpikingLinear | SpikingConv2d))
    with torch.no_grad():
        hidden.weight[:, :2] *= 0.01
    assert bool((rule.outputs(data[0])["spikes/1"].flatten(2)[:, :2] == INF).all())
    assert_autograd_agrees(rule, data)
    optimizer = torch.optim.SGD([hidden.weight], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        rule.compute_gradients(data)
        hidden.weight.grad[:, 2:] = 0
        optimizer.step()
    awake = (rule.outputs(data[0])["spikes/1"].flatten(2)[:, :2] < INF).any(2).any(0)
    assert bool(awake.all())


def test_neurons_that_spike_for_one_sample_are_not_driven():
    data, rule = batch(), make_rule("leaky", hidden_silent_penalty=0.0)
    rule.compute_gradients(data)
    rule.network[2].weight.detach()[:, :2].mul_(0.01)
    plain = gradients(rule, data)[1]["network.2.weight"]
    awake = (rule.outputs(data[0])["spikes/1"][..., 0] < INF).any(0)
    rule.hidden_silent_penalty = 5.0
    driven = gradients(rule, data)[1]["network.2.weight"]
    assert 0 < int(awake.sum()) < 20
    assert torch.equal(driven[:, awake], plain[:, awake])
    assert bool((driven[:, ~awake] != plain[:, ~awake]).any(0).all())


# Output neurons behind which something stands


def convolutional(**options):
    layers = SpikingConv2d(1, 3, 4, t_max=1.5, max_spikes=3), nn.Flatten(1, -2), nn.Identity(), FirstSpike(t_max=1.5)
    torch.manual_seed(0)
    return sequence(*layers, **options)


def test_output_neurons_are_found_through_layers_that_only_reshape():
    data = batch()
    rule = silenced(convolutional(gamma=0.3, silent_penalty=0.7), data, 0.4, 1)
    silent = rule.outputs(data[0])["spikes/1"][..., 0] == INF
    assert bool(silent.any())
    assert not bool(silent.all())
    assert_autograd_agrees(rule, data)
    assert 0 < float(rule.compute_gradients(data)["decision_time"]) <= 1.5
    assert "val/decision_time" in rule._metrics
    assert rule.spike_names() == ["inputs", "outputs"]
    # They act.
    plain = silenced(convolutional(gamma=0.0, silent_penalty=0.0), data, 0.4, 1)
    assert not torch.equal(gradients(plain, data)[1]["network.1.weight"], gradients(rule, data)[1]["network.1.weight"])


def test_options_behind_a_layer_that_only_reshapes_are_checked():
    with pytest.raises(ValueError, match=r"t_ref=50\.0 is after the end of the window, t_max=1\.5"):
        convolutional(t_ref=50.0)
    with pytest.raises(ValueError, match=r"t_max=1\.0 of the read-out is not that of its neurons, 1\.5"):
        sequence(SpikingConv2d(1, 3, 4, t_max=1.5), nn.Flatten(1, -2), FirstSpike(t_max=1.0))


# Structure


def test_a_layer_that_stands_twice_is_passed_twice():
    torch.manual_seed(0)
    shared = SpikingLinear(16, 16)
    layers = nn.Flatten(1, -2), shared, shared, SpikingLinear(16, 3), FirstSpike()
    rule, data = sequence(*layers, hidden_silent_penalty=0.3), batch()
    rule.compute_gradients(data)
    outputs = rule.outputs(data[0])
    assert torch.equal(rule(data[0]), outputs["scores"])
    assert "spikes/3" in outputs
    assert_autograd_agrees(rule, data)


def between(layer):
    return nn.Flatten(1, -2), SpikingLinear(16, 20), layer, SpikingLinear(20, 3), FirstSpike()


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.ReLU(), nn.Tanh(), nn.Linear(16, 16), nn.LayerNorm(16)])
def test_layers_that_mean_nothing_on_spike_times_are_refused(layer):
    with pytest.raises(
        TypeError, match=rf"network\.3, a {type(layer).__name__}, means nothing on spike times: between"
    ):
        sequence(*between(layer))


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([], TypeError, "network is empty: give spiking layers"),
        ([SpikingLinear(16, 3)], TypeError, "network ends in a SpikingLinear: give spiking layers"),
        (
            [encoder(), SpikingConv2d(1, 3, 1), EarliestSpikePool2d(4), nn.Flatten(1, -2), FirstSpike()],
            TypeError,
            r"network\.2, a EarliestSpikePool2d, stands between the output neurons and the read-out",
        ),
        (
            [LatencyEncoder(9.0, value_range=(0, 1)), nn.Flatten(1, -2), SpikingLinear(16, 3), FirstSpike()],
            ValueError,
            r"t_max=2\.0 of network\.2 must be after the last spike of network\.0, the encoder, .* at 9\.0",
        ),
        (
            [LatencyEncoder(2.0, value_range=(0, 1)), nn.Flatten(1, -2), SpikingLinear(16, 3), FirstSpike()],
            ValueError,
            r"t_max=2\.0 of network\.2 must be after the last spike",
        ),
        (
            [SpikingLinear(16, 3), SpikingLinear(3, 3, t_max=1.5), FirstSpike(t_max=1.5)],
            ValueError,
            r"t_max=1\.5 of network\.1 must be after the last spike of network\.0, which may come at 2\.0",
        ),
        (
            [SpikingLinear(16, 3), MembraneReadout(3, 3, t_max=1.5)],
            ValueError,
            r"t_max=1\.5 of network\.1 must be after",
        ),
    ],
)
def test_networks_whose_parts_do_not_fit_are_refused(layers, error, message):
    with pytest.raises(error, match=message):
        SpikeTimingBackprop(network=nn.Sequential(*layers), num_classes=3)


@pytest.mark.parametrize("option", [{"gamma": 0.1}, {"t_ref": 1.0}, {"silent_penalty": 1.0}, {"loss": "mse"}])
def test_options_for_output_neurons_that_there_are_not_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.* is for the spikes of output neurons, which a MembraneReadout"):
        make_rule("membrane", **option)
    make_rule("membrane", gamma=0.0, silent_penalty=0.0)


@pytest.mark.parametrize("name", ["max_spikes", "tau_v", "theta", "t_max", "p_max", "delays", "learn_tau"])
def test_options_of_neurons_point_to_the_network(name):
    with pytest.raises(TypeError, match=rf"{name}=4 is an option of the network, .*partial\(.*SpikingMLP, {name}=4\)"):
        SpikeTimingBackprop(network="mlp", **{name: 4})
    with pytest.raises(TypeError, match="unexpected keyword argument 'spikes'"):
        SpikeTimingBackprop(network="mlp", spikes=4)


# What outputs are to do


@pytest.mark.parametrize("readout", ["mlp", "trace"])
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse"},
        {"loss": "mse", "target_times": (0.5, 1.5)},
        {"loss": "mse", "target_times": ((0.3, 0.5, 0.9), (1.4,))},
        {"loss": "mse", "target_times": ((0.3, 0.5), ())},
        {"loss": "trace_mse"},
        {"loss": "trace_mse", "target_times": ((0.3, 0.5, 0.9), ())},
    ],
)
def test_the_written_gradient_of_targets_is_autograds(readout, options):
    if readout == "mlp" and options["loss"] == "trace_mse":
        with pytest.raises(TypeError, match="loss='trace_mse' goes with SpikeTrace, not with FirstSpike"):
            make_rule(readout, **options)
        return
    data = batch()
    rule = silenced(make_rule(readout, **options), data, 0.7)
    assert_autograd_agrees(rule, data)


def test_losses_of_targets_are_what_they_say():
    data = batch()
    right, others = (0.3, 0.9), (1.4,)
    for loss, readout in (("mse", "mlp"), ("trace_mse", "trace")):
        rule = make_rule(readout, loss=loss, target_times=(right, others), gamma=0.0, silent_penalty=0.0)
        rule.compute_gradients(data)
        spikes = rule.outputs(data[0])[f"spikes/{len(rule.spike_names()) - 1}"]
        total = 0.0
        for sample, label in enumerate(data[1].tolist()):
            for neuron in range(3):
                wanted = right if neuron == label else others
                times = [min(float(t), 2.0) for t in spikes[sample, neuron]]
                if loss == "mse":
                    total += sum((t - w) ** 2 for t, w in zip(times, wanted, strict=False))
                else:
                    found = sum(math.exp(-float(t) / 0.5) for t in spikes[sample, neuron])
                    total += (found - sum(math.exp(-w / 0.5) for w in wanted)) ** 2
        assert float(rule.compute_gradients(data)["loss"]) == pytest.approx(total / 36)


def test_spike_trains_are_learnt():
    data, train = batch(), (0.7, 1.0, 1.3)
    rule = make_rule(loss="mse", target_times=(train, ()), silent_penalty=0.0, gamma=0.0)
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(float(rule.compute_gradients(data)["loss"]))
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_times": (0.5, 1.0)}, r"target_times=\(0\.5, 1\.0\) have no part in loss='cross_entropy'"),
        ({"loss": "mse", "target_times": ((0.5, 0.4), 1.0)}, "two ascending trains of times"),
        ({"loss": "mse", "target_times": (math.nan, 1.0)}, "must be finite"),
        ({"loss": "mse", "target_times": ((0.5, 2.4), 1.0)}, r"is after the end of the window, t_max=2\.0"),
        ({"loss": "mse", "target_times": (tuple(k / 10 for k in range(1, 18)), 1.0)}, "more than the max_spikes=16"),
        ({"hidden_silent_penalty": -1.0}, "hidden_silent_penalty=-1.0 must be at least 0"),
    ],
)
def test_targets_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_rule(**options)


# State


def trained(data):
    rule = make_rule()
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        rule.compute_gradients(data)
        optimizer.step()
    return rule


@pytest.mark.parametrize("whole", [True, False], ids=["of the rule", "of the network"])
def test_weights_of_a_loaded_state_are_not_scaled_again(whole):
    data = batch()
    rule, other = trained(data), make_rule(seed=1)
    (other if whole else other.network).load_state_dict((rule if whole else rule.network).state_dict())
    expected = float(rule.compute_gradients(data)["loss"])
    assert float(other.compute_gradients(data)["loss"]) == expected
    assert all(map(torch.equal, other.parameters(), rule.parameters()))


def test_only_new_layers_are_scaled_when_a_network_goes_on():
    data, rule = batch(), trained(batch())
    first = rule.network[2].weight.clone()
    rule.network[4] = SpikingLinear(15, 3, dtype=torch.float64)
    drawn = rule.network[4].weight.clone()
    rule.compute_gradients(data)
    assert torch.equal(rule.network[2].weight, first)
    assert not torch.equal(rule.network[4].weight, drawn)
    rule.network[2].reset_parameters()
    drawn = rule.network[2].weight.clone()
    rule.compute_gradients(data)
    assert not torch.equal(rule.network[2].weight, drawn)


def test_the_range_of_inputs_is_measured_once_also_without_initialisation():
    (x, target), rule = batch(), make_rule(initialise="none")
    initialise_from_data(rule.network, x)
    rule.network.encoder._measured = None
    rule.compute_gradients((x, target))
    assert rule.network.encoder.is_measured
    rule.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(rule(torch.cat([x[:1], 5 * x[1:]]))[0], rule(x[:1])[0])


def test_an_encoder_that_has_seen_nothing_says_so_outside_of_training():
    rule = make_rule().eval()
    with pytest.warns(UserWarning, match=r"LatencyEncoder\(value_range=None\) has not seen training data"):
        rule(batch()[0])


def test_a_training_that_has_begun_may_fall_silent_after_it_was_resumed():
    data = batch()
    rule = silenced(make_rule(), data, 0.001)
    expected = float(rule.compute_gradients(data)["loss"])
    checkpoint = {}
    rule.on_save_checkpoint(checkpoint)
    other = make_rule(seed=1)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(rule.state_dict())
    assert float(other.compute_gradients(data)["loss"]) == expected


def test_a_warning_that_was_given_is_not_repeated_after_a_resumption():
    data, made = batch(), partial(SpikingMLP, hidden_dims=(20,), max_spikes=2)
    rule = make_rule(made, gain=20.0)
    with pytest.warns(UserWarning, match="all max_spikes"):
        rule.compute_gradients(data)
    checkpoint = {}
    rule.on_save_checkpoint(checkpoint)
    other = make_rule(made, seed=1, gain=20.0)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(rule.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.compute_gradients(data)


def test_a_layer_that_falls_silent_is_named_once():
    rule, data = make_rule(), batch()
    rule.compute_gradients(data)
    with torch.no_grad():
        rule.network[2].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"network\.2 has fallen silent: none of its neurons spikes"):
        rule.compute_gradients(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule.compute_gradients(data)


def test_inputs_after_the_window_are_told_of():
    network = nn.Sequential(SpikingLinear(4, 3), FirstSpike())
    rule = SpikeTimingBackprop(network=network, num_classes=3)
    spikes = torch.rand(6, 4, 2)
    spikes[0, 0, 1], spikes[1, :, 1] = 3.0, INF
    with pytest.warns(UserWarning, match=r"1 of 44 input spikes of the first batch come after t_max=2\.0"):
        rule.compute_gradients((spikes, torch.arange(6) % 3))


def test_a_loss_function_that_would_not_be_learnt_is_refused():
    class Mine(SpikeTimingBackprop):
        def loss_function(self, scores, target):
            return scores.sum()

    with pytest.raises(TypeError, match=r"Mine\.loss_function is not what it would learn"):
        Mine(network="mlp")


# Metrics


def test_each_layer_is_measured_in_test_and_stopped_neurons_are_told_of(tmp_path):
    data = batch()
    rule = make_rule(partial(SpikingMLP, hidden_dims=(20, 15), max_spikes=2), gain=20.0)
    initialise_from_data(rule.network, data[0], gain=20.0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=5)
    with pytest.warns(UserWarning, match="have all max_spikes that they may have"):
        [found] = trainer(tmp_path, precision="64-true").test(rule, loader, verbose=False)
    outputs = rule.outputs(data[0])
    for number in (1, 2, 3):
        spikes = outputs[f"spikes/{number}"]
        silent, full = (float(is_so.double().mean()) for is_so in (spikes[..., 0] == INF, spikes[..., -1] < INF))
        assert found[f"test/silent_fraction/{number}"] == pytest.approx(silent, rel=1e-6)
        assert found[f"test/saturated_fraction/{number}"] == pytest.approx(full, rel=1e-6)
    assert found["test/saturated_fraction/1"] > 0.01
    assert not any("saturated" in name for name in make_rule("one spike")._metrics)


def test_spikes_are_named_by_what_they_are():
    assert make_rule("mlp").spike_names() == ["inputs", "hidden 1", "hidden 2", "outputs"]
    assert make_rule("membrane").spike_names() == ["inputs", "hidden 1"]


# Dropout


def test_dropout_of_spikes_loses_them_in_training_only():
    layer, spikes = SpikeDropout(0.3), torch.rand(100, 30, 2)
    lost = layer(spikes) == INF
    assert 0.25 < float(lost.double().mean()) < 0.35
    assert torch.equal(layer.eval()(spikes), spikes)
    with pytest.raises(ValueError, match=r"p=1\.0 must be at least 0 and below 1"):
        SpikeDropout(1.0)


def test_the_written_gradient_with_dropout_is_autograds_for_the_same_draws():
    layers = nn.Flatten(1, -2), SpikeDropout(0.2), SpikingLinear(16, 20), SpikeDropout(0.2), SpikingLinear(20, 3)
    rule, data = sequence(*layers, SpikeTrace()), batch()
    state = torch.get_rng_state()
    rule.compute_gradients(data)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    values, found = gradients(rule, data)
    rule.zero_grad()
    torch.manual_seed(5)
    loss = rule.global_loss(data)
    loss.backward()
    torch.testing.assert_close(values["loss"], loss.detach())
    for name, p in rule.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12)
