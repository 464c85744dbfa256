"""What sparse products promise beside their numbers: threads, gradients, types, compilers, errors."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad

from lightning_nobp.functional.sparse import (
    SparseStructure,
    sparse_conv2d,
    sparse_conv2d_vjp,
    sparse_linear,
    sparse_linear_vjp,
)

BACKENDS = ["native", "torch"]


def problem(kind, dtype=torch.float64, batch=6):
    """A function of x, values and bias, and some of each."""
    if kind == "linear":
        structure, x = SparseStructure.from_mask(torch.rand(7, 9) < 0.4), torch.randn(batch, 9, dtype=dtype)
    else:
        structure = SparseStructure.from_mask(torch.rand(6, 2, 3, 2) < 0.4)
        x = torch.randn(batch, 4, 7, 6, dtype=dtype)
    values = torch.randn(structure.nnz, dtype=dtype)
    bias = torch.randn(structure.shape[0], dtype=dtype)

    def run(x, values, bias, backend="auto"):
        if kind == "linear":
            return sparse_linear(x, values, structure, bias, backend=backend)
        return sparse_conv2d(x, values, structure, bias, (2, 1), (1, 2), (1, 2), 2, backend=backend)

    return run, [x, values, bias]


def gradients(run, inputs, needed=(True, True, True)):
    leaves = [tensor.detach().clone().requires_grad_(need) for tensor, need in zip(inputs, needed, strict=True)]
    y = run(*leaves)
    y.sin().sum().backward()
    return y.detach(), *(leaf.grad for leaf in leaves)


# Threads


def large_problem(name, dtype):
    mask, geometry, shape = {
        "linear": (torch.rand(60, 100) < 0.2, None, (700, 100)),
        "linear, one output": (torch.rand(1, 600) < 0.9, None, (3000, 600)),
        "conv2d": (torch.rand(12, 8, 3, 3) < 0.2, {"padding": 1}, (30, 8, 20, 20)),
        "conv2d, one output": (torch.rand(1, 3, 3, 3) < 0.5, {"padding": 1}, (4, 3, 150, 150)),
        "conv2d, strided": (torch.rand(12, 4, 3, 3) < 0.2, {"stride": 2, "groups": 2}, (40, 8, 21, 21)),
    }[name]
    structure = SparseStructure.from_mask(mask)
    inputs = [torch.randn(size, dtype=dtype) for size in (shape, (structure.nnz,), (len(mask),))]
    if geometry is None:
        return lambda x, values, bias: sparse_linear(x, values, structure, bias, backend="native"), inputs
    return lambda x, v, bias: sparse_conv2d(x, v, structure, bias, **geometry, backend="native"), inputs


LARGE = ["linear", "linear, one output", "conv2d", "conv2d, one output", "conv2d, strided"]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LARGE)
def test_results_do_not_depend_on_the_number_of_threads(threads, name, dtype):
    run, inputs = large_problem(name, dtype)
    expected = gradients(run, inputs)
    for number in (2, 3, 5, 1):
        threads(number)
        # The gradient of the bias is a sum by torch, which shares out a long one.
        for actual, wanted in zip(gradients(run, inputs)[:3], expected[:3], strict=True):
            assert torch.equal(actual, wanted), f"{number} threads"


def test_many_python_threads_may_compute_at_once(threads):
    threads(2)
    problems = [large_problem(name, torch.float32) for name in LARGE] * 2
    expected = [gradients(*each) for each in problems]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(lambda each: gradients(*each), problems * 2), expected * 2, strict=True):
            assert all(map(torch.equal, actual, wanted))


# Gradients


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_only_what_needs_a_gradient_gets_one(kind, backend, needed):
    run, inputs = problem(kind)
    every = gradients(lambda *a: run(*a, backend=backend), inputs)
    some = gradients(lambda *a: run(*a, backend=backend), inputs, map(bool, needed))
    for need, grad, expected in zip(needed, some[1:], every[1:], strict=True):
        assert torch.equal(grad, expected) if need else grad is None


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_second_derivative_is_refused_by_the_kernels_and_known_to_torch(kind):
    run, inputs = problem(kind, batch=2)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    (grad,) = torch.autograd.grad(run(*leaves, "native").square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        grad.square().sum().backward()
    assert torch.autograd.gradgradcheck(lambda *a: run(*a, "torch"), leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_second_derivative_is_refused_behind_a_constant_gradient_too(kind):
    run, inputs = problem(kind)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    # This gradient is the weights' sum, so that a penalty on it must move them.
    (grad,) = torch.autograd.grad(run(*leaves, "native").sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        (grad.square().sum() + leaves[1].sum()).backward()


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_written_out_gradients_are_those_of_autograd(backend):
    cases = [
        (sparse_linear, sparse_linear_vjp, (4, 6), (2, 3, 6), {}),
        (sparse_conv2d, sparse_conv2d_vjp, (4, 2, 3, 2), (3, 4, 6, 5), {"stride": (2, 1), "padding": 1, "groups": 2}),
    ]
    for function, vjp, weight, shape, geometry in cases:
        structure = SparseStructure.from_mask(torch.rand(weight) < 0.5)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        values = torch.randn(structure.nnz, dtype=torch.float64, requires_grad=True)
        y = function(x, values, structure, **geometry, backend="torch")
        grad = torch.randn_like(y)
        expected = torch.autograd.grad(y, (x, values), grad)
        for needs in ((True, True), (True, False), (False, True), (False, False)):
            flags = dict(zip(("needs_input_grad", "needs_values_grad"), needs, strict=True))
            found = vjp(grad, x.detach(), values.detach(), structure, **geometry, **flags, backend=backend)
            for need, actual, wanted in zip(needs, found, expected, strict=True):
                assert actual is None if not need else (actual - wanted).norm() <= 1e-12 * wanted.norm()


# Types, devices and transformations of torch


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_types_are_computed_by_torch(kind, dtype):
    run, inputs = problem(kind, dtype)
    for actual, wanted in zip(gradients(run, inputs), gradients(lambda *a: run(*a, "torch"), inputs), strict=True):
        assert actual.dtype is dtype
        assert torch.equal(actual, wanted)
    with pytest.raises(RuntimeError, match=f"native.*here are {dtype} on cpu.*take backend='torch'"):
        run(*inputs, "native")


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_autocast_is_torchs_affair(kind):
    run, inputs = problem(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(*inputs)
        assert y.dtype is torch.bfloat16
        assert torch.equal(y, run(*inputs, "torch"))
        with pytest.raises(RuntimeError, match=r"outside autocast.*take backend='torch'"):
            run(*inputs, "native")


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_shapes_are_known_without_memory(kind):
    run, inputs = problem(kind)
    empty = [tensor.to("meta") for tensor in inputs]
    assert run(*empty).is_meta
    assert run(*empty).shape == run(*inputs).shape
    with pytest.raises(RuntimeError, match=r"torch\.float64 on meta.*take backend='torch'"):
        run(*empty, "native")


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_torch_func_goes_through(kind):
    run, inputs = problem(kind)
    _, *expected = gradients(run, inputs)
    found = torch.func.grad(lambda *a: run(*a).sin().sum(), argnums=(0, 1, 2))(*inputs)
    each = torch.func.vmap(torch.func.grad(lambda v, x: run(x[None], v, inputs[2]).sin().sum()), (None, 0))
    torch.testing.assert_close(found, tuple(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(each(inputs[1], inputs[0]).sum(0), expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("records", [True, False])
def test_forward_mode_derivatives_are_right_or_refused(kind, records):
    run, inputs = problem(kind)
    tangent = torch.randn_like(inputs[0])
    _, expected = torch.func.jvp(lambda x: run(x, *inputs[1:], "torch"), (inputs[0],), (tangent,))
    with forward_ad.dual_level(), torch.set_grad_enabled(records):
        try:
            y = run(forward_ad.make_dual(inputs[0], tangent), *inputs[1:])
        except NotImplementedError:
            return
        actual = forward_ad.unpack_dual(y).tangent
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_compiled_results_are_those_of_eager_mode(kind):
    run, inputs = problem(kind)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, inputs), gradients(run, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", [[], [2, 1, 1, 0, 1, 2, 2]])
def test_the_operators_keep_torchs_rules(geometry):
    structure = SparseStructure.from_mask(torch.rand((6, 2, 3, 2) if geometry else (6, 5)) < 0.4)
    x, values, bias = torch.randn((3, 4, 7, 6) if geometry else (3, 5)), torch.randn(structure.nnz), torch.randn(6)
    layout = structure.shape, *structure.tensors(), geometry
    forward, backward = torch.ops.lightning_nobp.sparse_layer, torch.ops.lightning_nobp.sparse_layer_backward
    grad = torch.randn_like(forward(x, values, bias, *layout))
    calls = [
        (forward, (x, values, None)),
        *((backward, (grad, x, values, *needs)) for needs in ((True, True), (True, False), (False, True))),
        (forward, tuple(t.clone().requires_grad_() for t in (x, values, bias))),
    ]
    for operator, arguments in calls:
        assert set(torch.library.opcheck(operator.default, (*arguments, *layout)).values()) == {"SUCCESS"}


# Errors

LINEAR = SparseStructure.from_mask(torch.ones(3, 4, dtype=torch.bool).tril())
CONV = SparseStructure.from_mask(torch.ones(4, 2, 3, 2, dtype=torch.bool))
X, V, IMAGES, KERNEL = torch.zeros(5, 4), torch.zeros(6), torch.zeros(2, 4, 6, 6), torch.zeros(48)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("x", "values", "structure", "bias", "error", "message"),
    [
        (X.int(), V, LINEAR, None, TypeError, r"x of type torch\.int32: sparse layers take floating point"),
        (X, V.long(), LINEAR, None, TypeError, r"values of type torch\.int64"),
        (X, V, LINEAR, torch.zeros(3).bool(), TypeError, r"bias of type torch\.bool"),
        (X.double(), V, LINEAR, None, TypeError, r"torch\.float64.*torch\.float32"),
        (X, V, LINEAR, torch.zeros(3).double(), TypeError, r"torch\.float64"),
        (
            X,
            KERNEL,
            CONV,
            None,
            ValueError,
            r"weight of shape \(4, 2, 3, 2\): sparse_linear takes \(out_features, in_f",
        ),
        (X, V[:5], LINEAR, None, ValueError, r"values of shape \(5,\): the structure has 6 weights"),
        (X, V[None], LINEAR, None, ValueError, r"values of shape \(1, 6\)"),
        (X, V, LINEAR, torch.zeros(4), ValueError, r"bias of shape \(4,\): a weight of shape \(3, 4\) has 3"),
        (X.T, V, LINEAR, None, ValueError, r"x of shape \(4, 5\) does not fit.* its last dimension must be 4"),
        (torch.tensor(1.0), V, LINEAR, None, ValueError, r"x of shape \(\) does not fit"),
    ],
)
def test_wrong_arguments_of_a_linear_layer_are_named(x, values, structure, bias, error, message, backend):
    with pytest.raises(error, match=message):
        sparse_linear(x, values, structure, bias, backend=backend)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (IMAGES, {"stride": 0}, r"stride=\(0, 0\) must be at least 1"),
        (IMAGES, {"padding": (0, -1)}, r"padding=\(0, -1\) must be at least 0"),
        (IMAGES, {"dilation": (1, 0)}, r"dilation=\(1, 0\) must be at least 1"),
        (IMAGES, {"groups": 0}, "groups=0 does not divide the 4 output channels"),
        (IMAGES, {"groups": 3}, "groups=3 does not divide the 4 output channels"),
        (IMAGES, {"groups": 1}, r"does not fit .*with groups=1: give \(batch, 2, height, width\)"),
        (IMAGES[0], {}, r"x of shape \(4, 6, 6\) does not fit .*: give \(batch, 4, height, width\)"),
        (IMAGES[..., :2, :], {}, r"x of shape \(2, 4, 2, 6\) is smaller than the kernel of .*\(4, 2, 3, 2\)"),
        (IMAGES, {"dilation": (1, 6)}, "is smaller than the kernel"),
        (IMAGES, {"structure": LINEAR, "values": V}, r"weight of shape \(3, 4\): sparse_conv2d takes four dimensions"),
    ],
)
def test_wrong_arguments_of_a_convolution_are_named(x, arguments, message, backend):
    arguments = {"values": KERNEL, "structure": CONV, "groups": 2, "backend": backend} | arguments
    with pytest.raises(ValueError, match=message):
        sparse_conv2d(x, **arguments)


def test_an_unknown_backend_is_named():
    for call in (lambda: sparse_linear(X, V, LINEAR, backend="mkl"), lambda: sparse_conv2d(X, V, CONV, backend="mkl")):
        with pytest.raises(ValueError, match="backend='mkl' is not one of 'auto', 'native', 'torch'"):
            call()


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (sparse_linear_vjp, (torch.zeros(99)[:12].view(4, 3), X, V, LINEAR)),
        (sparse_linear_vjp, (torch.zeros(99)[:10].view(5, 2), X, V, LINEAR)),
        (sparse_linear_vjp, (torch.zeros(5, 3), X, torch.zeros(9), LINEAR)),
        (sparse_conv2d_vjp, (torch.zeros(999)[:120].view(2, 4, 3, 5), IMAGES[:, :2], KERNEL, CONV)),
    ],
)
def test_written_out_gradients_refuse_shapes_that_do_not_fit(call, arguments):
    # The kernels trust what they are told, and would read memory that belongs to others; here it is there.
    with pytest.raises(ValueError, match="shape"):
        call(*arguments)
