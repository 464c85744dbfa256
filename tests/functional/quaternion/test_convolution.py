"""Convolutions of quaternions are sums of real convolutions, whatever their geometry and algorithm."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from lightning_nobp.functional.quaternion import (
    quaternion_conv1d,
    quaternion_conv2d,
    quaternion_conv3d,
    quaternion_conv_transpose1d,
    quaternion_conv_transpose2d,
    quaternion_conv_transpose3d,
    quaternion_linear,
)
from lightning_nobp.functional.quaternion.convolution import convolution, quaternion_conv, quaternion_conv_vjp

SIDES, ALGORITHMS = ["left", "right"], ["block", "fast8"]
# Row: component of the product; column: component of the second factor; the first one's is their exclusive or.
SIGNS = [[1, -1, -1, -1], [1, 1, -1, 1], [1, 1, 1, -1], [1, -1, 1, 1]]
GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": (2, 1), "padding": (1, 2)},
    {"groups": 2},
    {"transposed": True},
    {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1},
    {"transposed": True, "groups": 2},
]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(x, weight, geometry, side):
    """Sixteen real convolutions, by the table of the product."""
    parts = x.chunk(4, dim=1)
    out = []
    for p in range(4):
        total = 0
        for c in range(4):
            sign = SIGNS[p][c]
            # From the right the order of two different imaginary units is the other way round.
            turned = side == "right" and 0 not in (c, p ^ c) and p != 0
            total = total + (-sign if turned else sign) * geometry.forward(parts[c], weight[p ^ c])
        out.append(total)
    return torch.cat(out, dim=1)


@pytest.fixture
def x():
    return draw(2, 16, 6, 5)


def kernels(options):
    return draw(4, 4, 4 // options.get("groups", 1), 3, 3, seed=1)


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("side", SIDES)
def test_a_convolution_is_sixteen_real_ones(x, options, side):
    weight = kernels(options)
    geometry = convolution(2, weight, **options)
    expected = by_definition(x, weight, geometry, side)
    for algorithm in ALGORITHMS:
        y = quaternion_conv(x, weight, None, geometry, side, algorithm)
        assert (y - expected).abs().max() < 1e-12


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("side", SIDES)
def test_the_way_back_is_autograds(x, options, side):
    weight = kernels(options).requires_grad_()
    x.requires_grad_()
    geometry = convolution(2, weight, **options)
    y = by_definition(x, weight, geometry, side)
    grad = draw(*y.shape, seed=2)
    expected = torch.autograd.grad(y, (x, weight), grad)
    for algorithm in ALGORITHMS:
        explicit = quaternion_conv_vjp(grad, x, weight, geometry, side=side, algorithm=algorithm)
        y = quaternion_conv(x, weight, None, geometry, side, algorithm)
        for found in (explicit, torch.autograd.grad(y, (x, weight), grad)):
            for actual, wanted in zip(found, expected, strict=True):
                assert (actual - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_derivatives_of_both_modes_and_second_ones(algorithm):
    inputs = [t.requires_grad_() for t in (draw(2, 8, 3, 3), draw(4, 2, 1, 2, 2, seed=1), draw(8, seed=2))]
    layer = lambda *inputs: quaternion_conv2d(*inputs, padding=1, groups=2, algorithm=algorithm)  # noqa: E731
    assert gradcheck(layer, inputs, check_forward_ad=True)
    assert gradgradcheck(layer, inputs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("dims", "function"), [(1, quaternion_conv1d), (2, quaternion_conv2d), (3, quaternion_conv3d)])
def test_a_kernel_of_one_is_a_linear_layer_at_every_place(dims, function, algorithm):
    x, weight, bias = draw(2, 12, *(4,) * dims), draw(4, 5, 3, seed=1), draw(20, seed=2)
    y = function(x, weight.view(4, 5, 3, *(1,) * dims), bias, algorithm=algorithm)
    expected = quaternion_linear(x.movedim(1, -1), weight, bias).movedim(-1, 1)
    assert (y - expected).abs().max() < 1e-13


def test_groups_hold_whole_quaternions(x):
    weight = draw(4, 6, 2, 3, 3, seed=1)
    y = quaternion_conv2d(x, weight, groups=2)
    halves = torch.unflatten(x, 1, (4, 2, 2))
    for group in range(2):
        alone = quaternion_conv2d(halves[:, :, group].flatten(1, 2), weight[:, 3 * group : 3 * group + 3])
        assert (torch.unflatten(y, 1, (4, 2, 3))[:, :, group].flatten(1, 2) - alone).abs().max() < 1e-13


def test_a_sample_without_a_batch(x):
    weight = kernels({})
    assert torch.equal(quaternion_conv2d(x[0], weight), quaternion_conv2d(x[:1], weight)[0])


def test_named_padding(x):
    weight = kernels({})
    assert torch.equal(quaternion_conv2d(x, weight, padding="same"), quaternion_conv2d(x, weight, padding=1))
    assert torch.equal(quaternion_conv2d(x, weight, padding="valid"), quaternion_conv2d(x, weight))
    dilated = quaternion_conv2d(x, weight, padding="same", dilation=2)
    assert dilated.shape == x.shape
    assert torch.equal(dilated, quaternion_conv2d(F.pad(x, (2, 2, 2, 2)), weight, dilation=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "full"}, "padding='full' is not 'same', 'valid' or numbers"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ({"stride": 0}, "stride=0 must be one whole number of at least 1, or 2 of them"),
        ({"stride": (1, 2, 3)}, r"stride=\(1, 2, 3\) must be one whole number"),
        ({"groups": 3}, "groups=3 does not divide the 4 quaternion channels"),
        ({"groups": 0}, "groups=0 does not divide"),
        ({"groups": 2}, "with groups=2 takes 8 quaternions"),
        ({"side": "up"}, "side='up' is not one of"),
        ({"bias": torch.zeros(4)}, r"give \(16,\)"),
        ({"weight": torch.zeros(4, 4, 4)}, "with 2 kernel dimensions"),
        ({"x": torch.zeros(2, 15, 6, 5)}, "x has 15 features: quaternions take four each"),
        ({"x": torch.zeros(2, 8, 6, 5)}, "x has 8 channels, 2 quaternions"),
        ({"x": torch.zeros(16, 6)}, r"x of shape \(16, 6\) is not"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    arguments = {"x": torch.zeros(2, 16, 6, 5), "weight": torch.zeros(4, 4, 4, 3, 3)} | options
    with pytest.raises(ValueError, match=message):
        quaternion_conv2d(**arguments)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_transposed_convolution_is_torchs_with_the_block_kernel(dims, algorithm):
    """In torch's order of arguments."""
    run = (quaternion_conv_transpose1d, quaternion_conv_transpose2d, quaternion_conv_transpose3d)[dims - 1]
    torchs = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    x, weight, bias = draw(2, 8, *(4,) * dims), draw(4, 2, 3, *(3,) * dims, seed=1), draw(12, seed=2)
    block = convolution(dims, weight, transposed=True).block(weight, "right")
    arguments = (2, 1, 1, 1, 2)
    found = run(x, weight, bias, *arguments, side="right", algorithm=algorithm)
    assert (found - torchs(x, block, bias, *arguments)).abs().max() < 1e-13


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_bias_is_added_to_every_place_of_its_channel(x, algorithm, groups):
    weight, bias = kernels({"groups": groups}), draw(16, seed=4)
    without = quaternion_conv2d(x, weight, None, groups=groups, algorithm=algorithm)
    found = quaternion_conv2d(x, weight, bias, groups=groups, algorithm=algorithm)
    assert (found - without - bias.view(-1, 1, 1)).abs().max() < 1e-13


def test_sizes_may_be_whole_numbers_of_numpy_and_no_others():
    x, weight = draw(2, 8, 5, 5), draw(4, 2, 2, 3, 3, seed=1)
    found = quaternion_conv2d(x, weight, None, np.int64(2), (np.int64(1), 1), groups=np.int64(1))
    assert torch.equal(found, quaternion_conv2d(x, weight, None, 2, 1))
    for options, message in (
        ({"stride": 1.5}, r"stride=1\.5 must be one whole number"),
        ({"padding": None}, "padding=None must be one whole number"),
        ({"groups": 2.0}, r"groups=2\.0 does not divide"),
    ):
        with pytest.raises(ValueError, match=message):
            quaternion_conv2d(x, weight, **options)
