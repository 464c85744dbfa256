"""Cosine and norm ratio of two gradients."""

import pytest
import torch

from lightning_nobp.functional.alignment import gradient_alignment


def test_of_a_gradient_with_a_multiple_of_itself():
    gradients = [torch.randn(3, 4), torch.randn(5)]
    result = gradient_alignment([2 * g for g in gradients], gradients)
    assert result.cosine == pytest.approx(1)
    assert result.norm_ratio == pytest.approx(2)
    torch.testing.assert_close(result.cosines, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(result.norm_ratios, 2 * torch.ones(2, dtype=torch.float64))


def test_over_all_parameters_it_is_that_of_the_joined_vector():
    a, b = [torch.randn(7), torch.randn(2, 2)], [torch.randn(7), torch.randn(2, 2)]
    joined = [torch.cat([t.flatten() for t in tensors]) for tensors in (a, b)]
    result = gradient_alignment(a, b)
    assert result.cosine == pytest.approx(torch.nn.functional.cosine_similarity(*joined, dim=0).item(), abs=1e-6)
    assert result.norm_ratio == pytest.approx((joined[0].norm() / joined[1].norm()).item(), rel=1e-6)


def test_opposite_and_zero():
    one, zero = [torch.ones(3)], [torch.zeros(3)]
    assert gradient_alignment([-one[0]], one).cosine == pytest.approx(-1)
    assert gradient_alignment(zero, one).cosine == 0
    assert gradient_alignment(zero, one).norm_ratio == 0
    assert gradient_alignment(zero, zero).norm_ratio == 0
    assert gradient_alignment(one, zero).norm_ratio == torch.inf
