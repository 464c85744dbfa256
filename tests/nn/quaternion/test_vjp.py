"""What all layers of quaternions have in common: pullbacks like autograd's, types, devices, copies and checkpoints."""

import copy
import io

import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion.hypercomplex import hamilton_rule
from lightning_nobp.nn import check_supported, vjp
from lightning_nobp.nn.quaternion.activations import Cardioid, MagnitudeTanh, ModReLU, NormGate, PhaseSin, PhaseTanh
from lightning_nobp.nn.quaternion.dropout import QuaternionDropout, QuaternionDropout2d
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv2d, PHMLinear
from lightning_nobp.nn.quaternion.normalisation import QuaternionBatchNorm
from lightning_nobp.nn.quaternion.pooling import QuaternionMaxPool2d
from lightning_nobp.nn.quaternion.rotation import QuaternionRotation

LAYERS = {
    "magnitude tanh": (lambda **kind: MagnitudeTanh(), (5, 12)),
    "magnitude tanh, maps": (lambda **kind: MagnitudeTanh(), (3, 8, 5, 4)),
    "cardioid": (lambda **kind: Cardioid(), (3, 8, 5, 4)),
    "phase tanh": (lambda **kind: PhaseTanh(), (3, 8, 5, 4)),
    "phase sin": (lambda **kind: PhaseSin(), (3, 8, 5, 4)),
    "modrelu": (lambda **kind: ModReLU(3, -1.0, **kind), (5, 12)),
    "modrelu, sequences": (lambda **kind: ModReLU(2, -1.0, **kind), (3, 8, 5)),
    "norm gate": (lambda **kind: NormGate(3, **kind), (5, 12)),
    "norm gate, maps": (lambda **kind: NormGate(2, **kind), (3, 8, 5, 4)),
    "dropout": (lambda **kind: QuaternionDropout(0.4), (30, 12)),
    "dropout, sequences": (lambda **kind: QuaternionDropout(0.4), (30, 12, 3)),
    "dropout of everything": (lambda **kind: QuaternionDropout(1.0), (5, 12)),
    "dropout of channels": (lambda **kind: QuaternionDropout2d(0.4), (30, 12, 3, 2)),
    "max pool": (lambda **kind: QuaternionMaxPool2d(2), (3, 8, 6, 5)),
    "max pool, overlapping": (lambda **kind: QuaternionMaxPool2d(3, 1, 1), (3, 8, 6, 5)),
    "max pool, uneven": (lambda **kind: QuaternionMaxPool2d((2, 1), (1, 2), ceil_mode=True), (3, 8, 6, 5)),
    "rotation": (lambda **kind: QuaternionRotation(9, 6, **kind), (5, 9)),
    "rotation, sequences": (lambda **kind: QuaternionRotation(9, 6, **kind), (5, 4, 9)),
    "rotation, bare": (lambda **kind: QuaternionRotation(9, 6, bias=False, scale=False, **kind), (5, 9)),
    "phm": (lambda **kind: PHMLinear(3, 9, 6, **kind), (5, 9)),
    "phm, sequences, no bias": (lambda **kind: PHMLinear(2, 8, 6, bias=False, **kind), (5, 3, 8)),
    "phm, fixed rule": (lambda **kind: PHMLinear(4, 8, 12, rule=hamilton_rule(), **kind), (5, 8)),
    "phm convolution": (lambda **kind: PHMConv2d(3, 6, 9, 3, padding=1, **kind), (2, 6, 5, 4)),
    "phm convolution, strided": (lambda **kind: PHMConv2d(2, 4, 6, (3, 2), 2, (1, 0), (1, 2), **kind), (2, 4, 9, 8)),
}
NORMS = {
    "": {},
    ", not affine": {"affine": False},
    ", no running statistics": {"track_running_stats": False},
    ", cumulative": {"momentum": None},
}
for mode in ("whiten", "norm", "split"):
    for ending, options in NORMS.items():
        for shape in ((11, 8), (5, 8, 3, 4)):

            def norm(mode=mode, options=options, **kind):
                return QuaternionBatchNorm(8, mode=mode, **options, **kind)

            LAYERS[f"batch norm, {mode}{ending}, {len(shape)}d"] = norm, shape


def made(name, **kind):
    """A layer away from its start, where some gradients would be 0 or not depend on others; and an input."""
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build(**{"dtype": torch.float64} | kind)
    for tensor in layer.parameters():
        tensor.data += 0.2 * torch.randn_like(tensor)
    return layer, 1.5 * torch.randn(shape, dtype=kind.get("dtype", torch.float64)) + 0.3


