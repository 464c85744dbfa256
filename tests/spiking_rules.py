"""Small rules of spiking networks, and what their gradients are held against."""

import math
from functools import partial

import torch

from lightning_nobp.nn import SpikingCNN, SpikingMLP
from lightning_nobp.rules import SpikeTimingBackprop

INF = math.inf
NETWORKS = {
    "mlp": partial(SpikingMLP, hidden_dims=(20, 15)),
    "one layer": partial(SpikingMLP, hidden_dims=()),
    "leaky": partial(SpikingMLP, hidden_dims=(20,), tau_v=1.0, tau_i=0.5),
    "all that can be learned": partial(
        SpikingMLP, hidden_dims=(20, 15), tau_v=1.0, tau_i=0.5, delays=True, learn_tau=True
    ),
    "one spike": partial(SpikingMLP, hidden_dims=(20,), max_spikes=1),
    "trace": partial(SpikingMLP, hidden_dims=(20,), readout="trace"),
    "membrane": partial(SpikingMLP, hidden_dims=(20,), readout="membrane"),
    "cnn": partial(SpikingCNN, channels=(3, 4), kernel_size=3),
}

PENALTIES = {"spike_penalty": 0.3, "hidden_silent_penalty": 0.6, "gamma": 0.7, "silent_penalty": 0.4}


def batch(samples=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.arange(samples) % 3


def make_rule(network="mlp", seed=0, **options):
    torch.manual_seed(seed)
    made = NETWORKS[network] if isinstance(network, str) else network
    return SpikeTimingBackprop(network=made, num_classes=3, input_shape=(1, 4, 4), **options).double()


def gradients(rule, data):
    rule.zero_grad()
    values = rule.compute_gradients(data)
    return values, {name: p.grad.clone() for name, p in rule.named_parameters()}


def assert_autograd_agrees(rule, data):
    """The loss and every gradient, which must not all be 0."""
    values, found = gradients(rule, data)
    rule.zero_grad()
    loss = rule.global_loss(data)
    loss.backward()
    torch.testing.assert_close(values["loss"], loss.detach())
    for name, p in rule.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12)
    assert any(bool((grad != 0).any()) for grad in found.values())
