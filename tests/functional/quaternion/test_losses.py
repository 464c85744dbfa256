"""Losses of quaternions: what they measure, their gradients, and that nothing is broadcast in silence."""

import math
import re

import pytest
import torch
from torch.autograd import gradcheck

from lightning_nobp.functional.quaternion import exp, hamilton_product, normalize, pack
from lightning_nobp.functional.quaternion.losses import (
    chordal_loss,
    component_mse,
    geodesic_loss,
    imaginary_mse,
    rotation_angle,
    unit_mse,
)

LOSSES = [component_mse, imaginary_mse, unit_mse, geodesic_loss, chordal_loss]
by_name = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@by_name
def test_autograd_agrees_with_finite_differences(loss):
    assert gradcheck(loss, [draw(5, 8).requires_grad_(), draw(5, 8, seed=1)])


@by_name
def test_no_loss_is_left_where_output_and_target_agree(loss):
    y = pack(normalize(draw(5, 2, 4)))
    assert loss(y, y) < 1e-15


def test_the_imaginary_loss_leaves_real_parts_free():
    y, target = draw(5, 2, 4), draw(5, 2, 4, seed=1)
    expected = (y - target)[..., 1:].square().mean()
    assert (imaginary_mse(pack(y), pack(target)) - expected).abs() < 1e-15
    y[..., 0] += 100
    assert (imaginary_mse(pack(y), pack(target)) - expected).abs() < 1e-15


@by_name
@pytest.mark.parametrize("shape", [(4,), (8,), (8, 1), (8, 8), (4, 8)])
def test_targets_of_another_shape_are_refused(loss, shape):
    message = f"y of shape (8, 4) and target of shape {shape}: give one for each"
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(draw(8, 4), draw(*shape))


@by_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    y, target = 300 * draw(5, 8).to(dtype), draw(5, 8, seed=1).to(dtype)
    found = loss(y, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(y.float(), target.float()))
    leaf = y.clone().requires_grad_()
    loss(leaf, target).backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30, 1e37])
@pytest.mark.parametrize("angle", [0.0, 0.01, 1.0, 3.0])
def test_the_angle_does_not_depend_on_lengths(scale, angle):
    turn = exp(torch.tensor([0, 0, angle / 2, 0]))
    q = normalize(draw(20, 4).float())
    found = rotation_angle(scale * q, scale * hamilton_product(q, turn))
    assert (found - angle).abs().max() < 1e-5


def test_the_angle_from_zero_is_zero_with_gradient_zero():
    q = torch.zeros(3, 4, requires_grad=True)
    angle = rotation_angle(q, draw(3, 4).float())
    angle.sum().backward()
    assert angle.tolist() == [0, 0, 0]
    assert torch.equal(q.grad, torch.zeros(3, 4))


def test_the_angle_is_of_the_type_of_the_quaternions():
    q = draw(5, 4).half()
    assert rotation_angle(300 * q, -300 * q).dtype == torch.float16
    assert rotation_angle(300 * q, -300 * q).abs().max() < 1e-3
    assert rotation_angle(torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0])).item() == pytest.approx(math.pi)


@by_name
def test_losses_are_mapped_and_compiled(loss):
    y, target = draw(5, 8), draw(5, 8, seed=1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert (compiled(y, target) - loss(y, target)).abs() < 1e-14
    mapped = torch.vmap(loss)(y.unsqueeze(1), target.unsqueeze(1))
    assert (mapped.mean() - loss(y, target)).abs() < 1e-14
    assert loss(y.to("meta"), target.to("meta")).shape == ()


def test_an_output_of_zero_is_the_worst_of_all_for_the_geodesic_loss():
    y = torch.zeros(2, 4, requires_grad=True)
    target = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    loss = geodesic_loss(y, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(math.pi))
    assert torch.equal(y.grad, torch.zeros(2, 4))
    half_dead = torch.cat([target[:1], torch.zeros(1, 4)])
    torch.testing.assert_close(geodesic_loss(half_dead, target), torch.tensor(math.pi / 2))
