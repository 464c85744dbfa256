"""Sparse products of every shape against torch's dense layers under the mask: outputs and all gradients."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_nobp.functional.sparse import (
    SparseStructure,
    sparse_conv2d,
    sparse_conv2d_vjp,
    sparse_linear,
    sparse_linear_vjp,
)

NAN, INF = float("nan"), float("inf")
BACKENDS = ["native", "torch"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = list(TOLERANCE)
BATCHES = [0, 1, 15, 16, 17, 63, 64, 65, 130]


def random_mask(*shape, density=0.3):
    return torch.rand(shape) < density


def holes(*shape):
    """A mask with the first, last and some middle rows and columns empty."""
    mask = random_mask(*shape, density=0.5)
    mask[[0, shape[0] // 2, -1]] = False
    mask[:, [0, shape[1] // 2, -1]] = False
    return mask


def results(function, inputs, grad=None):
    """Output of a function and gradients of all its inputs, which keep their strides."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    grad = torch.rand(y.shape, dtype=y.dtype) if grad is None else grad
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def assert_equals_dense(x, mask, geometry=None, backend="native", *, values=None, bias=None, grad=None):
    """Compare with the dense layer in float64, relative to the norm: numbers are positive, so that no sum cancels."""
    values = torch.rand(int(mask.sum()), dtype=x.dtype) if values is None else values
    bias = torch.rand(len(mask), dtype=x.dtype) if bias is None else bias
    structure = SparseStructure.from_mask(mask)

    def sparse(x, values, bias):
        if geometry is None:
            return sparse_linear(x, values, structure, bias, backend=backend)
        return sparse_conv2d(x, values, structure, bias, **geometry, backend=backend)

    def dense(x, values, bias):
        weight = torch.zeros(mask.shape, dtype=values.dtype).masked_scatter(mask, values)
        return F.linear(x, weight, bias) if geometry is None else F.conv2d(x, weight, bias, **geometry)

    if grad is None:
        grad = torch.rand(sparse(x, values, bias).shape, dtype=x.dtype)
    actual = results(sparse, (x, values, bias), grad)
    expected = results(dense, (x.double(), values.double(), bias.double()), grad.double())
    for name, a, e in zip(("y", "grad x", "grad values", "grad bias"), actual, expected, strict=True):
        assert a.dtype is x.dtype
        assert a.shape == e.shape, name
        assert (a - e).norm() <= TOLERANCE[x.dtype] * e.norm(), f"{name}, {geometry}"


# Linear layers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", BATCHES)
def test_linear_of_any_batch_size_equals_dense(batch, backend, dtype):
    for outputs, inputs in ((1, 1), (3, 5), (16, 32), (33, 47), (50, 15)):
        for density in (0.0, 0.1, 0.5, 1.0):
            mask = random_mask(outputs, inputs, density=density)
            assert_equals_dense(torch.rand(batch, inputs, dtype=dtype), mask, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 16, 130])
def test_linear_with_empty_rows_and_columns_equals_dense(batch, backend, dtype):
    for shape in ((9, 7), (31, 33), (70, 48)):
        assert_equals_dense(torch.rand(batch, shape[1], dtype=dtype), holes(*shape), backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_with_rows_of_every_length_equals_dense(dtype):
    # Row and column n have n weights each: 0, 1, ..., over a whole vector.
    mask = torch.ones(70, 70, dtype=torch.bool).tril(-1)
    assert_equals_dense(torch.rand(21, 70, dtype=dtype), mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "inputs", "outputs"), [(2500, 20, 10), (130, 3000, 3), (70, 20_000, 2), (130, 3, 3000), (33, 2, 20_000)]
)
def test_linear_of_many_samples_or_features_equals_dense(batch, inputs, outputs, dtype):
    assert_equals_dense(torch.rand(batch, inputs, dtype=dtype), random_mask(outputs, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7), (2, 0, 7), (3, 2, 4, 7)])
def test_linear_keeps_leading_dimensions(shape, backend):
    assert_equals_dense(torch.rand(shape, dtype=torch.float64), random_mask(4, 7), backend=backend)


