"""Maxima of quaternions: the longest of each window, whole."""

import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion import hamilton_product, norm, pack, unpack
from lightning_nobp.nn.quaternion.pooling import QuaternionMaxPool2d

WINDOWS = {
    "2x2": {"kernel_size": 2},
    "overlapping": {"kernel_size": 3, "stride": 1, "padding": 1},
    "uneven": {"kernel_size": (2, 3), "stride": (1, 2), "ceil_mode": True},
    "dilated": {"kernel_size": 2, "dilation": 2},
}


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def x():
    return draw(3, 8, 7, 6)


@pytest.mark.parametrize("window", WINDOWS)
def test_lengths_are_the_maxima_of_lengths(x, window):
    y = QuaternionMaxPool2d(**WINDOWS[window])(x)
    expected = nn.MaxPool2d(**WINDOWS[window])(norm(unpack(x, 1)).movedim(-1, 1))
    assert torch.equal(norm(unpack(y, 1)).movedim(-1, 1), expected)


@pytest.mark.parametrize("window", WINDOWS)
def test_every_output_is_a_quaternion_of_its_own_channel(x, window):
    y = QuaternionMaxPool2d(**WINDOWS[window])(x)
    for sample in range(3):
        for channel in range(2):
            there = unpack(x, 1)[sample, ..., channel, :].reshape(-1, 4)
            for q in unpack(y, 1)[sample, ..., channel, :].reshape(-1, 4):
                assert (there == q).all(-1).any()


@pytest.mark.parametrize("window", WINDOWS)
def test_a_rotation_of_all_quaternions_passes_through(x, window):
    layer, unit = QuaternionMaxPool2d(**WINDOWS[window]), nn.functional.normalize(draw(4, seed=1), dim=0)

    def turned(x):
        return pack(hamilton_product(unit, unpack(x, 1)), channel_dim=1)

    assert (layer(turned(x)) - turned(layer(x))).abs().max() < 1e-14


@pytest.mark.parametrize("window", WINDOWS)
def test_real_numbers_that_are_positive_are_pooled_as_torch_does(window):
    real = draw(3, 2, 7, 6).abs()
    y = QuaternionMaxPool2d(**WINDOWS[window])(torch.cat([real, 0 * real, 0 * real, 0 * real], dim=1))
    assert torch.equal(y[:, :2], nn.MaxPool2d(**WINDOWS[window])(real))
    assert (y[:, 2:] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, "kernel_size=0"),
        ({"kernel_size": (2, 2, 2)}, r"kernel_size=\(2, 2, 2\)"),
        ({"kernel_size": 2, "stride": 0}, "stride=0"),
        ({"kernel_size": 2, "padding": 2}, "padding=2 must be at most half of kernel_size=2"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuaternionMaxPool2d(**options)


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [1.0, "1", True])
def test_sizes_that_are_no_whole_numbers_are_refused(name, value):
    with pytest.raises(TypeError, match=f"{name}={value!r} is no whole number: give an int"):
        QuaternionMaxPool2d(**{"kernel_size": 2, name: value})


def test_inputs_that_are_no_maps_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 8\) holds no maps"):
        QuaternionMaxPool2d(2)(draw(3, 8))
