"""Units whose activations differ."""

import pytest
import torch
from imperfect import SIGMOID, fit, varied
from torch import nn
from torch.func import functional_call, jvp, vmap
from toys import loader, trainer

from lightning_nobp.callbacks import HardwareNoise
from lightning_nobp.callbacks.activation_variation import ActivationVariation
from lightning_nobp.functional.device import part_seed, unit_variation


def attached(network, sigma=0.3, seed=0):
    variation = ActivationVariation(sigma)
    variation.attach(network, seed)
    return variation


def test_units_have_curves_of_their_own():
    network = SIGMOID((1, 2, 3), 3)
    x = torch.randn(5, 1, 2, 3)
    _, linear, _, readout = network
    v = unit_variation(part_seed(0, "activation 2"), 0.3, (8,), "cpu")
    variation = attached(network)
    expected = readout(v.height * torch.sigmoid(v.steepness * (linear(x.flatten(1)) - v.shift)) + v.offset)
    torch.testing.assert_close(network(x), expected)
    variation.detach()
    torch.testing.assert_close(network(x), readout(torch.sigmoid(linear(x.flatten(1)))))


def test_the_units_of_maps_have_curves_each():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    attached(network)
    y = network(torch.ones(3, 1, 4, 5))
    assert torch.equal(y[0], y[2])
    assert len(y[0].unique()) > 20


def test_units_do_not_draw_from_torch():
    network = SIGMOID((1, 2, 3), 3)
    attached(network)
    state = torch.get_rng_state()
    network(torch.ones(2, 6))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("first", ["plain", "inference", "vmap", "jvp"])
def test_units_are_the_same_under_every_transform(first):
    torch.manual_seed(0)
    network = SIGMOID((1, 2, 3), 3)
    x, parameters = torch.randn(4, 6), {name: p.detach() for name, p in network.named_parameters()}
    attached(network)

    def cost(given):
        return functional_call(network, given, (x,)).square().mean()

    def in_inference_mode():
        with torch.inference_mode():
            return cost(parameters)

    def with_autograd():
        result = network(x).square().mean()
        result.backward()
        return result.detach()

    ways = {
        "plain": with_autograd,
        "inference": in_inference_mode,
        "vmap": lambda: vmap(cost)({name: p.expand(3, *p.shape) for name, p in parameters.items()}).mean(),
        "jvp": lambda: jvp(cost, (parameters,), (parameters,))[0],
    }
    # Whichever comes first draws the numbers.
    results = [ways[first](), *(way() for way in ways.values())]
    torch.testing.assert_close(torch.stack(results), results[0].expand(5))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_units_are_the_same_in_training_and_afterwards(tmp_path, stage):
    module = varied()
    fit(tmp_path, module, HardwareNoise(activation_variation=0.4, seed=5))
    [(x, target)] = list(loader(96, 96))
    ideal = module(x)
    variation = attached(module, 0.4, seed=5)
    expected = module(x)
    assert not torch.isclose(ideal, expected).all()
    variation.detach()
    run = trainer(tmp_path, callbacks=[HardwareNoise(activation_variation=0.4, seed=5)])
    found = getattr(run, stage)(module, loader(96, 96))
    if stage == "predict":
        torch.testing.assert_close(found[0], expected.softmax(-1))
    else:
        prefix = {"validate": "val", "test": "test"}[stage]
        assert found[0][f"{prefix}/loss"] == pytest.approx(nn.functional.cross_entropy(expected, target).item())
    assert torch.equal(module(x), ideal)


def test_a_checkpoint_is_tested_on_the_device_that_it_was_trained_on(tmp_path):
    module = varied()
    fit(tmp_path, module, HardwareNoise(activation_variation=0.4, seed=5)).save_checkpoint(tmp_path / "run.ckpt")
    results = []
    for seed, path in ((5, None), (0, tmp_path / "run.ckpt"), (0, None)):
        run = trainer(tmp_path, callbacks=[HardwareNoise(activation_variation=0.4, seed=seed)])
        results += run.test(module, loader(), ckpt_path=path)
    assert results[0] == results[1] != results[2]


def test_training_follows_the_gradient_of_the_varied_units(tmp_path):
    module, reference = varied(), varied()
    fit(tmp_path, module, HardwareNoise(activation_variation=0.4), max_steps=1)
    attached(reference, 0.4)
    x, target = next(iter(loader()))
    reference.loss_function(reference(x), target).backward()
    expected = [p - 0.1 * p.grad for p in reference.parameters()]
    torch.testing.assert_close(list(module.parameters()), expected)