# Convolutions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 5), (1, 3), (3, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2), (3, 1)])
def test_conv2d_of_any_geometry_equals_dense(stride, kernel, dtype):
    # Half of all combinations in each type.
    every = itertools.product((0, 1, 2, 3, (0, 2), (3, 1)), (1, 2, (2, 1)), (1, 2, 3))
    for padding, dilation, groups in itertools.islice(every, DTYPES.index(dtype), None, 2):
        geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        x = torch.rand(2, 6, 9, 11, dtype=dtype)
        assert_equals_dense(x, random_mask(6, 6 // groups, *kernel), geometry)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("height", [1, 4])
def test_conv2d_on_maps_of_any_width_equals_dense(height, stride):
    for width in range(1, 34):
        for size in ((height, width), (width, height)):
            x = torch.rand(3, 2, *size, dtype=torch.float64)
            assert_equals_dense(x, random_mask(4, 2, 3, 3, density=0.6), {"stride": stride, "padding": 1})


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_conv2d_of_any_batch_size_equals_dense(backend, batch):
    for dtype, density in itertools.product(DTYPES, (0.0, 0.2, 1.0)):
        x, mask = torch.rand(batch, 3, 6, 5, dtype=dtype), random_mask(5, 3, 3, 3, density=density)
        assert_equals_dense(x, mask, {"padding": 1}, backend)
        assert_equals_dense(x, mask, {"stride": (2, 1)}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d_with_empty_rows_and_columns_equals_dense(dtype, backend):
    x = torch.rand(3, 8, 7, 9, dtype=dtype)
    assert_equals_dense(x, holes(9, 8, 3, 3), {"padding": 1}, backend)
    assert_equals_dense(x, holes(8, 4, 2, 3), {"groups": 2, "stride": 2}, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "weight", "geometry"),
    [
        # Many images in a chunk of the cache, and several chunks.
        ((150, 8, 8, 8), (5, 8, 3, 3), {"padding": 1}),
        ((70, 16, 7, 7), (9, 16, 3, 3), {"padding": 1, "stride": 2}),
        ((60, 32, 5, 16), (9, 32, 1, 1), {}),
        # Images of several chunks.
        ((2, 3, 200, 200), (2, 3, 3, 3), {"padding": 1}),
        ((1, 3, 201, 150), (4, 3, 5, 5), {"stride": 2, "padding": 2}),
        ((1, 2, 3, 20_000), (2, 2, 1, 5), {"padding": (0, 2)}),
        ((1, 2, 20_000, 3), (2, 2, 5, 1), {"padding": (2, 0)}),
        # So many channels that a chunk has few rows.
        ((2, 400, 13, 40), (3, 400, 3, 3), {"padding": 1}),
        ((2, 3, 13, 40), (400, 3, 3, 3), {"padding": 1}),
        ((1, 200, 17, 30), (4, 100, 3, 3), {"dilation": 2, "groups": 2}),
    ],
)
def test_conv2d_of_many_or_large_images_equals_dense(shape, weight, geometry, dtype):
    assert_equals_dense(torch.rand(shape, dtype=dtype), random_mask(*weight, density=0.2), geometry)


PAIR = st.tuples


@settings(deadline=None, max_examples=150)
@given(
    size=PAIR(st.integers(1, 24), st.integers(1, 40)),
    kernel=PAIR(st.integers(1, 6), st.integers(1, 6)),
    stride=PAIR(st.integers(1, 5), st.integers(1, 5)),
    padding=PAIR(st.integers(0, 7), st.integers(0, 7)),
    dilation=PAIR(st.integers(1, 4), st.integers(1, 4)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
    batch=st.integers(0, 6),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_conv2d_equals_dense_whatever_its_geometry(
    size, kernel, stride, padding, dilation, channels, batch, density, dtype
):
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(n + 2 * p >= r for n, p, r in zip(size, padding, reach, strict=True)))
    torch.manual_seed(0)
    inputs, outputs, groups = channels
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    x = torch.rand(batch, inputs * groups, *size, dtype=dtype)
    assert_equals_dense(x, random_mask(outputs * groups, inputs, *kernel, density=density), geometry)


# Layouts


def layouts(*shape):
    """Tensors of one shape that lie differently in memory."""
    dims = len(shape)
    larger = torch.rand([2 * n + 3 for n in shape], dtype=torch.float64)
    return {
        "transposed": torch.rand(shape[::-1], dtype=torch.float64).permute(*reversed(range(dims))),
        "sliced": larger[tuple(slice(2, 2 + n) for n in shape)],
        "every second": larger[tuple(slice(1, 2 * n, 2) for n in shape)],
        "expanded over the first": torch.rand(1, *shape[1:], dtype=torch.float64).expand(shape),
        "expanded over the second": torch.rand(shape[0], 1, *shape[2:], dtype=torch.float64).expand(shape),
        "one number": torch.rand(1, dtype=torch.float64).expand(shape),
        "at an odd address": torch.rand(math.prod(shape) + 1, dtype=torch.float64)[1:].view(shape),
        "channels last": torch.rand(shape, dtype=torch.float64).contiguous(
            memory_format=torch.channels_last if dims == 4 else torch.contiguous_format
        ),
    }


@pytest.mark.parametrize("name", layouts(2, 2))
def test_inputs_and_gradients_may_lie_in_memory_as_they_like(name):
    mask = random_mask(11, 19)
    assert_equals_dense(layouts(18, 19)[name], mask)
    assert_equals_dense(torch.rand(18, 19, dtype=torch.float64), mask, grad=layouts(18, 11)[name])
    mask, geometry = random_mask(5, 3, 3, 3), {"padding": 1}
    assert_equals_dense(layouts(2, 3, 6, 7)[name], mask, geometry)
    assert_equals_dense(torch.rand(2, 3, 6, 7).double(), mask, geometry, grad=layouts(2, 5, 6, 7)[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_bias_may_lie_in_memory_as_they_like(backend):
    mask = random_mask(11, 19)
    values = torch.rand(int(mask.sum()), 2, dtype=torch.float64)[:, 0]
    bias = torch.rand(1, dtype=torch.float64).expand(11)
    assert_equals_dense(torch.rand(6, 19, dtype=torch.float64), mask, backend=backend, values=values, bias=bias)


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_finite_differences(backend, kind):
    if kind == "linear":
        function, x, mask = sparse_linear, torch.rand(3, 4, dtype=torch.float64), random_mask(5, 4, density=0.6)
        geometry = ()
    else:
        function, x, mask = sparse_conv2d, torch.rand(2, 4, 5, 4, dtype=torch.float64), random_mask(4, 2, 3, 2)
        geometry = ((2, 1), (1, 0), (1, 2), 2)
    structure = SparseStructure.from_mask(mask)
    values, bias = torch.rand(structure.nnz, dtype=torch.float64), torch.rand(len(mask), dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, values, bias)]
    assert torch.autograd.gradcheck(
        lambda x, values, bias: function(x, values, structure, bias, *geometry, backend=backend), inputs
    )


# Numbers that are not finite


def patchwise(mask, x, values, grad, padding):
    """Output and gradients as sums over the weights that there are and the pixels that they reach."""
    row, column = mask.flatten(1).nonzero(as_tuple=True)
    patches = F.unfold(x, mask.shape[2:], padding=padding)
    grad = grad.flatten(2)
    y = torch.zeros_like(grad).index_add(1, row, values[:, None] * patches[:, column])
    grad_patches = torch.zeros_like(patches).index_add(1, column, values[:, None] * grad[:, row])
    grad_x = F.fold(grad_patches, x.shape[2:], mask.shape[2:], padding=padding)
    return y, grad_x, (grad[:, row] * patches[:, column]).sum((0, 2))


@pytest.mark.parametrize("where", ["x", "values"])
@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("shape", "weight", "padding"),
    [
        ((5, 9, 1, 1), (7, 9, 1, 1), 0),
        ((70, 40, 1, 1), (37, 40, 1, 1), 0),
        ((2, 3, 6, 5), (4, 3, 3, 3), 0),
        ((2, 3, 6, 5), (4, 3, 3, 3), 1),
        ((2, 3, 7, 23), (4, 3, 3, 3), 1),
        ((2, 3, 7, 23), (4, 3, 5, 1), (2, 0)),
    ],
)
class TestNotFinite:
    def compute(self, shape, weight, padding, where, number):
        mask = torch.rand(weight) < 0.5
        x, values = torch.randn(shape, dtype=torch.float64), torch.randn(int(mask.sum()), dtype=torch.float64)
        target = (x if where == "x" else values).view(-1)
        target[torch.randperm(len(target))[:2]] = number
        structure = SparseStructure.from_mask(mask)
        y = sparse_conv2d(x, values, structure, padding=padding, backend="native")
        grad = torch.randn(y.shape, dtype=torch.float64)
        grads = sparse_conv2d_vjp(grad, x, values, structure, padding=padding, backend="native")
        if shape[2:] == (1, 1):
            flat = SparseStructure.from_mask(mask.flatten(1))
            y = sparse_linear(x.flatten(1), values, flat, backend="native")
            grads = sparse_linear_vjp(grad.flatten(1), x.flatten(1), values, flat, backend="native")
        return (y, *grads), patchwise(mask, x, values, grad, padding)

    def test_outputs_are_those_of_the_weights_that_there_are(self, shape, weight, padding, where, number):
        (y, _, _), (expected, _, _) = self.compute(shape, weight, padding, where, number)
        assert not expected.isfinite().all()
        torch.testing.assert_close(y.view_as(expected), expected, rtol=1e-12, atol=1e-12, equal_nan=True)

    def test_no_gradient_hides_what_is_not_finite(self, shape, weight, padding, where, number):
        # At the border of an image it may appear in more gradients than it must.
        (_, *grads), (_, *expected) = self.compute(shape, weight, padding, where, number)
        assert not all(grad.isfinite().all() for grad in expected)
        for actual, wanted in zip((g.view_as(e) for g, e in zip(grads, expected, strict=True)), expected, strict=True):
            finite = actual.isfinite()
            torch.testing.assert_close(actual[finite], wanted[finite], rtol=1e-12, atol=1e-12)
