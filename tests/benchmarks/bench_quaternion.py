"""Quaternion layers in two algorithms, beside the real layer of the same width and the usual way.

    python tests/benchmarks/bench_quaternion.py [--rounds 15] [--picture FILE]

Forward and backward by autograd, float32, one thread, interleaved in one process; times are medians of the thread's CPU
time. *Real* is ``nn.Linear`` or ``nn.Conv2d`` with four times as many weights. *Concatenated* is how public
quaternion layers do it: the block matrix by ``torch.cat``, one real product, autograd for the rest.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.quaternion import hamilton_block
from lightning_nobp.nn import QuaternionConv2d, QuaternionLinear

LINEAR = [(n, b) for n in (64, 128, 256, 512) for b in (128, 1024)]
CONV = ((16, 32, 16), (32, 32, 16), (64, 32, 16), (128, 16, 8))
"""Quaternion channels, batch, height and width."""
WIDTHS = (16, 32, 64, 128, 256, 512)
Run = Callable[[], object]


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Milliseconds of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            times[name].append(1e3 * (time.thread_time() - start))
    # The first pays for memory and for choosing algorithms.
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def there_and_back(run: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, grad: Tensor) -> Run:
    return lambda: torch.autograd.grad(run(x), [x, *parameters], grad)


def linear_runs(width: int, batch: int) -> dict[str, Run]:
    x, grad = torch.randn(batch, 4 * width, requires_grad=True), torch.randn(batch, 4 * width)
    real = nn.Linear(4 * width, 4 * width)
    layers = {a: QuaternionLinear(4 * width, 4 * width, algorithm=a) for a in ("block", "fast8")}
    weight, bias = layers["block"].weight, layers["block"].bias
    assert bias is not None
    runs = {
        "real": there_and_back(real, list(real.parameters()), x, grad),
        "concatenated": there_and_back(lambda x: F.linear(x, hamilton_block(weight), bias), [weight, bias], x, grad),
    }
    return runs | {a: there_and_back(layer, list(layer.parameters()), x, grad) for a, layer in layers.items()}


def conv_runs(width: int, batch: int, size: int) -> dict[str, Run]:
    x = torch.randn(batch, 4 * width, size, size, requires_grad=True)
    grad = torch.randn(batch, 4 * width, size, size)
    real = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
    layers = {a: QuaternionConv2d(4 * width, 4 * width, 3, padding=1, algorithm=a) for a in ("block", "fast8")}
    weight, bias = layers["block"].weight, layers["block"].bias
    assert bias is not None
    runs = {
        "real": there_and_back(real, list(real.parameters()), x, grad),
        "concatenated": there_and_back(
            lambda x: F.conv2d(x, hamilton_block(weight), bias, padding=1), [weight, bias], x, grad
        ),
    }
    return runs | {a: there_and_back(layer, list(layer.parameters()), x, grad) for a, layer in layers.items()}


def show(title: str, first: str, rows: dict[str, dict[str, float]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in (first, "real, ms", "concatenated", "block", "fast8", "concatenated / fast8", "real / fast8"):
        table.add_column(column, justify="right")
    for name, found in rows.items():
        ratios = [found[other] / found["fast8"] for other in ("concatenated", "real")]
        cells = [f"{found[kind]:.2f}" for kind in ("real", "concatenated", "block", "fast8")]
        table.add_row(name, *cells, *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=110).print(table)


def draw(rows: dict[int, dict[str, float]], file: Path) -> None:
    """Time of a layer against its width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, label in (("real", "real, 4x the weights"), ("block", "quaternions, block"), ("fast8", "fast8")):
        axis.loglog([4 * width for width in rows], [found[name] for found in rows.values()], "o-", label=label)
    axis.set_xlabel("real features in and out")
    axis.set_ylabel("forward and backward, ms (1024 samples)")
    axis.legend()
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--picture", type=Path, help="also draw time against width into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    linear = {f"{n}, {b}": medians(linear_runs(n, b), options.rounds) for n, b in LINEAR}
    show("Linear layers", "quaternions, batch", linear)
    conv = {f"{n}, {s}x{s}, {b}": medians(conv_runs(n, b, s), options.rounds) for n, b, s in CONV}
    show("3x3 convolutions", "quaternions, map, batch", conv)
    if options.picture:
        draw({width: medians(linear_runs(width, 1024), options.rounds) for width in WIDTHS}, options.picture)


if __name__ == "__main__":
    main()
