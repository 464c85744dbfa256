"""The layer of rotations: how it starts, what it can learn, and its options."""

import pytest
import torch

from lightning_nobp.functional.quaternion.rotation import quaternion_rotation, rotation_matrices
from lightning_nobp.nn import vjp
from lightning_nobp.nn.quaternion.rotation import QuaternionRotation


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_single_weight_is_a_rotation_from_the_start():
    layer, x = QuaternionRotation(3, 3, dtype=torch.float64), draw(50, 3)
    y = layer(x)
    assert (torch.linalg.vector_norm(y, dim=1) - torch.linalg.vector_norm(x, dim=1)).abs().max() < 1e-14
    assert (y - x).abs().max() > 0.1


def test_vectors_keep_their_mean_squared_length_at_the_start():
    torch.manual_seed(0)
    layer = QuaternionRotation(300, 600)
    x = torch.randn(200, 300)
    # 120 000 values from 100 x 200 rotations: five standard deviations of the latter.
    assert layer(x).square().mean().item() == pytest.approx(x.square().mean().item(), rel=0.04)


def test_rotations_start_uniformly_distributed():
    torch.manual_seed(0)
    matrices = rotation_matrices(QuaternionRotation(300, 300).weight.detach()).flatten(2)
    # Entries of a uniform rotation have mean 0 and variance 1/3, and 10 000 of them were drawn.
    assert matrices.mean(-1).abs().max() < 5 * (1 / 3 / 10_000) ** 0.5
    assert (matrices.square().mean(-1) - 1 / 3).abs().max() < 5 * (4 / 45 / 10_000) ** 0.5


def test_scales_are_learned_or_stay():
    learned, fixed = QuaternionRotation(12, 6), QuaternionRotation(12, 6, scale=False)
    assert (learned.scale, fixed.scale) == (True, False)
    assert torch.equal(learned.scales, torch.full((2, 4), 0.5))
    assert fixed.scales.item() == 0.5
    assert {name for name, _ in learned.named_parameters()} == {"weight", "scales", "bias"}
    assert {name for name, _ in fixed.named_parameters()} == {"weight", "bias"}
    y, pullback = vjp(fixed, torch.randn(5, 12))
    pullback(torch.ones_like(y))
    assert fixed.scales.grad is None
    assert fixed.weight.grad.abs().max() > 0


def test_the_layer_is_the_function_of_its_parameters():
    layer = QuaternionRotation(9, 6, dtype=torch.float64)
    layer.bias.data, layer.scales.data = draw(6), draw(2, 3)
    x = draw(2, 5, 9)
    assert torch.equal(layer(x), quaternion_rotation(x, layer.weight, layer.scales, layer.bias))
    assert QuaternionRotation(9, 6, bias=False).bias is None


@pytest.mark.parametrize("engine", ["autograd", "vjp"])
def test_a_rotation_is_learned(engine):
    torch.manual_seed(0)
    x = draw(40, 3)
    target = quaternion_rotation(x, draw(4, 1, 1, seed=5), torch.ones(1, 1, dtype=torch.float64))
    layer = QuaternionRotation(3, 3, bias=False, scale=False, dtype=torch.float64)
    start = (layer(x) - target).square().mean().item()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        if engine == "autograd":
            (layer(x) - target).square().mean().backward()
        else:
            y, pullback = vjp(layer, x)
            pullback(2 * (y - target) / y.numel())
        optimizer.step()
    assert start > 0.1
    assert (layer(x) - target).square().mean().item() < 1e-6 * start


def test_features_that_are_no_vectors_are_refused():
    with pytest.raises(ValueError, match="in_features=8: vectors take three features"):
        QuaternionRotation(8, 6)
    with pytest.raises(ValueError, match="out_features=0"):
        QuaternionRotation(9, 0)
    with pytest.raises(TypeError, match=r"in_features=9.0 is no whole number"):
        QuaternionRotation(9.0, 6)
    with pytest.raises(ValueError, match=r"x is torch.float64, but weight torch.float32"):
        QuaternionRotation(9, 6)(draw(5, 9))
