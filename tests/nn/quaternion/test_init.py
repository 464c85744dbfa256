"""How weights of quaternions start: moments that follow from the definitions, and seeds."""

import math

import pytest
import torch
from torch import nn

from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConvTranspose1d,
    QuaternionConvTranspose2d,
)
from lightning_nobp.nn.quaternion.init import quaternion_init_
from lightning_nobp.nn.quaternion.linear import QuaternionLinear

INITS = ["polar", "isotropic", "unitary", "real"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, init="polar", criterion="he", seed=0):
    weight = torch.empty(shape, dtype=torch.float64)
    return quaternion_init_(weight, init, criterion, seeded(seed))


def assert_within(values, expected, share):
    expected = torch.as_tensor(expected, dtype=values.dtype)
    assert ((values - expected).abs() < share * expected).all(), values


# E phi^2 = 4 sigma^2 and E cos^2 = E sin^2 = 1/2; a random axis shares its half equally.
MOMENTS = {"polar": [1, 1 / 3, 1 / 3, 1 / 3], "isotropic": [0.5] * 4, "unitary": [0.5] * 4, "real": [1 / 12] * 4}


@pytest.mark.parametrize("init", INITS)
def test_second_moments_of_the_components(init):
    moments = 256 * drawn(4, 256, 256, init=init).square().mean((1, 2))
    assert_within(moments, MOMENTS[init], 0.03)


@pytest.mark.parametrize("init", INITS)
def test_components_have_mean_zero_and_are_uncorrelated(init):
    parts = drawn(4, 256, 256, init=init).flatten(1)
    parts = parts / parts.square().mean(1, keepdim=True).sqrt()
    # Means of 65536 samples of unit variance: 5 standard errors are 0.02.
    assert parts.mean(1).abs().max() < 0.02
    correlations = parts @ parts.t() / parts.shape[1] - torch.eye(4, dtype=torch.float64)
    assert correlations.abs().max() < 0.03


@pytest.mark.parametrize("criterion", ["he", "glorot"])
@pytest.mark.parametrize("init", ["polar", "isotropic", "unitary"])
def test_the_mean_squared_length_is_four_sigma_squared(init, criterion):
    weight = drawn(4, 128, 32, 3, 3, init=init, criterion=criterion)
    sigma_squared = 1 / (2 * 32 * 9) if criterion == "he" else 1 / (2 * (32 + 128) * 9)
    assert_within(weight.square().sum(0).mean(), 4 * sigma_squared, 0.03)


@pytest.mark.parametrize("init", ["polar", "isotropic"])
def test_lengths_are_chi_distributed_with_four_degrees_of_freedom(init):
    sigma = 1 / math.sqrt(2 * 256)
    lengths = drawn(4, 256, 256, init=init).norm(dim=0) / sigma
    # E chi = sqrt(2) Gamma(5/2) / Gamma(2), and P(chi^2 < x) = 1 - exp(-x/2) (1 + x/2).
    assert_within(lengths.mean(), math.sqrt(2) * math.gamma(2.5) / math.gamma(2), 0.01)
    for square in (1.0, 3.0, 6.0):
        expected = 1 - math.exp(-square / 2) * (1 + square / 2)
        assert abs((lengths.square() < square).double().mean() - expected) < 0.01


def test_unitary_weights_have_one_length():
    lengths = drawn(4, 64, 32, init="unitary").norm(dim=0)
    assert torch.allclose(lengths, torch.full_like(lengths, 2 / math.sqrt(2 * 32)), rtol=1e-14)


def test_polar_angles_are_uniform_and_axes_of_any_octant():
    weight = drawn(4, 256, 256)
    angles = torch.atan2(weight[1:].norm(dim=0), weight[0])
    # The angle between 0 and pi, since the axis takes the sign: quarters of it are equally likely.
    shares = torch.histc(angles, 4, 0, math.pi) / angles.numel()
    assert (shares - 0.25).abs().max() < 0.01
    octants = ((weight[1:] > 0) * torch.tensor([1, 2, 4]).view(3, 1, 1)).sum(0)
    assert (octants.flatten().bincount(minlength=8) / octants.numel() - 1 / 8).abs().max() < 0.01
    axes = weight[1:] / weight[1:].norm(dim=0)
    # The fourth moment tells an axis on the sphere, 1/5, from a normalised cube.
    assert_within(axes.pow(4).mean((1, 2)), [0.2] * 3, 0.03)


