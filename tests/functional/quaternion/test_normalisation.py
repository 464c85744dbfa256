"""Normalisation of quaternions: moments by their definition, whitening by the covariance of what comes out."""

import pytest
import torch
from torch.autograd import gradcheck

from lightning_nobp.functional.quaternion import hamilton_product, pack, unpack
from lightning_nobp.functional.quaternion.normalisation import (
    quaternion_moments,
    quaternion_scale,
    quaternion_scale_vjp,
    quaternion_variance,
    quaternion_whiten,
    quaternion_whiten_vjp,
)

CHANNELS = 3


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(batch=64, size=(5,)):
    """Features whose components depend on each other, differently in every channel, far from 0."""
    q = draw(batch, *size, CHANNELS, 4, seed=1)
    mixed = torch.einsum("...cq,cpq->...cp", q, draw(CHANNELS, 4, 4, seed=2)) + 10 * draw(CHANNELS, 4, seed=3)
    return pack(mixed, channel_dim=1)


def rows(x):
    """``(values, channels, 4)``."""
    return unpack(x, 1).flatten(0, -3)


def symmetric(weight):
    matrices = weight.new_zeros(CHANNELS, 4, 4)
    i, j = torch.triu_indices(4, 4)
    matrices[:, i, j] = weight.t()
    matrices[:, j, i] = weight.t()
    return matrices


@pytest.fixture
def weight():
    return draw(10, CHANNELS, seed=4)


@pytest.fixture
def bias():
    return draw(4 * CHANNELS, seed=5)


def test_moments_are_mean_and_covariance_of_each_channel():
    x = correlated()
    mean, covariance = quaternion_moments(x)
    q = rows(x)
    assert (mean - pack(q.mean(0))).abs().max() < 1e-13
    for channel in range(CHANNELS):
        expected = torch.cov(q[:, channel].t(), correction=0)
        assert (covariance[channel] - expected).abs().max() < 1e-12


def test_the_variance_of_a_quaternion_is_the_trace_of_its_covariance():
    x = correlated()
    mean, variance = quaternion_variance(x)
    expected_mean, covariance = quaternion_moments(x)
    assert (mean - expected_mean).abs().max() < 1e-13
    assert (variance - covariance.diagonal(dim1=1, dim2=2).sum(-1)).abs().max() < 1e-12


def test_whitened_quaternions_have_the_covariance_gamma_gamma_transposed(weight, bias):
    x = correlated()
    y = quaternion_whiten(x, *quaternion_moments(x), weight, bias, eps=1e-13)
    mean, covariance = quaternion_moments(y)
    gamma = symmetric(weight)
    assert (mean - bias).abs().max() < 1e-11
    assert (covariance - gamma @ gamma.mT).abs().max() < 1e-10


def test_whitening_without_a_weight_gives_the_identity():
    x = correlated()
    y = quaternion_whiten(x, *quaternion_moments(x), None, None, eps=1e-13)
    mean, covariance = quaternion_moments(y)
    assert mean.abs().max() < 1e-11
    assert (covariance - torch.eye(4)).abs().max() < 1e-10


def test_eps_is_added_to_the_diagonal(weight):
    x, eps = correlated(), 0.5
    mean, covariance = quaternion_moments(x)
    y = quaternion_whiten(x, mean, covariance, weight, None, eps)
    lower = torch.linalg.cholesky(covariance + eps * torch.eye(4))
    matrix = symmetric(weight) @ torch.linalg.inv(lower)
    expected = torch.einsum("cpq,ncq->ncp", matrix, rows(x) - unpack(mean))
    assert (rows(y) - expected).abs().max() < 1e-12


def test_scaling_divides_by_one_standard_deviation_a_quaternion(bias):
    x, gamma = correlated(), draw(CHANNELS, seed=6)
    mean, variance = quaternion_variance(x)
    y = quaternion_scale(x, mean, variance, gamma, bias, eps=0.25)
    expected = gamma[:, None] * (rows(x) - unpack(mean)) / (variance + 0.25).sqrt()[:, None] + unpack(bias)
    assert (rows(y) - expected).abs().max() < 1e-12


