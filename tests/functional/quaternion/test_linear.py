"""Layers of Hamilton products: every algorithm is the sum of the products, forwards, backwards and again."""

import warnings

import pytest
import torch
from functorch.compile import aot_function
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_nobp.functional.quaternion import (
    conjugate,
    hamilton_block,
    hamilton_product,
    pack,
    products,
    quaternion_conv2d,
    quaternion_linear,
    quaternion_linear_vjp,
    unpack,
)
from lightning_nobp.functional.quaternion.linear import PRODUCT
from lightning_nobp.functional.quaternion.products import fast8, fast8_vjp
from lightning_nobp.nn import QuaternionConv2d, QuaternionConvTranspose2d, QuaternionLinear

SIDES, ALGORITHMS = ["left", "right"], ["block", "fast8"]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_by_one(x, weight, side):
    """The definition: a Hamilton product for every pair of input and output."""
    q, w = unpack(x).unsqueeze(-3), weight.movedim(0, -1)
    products = hamilton_product(w, q) if side == "left" else hamilton_product(q, w)
    return pack(products.sum(-2))


@pytest.fixture
def x():
    return draw(7, 20, seed=1)


@pytest.fixture
def weight():
    return draw(4, 3, 5, seed=2)


@pytest.fixture
def bias():
    return draw(12, seed=3)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_layer_sums_hamilton_products(x, weight, bias, side, algorithm):
    y = quaternion_linear(x, weight, bias, side, algorithm)
    assert (y - one_by_one(x, weight, side) - bias).abs().max() < 1e-14


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_samples_beyond_one_chunk_are_as_those_of_the_first(weight, side, algorithm):
    x = draw(2 * PRODUCT.chunk + 3, 20)
    grad = draw(len(x), 12, seed=4)
    y = quaternion_linear(x, weight, None, side, algorithm)
    assert (y - one_by_one(x, weight, side)).abs().max() < 2e-14
    found = quaternion_linear_vjp(grad, x, weight, side=side, algorithm=algorithm)
    block = hamilton_block(weight, side)
    assert (found[0] - grad @ block).abs().max() < 2e-14
    assert (found[1] - products.hamilton_block_vjp(grad.t() @ x, side)).abs().max() < 1e-11


