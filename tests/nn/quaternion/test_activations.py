"""Layers of activations: one parameter a quaternion channel, and where they start."""

import pytest
import torch

from lightning_nobp.functional.quaternion import hamilton_product, norm, pack, unpack
from lightning_nobp.nn.quaternion.activations import Cardioid, MagnitudeTanh, ModReLU, NormGate, PhaseSin, PhaseTanh


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layer", [MagnitudeTanh(), Cardioid(), PhaseTanh(), PhaseSin()], ids=repr)
def test_layers_act_on_every_quaternion_alone(layer):
    x = draw(5, 12, 3)
    y = layer(x)
    for channel in range(3):
        assert (layer(x[:, channel::3]) - y[:, channel::3]).abs().max() < 1e-15
    assert (layer(x[:, :, :1]) - y[:, :, :1]).abs().max() < 1e-15


@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 2, 3)])
def test_modrelu_has_one_bias_a_channel(shape):
    layer, x = ModReLU(3, dtype=torch.float64), draw(*shape)
    layer.bias.data = torch.tensor([0.0, -0.5, -100.0])
    y = norm(unpack(layer(x), 1))
    length = norm(unpack(x, 1))
    assert (y - (length + layer.bias).clamp(min=0)).abs().max() < 1e-14
    assert (y[..., 0] > 0).all()
    assert (y[..., 2] == 0).all()


def test_modrelu_starts_as_the_identity_or_where_it_is_told():
    x = draw(5, 12)
    assert (ModReLU(3)(x) - x).abs().max() < 1e-15
    layer = ModReLU(3, -0.25)
    layer.bias.data.zero_()
    layer.reset_parameters()
    assert torch.equal(layer.bias, torch.full((3,), -0.25))


@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 2, 3)])
def test_the_gate_has_one_slope_and_one_shift_a_channel(shape):
    layer, x = NormGate(3, dtype=torch.float64), draw(*shape)
    layer.slope.data, layer.shift.data = draw(3, seed=1), draw(3, seed=2)
    q = unpack(x, 1)
    gate = torch.tanh(layer.slope * norm(q) + layer.shift).unsqueeze(-1)
    assert (unpack(layer(x), 1) - gate * q).abs().max() < 1e-14


def test_the_gate_starts_with_slope_one_and_no_shift():
    x = draw(5, 12)
    q = unpack(x)
    assert (unpack(NormGate(3)(x)) - norm(q, keepdim=True).tanh() * q).abs().max() < 1e-15


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_gate_passes_a_rotation_of_all_quaternions_on(side):
    layer, x = NormGate(3, dtype=torch.float64), draw(5, 12)
    layer.slope.data, layer.shift.data = draw(3, seed=1), draw(3, seed=2)
    unit = torch.nn.functional.normalize(draw(4, seed=3), dim=0)

    def turned(x):
        q = unpack(x)
        return pack(hamilton_product(unit, q) if side == "left" else hamilton_product(q, unit))

    assert (layer(turned(x)) - turned(layer(x))).abs().max() < 1e-14


@pytest.mark.parametrize("kind", [ModReLU, NormGate])
def test_bad_numbers_of_quaternions_are_refused(kind):
    with pytest.raises(ValueError, match="num_quaternions=0"):
        kind(0)
    with pytest.raises(ValueError, match=r"x has 16 features .* 4 quaternions.*num_quaternions=3"):
        kind(3)(draw(5, 16))
