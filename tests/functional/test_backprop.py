"""Every formula against autograd, in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional import backprop as formulas


def autograd(function, *inputs):
    """Output and gradients of ``(function(*inputs) * probe).sum()`` with a random probe."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    probe = torch.randn_like(y)
    return y.detach(), probe, torch.autograd.grad((y * probe).sum(), leaves)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_linear(shape):
    x, weight = random(*shape), random(4, 7)
    _, grad, expected = autograd(F.linear, x, weight)
    for actual, wanted in zip(formulas.linear_vjp(grad, x, weight), expected, strict=True):
        assert_equal(actual, wanted)


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2)])
def test_conv2d(stride, padding, dilation, groups):
    x, weight = random(3, 4, 9, 8), random(6, 4 // groups, 3, 2)
    settings = {
        "stride": (stride, stride),
        "padding": (padding, padding),
        "dilation": (dilation, dilation),
        "groups": groups,
    }
    _, grad, expected = autograd(partial(F.conv2d, **settings), x, weight)
    for actual, wanted in zip(formulas.conv2d_vjp(grad, x, weight, **settings), expected, strict=True):
        assert_equal(actual, wanted)


@pytest.mark.parametrize(("shape", "channel_dim"), [((5, 3), -1), ((5, 3, 2, 2), 1), ((3,), -1)])
def test_bias(shape, channel_dim):
    bias_shape = [1] * len(shape)
    bias_shape[channel_dim] = 3
    x, bias = random(*shape), random(3)
    _, grad, (_, expected) = autograd(lambda x, b: x + b.view(bias_shape), x, bias)
    assert_equal(formulas.bias_vjp(grad, channel_dim), expected)


@pytest.mark.parametrize(
    ("function", "formula"),
    [(torch.relu, formulas.relu_vjp), (torch.sigmoid, formulas.sigmoid_vjp), (torch.tanh, formulas.tanh_vjp)],
)
def test_activation_from_its_output(function, formula):
    y, grad, (expected,) = autograd(function, 3 * random(6, 5))
    assert_equal(formula(grad, y), expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    x = 3 * random(6, 5)
    _, grad, (expected,) = autograd(partial(F.gelu, approximate=approximate), x)
    assert_equal(formulas.gelu_vjp(grad, x, approximate), expected)


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (4, 3, 5, 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(shape, training, affine):
    # An offset much larger than the spread: the formula must not cancel.
    x, weight, bias = random(*shape) + 100, random(3), random(3)
    running_mean, running_var = 100 + random(3), random(3).square() + 0.5
    statistics = (running_mean.clone(), running_var.clone())

    def function(x, weight, bias):
        scale = (weight, bias) if affine else (None, None)
        return F.batch_norm(x, *statistics, *scale, training=training, eps=1e-5) + 0 * (weight.sum() + bias.sum())

    _, grad, expected = autograd(function, x, weight, bias)
    dims = [0, *range(2, len(shape))]
    if training:
        running_var, running_mean = torch.var_mean(x, dims, correction=0)
    actual = formulas.batch_norm_vjp(
        grad, x, running_mean, torch.rsqrt(running_var + 1e-5), weight if affine else None, training=training
    )
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-11, atol=1e-12)
    if affine:
        torch.testing.assert_close(actual[1:], expected[1:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("shape", "normalized"), [((6, 5), (5,)), ((2, 6, 5), (6, 5)), ((5,), (5,))])
def test_layer_norm(shape, normalized):
    x, weight, bias = random(*shape), random(*normalized), random(*normalized)
    _, grad, expected = autograd(lambda x, w, b: F.layer_norm(x, normalized, w, b, 1e-5), x, weight, bias)
    for actual, wanted in zip(formulas.layer_norm_vjp(grad, x, len(normalized), weight, 1e-5), expected, strict=True):
        assert_equal(actual, wanted)


@pytest.mark.parametrize(
    ("formula", "reference"),
    [
        (formulas.mean_squared_error, lambda s, t: F.mse_loss(s, F.one_hot(t, s.shape[-1]).to(s.dtype))),
        (formulas.cross_entropy, F.cross_entropy),
    ],
)
def test_losses(formula, reference):
    scores, target = (5 * random(6, 4)).requires_grad_(), torch.tensor([0, 3, 1, 1, 2, 0])
    expected = reference(scores, target)
    loss, grad = formula(scores.detach(), target)
    assert_equal(loss, expected.detach())
    assert_equal(grad, torch.autograd.grad(expected, scores)[0])


def test_cross_entropy_of_extreme_scores_is_finite():
    loss, grad = formulas.cross_entropy(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([0, 0]))
    assert loss == pytest.approx(1e4)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0], [-0.5, 0.5]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_scores_are_computed_in_single(dtype):
    scores = torch.randn(64, 10).to(dtype)
    target = torch.arange(64) % 10
    loss, grad = formulas.cross_entropy(scores, target)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, F.cross_entropy(scores.float(), target))
