"""Folk rules, layer by layer, against the definitions that they follow."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion import (
    conjugate,
    ghr_derivative,
    hamilton_product,
    naive_derivative,
    pack,
    quaternion_conv2d,
    unpack,
)
from lightning_nobp.nn import Residual, vjp
from lightning_nobp.nn.quaternion.activations import Cardioid, MagnitudeTanh, NormGate, PhaseSin, PhaseTanh
from lightning_nobp.nn.quaternion.convolution import QuaternionConv2d, QuaternionConvTranspose2d
from lightning_nobp.nn.quaternion.encoding import QuaternionsToReal
from lightning_nobp.nn.quaternion.folk import check_folk, folk_vjp
from lightning_nobp.nn.quaternion.hypercomplex import PHMLinear
from lightning_nobp.nn.quaternion.linear import QuaternionLinear
from lightning_nobp.nn.quaternion.rotation import QuaternionRotation

RULES = ["naive", "naive_neg", "noconj", "truncated"]
SIDES = ["left", "right"]


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def pulled(network, x, probe, rule):
    """What a rule takes for the gradients of the input and of the parameters."""
    network = copy.deepcopy(network)
    y, pullback = folk_vjp(network, x, rule)
    assert not y.requires_grad
    return pullback(probe.clone()), [p.grad for p in network.parameters()]


def true(network, x, probe):
    network = copy.deepcopy(network)
    pullback = vjp(network, x, needs_input_grad=True)[1]
    return pullback(probe.clone()), [p.grad for p in network.parameters()]


def close(found, expected):
    return torch.allclose(found, expected, rtol=0, atol=1e-12)


def linear(side):
    layer = QuaternionLinear(12, 8, side=side, dtype=torch.float64)
    return layer, draw(5, 12), draw(5, 8)


def convolution(side):
    layer = QuaternionConv2d(8, 12, 3, 2, 1, side=side, dtype=torch.float64)
    return layer, draw(2, 8, 5, 6), draw(2, 12, 3, 3)


LAYERS = [linear, convolution]
BUILT = [(build, side) for build in LAYERS for side in SIDES]


@pytest.mark.parametrize(("build", "side"), BUILT)
@pytest.mark.parametrize("rule", RULES)
def test_the_way_forwards_is_the_true_one(build, side, rule):
    layer, x, _ = build(side)
    assert torch.equal(folk_vjp(layer, x, rule)[0], vjp(layer, x)[0])


@pytest.mark.parametrize("sign", [1, -1])
def test_naive_gradients_of_a_linear_layer_from_the_left(sign):
    """``-2 g w`` goes back, and the weight gets ``-2 g x*``, quaternion by quaternion."""
    layer, x, probe = linear("left")
    grad_x, (grad_weight, grad_bias) = pulled(layer, x, probe, "naive" if sign > 0 else "naive_neg")
    g, w, q = unpack(probe), layer.weight.detach().movedim(0, -1), unpack(x)
    assert close(grad_x, pack(-2 * hamilton_product(g.unsqueeze(2), w).sum(1)))
    expected = -2 * hamilton_product(g.unsqueeze(2), conjugate(q).unsqueeze(1)).sum(0)
    assert close(grad_weight, sign * expected.movedim(-1, 0))
    assert close(grad_bias, -2 * sign * probe.sum(0))


def test_naive_gradients_of_a_linear_layer_from_the_right():
    """With ``D(x w)/Dx = -2 w*`` and ``D(x w)/Dw = -2 x``: ``-2 g w*`` goes back, and the weight gets ``-2 g x``."""
    layer, x, probe = linear("right")
    grad_x, (grad_weight, _) = pulled(layer, x, probe, "naive")
    g, w, q = unpack(probe), layer.weight.detach().movedim(0, -1), unpack(x)
    assert close(grad_x, pack(-2 * hamilton_product(g.unsqueeze(2), conjugate(w)).sum(1)))
    expected = -2 * hamilton_product(g.unsqueeze(2), q.unsqueeze(1)).sum(0)
    assert close(grad_weight, expected.movedim(-1, 0))


@pytest.mark.parametrize("side", SIDES)
def test_naive_gradients_are_chains_of_naive_derivatives(side):
    """Of one weight and one input: ``D L`` times the naive derivative of the product."""
    x, probe = draw(1, 4), draw(1, 4)
    layer = QuaternionLinear(4, 4, False, side=side, dtype=torch.float64)
    w = layer.weight.detach().flatten()
    product = (lambda w, x: hamilton_product(w, x)) if side == "left" else (lambda w, x: hamilton_product(x, w))
    grad_x, (grad_weight,) = pulled(layer, x, probe, "naive")
    by_input = naive_derivative(lambda q: product(w, q), x[0])
    by_weight = naive_derivative(lambda q: product(q, x[0]), w)
    assert close(grad_x[0], hamilton_product(probe[0], by_input))
    assert close(grad_weight.flatten(), hamilton_product(probe[0], by_weight))


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_layer_takes_any_dimensions_before_its_features(rule):
    layer, x, probe = linear("left")
    grad_x, grads = pulled(layer, x.expand(3, 2, 5, 12), probe.expand(3, 2, 5, 8), rule)
    flat_x, flat_grads = pulled(layer, x.repeat(6, 1), probe.repeat(6, 1), rule)
    assert torch.equal(grad_x.reshape(30, 12), flat_x)
    assert all(map(torch.equal, grads, flat_grads))


def test_naive_gradients_of_a_convolution_are_those_of_its_places():
    """A kernel of one is a linear layer at every place."""
    convolution = QuaternionConv2d(12, 8, 1, dtype=torch.float64)
    layer = QuaternionLinear(12, 8, dtype=torch.float64)
    layer.weight.data = convolution.weight.detach().flatten(2)
    x, probe = draw(2, 12, 3, 4), draw(2, 8, 3, 4)
    rows = lambda t: t.movedim(1, -1).flatten(0, 2)  # noqa: E731
    for rule in RULES:
        grad_x, (grad_weight, grad_bias) = pulled(convolution, x, probe, rule)
        flat_x, (flat_weight, flat_bias) = pulled(layer, rows(x), rows(probe), rule)
        assert close(rows(grad_x), flat_x)
        assert close(grad_weight.flatten(2), flat_weight)
        assert close(grad_bias, flat_bias)


def test_naive_gradients_of_a_convolution_with_a_kernel():
    """Back goes ``-2 g w``, which is what autograd takes back through the right product with ``w*``."""
    layer, x, probe = convolution("left")
    leaf = x.clone().requires_grad_()
    y = quaternion_conv2d(leaf, conjugate(layer.weight.detach(), dim=0), None, 2, 1, side="right")
    grad_x, (grad_weight, _) = pulled(layer, x, probe, "naive")
    assert close(grad_x, -2 * torch.autograd.grad(y, leaf, probe)[0])
    assert close(grad_weight, -2 * true(layer, x, probe)[1][0])


@pytest.mark.parametrize(("build", "side"), BUILT)
def test_noconj_conjugates_the_gradients_of_parameters(build, side):
    layer, x, probe = build(side)
    grad_x, (grad_weight, grad_bias) = pulled(layer, x, probe, "noconj")
    true_x, (true_weight, true_bias) = true(layer, x, probe)
    assert close(grad_x, true_x)
    assert close(grad_weight, conjugate(true_weight, dim=0))
    assert close(grad_bias, conjugate(true_bias.view(4, -1), dim=0).flatten())


@pytest.mark.parametrize(("build", "side"), BUILT)
def test_truncated_is_right_for_layers(build, side):
    layer, x, probe = build(side)
    grad_x, grads = pulled(layer, x, probe, "truncated")
    true_x, true_grads = true(layer, x, probe)
    assert close(grad_x, true_x)
    assert all(close(mine, other) for mine, other in zip(grads, true_grads, strict=True))


SPLIT = {"relu": (nn.ReLU(), torch.relu), "tanh": (nn.Tanh(), torch.tanh), "gelu": (nn.GELU(), nn.functional.gelu)}


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("shape", [(5, 12), (2, 8, 3, 4)])
def test_truncated_takes_the_mean_slope_of_a_split_activation(name, shape):
    """The derivative of a split activation is the mean of its four slopes, a real number."""
    layer, function = SPLIT[name]
    x, probe = draw(*shape), draw(*shape)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
    mean = slope.unflatten(1, (4, -1)).mean(1, keepdim=True)
    assert close(pulled(layer, x, probe, "truncated")[0], (mean * probe.unflatten(1, (4, -1))).flatten(1, 2))


def test_truncated_is_the_first_term_of_the_chain_rule():
    """``(df/dz)* g`` with the GHR derivative of the activation."""
    x, probe = draw(4), draw(4)
    derivative = ghr_derivative(torch.tanh, x)
    found = pulled(nn.Tanh(), x[None], probe[None], "truncated")[0][0]
    assert close(found, hamilton_product(conjugate(derivative), probe))


@pytest.mark.parametrize("kind", [MagnitudeTanh, Cardioid, PhaseTanh, PhaseSin])
def test_truncated_takes_activations_of_whole_quaternions_too(kind):
    x, probe = draw(3, 4), draw(3, 4)
    activation = kind()
    found = pulled(activation, x, probe, "truncated")[0]
    for mine, q, g in zip(found, x, probe, strict=True):
        derivative = ghr_derivative(lambda q: activation(q[None])[0], q)
        assert close(mine, hamilton_product(conjugate(derivative), g))
    assert not close(found, true(activation, x, probe)[0])


def test_parameters_of_a_truncated_activation_get_their_true_gradients():
    x, probe = draw(5, 12), draw(5, 12)
    gate = NormGate(3).double()
    found, grads = pulled(gate, x, probe, "truncated")
    true_grad, true_grads = true(gate, x, probe)
    assert all(map(torch.equal, grads, true_grads))
    assert not close(found, true_grad)


@pytest.mark.parametrize("to_real", [nn.Linear(12, 12, dtype=torch.float64), QuaternionsToReal()])
def test_behind_a_real_layer_nothing_is_truncated(to_real):
    """The readout's gradients and those of the last quaternion layer are the true ones."""
    quaternions = QuaternionLinear(16, 16 if isinstance(to_real, QuaternionsToReal) else 12, dtype=torch.float64)
    network, x, probe = nn.Sequential(quaternions, to_real, nn.Tanh()), draw(5, 16), draw(5, 12)
    found, grads = pulled(network, x, probe, "truncated")
    true_grad, true_grads = true(network, x, probe)
    assert close(found, true_grad)
    assert all(map(close, grads, true_grads))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(QuaternionRotation(6, 9), nn.Tanh(), QuaternionRotation(9, 12)),
        nn.Sequential(PHMLinear(3, 6, 12), nn.Tanh(), PHMLinear(3, 12, 12)),
        nn.Sequential(nn.Tanh(), nn.Linear(6, 12)),
    ],
)
def test_what_are_no_quaternions_is_not_truncated(network):
    network, x, probe = network.double(), draw(5, 6), draw(5, 12)
    found, grads = pulled(network, x, probe, "truncated")
    true_grad, true_grads = true(network, x, probe)
    assert close(found, true_grad)
    assert all(map(close, grads, true_grads))


