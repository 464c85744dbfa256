"""The libraries of spiking and quaternion layers: the forms for several processors, and which memory they touch.

Run as a program, this file computes for a processor of fewer abilities, and between pages that nobody may touch.
"""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from fence import Fence, run_with_capability

from lightning_nobp import csrc
from lightning_nobp.functional.quaternion import hadamard as quaternion
from lightning_nobp.functional.spiking import events_from_spikes, kernels, lif_record, lif_spike_times_vjp
from lightning_nobp.functional.spiking import native as spiking

BUILT = Path(csrc.__file__).parent
DTYPES = [torch.float32, torch.float64]
LIBRARIES = ("quaternion", "spiking")
linux = pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")

# Samples, events, input neurons, neurons, most spikes of a neuron, and both time constants.
INF = float("inf")
LAYERS = [
    (1, 1, 1, 1, 1, 1.0, 0.5),
    (3, 17, 5, 33, 4, INF, INF),
    (2, 40, 7, 16, 1, INF, 0.5),
    (5, 9, 3, 130, 16, 0.7, 0.7),
    (0, 5, 4, 4, 2, 1.0, INF),
    (2, 0, 4, 5, 2, 1.0, 0.5),
]
# Rows and components a row.
PARTS = [(1, 1), (7, 33), (0, 4), (64, 16), (3, 129)]


def spiking_results(layer, dtype):
    """Spikes, gradients and events of one layer."""
    batch, events, inputs, neurons, most, tau_v, tau_i = layer
    torch.manual_seed(0)
    times = torch.rand(batch, events, dtype=dtype).sort(1).values
    train = times, torch.randint(inputs, (batch, events)), torch.full((batch,), events)
    weight = torch.randn(inputs, neurons, dtype=dtype) + 1
    record = lif_record(*train, weight, most, tau_v, tau_i, backend="native")
    grad = torch.randn(record.times.shape, dtype=dtype)
    found = lif_spike_times_vjp(grad, record, *train, weight, tau_v, tau_i, needs_tau_grad=batch > 0, backend="native")
    after = events_from_spikes(record.times)
    return [record.times, record.counts, after.times, after.index, *(g for g in found if g is not None)]


def quaternion_results(shape, dtype, copy=torch.Tensor.clone):
    """The transform of four tensors, and of themselves in place."""
    torch.manual_seed(0)
    parts = [copy(torch.randn(shape, dtype=dtype)) for _ in range(4)]
    out = [copy(torch.zeros(shape, dtype=dtype)) for _ in range(4)]
    quaternion.hadamard_(out, parts, negate_first=True)
    return [*out, *quaternion.hadamard_(parts, parts)]


def all_results(dtype):
    return [*(spiking_results(layer, dtype) for layer in LAYERS), *(quaternion_results(p, dtype) for p in PARTS)]


# As a program


def calls_inside(fence):
    """The kernels of spiking layers, on copies of their tensors inside a fence."""
    original = kernels.call

    def call(name, dtype, *arguments):
        copies = [fence.copy(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        original(name, dtype, *copies)
        for argument, inside in zip(arguments, copies, strict=True):
            if isinstance(argument, torch.Tensor):
                argument.copy_(inside)

    return call


def compute_inside(fence, dtype, expected):
    """All problems with every tensor of a kernel inside a fence."""
    spiking.call = kernels.call = calls_inside(fence)
    for layer, wanted in zip(LAYERS, expected, strict=False):
        print("spiking", layer, dtype, flush=True)
        assert all(map(torch.equal, spiking_results(layer, dtype), wanted))
    for shape, wanted in zip(PARTS, expected[len(LAYERS) :], strict=True):
        print("quaternion", shape, dtype, flush=True)
        assert all(map(torch.equal, quaternion_results(shape, dtype, fence.copy), wanted))


def main(path):
    torch.set_num_threads(1)
    results = {dtype: all_results(dtype) for dtype in DTYPES}
    names = [csrc.library(name)._name for name in LIBRARIES]
    torch.save({"libraries": names} | results, path)
    for dtype, at_end in itertools.product(DTYPES, (True, False)):
        compute_inside(Fence(at_end), dtype, results[dtype])
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.exit()


@pytest.fixture(scope="module", params=["default", "avx2"])
def run(request, tmp_path_factory):
    """A process on a processor of fewer abilities: its capability, what it reports and how it ended."""
    path = tmp_path_factory.mktemp("run") / "report.pt"
    return request.param, *run_with_capability(request.param, __file__, path)


@linux
def test_the_libraries_for_the_processor_are_loaded(run):
    capability, report, _ = run
    wanted = ["avx2", "baseline"] if capability == "avx2" else ["baseline"]
    for name, loaded in zip(LIBRARIES, report["libraries"], strict=True):
        built = [f"{name}_{variant}.so" for variant in wanted if (BUILT / f"{name}_{variant}.so").exists()]
        assert Path(loaded).name == built[0]


@linux
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_every_library_computes_the_same_but_for_rounding(run, dtype, tolerance):
    _, report, _ = run
    for found, expected in zip(report[dtype], all_results(dtype), strict=True):
        for actual, wanted in zip(found, expected, strict=True):
            assert torch.equal(actual == INF, wanted == INF)
            finite = wanted != INF
            assert (actual - wanted)[finite].double().norm() <= tolerance * wanted[finite].double().norm()


@linux
def test_no_memory_is_touched_but_the_tensors_own(run):
    _, _, process = run
    assert process.returncode == 0, process.stdout.splitlines()[-1:] + process.stderr.splitlines()[-20:]
    assert process.stdout.splitlines()[-1] == "done"
    assert process.stdout.count("spiking") == 4 * len(LAYERS)
    assert process.stdout.count("quaternion") == 4 * len(PARTS)