@pytest.mark.parametrize("shape", [(20,), (2, 20), (2, 3, 20), (0, 20)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inputs_have_any_number_of_dimensions(weight, bias, shape, algorithm):
    x = draw(*shape)
    y = quaternion_linear(x, weight, bias, algorithm=algorithm)
    assert y.shape == (*shape[:-1], 12)
    assert torch.allclose(y, one_by_one(x, weight, "left") + bias, rtol=0, atol=1e-14)


@pytest.mark.parametrize("side", SIDES)
def test_the_way_back_is_that_of_the_ghr_calculus(x, weight, side):
    grad = draw(7, 12, seed=4)
    grad_x, grad_weight = quaternion_linear_vjp(grad, x, weight, side=side)
    g, a, w = unpack(grad).unsqueeze(-2), unpack(x).unsqueeze(-3), weight.movedim(0, -1)
    if side == "left":
        to_input, to_weight = hamilton_product(conjugate(w), g), hamilton_product(g, conjugate(a))
    else:
        to_input, to_weight = hamilton_product(g, conjugate(w)), hamilton_product(conjugate(a), g)
    assert (grad_x - pack(to_input.sum(-3))).abs().max() < 1e-14
    assert (grad_weight.movedim(0, -1) - to_weight.sum(0)).abs().max() < 1e-13


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_explicit_way_back_is_autograds(x, weight, side, algorithm):
    grad = draw(7, 12, seed=4)
    x.requires_grad_(), weight.requires_grad_()
    expected = torch.autograd.grad(quaternion_linear(x, weight, None, side, "block"), (x, weight), grad)
    explicit = quaternion_linear_vjp(grad, x, weight, side=side, algorithm=algorithm)
    automatic = torch.autograd.grad(quaternion_linear(x, weight, None, side, algorithm), (x, weight), grad)
    for found in (explicit, automatic):
        for actual, wanted in zip(found, expected, strict=True):
            assert (actual - wanted).abs().max() < 1e-13


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_derivatives_of_both_modes_and_second_ones(x, weight, bias, side, algorithm):
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    layer = lambda *inputs: quaternion_linear(*inputs, side, algorithm)  # noqa: E731
    assert gradcheck(layer, inputs, check_forward_ad=True)
    assert gradgradcheck(layer, inputs)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_needed_is_computed(x, weight, side, wanted):
    grad = draw(7, 12, seed=4)
    whole = quaternion_linear_vjp(grad, x, weight, side=side, algorithm="fast8")
    for algorithm in ALGORITHMS:
        options = {"needs_input_grad": wanted[0], "needs_weight_grad": wanted[1]}
        found = quaternion_linear_vjp(grad, x, weight, side=side, algorithm=algorithm, **options)
        for part, entire, needed in zip(found, whole, wanted, strict=True):
            assert part is None if not needed else (part - entire).abs().max() < 1e-13


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_functions_of_functions(x, weight, algorithm):
    weights = draw(6, 4, 3, 5, seed=5)
    layer = lambda x, w: quaternion_linear(x, w, algorithm=algorithm)  # noqa: E731
    each = torch.stack([layer(x, w) for w in weights])
    assert (torch.func.vmap(layer, in_dims=(None, 0))(x, weights) - each).abs().max() < 1e-14
    tangent = draw(4, 3, 5, seed=6)
    _, forward = torch.func.jvp(lambda w: layer(x, w), (weight,), (tangent,))
    assert (forward - layer(x, tangent)).abs().max() < 1e-14


def test_functions_of_wide_functions_without_gradients():
    x, weights, tangent = draw(64, 256), draw(2, 4, 64, 64, seed=5), draw(64, 256, seed=6)
    with torch.no_grad():
        each = torch.stack([quaternion_linear(x, w, algorithm="block") for w in weights])
        assert (torch.func.vmap(quaternion_linear, in_dims=(None, 0))(x, weights) - each).abs().max() < 1e-11
        _, forward = torch.func.jvp(lambda x: quaternion_linear(x, weights[0]), (x,), (tangent,))
        assert (forward - quaternion_linear(tangent, weights[0], algorithm="block")).abs().max() < 1e-11


def test_the_readable_algorithm_is_the_fast_one(x, weight):
    grad = draw(7, 12, seed=5)
    for side in SIDES:
        fast = quaternion_linear(x, weight, None, side, "fast8")
        assert (fast8(x, weight, None, PRODUCT, side) - fast).abs().max() < 1e-14
        readable = fast8_vjp(grad, x, weight, PRODUCT, side, (True, True))
        for mine, other in zip(
            readable, quaternion_linear_vjp(grad, x, weight, side=side, algorithm="fast8"), strict=True
        ):
            assert (mine - other).abs().max() < 1e-13


def outputs(algorithm):
    x = torch.randn(6, 20)
    maps = torch.randn(2, 16, 5, 5)
    for bias in (False, True):
        yield QuaternionLinear(20, 12, bias, algorithm=algorithm)(x)
        yield QuaternionConv2d(16, 12, 3, bias=bias, algorithm=algorithm)(maps)
        yield QuaternionConvTranspose2d(16, 12, 3, bias=bias, algorithm=algorithm)(maps)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_outputs_may_be_changed_in_place(algorithm):
    for y in outputs(algorithm):
        expected = y.detach() + 1
        y.add_(1)[:1].mul_(2)
        nn.functional.relu(y, inplace=True).sum().backward()
        assert torch.equal(y[1:], expected[1:].relu())


TRANSFORMED = {
    "hessian": lambda f, w: torch.func.hessian(f)(w),
    "jacobian of the gradient": lambda f, w: torch.func.jacrev(torch.func.grad(f))(w),
    "jacobian backwards twice": lambda f, w: torch.func.jacrev(torch.func.jacrev(f))(w),
    "jacobian forwards twice": lambda f, w: torch.func.jacfwd(torch.func.jacfwd(f))(w),
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("side", SIDES)
def test_second_derivatives_of_both_algorithms_agree(side, name):
    x, weight = draw(3, 8), draw(4, 2, 2, seed=2)
    runs = [lambda w, a=a: quaternion_linear(x, w, None, side, a).pow(3).sum() for a in ALGORITHMS]
    found = [TRANSFORMED[name](run, weight) for run in runs]
    assert (found[0] - found[1]).abs().max() < 1e-10


def test_tangents_of_gradients_are_those_of_the_other_algorithm():
    """Forward-mode differentiation over a backward pass, which no kernel may cut off."""
    found = []
    for algorithm in ALGORITHMS:
        with forward_ad.dual_level():
            weight = forward_ad.make_dual(draw(4, 2, 2, seed=2).requires_grad_(), draw(4, 2, 2, seed=3))
            loss = quaternion_linear(draw(3, 8), weight, algorithm=algorithm).pow(3).sum()
            (grad,) = torch.autograd.grad(loss, weight)
            found.append(forward_ad.unpack_dual(grad).tangent)
    assert found[0] is not None
    assert (found[0] - found[1]).abs().max() < 1e-10


def test_written_gradients_may_be_mapped():
    x, weight, grads = draw(7, 20), draw(4, 3, 5, seed=2), draw(3, 7, 12, seed=4)
    run = lambda g, a: quaternion_linear_vjp(g, x, weight, algorithm=a)  # noqa: E731
    for found, expected in zip(*(torch.vmap(run, (0, None))(grads, a) for a in ALGORITHMS), strict=True):
        assert (found - expected).abs().max() < 1e-12


STAND_INS = {
    "zeros": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "negative view": torch._neg_view,
    "expanded": lambda x: x[:1].expand(x.shape),
    "transposed": lambda x: x.t().contiguous().t(),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_inputs_that_are_not_what_their_memory_says(x, weight, name):
    stand_in = STAND_INS[name](x)
    found, expected = (quaternion_linear(stand_in, weight, algorithm=a) for a in ALGORITHMS)
    assert (found - expected).abs().max() < 1e-13
    grads = [quaternion_linear_vjp(draw(7, 12), stand_in, weight, algorithm=a) for a in ALGORITHMS]
    for mine, other in zip(*grads, strict=True):
        assert (mine - other).abs().max() < 1e-12


def test_traced_layers_are_the_same_layers(x, weight):
    run = lambda x, w: quaternion_linear(x, w, algorithm="fast8")  # noqa: E731
    with FakeTensorMode() as mode:
        assert run(mode.from_tensor(x), mode.from_tensor(weight)).shape == (7, 12)
    graph = make_fx(run)(x, weight)
    other = draw(7, 20, seed=9)
    assert (graph(other, weight) - run(other, weight)).abs().max() < 1e-13
    leaves = [t.requires_grad_() for t in (x, weight)]
    compiled = aot_function(run, fw_compiler=lambda graph, _: graph, bw_compiler=lambda graph, _: graph)
    for found, expected in zip(
        torch.autograd.grad(compiled(*leaves).cos().sum(), leaves),
        torch.autograd.grad(run(*leaves).cos().sum(), leaves),
        strict=True,
    ):
        assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_of_another_type_are_refused(x, weight, algorithm):
    with pytest.raises(ValueError, match=r"x is torch\.float32, but weight torch\.float64"):
        quaternion_linear_vjp(draw(7, 12).float(), x, weight, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gradients_of_many_outputs_at_once_are_those_one_by_one(x, weight, bias, algorithm):
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y, grads = quaternion_linear(x, weight, bias, algorithm=algorithm), draw(3, 7, 12, seed=5)
    together = torch.autograd.grad(y, leaves, grads, is_grads_batched=True, retain_graph=True)
    for k, grad in enumerate(grads):
        for found, expected in zip(together, torch.autograd.grad(y, leaves, grad, retain_graph=True), strict=True):
            assert (found[k] - expected).abs().max() < 1e-13


@pytest.mark.parametrize("width", [64, 256])
def test_in_float32_both_algorithms_round_alike(width):
    x, weight = draw(64, 4 * width).float(), draw(4, width, width, seed=2).float()
    exact = quaternion_linear(x.double(), weight.double())
    for algorithm in ALGORITHMS:
        error = (quaternion_linear(x, weight, algorithm=algorithm) - exact).norm() / exact.norm()
        assert error < 1e-6


def test_auto_takes_the_fast_algorithm_where_it_gains(monkeypatch):
    taken = []
    run = products._fast8
    monkeypatch.setattr(products, "_fast8", lambda x, *others: taken.append(len(x)) or run(x, *others))
    with torch.no_grad():
        for width, batch in ((64, 256), (128, 32), (256, 1), (64, 128), (32, 1024), (128, 16)):
            quaternion_linear(torch.zeros(batch, 4 * width), torch.zeros(4, width, width))
        quaternion_linear(torch.zeros(32, 512, dtype=torch.bfloat16), torch.zeros(4, 128, 128, dtype=torch.bfloat16))
    assert taken == [256, 32, 1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_derivative_forwards_along_a_bias_is_the_bias(x, weight, bias, algorithm):
    run = lambda b: quaternion_linear(x, weight, b, algorithm=algorithm)  # noqa: E731
    _, tangent = torch.func.jvp(run, (bias,), (torch.ones(12, dtype=torch.float64),))
    assert torch.equal(tangent, torch.ones(7, 12, dtype=torch.float64))


def test_half_precision_takes_block_with_the_reason():
    products._warn_of_rounding.cache_clear()
    x, weight = torch.randn(4, 8).bfloat16(), torch.randn(4, 2, 2).bfloat16()
    with pytest.warns(UserWarning, match="errors of torch.bfloat16: algorithm='block' is taken instead") as caught:
        y = quaternion_linear(x, weight, algorithm="fast8")
    assert caught[0].filename == __file__
    assert torch.equal(y, quaternion_linear(x, weight, algorithm="block"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quaternion_linear(x, weight, algorithm="fast8")


@pytest.mark.parametrize("run", [quaternion_conv2d, lambda x, w, **options: QuaternionConv2d(8, 8, 1, **options)(x)])
def test_the_warning_points_at_whoever_called(run):
    products._warn_of_rounding.cache_clear()
    with pytest.warns(UserWarning, match="errors of torch.bfloat16") as caught, torch.autocast("cpu", torch.bfloat16):
        run(torch.randn(4, 8, 3, 3), torch.randn(4, 2, 2, 1, 1), algorithm="fast8")
    assert caught[0].filename == __file__


def test_under_autocast_products_are_taken_in_half_precision():
    x, weight = torch.randn(64, 256), torch.randn(4, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = quaternion_linear(x, weight)
    assert y.dtype == torch.bfloat16
    assert (y.float() - quaternion_linear(x, weight)).norm() < 0.02 * y.float().norm()


def test_a_compiled_layer_is_the_same_layer(x, weight):
    layer = torch.compile(lambda x, w: quaternion_linear(x, w, algorithm="fast8"), backend="aot_eager", fullgraph=True)
    leaf = weight.clone().requires_grad_()
    layer(x, leaf).square().sum().backward()
    weight.requires_grad_()
    quaternion_linear(x, weight).square().sum().backward()
    assert (leaf.grad - weight.grad).abs().max() < 1e-11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 18)}, "x has 18 features: quaternions take four each"),
        ({"x": torch.zeros(2, 16)}, r"x has 16 features, 4 quaternions: weight of shape \(4, 3, 5\) takes 5"),
        ({"x": torch.zeros(())}, r"takes \(\.\.\., 4N\)"),
        ({"weight": torch.zeros(3, 3, 5)}, r"weight of shape \(3, 3, 5\) is not \(4, M, N\)"),
        ({"weight": torch.zeros(12, 20)}, r"weight of shape \(12, 20\) is not \(4, M, N\)"),
        ({"bias": torch.zeros(3)}, r"bias of shape \(3,\) does not fit 3 quaternions: give \(12,\)"),
        ({"side": "both"}, "side='both' is not one of 'left', 'right'"),
        ({"algorithm": "fast7"}, "algorithm='fast7' is not one of 'auto', 'block', 'fast8'"),
        ({"x": torch.zeros(2, 20, dtype=torch.float64)}, "x is torch.float64, but weight torch.float32"),
        ({"bias": torch.zeros(12, dtype=torch.float64)}, "x is torch.float32, but bias torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"x": torch.zeros(2, 20), "weight": torch.zeros(4, 3, 5), "bias": torch.zeros(12)} | change
    with pytest.raises(ValueError, match=message):
        quaternion_linear(**arguments)