def test_the_real_start_is_that_of_torch():
    weight = drawn(4, 64, 16, 3, init="real")
    torch.manual_seed(0)
    bound = nn.Conv1d(64, 256, 3).weight.abs().max().item()
    assert weight.abs().max() <= 1 / math.sqrt(64 * 3)
    assert_within(weight.abs().max(), bound, 0.01)


@pytest.mark.parametrize("init", INITS)
def test_the_same_seed_gives_the_same_weights(init):
    assert torch.equal(drawn(4, 5, 6, init=init), drawn(4, 5, 6, init=init))
    assert not torch.equal(drawn(4, 5, 6, init=init), drawn(4, 5, 6, init=init, seed=1))
    layers = []
    for _ in range(2):
        torch.manual_seed(3)
        layers.append(QuaternionLinear(24, 20, init=init))
    assert torch.equal(layers[0].weight, layers[1].weight)


@pytest.mark.parametrize("init", INITS)
def test_a_generator_leaves_torchs_own_random_numbers_alone(init):
    before = torch.get_rng_state()
    quaternion_init_(torch.empty(4, 5, 6), init, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("init", ["polar", "isotropic", "unitary"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_rounded_not_drawn_otherwise(init, dtype):
    narrow = quaternion_init_(torch.empty(4, 5, 6, dtype=dtype), init, generator=seeded())
    wide = quaternion_init_(torch.empty(4, 5, 6), init, generator=seeded())
    assert torch.equal(narrow, wide.to(dtype))


def test_empty_weights_are_left_alone():
    assert quaternion_init_(torch.empty(4, 0, 6)).shape == (4, 0, 6)
    assert quaternion_init_(torch.empty(4, 6, 0)).shape == (4, 6, 0)


@pytest.mark.parametrize("init", ["polar", "isotropic", "unitary"])
def test_twenty_layers_keep_the_size_of_signals(init):
    network = nn.Sequential(*(nn.Sequential(QuaternionLinear(512, 512, init=init), nn.ReLU()) for _ in range(20)))
    with torch.no_grad():
        y = network(torch.randn(256, 512))
    assert 0.2 < y.square().mean() < 3


@pytest.mark.parametrize("criterion", ["he", "glorot"])
@pytest.mark.parametrize(("layer", "kernel"), [(QuaternionConv1d, 3), (QuaternionConv2d, 9)])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_fans_are_those_of_the_quaternions_an_output_sees(layer, kernel, groups, transposed, criterion):
    if transposed:
        layer = {QuaternionConv1d: QuaternionConvTranspose1d, QuaternionConv2d: QuaternionConvTranspose2d}[layer]
    # Many more inputs than outputs: a fan of the wrong side is off by a factor of four.
    weight = layer(4 * 128, 4 * 32, 3, groups=groups, init="isotropic", criterion=criterion).weight
    fan_in, fan_out = 128 // groups * kernel, 32 // groups * kernel
    expected = 1 / (2 * fan_in) if criterion == "he" else 1 / (2 * (fan_in + fan_out))
    assert_within(weight.detach().square().mean(), expected, 0.05)


@pytest.mark.parametrize("layer", [QuaternionConv1d, QuaternionConvTranspose1d])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_doubles_the_second_moment(layer, groups):
    """He's criterion makes up for a ReLU: it halves what a layer doubles."""
    torch.manual_seed(0)
    x = torch.randn(8, 512, 40)
    y = layer(512, 256, 3, groups=groups, bias=False)(x)[..., 2:-2]
    assert_within(y.detach().square().mean(), 2.0, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("normal",), "init='normal' is not one of 'polar', 'isotropic', 'unitary', 'real'"),
        (("polar", "lecun"), "criterion='lecun' is not one of 'he', 'glorot'"),
    ],
)
def test_unknown_starts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quaternion_init_(torch.empty(4, 2, 2), *arguments)
    with pytest.raises(ValueError, match=message):
        QuaternionLinear(8, 8, **dict(zip(("init", "criterion"), arguments, strict=False)))


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 5), ()])
def test_weights_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"weight of shape .* is not \(4, M, N, ...\): component, output, input"):
        quaternion_init_(torch.empty(shape))
