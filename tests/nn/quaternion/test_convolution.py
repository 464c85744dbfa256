"""Layers of convolutions: the functions behind them, padding, the way back, and all that is expected of a layer."""

import copy
import io
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_nobp.functional.quaternion import (
    conjugate,
    hamilton_block,
    quaternion_conv1d,
    quaternion_conv2d,
    quaternion_conv3d,
)
from lightning_nobp.functional.quaternion.convolution import convolution, quaternion_conv
from lightning_nobp.nn import check_supported, vjp
from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConv3d,
    QuaternionConvTranspose1d,
    QuaternionConvTranspose2d,
    QuaternionConvTranspose3d,
)
from lightning_nobp.nn.quaternion.networks import QuaternionCNN, QuaternionMLP

LAYERS = {
    "1d": (QuaternionConv1d, (8, 12, 3), {}, (2, 8, 6)),
    "1d, strided": (QuaternionConv1d, (8, 12, 3), {"stride": 2, "padding": 1}, (2, 8, 7)),
    "2d": (QuaternionConv2d, (8, 12, (3, 2)), {}, (2, 8, 6, 5)),
    "2d, everything": (
        QuaternionConv2d,
        (8, 12, 3),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": False, "side": "right"},
        (2, 8, 6, 5),
    ),
    "2d, groups": (QuaternionConv2d, (8, 16, 3), {"groups": 2}, (2, 8, 6, 5)),
    "2d, same": (QuaternionConv2d, (8, 12, 3), {"padding": "same", "dilation": 2}, (2, 8, 6, 5)),
    "2d, fast8": (QuaternionConv2d, (8, 12, 3), {"algorithm": "fast8"}, (2, 8, 6, 5)),
    "3d": (QuaternionConv3d, (4, 8, 2), {"padding": 1}, (2, 4, 3, 4, 3)),
    "1d, transposed": (QuaternionConvTranspose1d, (8, 12, 3), {"stride": 2}, (2, 8, 6)),
    "2d, transposed": (QuaternionConvTranspose2d, (8, 12, 3), {"side": "right"}, (2, 8, 4, 5)),
    "2d, transposed, everything": (
        QuaternionConvTranspose2d,
        (8, 12, 3),
        {"stride": 2, "padding": 1, "output_padding": (1, 0), "dilation": (1, 2), "bias": False},
        (2, 8, 4, 5),
    ),
    "2d, transposed, groups": (QuaternionConvTranspose2d, (8, 16, 3), {"groups": 2}, (2, 8, 4, 5)),
    "2d, transposed, fast8": (QuaternionConvTranspose2d, (8, 12, 3), {"algorithm": "fast8"}, (2, 8, 4, 5)),
    "3d, transposed": (QuaternionConvTranspose3d, (4, 8, 2), {}, (2, 4, 3, 4, 3)),
}


def made(name, **kind):
    """A layer with a bias that is not 0, and an input."""
    layer_type, sizes, options, shape = LAYERS[name]
    layer = layer_type(*sizes, **{"dtype": torch.float64} | options | kind)
    if layer.bias is not None and not layer.bias.is_meta:
        nn.init.normal_(layer.bias)
    return layer, torch.randn(shape, dtype=layer.weight.dtype, device=layer.weight.device)


def close(found, expected):
    return torch.allclose(found, expected, rtol=0, atol=1e-12)


FUNCTIONS = {"1d": quaternion_conv1d, "2d": quaternion_conv2d, "3d": quaternion_conv3d}


@pytest.mark.parametrize("name", [name for name in LAYERS if "transposed" not in name])
def test_layers_are_their_functions(name):
    layer, x = made(name)
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "side": "left", "algorithm": "auto"}
    arguments |= {key: value for key, value in LAYERS[name][2].items() if key != "bias"}
    assert torch.equal(layer(x), FUNCTIONS[name[:2]](x, layer.weight, layer.bias, **arguments))


@pytest.mark.parametrize("name", [name for name in LAYERS if "transposed" in name])
def test_transposed_layers_are_their_function(name):
    layer, x = made(name)
    options = dict(LAYERS[name][2])
    side, algorithm = options.pop("side", "left"), options.pop("algorithm", "auto")
    options.pop("bias", None)
    geometry = convolution(int(name[0]), layer.weight, **options, transposed=True)
    assert torch.equal(layer(x), quaternion_conv(x, layer.weight, layer.bias, geometry, side, algorithm))


