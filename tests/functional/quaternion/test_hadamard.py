"""The Hadamard transform of four components: the compiled kernel is the readable version to the last bit."""

import pytest
import torch

from lightning_nobp.csrc import KernelsUnavailableError, library
from lightning_nobp.functional.quaternion import hadamard as module
from lightning_nobp.functional.quaternion.hadamard import hadamard, hadamard_

DTYPES = [torch.float32, torch.float64]
MATRIX = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


def _why_no_kernel():
    try:
        library("quaternion")
    except KernelsUnavailableError as error:
        return str(error)
    return ""


compiled = pytest.mark.skipif(bool(_why_no_kernel()), reason=_why_no_kernel() or "there are kernels")


def components(rows, width, dtype=torch.float64):
    """Of component-major features."""
    return torch.randn(rows, 4 * width, dtype=dtype).view(rows, 4, width).unbind(1)


def transform(parts, **options):
    return hadamard_([torch.empty_like(part) for part in parts], parts, **options)


def test_the_transform_is_a_product_with_a_matrix_and_four_times_its_own_inverse():
    x = torch.stack(components(3, 5))
    found = torch.stack(hadamard(x.unbind(0)))
    assert torch.allclose(found, torch.einsum("hc,cij->hij", MATRIX.double(), x))
    assert torch.allclose(torch.stack(hadamard(found.unbind(0))), 4 * x)


@pytest.fixture
def calls(monkeypatch):
    """Rows and threads of each call of a kernel."""
    found, kernel = [], module._kernel

    def watched(dtype):
        run = kernel(dtype)
        return run and (lambda *arguments: (found.append((arguments[10], arguments[13])), run(*arguments))[1])

    monkeypatch.setattr(module, "_kernel", watched)
    return found


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [*range(1, 20), 64, 131])
def test_the_kernel_computes_the_readable_version_to_the_last_bit(width, dtype, calls):
    parts = components(3, width, dtype)
    assert all(map(torch.equal, transform(parts), hadamard(parts)))
    negated = (-parts[0], *parts[1:])
    assert all(map(torch.equal, transform(parts, negate_first=True), hadamard(negated)))
    assert calls == [(3, 1), (3, 1)]


@pytest.mark.parametrize("kernel", [pytest.param(True, marks=compiled), False])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_components_may_be_overwritten_and_nothing_else_is(rows, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(module, "_kernel", lambda dtype: None)
    table = torch.full((rows + 2, 46), 7.0)
    inside = table[1:-1, 1:45]
    inside.copy_(torch.randn(rows, 44))
    parts = inside.unflatten(1, (4, 11)).unbind(1)
    wanted = hadamard([part.clone() for part in parts])
    hadamard_(parts, parts)
    assert all(map(torch.equal, parts, wanted))
    inside.fill_(7)
    assert (table == 7).all()


@pytest.mark.parametrize("layout", ["maps", "channels last", "transposed", "every second", "mixed"])
def test_components_may_lie_in_memory_as_they_like(layout, calls):
    if layout == "maps":
        parts = torch.randn(2, 4, 3, 5, 5).unbind(1)
    elif layout == "channels last":
        parts = [torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    elif layout == "transposed":
        parts = torch.randn(4, 6, 9).transpose(1, 2).unbind(0)
    elif layout == "every second":
        parts = torch.randn(4, 6, 18)[..., ::2].unbind(0)
    else:
        parts = [*torch.randn(3, 6, 9).unbind(0), torch.randn(9, 6).t()]
    assert all(map(torch.equal, transform(parts), hadamard(parts)))
    assert not calls or layout == "maps"


def test_results_of_another_type_are_converted():
    parts, out = components(3, 5), [torch.empty(3, 5) for _ in range(4)]
    for found, expected in zip(hadamard_(out, parts), hadamard(parts), strict=True):
        assert torch.equal(found, expected.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.int64])
def test_types_without_a_kernel_are_transformed_too(dtype):
    parts = [(10 * torch.randn(3, 8)).to(dtype) for _ in range(4)]
    assert all(map(torch.equal, transform(parts), hadamard(parts)))


@compiled
def test_several_threads_compute_the_same(calls):
    parts = components(600, 256)
    torch.set_num_threads(2)
    assert all(map(torch.equal, transform(parts), hadamard(parts)))
    assert calls == [(600, 2)]


@pytest.mark.parametrize("special", [float("inf"), float("nan"), -0.0, 1e-45])
def test_what_is_not_an_ordinary_number_stays_what_it_is(special):
    parts = [torch.full((2, 19), special) for _ in range(4)]
    for found, expected in zip(transform(parts), hadamard(parts), strict=True):
        assert torch.equal(found.view(torch.int32) & 0x7FFFFFFF, expected.view(torch.int32) & 0x7FFFFFFF)