def pulled(layer, x, probe):
    y, pullback = vjp(layer, x, needs_input_grad=True)
    return y, pullback(probe.clone())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_pullbacks_are_those_of_autograd(name, training):
    layer, x = made(name)
    layer.train()(x)
    layer.train(training)
    twin, leaf = copy.deepcopy(layer), x.clone().requires_grad_()
    torch.manual_seed(1)
    expected = twin(leaf)
    probe = torch.randn(expected.shape, dtype=torch.float64)
    (expected * probe).sum().backward()

    check_supported(layer)
    torch.manual_seed(1)
    y, grad_x = pulled(layer, x, probe)
    assert not y.requires_grad
    torch.testing.assert_close(y, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_x, leaf.grad, rtol=1e-12, atol=1e-12)
    for mine, other in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)
    for mine, other in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_run_in_other_types(name, dtype):
    layer, x = made(name, dtype=dtype)
    wide = copy.deepcopy(layer).double()
    torch.manual_seed(2)
    expected = wide(x.double())
    probe = torch.randn_like(expected).to(dtype)
    torch.manual_seed(2)
    y, grad_x = pulled(layer, x, probe)
    assert y.dtype == grad_x.dtype == dtype
    tolerance = 1e-4 if dtype is torch.float32 else 0.1
    # Not entry by entry: where two quaternions are nearly as long, rounding may decide which is taken.
    assert (y - expected).norm() <= tolerance * expected.norm()
    torch.manual_seed(2)
    _, wide_grad = pulled(wide, x.double(), probe.double())
    assert (grad_x - wide_grad).norm() <= tolerance * wide_grad.norm()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_run_under_autocast(name):
    layer, x = made(name, dtype=torch.float32)
    torch.manual_seed(3)
    expected, _ = vjp(copy.deepcopy(layer), x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(3)
        forward = copy.deepcopy(layer)(x)
        torch.manual_seed(3)
        y, grad_x = pulled(layer, x, torch.ones_like(forward))
    torch.testing.assert_close(y, forward.detach())
    assert (y - expected).norm() <= 0.02 * expected.norm()
    assert grad_x.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_made_on_a_device_without_memory(name):
    build, shape = LAYERS[name]
    layer = build(device="meta")
    assert all(tensor.is_meta for tensor in [*layer.parameters(), *layer.buffers()])
    real = build(dtype=torch.float32)
    wanted = {key: value.shape for key, value in real.state_dict().items()}
    assert {key: value.shape for key, value in layer.state_dict().items()} == wanted
    # As torch's own, a cumulative average reads how many batches there were.
    assert layer.eval()(torch.empty(shape, device="meta")).shape == real(torch.randn(shape)).shape


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_and_a_checkpoint_compute_the_same(name):
    layer, x = made(name)
    layer(x)
    layer.eval()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = LAYERS[name][0](dtype=torch.float64).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_parameters_get_no_gradient_and_others_the_same(name):
    names = [key for key, _ in made(name)[0].named_parameters()]
    for frozen in names:
        layer, x = made(name)
        whole, _ = made(name)
        layer.get_parameter(frozen).requires_grad_(False)
        y, pullback = vjp(layer, x)
        pullback(y.clone())
        y, pullback = vjp(whole, x)
        pullback(y.clone())
        for key in names:
            if key == frozen:
                assert layer.get_parameter(key).grad is None
            else:
                assert torch.equal(layer.get_parameter(key).grad, whole.get_parameter(key).grad)


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith(("rotation", "phm"))])
def test_features_that_hold_no_whole_quaternions_are_refused(name):
    layer, x = made(name)
    with pytest.raises(ValueError, match="x "):
        layer(x[:, :-1])
    with pytest.raises(ValueError, match="x of shape"):
        layer(x[:, 0, ...].flatten()[:7])


def test_pullbacks_go_through_a_network_of_them():
    network = nn.Sequential(
        PHMConv2d(4, 4, 8, 3, padding=1),
        QuaternionBatchNorm(8),
        PhaseSin(),
        QuaternionMaxPool2d(2),
        QuaternionDropout2d(0.2),
        NormGate(2),
        nn.Flatten(),
        PHMLinear(4, 32, 12),
        QuaternionRotation(12, 6),
    ).double()
    twin, x = copy.deepcopy(network), torch.randn(6, 4, 4, 4, dtype=torch.float64)
    torch.manual_seed(4)
    y, pullback = vjp(network, x)
    pullback(2 * y)
    torch.manual_seed(4)
    twin(x).square().sum().backward()
    for mine, other in zip(network.parameters(), twin.parameters(), strict=True):
        scale = other.grad.abs().max() + 1
        torch.testing.assert_close(mine.grad / scale, other.grad / scale, rtol=0, atol=1e-12)