def test_scaling_commutes_with_a_rotation_of_all_quaternions():
    x, unit = correlated(), torch.nn.functional.normalize(draw(4, seed=7), dim=0)

    def turned(x):
        return pack(hamilton_product(unit, unpack(x, 1)), channel_dim=1)

    def normalised(x):
        return quaternion_scale(x, *quaternion_variance(x), None, None)

    assert (normalised(turned(x)) - turned(normalised(x))).abs().max() < 1e-12


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_whitening_are_those_of_autograd(weight, bias, training, affine):
    x = correlated(7).requires_grad_()
    weight = weight.requires_grad_() if affine else None
    bias = bias.requires_grad_()
    mean, covariance = quaternion_moments(x if training else correlated(9))
    y = quaternion_whiten(x, mean, covariance, weight, bias)
    grad = draw(*y.shape, seed=8)
    y.backward(grad)
    found = quaternion_whiten_vjp(grad, x.detach(), mean.detach(), covariance.detach(), weight, training=training)
    assert (found[0] - x.grad).abs().max() < 1e-12
    assert (found[2] - bias.grad).abs().max() < 1e-12
    if affine:
        assert (found[1] - weight.grad).abs().max() < 1e-12
    else:
        assert found[1] is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_scaling_are_those_of_autograd(bias, training, affine):
    x = correlated(7).requires_grad_()
    gamma = draw(CHANNELS, seed=6).requires_grad_() if affine else None
    bias = bias.requires_grad_()
    mean, variance = quaternion_variance(x if training else correlated(9))
    y = quaternion_scale(x, mean, variance, gamma, bias)
    grad = draw(*y.shape, seed=8)
    y.backward(grad)
    found = quaternion_scale_vjp(grad, x.detach(), mean.detach(), variance.detach(), gamma, training=training)
    assert (found[0] - x.grad).abs().max() < 1e-12
    assert (found[2] - bias.grad).abs().max() < 1e-12
    if affine:
        assert (found[1] - gamma.grad).abs().max() < 1e-12
    else:
        assert found[1] is None


def test_the_gradient_of_the_input_is_left_out_where_not_needed(weight):
    x = correlated(7)
    grad = draw(*x.shape, seed=8)
    moments, gamma = quaternion_moments(x), draw(CHANNELS, seed=6)
    whole = quaternion_whiten_vjp(grad, x, *moments, weight, training=True)
    part = quaternion_whiten_vjp(grad, x, *moments, weight, training=True, needs_input_grad=False)
    assert part[0] is None
    assert all(map(torch.equal, part[1:], whole[1:]))
    whole = quaternion_scale_vjp(grad, x, *quaternion_variance(x), gamma, training=True)
    part = quaternion_scale_vjp(grad, x, *quaternion_variance(x), gamma, training=True, needs_input_grad=False)
    assert part[0] is None
    assert all(map(torch.equal, part[1:], whole[1:]))


def test_autograd_agrees_with_finite_differences(weight, bias):
    def whitened(x, weight, bias):
        return quaternion_whiten(x, *quaternion_moments(x), weight, bias)

    def scaled(x, weight, bias):
        return quaternion_scale(x, *quaternion_variance(x), weight[0], bias)

    x = draw(4, 4 * CHANNELS, 3, seed=9)
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    assert gradcheck(whitened, inputs)
    assert gradcheck(scaled, inputs)


@pytest.mark.parametrize("scale", [1, 255, 1e4])
def test_gray_images_whose_components_are_all_the_same_are_whitened(scale):
    gray = scale * torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.zeros_like(gray), gray, gray, gray], dim=1)
    moments = quaternion_moments(x)
    y = quaternion_whiten(x, *moments, None, None)
    grad, _, _ = quaternion_whiten_vjp(torch.ones_like(y), x, *moments, None, training=True)
    assert y.isfinite().all()
    assert grad.isfinite().all()
    # The one direction there is comes out with variance 1, and none is blown up beyond that.
    covariance = quaternion_moments(y)[1]
    assert covariance.diagonal(dim1=1, dim2=2).max() < 1.01
    assert covariance[0, 1, 1] > 0.99


def test_values_that_are_not_finite_come_out_as_nan():
    x = correlated()
    x[0, 0] = torch.nan
    y = quaternion_whiten(x, *quaternion_moments(x), None, None)
    assert rows(y)[:, 0].isnan().all()
    assert rows(y)[:, 1:].isfinite().all()


def test_a_direction_of_small_variance_is_whitened_as_far_as_eps_allows():
    x = draw(4000, 4, seed=7)
    x = x @ torch.linalg.qr(x.t() @ x / len(x)).Q * torch.tensor([1.0, 1.0, 1.0, 1e-2], dtype=torch.float64)
    mean, covariance = quaternion_moments(x)
    eps = 1e-3
    y = quaternion_whiten(x, mean, covariance, None, None, eps)
    values, found = torch.linalg.eigvalsh(covariance[0]), torch.linalg.eigvalsh(quaternion_moments(y)[1][0])
    assert (found - values / (values + eps)).abs().max() < 1e-9


@pytest.mark.parametrize("shape", [(0, 8), (0, 8, 3, 2), (3, 8, 0)])
def test_empty_batches_stay_empty(shape):
    x, mean = draw(*shape), draw(8)
    covariance = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    assert quaternion_whiten(x, mean, covariance, None, mean).shape == shape
    assert quaternion_scale(x, mean, covariance[:, 0, 0], None, mean).shape == shape
    assert quaternion_moments(x)[1].shape == (2, 4, 4)
