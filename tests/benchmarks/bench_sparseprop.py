"""Sparse layers, and networks made of them, beside torch's dense ones.

    python tests/benchmarks/bench_sparseprop.py [--rounds 3] [--threads 1]

*Dense* is torch's own product, forward and backward without an autograd graph, as in this package's explicit engine;
zeros cost it as much as other weights. *CSR* is `torch.sparse`, which has no convolution. A training step is one of the
explicit engine; the stem of the ResNet-18 stays dense.

Linear layers are slower the farther their inputs are: a tile of transposed samples lies in the second level of the
cache. Smaller tiles that fit the first level were tried, in blocks of columns, and lost more on short runs of weights
than they gained. At the highest sparsities, transposing and writing the outputs is the larger part, and so are, in a
training step, normalisation, activations, the dense stem and the loss; in the small multilayer perceptron half of the
rest are calls from Python. [SparseProp](rules/sparseprop.md#recipes) has the times of whole trainings.
"""

import copy
import statistics

import torch
from report import Plot, Report, options
from timing import Run, clock, medians
from torch import nn
from torch.nn import functional as F

from lightning_nobp.functional import backprop as dense
from lightning_nobp.functional import sparse_native
from lightning_nobp.functional.backprop import cross_entropy
from lightning_nobp.functional.sparse import (
    SparseStructure,
    sparse_conv2d,
    sparse_conv2d_vjp,
    sparse_linear,
    sparse_linear_vjp,
)
from lightning_nobp.nn import MLP, ResNet, sparsify, vjp

LINEAR = ((902, 768, 3072), (2048, 3072, 768), (128, 784, 300))
CONV = (  # batch, input channels, output channels, size, kernel, padding
    (16, 64, 64, 56, 3, 1),
    (16, 128, 128, 28, 3, 1),
    (64, 64, 64, 32, 3, 1),
    (64, 128, 128, 16, 3, 1),
    (64, 256, 256, 8, 3, 1),
    (64, 512, 512, 4, 3, 1),
    (128, 6, 16, 14, 5, 0),
)
SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
KINDS = ("dense", "CSR", "sparse")


# Single layers


def linear_runs(batch: int, inputs: int, outputs: int, sparsity: float) -> dict[str, Run]:
    mask = torch.rand(outputs, inputs) >= sparsity
    weight = torch.randn(outputs, inputs) * mask
    structure, values, bias = SparseStructure.from_mask(mask), weight[mask], torch.randn(outputs)
    x, grad = torch.randn(batch, inputs), torch.randn(batch, outputs)
    csr, transposed = weight.to_sparse_csr(), weight.t().contiguous().to_sparse_csr()
    return {
        "dense forward": lambda: F.linear(x, weight, bias),
        "dense backward": lambda: dense.linear_vjp(grad, x, weight),
        "CSR forward": lambda: csr @ x.t(),
        "CSR backward": lambda: (transposed @ grad.t(), torch.sparse.sampled_addmm(csr, grad.t(), x, beta=0.0)),
        "sparse forward": lambda: sparse_linear(x, values, structure, bias),
        "sparse backward": lambda: sparse_linear_vjp(grad, x, values, structure),
    }


def conv_runs(
    batch: int, inputs: int, outputs: int, size: int, kernel: int, padding: int, sparsity: float
) -> dict[str, Run]:
    mask = torch.rand(outputs, inputs, kernel, kernel) >= sparsity
    weight = torch.randn(mask.shape) * mask
    structure, values = SparseStructure.from_mask(mask), weight[mask]
    x = torch.randn(batch, inputs, size, size)
    grad = torch.randn_like(F.conv2d(x, weight, padding=padding))
    pair = {"stride": (1, 1), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}
    return {
        "dense forward": lambda: F.conv2d(x, weight, padding=padding),
        "dense backward": lambda: dense.conv2d_vjp(grad, x, weight, **pair),
        "sparse forward": lambda: sparse_conv2d(x, values, structure, padding=padding),
        "sparse backward": lambda: sparse_conv2d_vjp(grad, x, values, structure, padding=padding),
    }


def layers(report: Report) -> None:
    rounds = report.options.rounds
    for b, k, n in LINEAR:
        found = [(s, medians(linear_runs(b, k, n, s), rounds)) for s in SPARSITIES]
        layer_table(report, f"linear {k} -> {n}, batch {b}", found)
    for case in CONV:
        b, k, n, size, kernel, _ = case
        found = [(s, medians(conv_runs(*case, s), rounds)) for s in SPARSITIES]
        layer_table(report, f"conv {k} -> {n}, {kernel}x{kernel}, {size}x{size}, batch {b}", found)


