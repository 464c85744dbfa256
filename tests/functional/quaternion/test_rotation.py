"""Rotations of vectors: matrices against Hamilton products, gradients against autograd."""

import pytest
import torch
from torch.autograd import gradcheck

from lightning_nobp.functional.quaternion import rotate
from lightning_nobp.functional.quaternion.rotation import (
    quaternion_rotation,
    quaternion_rotation_vjp,
    rotation_matrices,
    rotation_matrices_vjp,
)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def vectors(x):
    """Component-major features ``(..., 3N)`` as pure quaternions ``(..., N, 4)``."""
    parts = torch.unflatten(x, -1, (3, -1)).transpose(-1, -2)
    return torch.cat([torch.zeros_like(parts[..., :1]), parts], -1)


@pytest.fixture
def weight():
    return draw(4, 2, 3, seed=1)


@pytest.fixture
def scale():
    return draw(2, 3, seed=2)


@pytest.fixture
def bias():
    return draw(6, seed=3)


def test_matrices_turn_vectors_as_the_product_from_both_sides(weight):
    x = draw(7, 3)
    matrices = rotation_matrices(weight)
    for m in range(2):
        for n in range(3):
            expected = rotate(vectors(x), weight[:, m, n])
            assert expected[..., 0].abs().max() < 1e-14
            assert (x @ matrices[:, :, m, n].t() - expected[:, 0, 1:]).abs().max() < 1e-14


def test_matrices_are_rotations(weight):
    matrices = rotation_matrices(weight).flatten(2).movedim(-1, 0)
    assert (matrices @ matrices.mT - torch.eye(3)).abs().max() < 1e-14
    assert (torch.linalg.det(matrices) - 1).abs().max() < 1e-14


@pytest.mark.parametrize("factor", [-1.0, 1e-8, 1e8, 1e-13, 1e-200, 1e200])
def test_the_length_and_the_sign_of_a_weight_do_not_matter(weight, factor):
    assert (rotation_matrices(factor * weight) - rotation_matrices(weight)).abs().max() < 1e-14


@pytest.mark.parametrize("factor", [1e-13, 1e-25, 1e-35, 1e35])
def test_short_and_long_weights_of_single_precision_are_rotations(weight, factor):
    weight = weight.float()
    assert (rotation_matrices(factor * weight) - rotation_matrices(weight)).abs().max() < 1e-5
    grad = rotation_matrices_vjp(draw(3, 3, 2, 3).float(), factor * weight)
    assert grad.isfinite().all()
    assert grad.abs().max() > 0 or factor > 1


def test_a_layer_sums_scaled_rotations(weight, scale, bias):
    x = draw(5, 9)
    y = quaternion_rotation(x, weight, scale, bias)
    turned = rotate(vectors(x).unsqueeze(-3), weight.movedim(0, -1))
    expected = (scale.unsqueeze(-1) * turned).sum(-2)[..., 1:].transpose(-1, -2).flatten(-2) + bias
    assert (y - expected).abs().max() < 1e-13


@pytest.mark.parametrize("shape", [(5, 9), (2, 5, 9)])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_those_of_autograd(weight, scale, shape, shared):
    if shared:
        scale = scale[0, 0].clone()
    x = draw(*shape).requires_grad_()
    weight.requires_grad_()
    scale.requires_grad_()
    y = quaternion_rotation(x, weight, scale)
    grad = draw(*y.shape, seed=4)
    y.backward(grad)
    grad_x, grad_weight, grad_scale = quaternion_rotation_vjp(grad, x.detach(), weight.detach(), scale.detach())
    assert (grad_x - x.grad).abs().max() < 1e-12
    assert (grad_weight - weight.grad).abs().max() < 1e-12
    assert ((grad_scale.sum() if shared else grad_scale) - scale.grad).abs().max() < 1e-12


def test_gradients_that_are_not_needed_are_left_out(weight, scale):
    x, grad = draw(5, 9), draw(5, 6, seed=4)
    whole = quaternion_rotation_vjp(grad, x, weight, scale)
    assert torch.equal(quaternion_rotation_vjp(grad, x, weight, scale, needs_weight_grad=False)[0], whole[0])
    assert quaternion_rotation_vjp(grad, x, weight, scale, needs_weight_grad=False)[1:] == (None, None)
    part = quaternion_rotation_vjp(grad, x, weight, scale, needs_input_grad=False)
    assert part[0] is None
    assert all(map(torch.equal, part[1:], whole[1:]))


def test_autograd_agrees_with_finite_differences(weight, scale, bias):
    assert gradcheck(quaternion_rotation, [t.requires_grad_() for t in (draw(5, 9), weight, scale, bias)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_of_0_is_the_identity_with_gradient_0(dtype):
    weight = torch.zeros(4, 1, 1, dtype=dtype, requires_grad=True)
    matrices = rotation_matrices(weight)
    grad = draw(3, 3, 1, 1).to(dtype)
    matrices.backward(grad)
    assert torch.equal(matrices[:, :, 0, 0], torch.eye(3, dtype=dtype))
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(rotation_matrices_vjp(grad, weight.detach()), torch.zeros_like(weight))


@pytest.mark.parametrize("length", [1e-30, 1e-13, 1e-11, 1e-3])
def test_gradients_of_short_weights_are_those_of_autograd(weight, length):
    weight = (weight / torch.linalg.vector_norm(weight, dim=0) * length).requires_grad_()
    grad = draw(3, 3, 2, 3, seed=4)
    rotation_matrices(weight).backward(grad)
    found = rotation_matrices_vjp(grad, weight.detach())
    assert found.isfinite().all()
    assert (found - weight.grad).abs().max() <= 1e-12 * weight.grad.abs().max()


def test_shapes_that_do_not_fit_are_refused(weight, scale):
    with pytest.raises(ValueError, match=r"\(3, 2, 3\) is not \(4, M, N\)"):
        quaternion_rotation(draw(5, 9), weight[:3], scale)
    with pytest.raises(ValueError, match=r"\(5, 12\) does not fit weight of shape \(4, 2, 3\): give \(\.\.\., 9\)"):
        quaternion_rotation(draw(5, 12), weight, scale)
    with pytest.raises(ValueError, match=r"bias of shape \(2,\) does not fit 2 vectors: give \(6,\)"):
        quaternion_rotation(draw(5, 9), weight, scale, draw(2))
    with pytest.raises(ValueError, match=r"x is torch.float32, but weight torch.float64: convert one"):
        quaternion_rotation(draw(5, 9).float(), weight, scale)
    with pytest.raises(ValueError, match=r"\(3, 5\) is not \(4, \.\.\.\)"):
        rotation_matrices(draw(3, 5))
