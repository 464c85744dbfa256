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
    assert_equal(formula(grad.clone(), y), expected)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    x = 3 * random(6, 5)
    _, grad, (expected,) = autograd(partial(F.gelu, approximate=approximate), x)
    assert_equal(formulas.gelu_vjp(grad.clone(), x, approximate), expected)


def normalisation_equation(grad, x, weight, dims, eps):
    """The input's gradient as the docstrings spell it, with means over ``dims``."""
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    inv_std = torch.rsqrt(var + eps)
    xhat, d = (x - mean) * inv_std, grad * weight
    return inv_std * (d - d.mean(dims, keepdim=True) - xhat * (d * xhat).mean(dims, keepdim=True))


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (4, 3, 5, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(shape, training):
    # An offset much larger than the spread: the formula must not cancel.
    x, weight, bias = random(*shape) + 100, random(3), random(3)
    running_mean, running_var = 100 + random(3), random(3).square() + 0.5
    _, grad, expected = autograd(
        lambda x, w, b: F.batch_norm(x, running_mean.clone(), running_var.clone(), w, b, training), x, weight, bias
    )
    dims = [0, *range(2, len(shape))]
    if training:
        running_var, running_mean = torch.var_mean(x, dims, correction=0)
    inv_std = torch.rsqrt(running_var + 1e-5)
    actual = formulas.batch_norm_vjp(grad, x, weight, running_mean, inv_std, training=training)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
    if training:
        channels = [1, 3] + [1] * (len(shape) - 2)
        equation = normalisation_equation(grad, x, weight.view(channels), dims, 1e-5)
        torch.testing.assert_close(actual[0], equation, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("shape", "normalized"), [((6, 5), (5,)), ((2, 6, 5), (6, 5)), ((5,), (5,))])
def test_layer_norm(shape, normalized):
    x, weight, bias = random(*shape), random(*normalized), random(*normalized)
    _, grad, expected = autograd(lambda x, w, b: F.layer_norm(x, normalized, w, b, 1e-5), x, weight, bias)
    _, mean, inv_std = torch.native_layer_norm(x, list(normalized), weight, bias, 1e-5)
    actual = formulas.layer_norm_vjp(grad, x, normalized, weight, bias, mean, inv_std)
    for got, wanted in zip(actual, expected, strict=True):
        assert_equal(got, wanted)
    assert_equal(actual[0], normalisation_equation(grad, x, weight, list(range(-len(normalized), 0)), 1e-5))


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