def test_the_folk_rules_agree_on_the_readout_and_differ_from_the_true_one_before_it():
    sizes = (12, 8, 8)
    hidden = [m for n, k in itertools.pairwise(sizes) for m in (QuaternionLinear(n, k, dtype=torch.float64), nn.Tanh())]
    network, x, probe = nn.Sequential(*hidden, nn.Linear(8, 3, dtype=torch.float64)), draw(5, 12), draw(5, 3)
    expected = true(network, x, probe)[1]
    for rule in RULES:
        *before, weight, bias = pulled(network, x, probe, rule)[1]
        assert close(weight, expected[-2])
        assert close(bias, expected[-1])
        for mine, right in zip(before[:2], expected[:2], strict=True):
            assert (mine - right).norm() > 0.1 * right.norm()


@pytest.mark.parametrize("rule", ["naive", "naive_neg", "noconj"])
def test_the_other_rules_take_split_activations_as_they_are(rule):
    x, probe = draw(5, 12), draw(5, 12)
    assert close(pulled(nn.Tanh(), x, probe, rule)[0], true(nn.Tanh(), x, probe)[0])


def test_a_network_is_a_chain_of_its_layers():
    network = nn.Sequential(
        QuaternionLinear(12, 8, dtype=torch.float64),
        nn.Sequential(nn.Tanh(), QuaternionLinear(8, 8, dtype=torch.float64)),
        nn.Linear(8, 3, dtype=torch.float64),
    )
    x, probe = draw(5, 12), draw(5, 3)
    for rule in RULES:
        grad_x, grads = pulled(network, x, probe, rule)
        states = [x]
        flat = [network[0], network[1][0], network[1][1], network[2]]
        for layer in flat:
            states.append(layer(states[-1]).detach())
        grad, expected = probe, []
        for layer, state in zip(reversed(flat), reversed(states[:-1]), strict=True):
            grad, of_layer = pulled(layer, state, grad, rule)
            expected = of_layer + expected
        assert close(grad_x, grad)
        assert all(close(mine, other) for mine, other in zip(grads, expected, strict=True))
        # The rules are wrong here: otherwise there would be nothing to see.
        assert not close(grads[0], true(network, x, probe)[1][0])