def layer_table(report: Report, name: str, found: list[tuple[float, dict[str, float]]]) -> None:
    """Forward and backward apart, and ratios of both together."""
    rows = []
    for sparsity, times in found:
        kinds = [kind for kind in KINDS if f"{kind} forward" in times]
        totals = {kind: times[f"{kind} forward"] + times[f"{kind} backward"] for kind in kinds}
        ratios = {f"{kind} / sparse": totals[kind] / totals["sparse"] for kind in kinds if kind != "sparse"}
        rows.append({"sparsity": f"{sparsity:.0%}", **times, **ratios})
    report.table(f"{name}, ms", rows)


def density(report: Report) -> None:
    for name, runs in (
        ("linear 1024 -> 1024, batch 512", lambda s: linear_runs(512, 1024, 1024, s)),
        ("conv 128 -> 128, 3x3, 16x16, batch 32", lambda s: conv_runs(32, 128, 128, 16, 3, 1, s)),
    ):
        rows = []
        for kept in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005):
            times = medians(runs(1 - kept), report.options.rounds)
            kinds = [kind for kind in KINDS if f"{kind} forward" in times]
            both = {kind: times[f"{kind} forward"] + times[f"{kind} backward"] for kind in kinds}
            rows.append({"kept weights, %": 100 * kept, **both})
        plot = Plot(list(rows[0])[1:], f"kept weights, % ({name})", "forward and backward, ms")
        report.table(f"Forward and backward against the weights that are kept, {name}, ms", rows, plot)


# Training steps


class ProductClock:
    """Adds up the time that the sparse products take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._plain = {name: getattr(sparse_native, name) for name in ("forward", "backward")}

    def __enter__(self) -> "ProductClock":
        for name, plain in self._plain.items():
            setattr(sparse_native, name, self._timed(plain))
        return self

    def __exit__(self, *_: object) -> None:
        for name, plain in self._plain.items():
            setattr(sparse_native, name, plain)

    def _timed(self, plain):
        def run(*args):
            start = clock()
            result = plain(*args)
            self.seconds += clock() - start
            return result

        return run


def training_step(network: nn.Module, x: torch.Tensor, target: torch.Tensor):
    """A step by the explicit engine: milliseconds of forward, backward, optimizer, and of sparse products in them."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step() -> tuple[float, ...]:
        with torch.no_grad(), ProductClock() as products:
            start = clock()
            optimizer.zero_grad()
            scores, pullback = vjp(network, x)
            _, grad = cross_entropy(scores, target)
            forward = clock()
            pullback(grad)
            backward = clock()
            optimizer.step()
            end = clock()
        times = forward - start, backward - forward, end - backward, products.seconds, end - start
        return tuple(1e3 * t for t in times)

    return step


def steps(report: Report, title: str, networks: dict[str, nn.Module], x: torch.Tensor, rounds: int) -> None:
    target = torch.randint(10, (len(x),))
    formats = {name: torch.channels_last if "channels_last" in name else torch.contiguous_format for name in networks}
    inputs = {name: x.to(memory_format=f) if x.dim() == 4 else x for name, f in formats.items()}
    runs = {name: training_step(network, inputs[name], target) for name, network in networks.items()}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            times[name].append(run())
    found = {name: [statistics.median(column) for column in zip(*t[1:], strict=True)] for name, t in times.items()}
    rows = []
    for name, (forward, backward, update, products, total) in found.items():
        parts = {"forward": forward, "backward": backward, "optimizer": update, "sparse products": products}
        ratio = {"step": total, "dense / this": found["dense"][-1] / total}
        rows.append({"network": name, **parts, **ratio, "weights, MiB": mebibytes(networks[name])})
    report.table(f"{title}: ms a training step; gradients and momentum are as large as the weights", rows)


def mebibytes(network: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20


def resnet(report: Report) -> None:
    plain = ResNet((3, 32, 32), 10)
    channels_last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    networks = {"dense": plain, "dense, channels_last": channels_last}
    for sparsity in (0.9, 0.95, 0.98):
        networks[f"{sparsity:.0%} sparse"] = sparsify(copy.deepcopy(plain), sparsity, exclude=["0"])
    steps(report, "ResNet-18 with a 3x3 stem, batch 64", networks, torch.randn(64, 3, 32, 32), report.options.rounds)


def mlp(report: Report) -> None:
    plain = MLP((1, 28, 28), 10, hidden_dims=(300, 100))
    networks = {"dense": plain}
    for sparsity in (0.9, 0.95, 0.98):
        sparse = sparsify(copy.deepcopy(plain), sparsity, method="random", distribution="erk")
        networks[f"{sparsity:.0%} sparse"] = sparse
    x = torch.randn(128, 1, 28, 28)
    steps(report, "MLP 784-300-100-10, batch 128", networks, x, 60 * report.options.rounds)


def main() -> None:
    report = Report(options(__doc__, rounds=3))
    with torch.no_grad():
        for measure in (density, layers, resnet, mlp):
            measure(report)


if __name__ == "__main__":
    main()
