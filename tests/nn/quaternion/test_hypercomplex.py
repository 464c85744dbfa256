"""Layers of hypercomplex multiplication: real layers of their Kronecker weight, and quaternions among them."""

import pytest
import torch
from torch.nn import functional as F

from lightning_nobp.functional.quaternion import quaternion_conv2d, quaternion_linear
from lightning_nobp.functional.quaternion.hypercomplex import hamilton_rule, phm_weight
from lightning_nobp.nn import vjp
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv2d, PHMLinear


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_a_layer_is_the_real_one_of_its_kronecker_weight(n):
    layer, x = PHMLinear(n, 12, 18, dtype=torch.float64), draw(2, 5, 12)
    layer.bias.data = draw(18)
    assert (layer(x) - F.linear(x, phm_weight(layer.rule, layer.weight), layer.bias)).abs().max() < 1e-14
    assert sum(p.numel() for p in layer.parameters()) == 12 * 18 // n + n**3 + 18


def test_a_convolution_is_the_real_one_of_its_kronecker_kernel():
    layer, x = PHMConv2d(3, 6, 9, (3, 2), 2, (1, 0), (1, 2), dtype=torch.float64), draw(2, 6, 9, 8)
    layer.bias.data = draw(9)
    expected = F.conv2d(x, phm_weight(layer.rule, layer.weight), layer.bias, 2, (1, 0), (1, 2))
    assert (layer(x) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("side", ["left", "right"])
def test_with_the_rule_of_hamilton_the_layer_is_one_of_quaternions(side):
    rule = hamilton_rule(side)
    layer, x = PHMLinear(4, 12, 8, rule=rule, dtype=torch.float64), draw(5, 12)
    assert torch.equal(layer(x), quaternion_linear(x, layer.weight, layer.bias, side, "block"))
    layer, x = PHMConv2d(4, 12, 8, 3, rule=rule, dtype=torch.float64), draw(2, 12, 5, 6)
    assert torch.equal(layer(x), quaternion_conv2d(x, layer.weight, layer.bias, side=side, algorithm="block"))


def test_a_given_rule_is_kept_and_stays():
    rule = hamilton_rule()
    layer = PHMLinear(4, 8, 12, rule=rule)
    rule.zero_()
    layer.reset_parameters()
    assert torch.equal(layer.rule, hamilton_rule())
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert "rule" in layer.state_dict()
    y, pullback = vjp(layer, torch.randn(5, 8))
    pullback(torch.ones_like(y))
    assert layer.rule.grad is None


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
