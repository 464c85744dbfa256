"""The compiled libraries: which one is loaded, what it shares with torch, and which memory it touches.

Run as a program, this file computes for a processor of fewer abilities, and between pages that nobody may touch.
"""

import itertools
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from fence import Fence, run_with_capability

from lightning_nobp import csrc
from lightning_nobp.functional import sparse, sparse_native
from lightning_nobp.functional.sparse import SparseStructure

ROOT = Path(__file__).parents[2]
BUILT = Path(csrc.__file__).parent
DTYPES = [torch.float32, torch.float64]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")

# Shapes of the input and the weight, and the geometry of a convolution.
PROBLEMS = [
    ((1, 1), (1, 1), {}),
    ((5, 20), (3, 20), {}),
    ((17, 33), (21, 33), {}),
    ((64, 32), (16, 32), {}),
    ((131, 50), (40, 50), {}),
    ((0, 5), (4, 5), {}),
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 3, 9, 11), (4, 3, 3, 3), {"padding": 1}),
    ((3, 4, 5, 33), (4, 2, 3, 3), {"padding": 1, "groups": 2}),
    ((2, 3, 12, 17), (5, 3, 3, 3), {"stride": 2, "padding": 1}),
    ((1, 2, 40, 47), (3, 2, 5, 5), {"stride": 3, "padding": 2, "dilation": 2}),
    ((4, 2, 1, 17), (3, 2, 1, 3), {}),
    ((9, 6, 4, 4), (5, 6, 1, 1), {}),
    ((2, 3, 120, 100), (2, 3, 3, 3), {"padding": (2, 0)}),
]


def tensors(dtype):
    """Inputs of every problem, and what takes them."""
    torch.manual_seed(0)
    for shape, weight, geometry in PROBLEMS:
        structure = SparseStructure.from_mask(torch.rand(weight) < 0.4)
        x, values, bias = (torch.randn(n, dtype=dtype) for n in (shape, (structure.nnz,), (weight[0],)))
        kind = "linear" if len(weight) == 2 else "conv2d"
        grad = getattr(sparse, f"sparse_{kind}")(x, values, structure, bias, **geometry, backend="torch").cos()
        yield kind, geometry, structure, (x, values, bias, grad)


def compute(kind, geometry, structure, inputs):
    x, values, bias, grad = inputs
    y = getattr(sparse, f"sparse_{kind}")(x, values, structure, bias, **geometry, backend="native")
    return y, *getattr(sparse, f"sparse_{kind}_vjp")(grad, x, values, structure, **geometry, backend="native")


def all_results(dtype):
    return [compute(*problem) for problem in tensors(dtype)]


# As a program


def compute_inside(fence, problems, expected):
    """All problems with inputs, indices and outputs inside a fence."""
    torch.empty_like = lambda like: fence.empty(like.shape, like.dtype)
    torch.Tensor.new_empty = lambda like, *shape: fence.empty(shape, like.dtype)
    for (kind, geometry, structure, inputs), wanted in zip(problems, expected, strict=True):
        print(kind, tuple(inputs[0].shape), structure.shape, geometry, inputs[0].dtype, flush=True)
        indices = structure.tensors()
        fenced = SparseStructure(structure.shape, *map(fence.copy, indices))
        copies = [fence.copy(tensor) for tensor in inputs]
        actual = compute(kind, geometry, fenced, copies)
        assert all(not a.numel() or a.data_ptr() in fence.made for a in actual)
        assert all(map(torch.equal, actual, wanted))
        assert all(map(torch.equal, (*copies, *fenced.tensors()), (*inputs, *indices)))


def main(path):
    # Whatever torch computes by itself before the count starts no threads then.
    torch.set_num_threads(1)
    structure = SparseStructure.from_mask(torch.ones(200, 100, dtype=torch.bool))
    x, values = torch.zeros(256, 100), torch.zeros(20_000)
    torch.set_num_threads(3)
    before = len(os.listdir("/proc/self/task"))
    sparse.sparse_linear(x, values, structure, backend="native")
    started = len(os.listdir("/proc/self/task")) - before
    torch.set_num_threads(1)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    report = {"library": csrc.library("sparse")._name, "mapped": mapped, "started": started}
    results = {dtype: all_results(dtype) for dtype in DTYPES}
    torch.save(report | results, path)
    problems = {dtype: list(tensors(dtype)) for dtype in DTYPES}
    for dtype, at_end in itertools.product(DTYPES, (True, False)):
        compute_inside(Fence(at_end), problems[dtype], results[dtype])
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.exit()