def test_a_convolution_is_torchs_with_the_block_kernel():
    for name in ("2d", "2d, everything", "2d, same", "2d, fast8"):
        layer, x = made(name)
        options = {key: LAYERS[name][2].get(key, usual) for key, usual in GEOMETRY.items()}
        expected = F.conv2d(x, hamilton_block(layer.weight, layer.side), layer.bias, **options)
        assert close(layer(x), expected)


GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}


def test_a_transposed_convolution_is_torchs_with_the_block_kernel():
    for name in ("2d, transposed", "2d, transposed, everything", "2d, transposed, fast8"):
        layer, x = made(name)
        options = {key: LAYERS[name][2].get(key, usual) for key, usual in (GEOMETRY | {"output_padding": 0}).items()}
        block = hamilton_block(layer.weight.transpose(1, 2), layer.side).transpose(0, 1)
        assert close(layer(x), F.conv_transpose2d(x, block, layer.bias, **options))


def test_a_transposed_convolution_is_the_way_back_of_the_one_with_the_conjugate():
    """Back through ``w x`` goes ``w* g``, so forwards by w goes what comes back through the conjugate."""
    layer = QuaternionConvTranspose2d(8, 12, 3, 2, 1, bias=False, dtype=torch.float64)
    x = torch.zeros(2, 12, 7, 9, dtype=torch.float64, requires_grad=True)
    forward = quaternion_conv2d(x, conjugate(layer.weight, dim=0), None, 2, 1)
    probe = torch.randn_like(forward)
    assert close(layer(probe), torch.autograd.grad(forward, x, probe)[0])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"dilation": 2, "algorithm": "fast8"}], ids=str)
def test_other_padding_is_done_before(mode, options):
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    layer = QuaternionConv2d(8, 8, 3, padding=(2, 1), padding_mode=mode, dtype=torch.float64, **options)
    # torch pads the last dimension first.
    expected = quaternion_conv2d(F.pad(x, (1, 1, 2, 2), mode=mode), layer.weight, layer.bias, **options)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("layer", [QuaternionConv1d, QuaternionConv3d])
def test_other_padding_of_other_dimensions(layer):
    x = torch.randn(2, 4, *(4,) * layer.dims, dtype=torch.float64)
    layer = layer(4, 4, 3, padding="same", padding_mode="circular", dtype=torch.float64)
    y = layer(x)
    assert y.shape == x.shape
    # Wherever it starts, a circle is the same.
    assert close(layer(x.roll(1, -1)), y.roll(1, -1))


def test_a_sample_without_a_batch():
    layer, x = made("2d, groups")
    assert torch.equal(layer(x[0]), layer(x[:1])[0])
    padded = QuaternionConv2d(8, 8, 3, padding=1, padding_mode="reflect", dtype=torch.float64)
    assert torch.equal(padded(x[0]), padded(x[:1])[0])


# Backwards


@pytest.mark.parametrize("name", LAYERS)
def test_pullbacks_are_those_of_autograd(name):
    layer, x = made(name)
    twin, leaf = copy.deepcopy(layer), x.clone().requires_grad_()
    expected = twin(leaf)
    probe = torch.randn_like(expected)
    expected.backward(probe)
    check_supported(layer)
    y, pullback = vjp(layer, x, needs_input_grad=True)
    assert not y.requires_grad
    assert close(y, expected)
    assert close(pullback(probe.clone()), leaf.grad)
    for mine, other in zip(layer.parameters(), twin.parameters(), strict=True):
        assert close(mine.grad, other.grad)


