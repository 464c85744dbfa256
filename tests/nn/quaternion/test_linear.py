"""The fully connected layer: the formula, the way back, and all that is expected of a torch layer."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from lightning_nobp.functional.quaternion import hamilton_block, quaternion_linear
from lightning_nobp.nn import check_supported, vjp
from lightning_nobp.nn.quaternion.linear import QuaternionLinear

SIDES, ALGORITHMS = ["left", "right"], ["auto", "block", "fast8"]


def made(**options):
    """A layer in float64 with a bias that is not 0."""
    layer = QuaternionLinear(20, 12, **{"dtype": torch.float64} | options)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_a_real_one_with_a_block_matrix(side, algorithm, bias):
    layer, x = made(side=side, algorithm=algorithm, bias=bias), draw(7, 20)
    expected = nn.functional.linear(x, hamilton_block(layer.weight, side), layer.bias)
    assert (layer(x) - expected).abs().max() < 1e-13


def test_the_layer_is_its_function():
    layer, x = made(side="right", algorithm="fast8"), draw(7, 20)
    assert torch.equal(layer(x), quaternion_linear(x, layer.weight, layer.bias, "right", "fast8"))


def test_it_has_a_quarter_of_the_weights():
    assert made().weight.numel() == nn.Linear(20, 12).weight.numel() / 4
    assert made().bias.numel() == 12
    assert made(bias=False).bias is None


@pytest.mark.parametrize("shape", [(20,), (7, 20), (2, 3, 20), (0, 20)])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_pullback_is_autograds(shape, side, algorithm, bias):
    layer, x = made(side=side, algorithm=algorithm, bias=bias), draw(*shape)
    twin, leaf = copy.deepcopy(layer), x.clone().requires_grad_()
    expected = twin(leaf)
    probe = torch.randn_like(expected)
    expected.backward(probe)
    check_supported(layer)
    y, pullback = vjp(layer, x, needs_input_grad=True)
    assert not y.requires_grad
    assert torch.allclose(y, expected, rtol=0, atol=1e-13)
    assert torch.allclose(pullback(probe.clone()), leaf.grad, rtol=0, atol=1e-12)
    for mine, other in zip(layer.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-12)


def test_frozen_parameters_get_no_gradient():
    layer, x = made(), draw(7, 20)
    layer.weight.requires_grad_(False)
    assert vjp(layer, x)[1](draw(7, 12)) is None
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    layer.bias.grad = None
    layer.requires_grad_(False)
    assert vjp(layer, x, needs_input_grad=True)[1](draw(7, 12)).shape == x.shape
    assert layer.bias.grad is None


def test_gradients_add_up():
    layer, x, probe = made(), draw(7, 20), draw(7, 12)
    vjp(layer, x)[1](probe.clone())
    once = [p.grad.clone() for p in layer.parameters()]
    vjp(layer, x)[1](probe.clone())
    assert all(torch.equal(p.grad, 2 * grad) for p, grad in zip(layer.parameters(), once, strict=True))


@pytest.mark.parametrize("side", SIDES)
def test_autograd_agrees_with_differences(side):
    layer = made(side=side)
    run = lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,))  # noqa: E731
    assert gradcheck(run, (draw(3, 20).requires_grad_(), layer.weight, layer.bias))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_many_layers_run_at_once(algorithm):
    """As rules do that try several perturbed copies of the parameters."""
    layer, x = made(algorithm=algorithm), draw(7, 20)
    stacked = {name: p.detach() + 0.1 * draw(5, *p.shape) for name, p in layer.named_parameters()}
    run = lambda parameters, x: torch.func.functional_call(layer, parameters, (x,))  # noqa: E731
    together = torch.vmap(run, in_dims=(0, None))(stacked, x)
    for i in range(5):
        alone = run({name: p[i] for name, p in stacked.items()}, x)
        assert torch.allclose(together[i], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_of_every_sample(algorithm):
    layer, x = made(algorithm=algorithm), draw(4, 20)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    loss = lambda parameters, x: torch.func.functional_call(layer, parameters, (x[None],)).square().sum()  # noqa: E731
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    layer(x).square().sum().backward()
    for name, p in layer.named_parameters():
        assert torch.allclose(each[name].sum(0), p.grad, rtol=0, atol=1e-12)


# What is expected of a torch layer


def test_on_the_meta_device_nothing_is_computed():
    layer = made(device="meta")
    assert layer.weight.is_meta
    assert layer.bias.is_meta
    assert layer(torch.empty(7, 20, device="meta", dtype=torch.float64)).shape == (7, 12)


def test_a_layer_from_the_meta_device_starts_as_any_other():
    torch.manual_seed(0)
    expected = QuaternionLinear(20, 12)
    layer = QuaternionLinear(20, 12, device="meta").to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, torch.zeros(12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_and_outputs_have_the_type_asked_for(dtype):
    layer = QuaternionLinear(20, 12, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(torch.randn(7, 20, dtype=dtype)).dtype == dtype


def test_copies_share_nothing():
    layer, x = made(), draw(7, 20)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    twin.weight.data.zero_()
    assert layer.weight.abs().min() > 0


def test_a_checkpoint_brings_everything_back():
    layer, x = made(), draw(7, 20)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin = made()
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x), layer(x))


def test_autocast_runs_in_half_precision_both_ways():
    layer, x = made(dtype=torch.float32), torch.randn(7, 20)
    wide, probe = copy.deepcopy(layer).double(), torch.randn(7, 12)
    expected, pull_wide = vjp(wide, x.double(), needs_input_grad=True)
    grad_wide = pull_wide(probe.double())
    with torch.autocast("cpu", torch.bfloat16):
        y, pullback = vjp(layer, x, needs_input_grad=True)
        assert y.dtype == layer(x).dtype == torch.bfloat16
    # Rules may go back outside of the context, as torch advises for autograd.
    grad_x = pullback(probe)
    assert (y - expected).norm() < 0.02 * expected.norm()
    assert (grad_x - grad_wide).norm() < 0.02 * grad_wide.norm()
    assert layer.weight.grad.dtype == torch.float32
    assert (layer.weight.grad - wide.weight.grad).norm() < 0.02 * wide.weight.grad.norm()


def test_printing_shows_sizes_and_what_is_unusual():
    assert repr(QuaternionLinear(8, 4)) == "QuaternionLinear(in_features=8, out_features=4, bias=True)"
    shown = repr(QuaternionLinear(8, 4, bias=False, side="right"))
    assert shown == "QuaternionLinear(in_features=8, out_features=4, bias=False, side='right')"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((6, 8), {}, "in_features has 6 features: quaternions take four each"),
        ((8, 6), {}, "out_features has 6 features"),
        ((0, 8), {}, "in_features=0 must be positive"),
        ((8, -4), {}, "out_features=-4 must be positive"),
        ((8, 8), {"side": "both"}, "side='both' is not one of 'left', 'right'"),
        ((8, 8), {"algorithm": "fft"}, "algorithm='fft' is not one of 'auto', 'block', 'fast8'"),
        ((8, 8), {"init": "zero"}, "init='zero' is not one of"),
        ((8, 8), {"criterion": "xavier"}, "criterion='xavier' is not one of"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        QuaternionLinear(*arguments, **options)


@pytest.mark.parametrize("value", [8.0, "8", True, None, torch.tensor(8)])
def test_sizes_that_are_no_whole_numbers_are_refused(value):
    with pytest.raises(TypeError, match=re.escape(f"in_features={value!r} is no whole number: give an int")):
        QuaternionLinear(value, 8)
    with pytest.raises(TypeError, match=re.escape(f"out_features={value!r} is no whole number: give an int")):
        QuaternionLinear(8, value)


def test_whole_numbers_of_numpy_are_taken():
    assert QuaternionLinear(np.prod([2, 4]), np.int32(4)).weight.shape == (4, 1, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(7, 18), "x has 18 features: quaternions take four each"),
        (torch.zeros(7, 16), "x has 16 features, 4 quaternions"),
        (torch.zeros(7, 20, dtype=torch.float64), "x is torch.float64, but weight torch.float32"),
    ],
)
def test_bad_inputs_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        QuaternionLinear(20, 12)(x)
