"""From images to quaternions and back to real numbers: values, pullbacks and refusals."""

import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion import unpack
from lightning_nobp.nn import check_supported, vjp
from lightning_nobp.nn.quaternion.encoding import ColourToQuaternions, PatchesToQuaternions, QuaternionsToReal

LAYERS = {
    "patches": (PatchesToQuaternions(), (2, 3, 6, 4)),
    "patches of gray images": (PatchesToQuaternions(), (2, 1, 6, 4)),
    "colour, zero": (ColourToQuaternions("zero"), (2, 3, 5, 4)),
    "colour, mean": (ColourToQuaternions("mean"), (2, 3, 5, 4)),
    "imaginary": (QuaternionsToReal(), (5, 12)),
    "real": (QuaternionsToReal("real"), (5, 12)),
    "norm": (QuaternionsToReal("norm"), (5, 12)),
    "imaginary, maps": (QuaternionsToReal(), (2, 8, 3, 4)),
    "real, maps": (QuaternionsToReal("real"), (2, 8, 3, 4)),
    "norm, maps": (QuaternionsToReal("norm"), (2, 8, 3, 4)),
}


def made(name, dtype=torch.float64):
    layer, shape = LAYERS[name]
    return layer, torch.randn(shape, dtype=dtype)


def by_autograd(layer, x, probe):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(layer(leaf), leaf, probe)[0]


@pytest.mark.parametrize("name", LAYERS)
def test_pullbacks_are_those_of_autograd(name):
    layer, x = made(name)
    check_supported(layer)
    y, pullback = vjp(layer, x, needs_input_grad=True)
    assert torch.equal(y, layer(x))
    probe = torch.randn_like(y)
    expected = by_autograd(layer, x, probe)
    assert torch.allclose(pullback(probe.clone()), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_type_stays(name, dtype):
    layer, x = made(name, dtype)
    y, pullback = vjp(layer, x, needs_input_grad=True)
    assert y.dtype == pullback(torch.ones_like(y)).dtype == dtype


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_known_on_the_meta_device_and_of_an_empty_batch(name):
    layer, x = made(name)
    shape = layer(x).shape
    assert layer(x.to("meta")).shape == shape
    y, pullback = vjp(layer, x[:0], needs_input_grad=True)
    assert y.shape == (0, *shape[1:])
    assert pullback(torch.empty_like(y)).shape == x[:0].shape


def test_patches_are_read_row_by_row():
    x = torch.arange(2 * 3 * 6 * 4.0).view(2, 3, 6, 4)
    q = unpack(PatchesToQuaternions()(x), channel_dim=1)
    assert q.shape == (2, 3, 2, 3, 4)
    for corner, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(q[..., corner].movedim(-1, 1), x[:, :, row::2, column::2])


def test_colours_are_the_imaginary_part():
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    q = unpack(ColourToQuaternions("mean")(x), channel_dim=1).squeeze(-2)
    assert torch.equal(q[..., 1:].movedim(-1, 1), x)
    assert torch.allclose(q[..., 0], (x[:, 0] + x[:, 1] + x[:, 2]) / 3, rtol=1e-14)
    zero = ColourToQuaternions("zero")(x)
    assert torch.equal(zero[:, 0], torch.zeros(2, 5, 4, dtype=torch.float64))
    assert torch.equal(zero[:, 1:], x)


@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 2)])
def test_parts_are_those_of_the_quaternions(shape):
    x = torch.randn(shape, dtype=torch.float64)
    q = unpack(x, channel_dim=1).movedim(-2, 1)
    assert torch.equal(QuaternionsToReal("real")(x), q[..., 0])
    imaginary = QuaternionsToReal("imaginary")(x)
    assert torch.equal(imaginary, torch.cat([q[..., 1], q[..., 2], q[..., 3]], dim=1))
    assert torch.allclose(QuaternionsToReal("norm")(x), q.square().sum(-1).sqrt(), rtol=1e-14)


def test_imaginary_parts_undo_colours():
    x = torch.rand(2, 3, 5, 4)
    assert torch.equal(nn.Sequential(ColourToQuaternions(), QuaternionsToReal())(x), x)


def test_the_gradient_of_a_length_of_zero_is_zero():
    layer, x = made("norm")
    x[:, 1::3] = 0
    y, pullback = vjp(layer, x, needs_input_grad=True)
    assert torch.equal(y[:, 1], torch.zeros(5, dtype=torch.float64))
    probe = torch.randn_like(y)
    found, expected = pullback(probe.clone()), by_autograd(layer, x, probe)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(found[:, 1::3], torch.zeros(5, 4, dtype=torch.float64))
    assert found[:, 0].abs().min() > 0


def test_printing_shows_the_choice():
    assert repr(ColourToQuaternions()) == "ColourToQuaternions(real='mean')"
    assert repr(QuaternionsToReal("norm")) == "QuaternionsToReal(part='norm')"
    assert repr(PatchesToQuaternions()) == "PatchesToQuaternions()"


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (PatchesToQuaternions, (2, 1, 5, 4), r"x of shape \(2, 1, 5, 4\) has no patches of 2x2"),
        (PatchesToQuaternions, (2, 1, 4, 5), "with even height and width"),
        (PatchesToQuaternions, (4, 4), "give images"),
        (ColourToQuaternions, (2, 1, 4, 4), r"x of shape \(2, 1, 4, 4\) is no colour image"),
        (ColourToQuaternions, (3, 4, 4), "is no colour image"),
        (QuaternionsToReal, (2, 6), "x has 6 features: quaternions take four each"),
        (QuaternionsToReal, (8,), r"x of shape \(8,\) is not \(batch, 4N, ...\)"),
    ],
)
def test_bad_inputs_are_refused(build, shape, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(shape))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="real='one' is not one of 'zero', 'mean'"):
        ColourToQuaternions("one")
    with pytest.raises(ValueError, match="part='angle' is not one of 'imaginary', 'real', 'norm'"):
        QuaternionsToReal("angle")