@pytest.mark.parametrize("rule", RULES)
def test_activations_in_place_spoil_nothing(rule):
    x, probe = draw(5, 12), draw(5, 8)
    build = lambda inplace: nn.Sequential(nn.Hardtanh(-0.1, 0.1, inplace), QuaternionLinear(12, 8)).double()  # noqa: E731
    network, other = build(True), build(False)
    other.load_state_dict(network.state_dict())
    before = x.clone()
    grad_x, _ = pulled(network, x, probe, rule)
    assert torch.equal(x, before)
    assert torch.equal(grad_x, pulled(other, x, probe, rule)[0])


@pytest.mark.parametrize("rule", RULES)
def test_frozen_parameters_get_no_gradient(rule):
    layer, x, probe = linear("left")
    layer.requires_grad_(False)
    grad_x, grads = pulled(layer, x, probe, rule)
    assert grads == [None, None]
    assert grad_x.shape == x.shape


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_under_autocast(rule):
    network = nn.Sequential(QuaternionConv2d(4, 8, 3), nn.Tanh(), nn.Flatten(), QuaternionLinear(72, 8))
    x, probe = torch.randn(5, 4, 5, 5), torch.randn(5, 8)
    expected = pulled(copy.deepcopy(network).double(), x.double(), probe.double(), rule)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = pulled(network, x, probe, rule)[1]
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.05 * other.norm()


def test_networks_that_hide_quaternions_are_refused():
    hidden = nn.Sequential(nn.ReLU(), Residual(QuaternionLinear(8, 8)))
    with pytest.raises(TypeError, match=r"network.1 is a Residual with quaternion layers inside"):
        check_folk(hidden)
    check_folk(
        nn.Sequential(QuaternionLinear(8, 8), nn.Sequential(QuaternionConvTranspose2d(4, 4, 3)), Residual(nn.ReLU()))
    )


def test_convolutions_that_pad_otherwise_are_refused():
    layer = QuaternionConv2d(4, 4, 3, padding=1, padding_mode="circular")
    with pytest.raises(TypeError, match=r"network.0 is a QuaternionConv2d with padding_mode='circular'"):
        check_folk(nn.Sequential(layer))
    with pytest.raises(TypeError, match="with padding_mode='circular'"):
        folk_vjp(layer, torch.zeros(2, 4, 5, 5), "naive")


def test_layers_without_a_pullback_are_refused():
    with pytest.raises(TypeError, match="no vector-Jacobian product is known"):
        folk_vjp(nn.Sequential(nn.Softplus()), torch.zeros(2, 4), "naive")
