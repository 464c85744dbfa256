"""Sparse layers, and training steps of networks made of them, beside torch's dense ones.

    python tests/benchmarks/bench_sparseprop.py [--rounds 9] [--threads 1] [--only layers resnet mlp]

Everything runs interleaved in one process; times are medians. With one thread they are CPU time of the thread, which
other programs do not disturb; with more they are wall-clock time. *Dense* is torch's own product, forward and backward
without an autograd graph, as in this package's explicit engine. *CSR* is ``torch.sparse``, which has no convolution.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
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
Run = Callable[[], object]


def clock() -> float:
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Milliseconds of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(1e3 * (clock() - start))
    # The first pays for memory and for choosing algorithms.
    return {name: statistics.median(t[1:]) for name, t in times.items()}


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


def layers(console: Console, rounds: int) -> None:
    table = Table(title=f"Layers, {torch.get_num_threads()} thread(s): forward / backward in ms")
    for column in ("layer", "sparsity", "dense", "CSR", "sparse", "dense : sparse", "CSR : sparse"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    cases = [(f"linear {k} -> {n}, batch {b}", lambda s, c=(b, k, n): linear_runs(*c, s)) for b, k, n in LINEAR]
    cases += [
        (f"conv {c[1]} -> {c[2]}, {c[4]}x{c[4]}, {c[3]}x{c[3]}, batch {c[0]}", lambda s, c=c: conv_runs(*c, s))
        for c in CONV
    ]
    for name, runs in cases:
        for sparsity in SPARSITIES:
            table.add_row(name, f"{sparsity:.0%}", *layer_row(medians(runs(sparsity), rounds)))
    console.print(table)


def layer_row(t: dict[str, float]) -> list[str]:
    totals = {k: t[f"{k} forward"] + t[f"{k} backward"] for k in ("dense", "CSR", "sparse") if f"{k} forward" in t}
    cells = [
        f"{t[f'{k} forward']:.2f} / {t[f'{k} backward']:.2f}" if k in totals else "" for k in ("dense", "CSR", "sparse")
    ]
    return cells + [f"{totals[k] / totals['sparse']:.2f}" if k in totals else "" for k in ("dense", "CSR")]


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


def steps(console: Console, title: str, networks: dict[str, nn.Module], x: torch.Tensor, rounds: int) -> None:
    target = torch.randint(10, (len(x),))
    formats = {name: torch.channels_last if "channels_last" in name else torch.contiguous_format for name in networks}
    inputs = {name: x.to(memory_format=f) if x.dim() == 4 else x for name, f in formats.items()}
    runs = {name: training_step(network, inputs[name], target) for name, network in networks.items()}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            times[name].append(run())
    table = Table(title=f"{title}, {torch.get_num_threads()} thread(s): ms a training step")
    for column in (
        "network",
        "forward",
        "backward",
        "optimizer",
        "sparse products",
        "all else",
        "step",
        "dense : this",
    ):
        table.add_column(column, justify="left" if column == "network" else "right")
    results = {name: [statistics.median(column) for column in zip(*t[1:], strict=True)] for name, t in times.items()}
    baseline = results["dense"][-1]
    for name, (forward, backward, update, products, total) in results.items():
        cells = (forward, backward, update, products, total - products, total)
        table.add_row(name, *(f"{c:.2f}" for c in cells), f"{baseline / total:.2f}")
    console.print(table)
    for name, network in networks.items():
        size = sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20
        console.print(f"{name}: parameters, their gradients and the momentum take {size:.2f} MiB each")


def resnet(console: Console, rounds: int) -> None:
    plain = ResNet((3, 32, 32), 10)
    channels_last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    networks = {"dense": plain, "dense, channels_last": channels_last}
    for sparsity in (0.9, 0.95, 0.98):
        networks[f"{sparsity:.0%} sparse"] = sparsify(copy.deepcopy(plain), sparsity, exclude=["0"])
    steps(
        console, "ResNet-18 with a 3x3 stem, which stays dense, batch 64", networks, torch.randn(64, 3, 32, 32), rounds
    )


def mlp(console: Console, rounds: int) -> None:
    plain = MLP((1, 28, 28), 10, hidden_dims=(300, 100))
    networks = {"dense": plain}
    for sparsity in (0.9, 0.95, 0.98):
        networks[f"{sparsity:.0%} sparse"] = sparsify(
            copy.deepcopy(plain), sparsity, method="random", distribution="erk"
        )
    steps(console, "MLP 784-300-100-10, batch 128", networks, torch.randn(128, 1, 28, 28), 60 * rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=("layers", "resnet", "mlp"), default=("layers", "resnet", "mlp"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    console = Console(width=150)
    with torch.no_grad():
        for part in options.only:
            {"layers": layers, "resnet": resnet, "mlp": mlp}[part](console, options.rounds)


if __name__ == "__main__":
    main()