def test_frozen_parameters_get_no_gradient():
    layer, x = made("2d")
    layer.weight.requires_grad_(False)
    assert vjp(layer, x)[1](torch.randn_like(layer(x))) is None
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_other_padding_has_no_way_back_and_says_so():
    layer = QuaternionConv2d(8, 8, 3, padding=1, padding_mode="reflect")
    message = "is a QuaternionConv2d with padding_mode='reflect': only 'zeros' has a written backward pass"
    with pytest.raises(TypeError, match=f"network.1 {message}"):
        check_supported(nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(TypeError, match=message):
        vjp(layer, torch.zeros(2, 8, 6, 5))


@pytest.mark.parametrize("name", LAYERS)
def test_many_layers_run_at_once(name):
    """As rules do that try several perturbed copies of the parameters."""
    layer, x = made(name)
    stacked = {n: p.detach() + 0.1 * torch.randn(3, *p.shape, dtype=p.dtype) for n, p in layer.named_parameters()}
    run = lambda parameters, x: torch.func.functional_call(layer, parameters, (x,))  # noqa: E731
    together = torch.vmap(run, in_dims=(0, None))(stacked, x)
    for i in range(3):
        assert close(together[i], run({n: p[i] for n, p in stacked.items()}, x))


# What is expected of a torch layer


@pytest.mark.parametrize("name", LAYERS)
def test_on_the_meta_device_only_shapes_are_computed(name):
    layer, x = made(name)
    meta, empty = made(name, device="meta")
    assert all(p.is_meta for p in meta.parameters())
    assert meta(empty).shape == layer(x).shape


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_and_outputs_have_the_type_asked_for(name, dtype):
    layer, x = made(name, dtype=dtype, algorithm="block")
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(x).dtype == dtype


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_checkpoints_bring_everything_back(name):
    layer, x = made(name)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    twin.weight.data.zero_()
    assert not torch.equal(twin(x), layer(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize("name", [name for name in LAYERS if "fast8" not in name])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast_runs_in_half_precision_both_ways(name, inside):
    layer, x = made(name, dtype=torch.float32)
    wide = copy.deepcopy(layer).double()
    expected, pull_wide = vjp(wide, x.double(), needs_input_grad=True)
    probe = torch.randn_like(expected)
    grad_wide = pull_wide(probe.clone())
    with torch.autocast("cpu", torch.bfloat16):
        y, pullback = vjp(layer, x, needs_input_grad=True)
        assert y.dtype == layer(x).dtype == torch.bfloat16
        # Rules may go back inside of the context or outside.
        grad_x = pullback(probe.float()) if inside else None
    grad_x = pullback(probe.float()) if grad_x is None else grad_x
    assert (y - expected).norm() < 0.02 * expected.norm()
    assert (grad_x - grad_wide).norm() < 0.02 * grad_wide.norm()
    assert layer.weight.grad.dtype == torch.float32
    assert (layer.weight.grad - wide.weight.grad).norm() < 0.02 * wide.weight.grad.norm()


def test_layers_have_the_attributes_of_torchs():
    layer, same = QuaternionConv2d(8, 16, 3, 2, 1, (1, 2), 2), nn.Conv2d(8, 16, 3, 2, 1, (1, 2), 2)
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    assert all(getattr(layer, name) == getattr(same, name) for name in (*names, "padding_mode"))
    assert layer.weight.numel() == same.weight.numel() / 4
    layer, same = QuaternionConvTranspose2d(8, 16, 3, 2, 1, 1, 2), nn.ConvTranspose2d(8, 16, 3, 2, 1, 1, 2)
    assert all(getattr(layer, name) == getattr(same, name) for name in (*names, "output_padding"))
    assert layer.weight.numel() == same.weight.numel() / 4


def test_printing_shows_what_torchs_layers_show():
    for layer, same in (
        (QuaternionConv2d(8, 16, 3), nn.Conv2d(8, 16, 3)),
        (QuaternionConv1d(8, 16, 3, 2, 1, 2, 2), nn.Conv1d(8, 16, 3, 2, 1, 2, 2)),
        (QuaternionConv3d(8, 8, 3, padding_mode="circular"), nn.Conv3d(8, 8, 3, padding_mode="circular")),
        (QuaternionConvTranspose2d(8, 16, 3, 2, 1, 1), nn.ConvTranspose2d(8, 16, 3, 2, 1, 1)),
    ):
        kept = repr(same).replace(type(same).__name__, type(layer).__name__)
        for value in kept.removesuffix(")").split(", "):
            assert value in repr(layer)
    shown = repr(QuaternionConv1d(8, 4, 3, bias=False, side="right"))
    assert shown == "QuaternionConv1d(8, 4, kernel_size=(3,), stride=(1,), bias=False, side='right')"


@pytest.mark.parametrize("layer", [QuaternionConv2d, QuaternionConvTranspose2d])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 6}, "in_channels has 6 features: quaternions take four each"),
        ({"out_channels": 6}, "out_channels has 6 features"),
        ({"groups": 2}, "groups=2 does not divide the 3 quaternions of out_channels=12"),
        ({"groups": 3}, "groups=3 does not divide the 2 quaternions of in_channels=8"),
        ({"groups": 0}, "groups=0 does not divide"),
        ({"kernel_size": 0}, "kernel_size=0 must be one whole number of at least 1, or 2 of them"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size=\(3, 3, 3\) must be one whole number of at least 1"),
        ({"stride": 0}, "stride=0 must be one whole number of at least 1"),
        ({"padding": -1}, "padding=-1 must be one whole number of at least 0"),
        ({"dilation": (1, 0)}, r"dilation=\(1, 0\) must be"),
        ({"side": "up"}, "side='up' is not one of"),
        ({"algorithm": "fft"}, "algorithm='fft' is not one of"),
        ({"init": "zero"}, "init='zero' is not one of"),
    ],
)
def test_bad_arguments_are_refused(layer, options, message):
    with pytest.raises(ValueError, match=message):
        layer(**{"in_channels": 8, "out_channels": 12, "kernel_size": 3} | options)