@pytest.fixture(scope="module", params=["default", "avx2"])
def run(request, tmp_path_factory):
    """A process on a processor of fewer abilities: its capability, what it reports and how it ended."""
    path = tmp_path_factory.mktemp("run") / "report.pt"
    report, process = run_with_capability(request.param, __file__, path)
    return request.param, report, process


@linux
def test_the_library_for_the_processor_is_loaded(run):
    capability, report, _ = run
    wanted = ["avx2", "baseline"] if capability == "avx2" else ["baseline"]
    built = [f"sparse_{variant}.so" for variant in wanted if (BUILT / f"sparse_{variant}.so").exists()]
    assert Path(report["library"]).name == built[0]
    assert [path for path in report["mapped"] if str(BUILT) in path] == [str(BUILT / built[0])]


@linux
def test_there_is_one_openmp_runtime_and_several_threads_compute(run):
    _, report, _ = run
    names = ("libgomp", "libomp", "libiomp")
    assert len([path for path in report["mapped"] if Path(path).name.startswith(names)]) == 1
    assert report["started"] == 2


@linux
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_every_library_computes_the_same_but_for_rounding(run, dtype, tolerance):
    _, report, _ = run
    for found, expected in zip(report[dtype], all_results(dtype), strict=True):
        for actual, wanted in zip(found, expected, strict=True):
            assert (actual - wanted).norm() <= tolerance * wanted.norm()


@linux
def test_no_memory_is_touched_but_the_tensors_own(run):
    _, _, process = run
    assert process.returncode == 0, process.stdout.splitlines()[-1:] + process.stderr.splitlines()[-20:]
    assert process.stdout.splitlines()[-1] == "done"
    assert process.stdout.count("linear") + process.stdout.count("conv2d") == 4 * len(PROBLEMS)


# Without libraries


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder in the place of that of the libraries."""

    def forget():
        for cached in (csrc.library, sparse._warn_once, sparse_native._function):
            cached.cache_clear()

    monkeypatch.setattr(csrc, "_FOLDER", tmp_path)
    forget()
    monkeypatch.setattr(sparse, "_NO_KERNELS", sparse._why_no_kernels())
    yield tmp_path
    forget()


def run_all(backend):
    for kind, geometry, structure, (x, values, bias, grad) in tensors(torch.float64):
        yield getattr(sparse, f"sparse_{kind}")(x, values, structure, bias, **geometry, backend=backend)
        yield from getattr(sparse, f"sparse_{kind}_vjp")(grad, x, values, structure, **geometry, backend=backend)


def test_without_libraries_torch_computes_after_one_warning(folder):
    with pytest.warns(UserWarning, match=r"no compiled kernels .*C\+\+ compiler\. Until then") as caught:
        actual = list(run_all("auto"))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(torch.equal, run_all("auto"), actual))
        assert all(map(torch.equal, run_all("torch"), actual))


def test_without_libraries_native_is_refused(folder):
    with pytest.raises(csrc.KernelsUnavailableError, match="none was built when lightning-nobp was installed"):
        csrc.library("sparse")
    for problem in tensors(torch.float32):
        with pytest.raises(csrc.KernelsUnavailableError, match=r"C\+\+ compiler"):
            compute(*problem)


def test_a_library_that_does_not_load_is_passed_over_and_named(folder):
    variants = csrc._VARIANTS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
    for variant in variants:
        (folder / f"sparse_{variant}.so").write_bytes(b"not a library")
    with pytest.raises(csrc.KernelsUnavailableError, match=rf"sparse_{variants[-1]}\.so"):
        csrc.library("sparse")
    shutil.copy(BUILT / "sparse_baseline.so", folder)
    assert csrc.library("sparse")._name == str(folder / "sparse_baseline.so")


def test_without_a_compiler_the_package_is_built_without_libraries(tmp_path):
    environment = os.environ | {"CC": "false", "CXX": "false"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    assert not list(tmp_path.rglob("*.so"))
