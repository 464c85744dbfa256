"""Layers of hypercomplex multiplication: real layers of their Kronecker weight, and quaternions among them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_nobp.functional.quaternion import quaternion_conv2d, quaternion_linear
from lightning_nobp.functional.quaternion.hypercomplex import hamilton_rule, phm_weight
from lightning_nobp.nn import vjp
from lightning_nobp.nn.quaternion.convolution import QuaternionConv1d, QuaternionConv2d, QuaternionConv3d
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv1d, PHMConv2d, PHMConv3d, PHMLinear
from lightning_nobp.nn.quaternion.linear import QuaternionLinear

CONVOLUTIONS = [(1, PHMConv1d), (2, PHMConv2d), (3, PHMConv3d)]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_a_layer_is_the_real_one_of_its_kronecker_weight(n):
    layer, x = PHMLinear(n, 12, 18, dtype=torch.float64), draw(2, 5, 12)
    layer.bias.data = draw(18)
    assert (layer(x) - F.linear(x, phm_weight(layer.matrices, layer.weight), layer.bias)).abs().max() < 1e-14
    assert sum(p.numel() for p in layer.parameters()) == 12 * 18 // n + n**3 + 18


def test_a_convolution_is_the_real_one_of_its_kronecker_kernel():
    layer, x = PHMConv2d(3, 6, 9, (3, 2), 2, (1, 0), (1, 2), dtype=torch.float64), draw(2, 6, 9, 8)
    layer.bias.data = draw(9)
    expected = F.conv2d(x, phm_weight(layer.matrices, layer.weight), layer.bias, 2, (1, 0), (1, 2))
    assert (layer(x) - expected).abs().max() < 1e-14


@pytest.mark.parametrize(("dims", "kind"), CONVOLUTIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_groups_are_convolutions_by_themselves(dims, kind, groups):
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    layer = kind(3, 12, 6, 3, 2, 1, 1, groups, dtype=torch.float64)
    layer.bias.data = draw(6)
    x = draw(2, 12, *(5, 6, 7)[:dims])
    # Numbers first, so that a group of them holds all of their components.
    by_number = x.unflatten(1, (3, 4)).transpose(1, 2)
    parts = []
    for weight, part in zip(layer.weight.chunk(groups, 1), by_number.chunk(groups, 1), strict=True):
        y = convolve(part.transpose(1, 2).flatten(1, 2), phm_weight(layer.matrices, weight), None, 2, 1)
        parts.append(y.unflatten(1, (3, 2 // groups)))
    expected = torch.cat(parts, 2).flatten(1, 2) + layer.bias.view(-1, *[1] * dims)
    assert (layer(x) - expected).abs().max() < 1e-13
    assert (layer(x[0]) - expected[0]).abs().max() < 1e-13


@pytest.mark.parametrize(("dims", "kind"), CONVOLUTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2, "bias": False}, {"groups": 2, "stride": 2, "dilation": 2}], ids=str
)
@pytest.mark.parametrize("rule", [None, draw(2, 2, 2, seed=3)], ids=["learned", "given"])
def test_pullbacks_of_convolutions_are_those_of_autograd(dims, kind, options, rule):
    layer = kind(2, 8, 12, 2, padding=1, rule=rule, dtype=torch.float64, **options)
    twin, x = copy.deepcopy(layer), draw(3, 8, *(5, 6, 4)[:dims]).requires_grad_()
    expected = twin(x)
    probe = draw(*expected.shape, seed=1)
    expected.backward(probe)
    y, pullback = vjp(layer, x.detach(), needs_input_grad=True)
    assert torch.equal(y, expected)
    assert (pullback(probe.clone()) - x.grad).abs().max() < 1e-12
    for mine, other in zip(layer.parameters(), twin.parameters(), strict=True):
        assert (mine.grad - other.grad).abs().max() < 1e-11


def test_convolutions_agree_with_finite_differences():
    layer = PHMConv1d(2, 4, 8, 2, groups=2, dtype=torch.float64)
    run = lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))  # noqa: E731
    names = [name for name, _ in layer.named_parameters()]
    assert torch.autograd.gradcheck(run, [draw(2, 4, 5).requires_grad_(), *layer.parameters()])


def test_padding_may_have_a_name():
    layer, x = PHMConv2d(3, 6, 9, (3, 5), padding="same"), torch.randn(2, 6, 7, 8)
    assert layer(x).shape == (2, 9, 7, 8)
    assert PHMConv2d(3, 6, 9, (3, 5), padding="valid")(x).shape == (2, 9, 5, 4)


@pytest.mark.parametrize("kind", [PHMLinear, PHMConv2d])
def test_compiled_and_mapped_layers_compute_the_same(kind):
    layer = kind(2, 8, 12, dtype=torch.float64) if kind is PHMLinear else kind(2, 8, 12, 3, groups=2).double()
    x = draw(3, 8) if kind is PHMLinear else draw(3, 8, 5, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (x, x[:2]):
        assert (compiled(batch) - layer(batch)).abs().max() < 1e-13
    assert (torch.vmap(layer)(x) - layer(x)).abs().max() < 1e-13
    assert layer(x[:0]).shape == (0, *layer(x).shape[1:])


# Quaternions among them


@pytest.mark.parametrize("side", ["left", "right"])
def test_with_the_rule_of_hamilton_the_layer_is_one_of_quaternions(side):
    rule = hamilton_rule(side)
    layer, x = PHMLinear(4, 12, 8, rule=rule, dtype=torch.float64), draw(5, 12)
    assert torch.equal(layer(x), quaternion_linear(x, layer.weight, layer.bias, side, "block"))
    layer, x = PHMConv2d(4, 12, 8, 3, rule=rule, dtype=torch.float64), draw(2, 12, 5, 6)
    assert torch.equal(layer(x), quaternion_conv2d(x, layer.weight, layer.bias, side=side, algorithm="block"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_go_to_quaternions_and_back(side, bias):
    layer, x = QuaternionLinear(12, 8, bias, side=side, algorithm="block", dtype=torch.float64), draw(5, 12)
    if bias:
        layer.bias.data = draw(8)
    there = PHMLinear.from_quaternion(layer)
    back = there.to_quaternion(algorithm="block")
    assert (back.side, back.algorithm) == (side, "block")
    assert (there(x) - layer(x)).abs().max() < 1e-14
    assert torch.equal(back(x), layer(x))
    assert back.weight.data_ptr() != layer.weight.data_ptr()
    assert {name for name, _ in there.named_parameters()} == {name for name, _ in layer.named_parameters()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("dims", "kind", "quaternion"),
    [(1, PHMConv1d, QuaternionConv1d), (2, PHMConv2d, QuaternionConv2d), (3, PHMConv3d, QuaternionConv3d)],
)
def test_convolutions_go_to_quaternions_and_back(side, groups, dims, kind, quaternion):
    layer = quaternion(16, 8, 3, 2, 1, groups=groups, side=side, dtype=torch.float64)
    layer.bias.data = draw(8)
    x = draw(2, 16, *(5, 6, 7)[:dims])
    there = kind.from_quaternion(layer)
    back = there.to_quaternion()
    assert (there(x) - layer(x)).abs().max() < 1e-13
    assert torch.equal(back(x), layer(x))
    assert torch.equal(back.weight, layer.weight)


def test_conversion_keeps_what_is_frozen_and_the_mode():
    layer = QuaternionLinear(8, 8).eval()
    layer.weight.requires_grad_(False)
    for found in (PHMLinear.from_quaternion(layer), PHMLinear.from_quaternion(layer).to_quaternion()):
        assert not found.training
        assert (found.weight.requires_grad, found.bias.requires_grad) == (False, True)


def test_what_is_no_layer_of_quaternions_is_not_converted():
    with pytest.raises(ValueError, match=r"another way than quaternions from the (left|right), by up to \d"):
        PHMLinear(4, 8, 8).to_quaternion()
    with pytest.raises(ValueError, match=r"\(3, 3, 3\): quaternions have four components"):
        PHMConv2d(3, 6, 6, 3).to_quaternion()
    with pytest.raises(TypeError, match="layer is a Linear: give a QuaternionLinear"):
        PHMLinear.from_quaternion(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="layer is a QuaternionConv1d: give a QuaternionConv2d"):
        PHMConv2d.from_quaternion(QuaternionConv1d(4, 4, 3))
    with pytest.raises(ValueError, match="padding_mode='circular': PHMConv1d knows zeros alone"):
        PHMConv1d.from_quaternion(QuaternionConv1d(4, 4, 3, padding=1, padding_mode="circular"))


def test_a_given_rule_is_kept_and_stays():
    rule = hamilton_rule()
    layer = PHMLinear(4, 8, 12, rule=rule)
    rule.zero_()
    layer.reset_parameters()
    assert torch.equal(layer.matrices, hamilton_rule())
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert "matrices" in layer.state_dict()
    assert layer.rule == hamilton_rule().tolist()
    y, pullback = vjp(layer, torch.randn(5, 8))
    pullback(torch.ones_like(y))
    assert layer.matrices.grad is None


def test_a_given_rule_comes_back_with_the_memory_of_a_layer():
    for rule in (hamilton_rule(), hamilton_rule().tolist()):
        with torch.device("meta"):
            layer = PHMLinear(4, 8, 12, rule=rule)
        layer.to_empty(device="cpu")
        layer.matrices.fill_(torch.nan)
        layer.reset_parameters()
        assert torch.equal(layer.matrices, hamilton_rule())
        assert not layer.matrices.requires_grad
    assert PHMLinear(4, 8, 12).rule is None


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_real_weight_starts_with_the_variance_of_torchs_layer(n):
    torch.manual_seed(0)
    wanted = 1 / (3 * 256)
    found = torch.stack([PHMLinear(n, 256, 256).real_weight().detach().var() for _ in range(40)]).mean()
    # Rules of n^3 numbers are few: a sum of n^3 squares, drawn 40 times.
    assert found.item() == pytest.approx(wanted, rel=5 * (2 / (40 * n**3)) ** 0.5 + 0.01)
    kernel = torch.stack([PHMConv2d(n, 64, 64, 3).real_weight().detach().var() for _ in range(40)]).mean()
    assert kernel.item() == pytest.approx(1 / (3 * 64 * 9), rel=5 * (2 / (40 * n**3)) ** 0.5 + 0.01)


def test_biases_start_at_0_and_may_be_absent():
    assert torch.equal(PHMLinear(2, 4, 6).bias, torch.zeros(6))
    assert PHMLinear(2, 4, 6, bias=False).bias is None
    assert PHMConv2d(2, 4, 6, 3, bias=False).bias is None


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="in_features=7 must be a positive multiple of n=3"):
        PHMLinear(3, 7, 6)
    with pytest.raises(ValueError, match="out_channels=8 must be a positive multiple of n=3"):
        PHMConv2d(3, 6, 8, 3)
    with pytest.raises(ValueError, match="n=0"):
        PHMLinear(0, 6, 6)
    with pytest.raises(ValueError, match=r"rule of shape \(4, 4, 4\) does not fit n=3: give \(3, 3, 3\)"):
        PHMLinear(3, 6, 6, rule=hamilton_rule())
    with pytest.raises(ValueError, match="stride=0"):
        PHMConv2d(3, 6, 6, 3, stride=0)
    with pytest.raises(ValueError, match="groups=3 does not divide the 2 numbers of in_channels=6"):
        PHMConv2d(3, 6, 18, 3, groups=3)
    with pytest.raises(ValueError, match="groups=0"):
        PHMConv2d(3, 6, 6, 3, groups=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": "3"}, "n='3' is no whole number"),
        ({"n": 3.0}, "n=3.0 is no whole number"),
        ({"in_features": 6.0}, "in_features=6.0 is no whole number"),
        ({"out_features": "6"}, "out_features='6' is no whole number"),
        ({"rule": "hamilton"}, "rule='hamilton' is of type str: give Tensor"),
        ({"rule": [[["a"]]]}, "is of type list: give Tensor"),
        ({"rule": torch.empty(3, 3, 3, device="meta")}, "holds no numbers"),
    ],
)
def test_what_is_no_number_is_named(options, message):
    with pytest.raises(TypeError, match=message):
        PHMLinear(**{"n": 3, "in_features": 6, "out_features": 6} | options)


@pytest.mark.parametrize("run", [lambda layer, x: layer(x), vjp], ids=["forward", "vjp"])
def test_inputs_that_do_not_fit_are_refused(run):
    with pytest.raises(ValueError, match=r"x of shape \(5, 9\) does not fit in_features=6: give \(\.\.\., 6\)"):
        run(PHMLinear(3, 6, 6), torch.randn(5, 9))
    with pytest.raises(ValueError, match=r"x is torch.float64, but weight torch.float32"):
        run(PHMLinear(3, 6, 6), draw(5, 6))
    with pytest.raises(ValueError, match=r"x of shape \(2, 9, 5, 5\) does not fit in_channels=6: give \(batch, 6, "):
        run(PHMConv2d(3, 6, 6, 3), torch.randn(2, 9, 5, 5))
    with pytest.raises(ValueError, match="with 2 more dimensions, or that without the batch"):
        run(PHMConv2d(3, 6, 6, 3), torch.randn(2, 6))
    with pytest.raises(ValueError, match=r"x is torch.float64, but weight torch.float32"):
        run(PHMConv2d(3, 6, 6, 3), draw(2, 6, 5, 5))