@pytest.mark.parametrize("layer", [QuaternionConv2d, QuaternionConvTranspose2d])
@pytest.mark.parametrize("name", ["in_channels", "out_channels"])
@pytest.mark.parametrize("value", [0, -4])
def test_channels_that_are_not_positive_are_refused(layer, name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be positive"):
        layer(**{"in_channels": 8, "out_channels": 12, "kernel_size": 3, name: value})


SIZES = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        *((QuaternionConv2d, name) for name in SIZES),
        *((QuaternionConvTranspose2d, name) for name in (*SIZES, "output_padding")),
    ],
)
@pytest.mark.parametrize("value", [4.0, True, None, (4, "4")])
def test_sizes_that_are_no_whole_numbers_are_refused(layer, name, value):
    with pytest.raises(TypeError, match=re.escape(f"{name}={value!r} is no whole number: give an int")):
        layer(**{"in_channels": 8, "out_channels": 12, "kernel_size": 3, name: value})


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        *((QuaternionConv2d, name) for name in SIZES if name != "padding"),
        *((QuaternionConvTranspose2d, name) for name in (*SIZES, "output_padding")),
    ],
)
def test_sizes_that_are_strings_are_refused(layer, name):
    with pytest.raises(TypeError, match=f"{name}='8' is no whole number: give an int"):
        layer(**{"in_channels": 8, "out_channels": 12, "kernel_size": 3, name: "8"})


def test_bad_padding_is_refused():
    with pytest.raises(ValueError, match="padding_mode='mirror' is not one of 'zeros', 'reflect'"):
        QuaternionConv2d(8, 8, 3, padding_mode="mirror")
    with pytest.raises(ValueError, match="padding='same' needs stride 1 and an odd kernel"):
        QuaternionConv2d(8, 8, 2, padding="same")
    with pytest.raises(ValueError, match="output_padding=2 must be smaller than stride or dilation"):
        QuaternionConvTranspose2d(8, 8, 3, stride=2, output_padding=2)


@pytest.mark.parametrize("network", [QuaternionCNN, QuaternionMLP])
@pytest.mark.parametrize(
    ("input_shape", "num_classes", "message"),
    [
        ((3, 0, 8), 10, r"input_shape=\(3, 0, 8\) must be positive"),
        ((0, 8, 8), 10, r"input_shape=\(0, 8, 8\) must be positive"),
        ((3, 8, 8), 0, "num_classes=0 must be positive"),
    ],
)
def test_networks_of_nothing_are_refused(network, input_shape, num_classes, message):
    with pytest.raises(ValueError, match=message):
        network(input_shape, num_classes)


def test_networks_without_a_convolution_or_with_broken_sizes_are_refused():
    with pytest.raises(ValueError, match=r"channels=\(\) makes no convolution: give the channels of at least one"):
        QuaternionCNN((3, 8, 8), 10, channels=())
    with pytest.raises(TypeError, match=r"input_shape=\(3, 8.0, 8\)"):
        QuaternionCNN((3, 8.0, 8), 10)
    with pytest.raises(TypeError, match="num_classes='10' is no whole number"):
        QuaternionMLP((3, 8, 8), "10")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 10, 6, 5), "x has 10 features: quaternions take four each"),
        (torch.zeros(2, 12, 6, 5), "x has 12 channels, 3 quaternions"),
        (torch.zeros(8, 6), r"x of shape \(8, 6\) is not"),
        (torch.zeros(2, 8, 6, 5, dtype=torch.float64), "x is torch.float64, but weight torch.float32"),
    ],
)
@pytest.mark.parametrize("layer", [QuaternionConv2d, QuaternionConvTranspose2d])
def test_bad_inputs_are_refused(layer, x, message):
    with pytest.raises(ValueError, match=message):
        layer(8, 8, 3)(x)
