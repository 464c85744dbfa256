"""Sums of Kronecker products against torch.kron, and with the rule of Hamilton against quaternions."""

import pytest
import torch
from torch.autograd import gradcheck

from lightning_nobp.functional.quaternion import hamilton_block, hamilton_product
from lightning_nobp.functional.quaternion.hypercomplex import (
    closest_side,
    hamilton_rule,
    phm_to_quaternion,
    phm_weight,
    phm_weight_vjp,
    quaternion_to_phm,
)

SIDES = ["left", "right"]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_weights_are_sums_of_kronecker_products(n):
    rule, weight = draw(n, n, n), draw(n, 4, 3, seed=1)
    expected = sum(torch.kron(a, s) for a, s in zip(rule, weight, strict=True))
    assert (phm_weight(rule, weight) - expected).abs().max() < 1e-13


def test_kernels_are_carried_along_position_by_position():
    rule, weight = draw(3, 3, 3), draw(3, 4, 2, 3, 5, seed=1)
    whole = phm_weight(rule, weight)
    assert whole.shape == (12, 6, 3, 5)
    for i in range(3):
        for j in range(5):
            assert (whole[..., i, j] - phm_weight(rule, weight[..., i, j])).abs().max() < 1e-14


@pytest.mark.parametrize("kernel", [(), (3,), (3, 2)])
def test_gradients_are_those_of_autograd(kernel):
    rule, weight = draw(3, 3, 3).requires_grad_(), draw(3, 4, 2, *kernel, seed=1).requires_grad_()
    whole = phm_weight(rule, weight)
    grad = draw(*whole.shape, seed=2)
    whole.backward(grad)
    grad_rule, grad_weight = phm_weight_vjp(grad, rule.detach(), weight.detach())
    assert (grad_rule - rule.grad).abs().max() < 1e-12
    assert (grad_weight - weight.grad).abs().max() < 1e-12
    alone = phm_weight_vjp(grad, rule.detach(), weight.detach(), needs_rule_grad=False)
    assert alone[0] is None
    assert torch.equal(alone[1], grad_weight)
    alone = phm_weight_vjp(grad, rule.detach(), weight.detach(), needs_weight_grad=False)
    assert torch.equal(alone[0], grad_rule)
    assert alone[1] is None


@pytest.mark.parametrize("kernel", [(), (3, 2)])
def test_groups_are_weights_by_themselves(kernel):
    rule, weight = draw(3, 3, 3).requires_grad_(), draw(3, 4, 2, *kernel, seed=1).requires_grad_()
    whole = phm_weight(rule, weight, groups=2)
    assert torch.equal(whole, torch.cat([phm_weight(rule, part) for part in weight.chunk(2, dim=1)]))
    grad = draw(*whole.shape, seed=2)
    whole.backward(grad)
    grad_rule, grad_weight = phm_weight_vjp(grad, rule.detach(), weight.detach(), groups=2)
    assert (grad_rule - rule.grad).abs().max() < 1e-12
    assert (grad_weight - weight.grad).abs().max() < 1e-12


def test_autograd_agrees_with_finite_differences():
    assert gradcheck(phm_weight, [draw(2, 2, 2).requires_grad_(), draw(2, 3, 2, 2, seed=1).requires_grad_()])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kernel", [(), (3, 2)])
def test_with_the_rule_of_hamilton_weights_are_exactly_those_of_quaternions(side, kernel):
    weight = draw(4, 5, 3, *kernel)
    assert torch.equal(phm_weight(hamilton_rule(side, dtype=torch.float64), weight), hamilton_block(weight, side))


def test_the_rule_of_hamilton_multiplies_quaternions_from_either_side():
    w, x = draw(4), draw(4, seed=1)
    left, right = (torch.einsum("i,iab,b->a", w, hamilton_rule(side, dtype=torch.float64), x) for side in SIDES)
    assert (left - hamilton_product(w, x)).abs().max() < 1e-15
    assert (right - hamilton_product(x, w)).abs().max() < 1e-15


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [(), (3, 2)])
def test_conversion_to_quaternions_and_back_is_exact(side, dtype, kernel):
    weight = draw(4, 5, 3, *kernel).to(dtype)
    rule, found = quaternion_to_phm(weight, side)
    assert torch.equal(phm_weight(rule, found), hamilton_block(weight, side))
    back = phm_to_quaternion(rule, found, side)
    assert torch.equal(back, weight)
    assert back.dtype == dtype
    assert weight.data_ptr() not in (found.data_ptr(), back.data_ptr())


@pytest.mark.parametrize("side", SIDES)
def test_a_rule_that_mixes_the_units_becomes_quaternions_too(side):
    hamilton, weight = hamilton_rule(side, dtype=torch.float64), draw(4, 5, 3)
    rule = torch.einsum("ij,jab->iab", draw(4, 4, seed=1), hamilton)
    found = phm_to_quaternion(rule, weight, side)
    assert (hamilton_block(found, side) - phm_weight(rule, weight)).abs().max() < 1e-13


@pytest.mark.parametrize("side", SIDES)
def test_the_side_of_a_rule_is_found(side):
    hamilton = hamilton_rule(side, dtype=torch.float64)
    assert closest_side(hamilton) == side
    assert closest_side(torch.einsum("ij,jab->iab", draw(4, 4), hamilton)) == side


def test_a_rule_of_other_products_does_not_become_quaternions():
    weight = draw(4, 5, 3)
    with pytest.raises(ValueError, match=r"rule multiplies in another way than quaternions from the left, by up to"):
        phm_to_quaternion(draw(4, 4, 4), weight)
    with pytest.raises(ValueError, match="from the right"):
        phm_to_quaternion(hamilton_rule("left", dtype=torch.float64), weight, "right")
    with pytest.raises(ValueError, match=r"\(3, 3, 3\): quaternions have four components"):
        phm_to_quaternion(draw(3, 3, 3), draw(3, 5, 3))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"rule of shape \(3, 3, 2\) is not \(n, n, n\)"):
        phm_weight(draw(3, 3, 2), draw(3, 4, 5))
    with pytest.raises(ValueError, match=r"weight of shape \(2, 4, 5\) .* give \(3, M, N, \.\.\.\)"):
        phm_weight(draw(3, 3, 3), draw(2, 4, 5))
    for groups in (0, 3):
        with pytest.raises(ValueError, match=f"groups={groups} does not divide the 4 outputs"):
            phm_weight(draw(3, 3, 3), draw(3, 4, 5), groups)
    with pytest.raises(ValueError, match="side='up' is not one of 'left', 'right'"):
        hamilton_rule("up")


def test_a_rule_of_no_numbers_is_not_that_of_quaternions():
    rule = hamilton_rule().fill_(float("nan"))
    with pytest.raises(ValueError, match="multiplies in another way than quaternions"):
        phm_to_quaternion(rule, torch.randn(4, 2, 2))
