"""Presets, and weights at which their neurons fire."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_nobp.functional.spiking.potential import free_potential
from lightning_nobp.nn import (
    LatencyEncoder,
    RegularEncoder,
    SpikeCount,
    SpikingCNN,
    SpikingLinear,
    SpikingMLP,
    check_supported,
    initialise_from_data,
)
from lightning_nobp.nn.spiking.passes import passes, spiking
from lightning_nobp.rules.hyperparameters import to_plain

INF = math.inf
TAUS = [(INF, INF), (INF, 0.25), (0.25, INF), (1.0, 0.5), (0.5, 0.5), (0.1, 0.05), (5.0, 3.0)]


def images(samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, 1, 8, 8, generator=generator) * (torch.rand(samples, 1, 8, 8, generator=generator) < 0.4)


def make(kind, **options):
    torch.manual_seed(0)
    shape = {"hidden_dims": (60, 40)} if kind is SpikingMLP else {"channels": (4, 6), "kernel_size": 3}
    return kind((1, 8, 8), 5, **shape | options)


@pytest.mark.parametrize("kind", [SpikingMLP, SpikingCNN])
@pytest.mark.parametrize("readout", ["first_spike", "trace", "membrane"])
@pytest.mark.parametrize("encoder", [None, RegularEncoder(2, inverse=True)])
def test_presets_give_scores(kind, readout, encoder):
    network = make(kind, readout=readout, encoder=encoder)
    check_supported(network)
    assert network(images(3)).shape == (3, 5)
    assert to_plain(network, "network")["init_args"]["readout"] == readout


def test_a_network_that_counts_can_only_evaluate():
    trained = make(SpikingMLP)
    network = nn.Sequential(*trained[:-1], SpikeCount())
    with torch.no_grad():
        assert network(images(3)).shape == (3, 5)
    with pytest.raises(TypeError, match=r"network\.5: SpikeCount has no gradient"):
        check_supported(network)


@pytest.mark.parametrize("kind", [SpikingMLP, SpikingCNN])
@pytest.mark.parametrize(("tau_v", "tau_i"), TAUS)
@pytest.mark.parametrize("max_spikes", [16, 1])
def test_neurons_fire_whatever_the_time_constants(kind, tau_v, tau_i, max_spikes):
    network, x = make(kind, tau_v=tau_v, tau_i=tau_i, max_spikes=max_spikes), images()
    initialise_from_data(network, x)
    with torch.no_grad():
        found = spiking(passes(network, x))
    for p in found:
        fires = p.outputs[..., 0] < INF
        # Some neurons for nearly every sample, and not all for all.
        assert fires.flatten(1).any(1).float().mean() > 0.7
        assert 0.05 < fires.float().mean() < 0.99 or p is found[-1]


def test_hidden_weights_are_scaled_to_the_membranes_spread_and_outputs_to_their_time():
    network, x = make(SpikingMLP, tau_v=1.0, tau_i=0.5, theta=0.7).double(), images().double()
    before = copy.deepcopy(network)
    initialise_from_data(network, x, t_ref=1.1, gain=2.0, spread=0.2)
    with torch.no_grad():
        found = spiking(passes(network, x))
        for p, old in zip(found[:-1], spiking(passes(before, x)), strict=False):
            ratio = p.layer.weight / old.layer.weight
            assert float(ratio.std()) < 1e-12
            spreads = [
                free_potential(p.inputs, p.layer.weight, t, 1.0, 0.5).var(0, correction=0).mean().sqrt()
                for t in torch.linspace(0, 2, 33)[1:].tolist()
            ]
            assert float(max(spreads)) == pytest.approx(2.0 * 0.7)
        output = found[-1]
        mean = torch.full_like(output.layer.weight, float(output.layer.weight.mean()))
        assert float(output.layer.weight.std()) == pytest.approx(0.2 * float(mean[0, 0]))
        assert float(free_potential(output.inputs, mean, 1.1, 1.0, 0.5).mean()) == pytest.approx(0.7)


def test_it_draws_nothing_and_repeats_itself():
    network, x = make(SpikingMLP), images()
    twin, state = copy.deepcopy(network), torch.get_rng_state()
    for part in (network, twin):
        initialise_from_data(part, x)
    assert torch.equal(torch.get_rng_state(), state)
    first = [p.clone() for p in network.parameters()]
    assert all(map(torch.equal, first, twin.parameters()))


def test_membranes_without_threshold_get_scores_of_spread_one():
    network, x = make(SpikingMLP, readout="membrane"), images()
    initialise_from_data(network, x)
    with torch.no_grad():
        scores = network(x)
    assert float(scores.var(0, correction=0).mean()) == pytest.approx(1, rel=1e-5)


def test_a_silent_layer_is_named():
    # Inputs come too late for a membrane that forgets at once.
    network = nn.Sequential(LatencyEncoder(t_last=1.9, value_range=(0, 1)), SpikingLinear(4, 3), SpikingLinear(3, 2))
    with pytest.raises(ValueError, match=r"network\.1: its inputs are silent or the same in all samples"):
        initialise_from_data(network, torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"network\.1: its inputs are silent or the same in all samples"):
        initialise_from_data(network, torch.full((5, 4), 0.5))
    with pytest.raises(ValueError, match=r"network\.2 gets no spike before t_ref=0\.001: give a later one"):
        initialise_from_data(network, torch.rand(5, 4), t_ref=0.001)
    with pytest.raises(ValueError, match=r"network\.1, a SpikingLinear, is silent: none of its neurons .*lower theta"):
        initialise_from_data(network, torch.rand(5, 4), gain=1e-3)


def test_weights_without_a_pattern_are_told_apart_from_inputs_without_one():
    network = nn.Sequential(LatencyEncoder(value_range=(0, 1)), SpikingLinear(4, 6), SpikingLinear(6, 3))
    x = torch.rand(20, 4)
    nn.init.zeros_(network[2].weight)
    initialise_from_data(network, x)
    # Outputs that are all the same: they differ once they have learnt.
    assert float(network[2].weight.min()) == float(network[2].weight.max()) > 0
    nn.init.zeros_(network[1].weight)
    with pytest.raises(ValueError, match=r"network\.1: its weights are all 0, and give no pattern to scale"):
        initialise_from_data(network, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "count"}, "readout='count' is not one of 'first_spike', 'trace', 'membrane'"),
        ({"readout": "loudest"}, "readout='loudest' is not one of 'first_spike'"),
        ({"t_max": 1.0, "encoder": LatencyEncoder(1.5)}, r"t_max=1\.0 must be after the last input.* at 1\.5"),
        ({"max_spikes": 0}, "max_spikes=0 must be positive"),
        ({"tau_v": -1.0}, "tau_v=-1.0 must be positive"),
        ({"sigma": 0.0}, "sigma=0.0 must be positive"),
    ],
)
@pytest.mark.parametrize("kind", [SpikingMLP, SpikingCNN])
def test_wrong_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


def test_images_too_small_and_even_windows_are_refused():
    with pytest.raises(ValueError, match=r"input_shape=\(1, 3, 8\): give images"):
        SpikingCNN((1, 3, 8), 2)
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        SpikingCNN((1, 8, 8), 2, kernel_size=4)
