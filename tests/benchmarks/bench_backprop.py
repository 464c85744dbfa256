"""Time and peak memory of one gradient: explicit backpropagation beside autograd's.

    python tests/benchmarks/bench_backprop.py [--rounds 40] [--threads 1]

Both engines run interleaved in one process; times are medians, memory is the growth of torch's own allocations
during one call, by its allocation counter (CPU). Ratios are explicit / autograd.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_nobp.nn import CNN, MLP, Residual
from lightning_nobp.rules import Backprop


def resnet() -> nn.Module:
    def block(channels: int) -> Residual:
        body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        return Residual(body)

    stem = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    trunk = [block(32), nn.ReLU(), nn.AvgPool2d(2), block(32), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*stem, *trunk, nn.Flatten(), nn.Linear(32 * 64, 10))


CASES = {
    "MLP 784-500-500-10, batch 128": (lambda: MLP((1, 28, 28), 10), (128, 1, 28, 28)),
    "MLP 784-500-500-10, batch 1024": (lambda: MLP((1, 28, 28), 10), (1024, 1, 28, 28)),
    "MLP, GELU, batch norm, dropout, batch 128": (
        lambda: MLP((1, 28, 28), 10, activation="gelu", batch_norm=True, dropout=0.2),
        (128, 1, 28, 28),
    ),
    "MLP with layer norm, batch 128": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 500), nn.LayerNorm(500), nn.Tanh(), nn.Linear(500, 10)),
        (128, 1, 28, 28),
    ),
    "MLP 64-32-10, batch 32": (lambda: MLP((1, 8, 8), 10, (32,)), (32, 1, 8, 8)),
    "CNN 32-64, 28x28, batch 128": (lambda: CNN((1, 28, 28), 10), (128, 1, 28, 28)),
    "CNN 32-64, batch norm, 32x32, batch 64": (lambda: CNN((3, 32, 32), 10, batch_norm=True), (64, 3, 32, 32)),
    "ResNet of 5 convolutions, 32x32, batch 64": (resnet, (64, 3, 32, 32)),
}


def peak_bytes(rule: Backprop, batch) -> int:
    """Largest sum of live allocations during one call, counted from its start, without gradients of an earlier one."""
    rule.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as prof:
        rule.compute_gradients(batch)
    live = peak = 0
    events = (e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(build, shape, rounds: int) -> dict[str, tuple[float, int]]:
    batch = (torch.randn(shape), torch.randint(10, (shape[0],)))
    rules = {}
    for engine in ("explicit", "autograd"):
        torch.manual_seed(0)
        rules[engine] = Backprop(network=build(), num_classes=10, loss="cross_entropy", engine=engine)
    seconds: dict[str, list[float]] = {engine: [] for engine in rules}
    for _ in range(rounds + 3):
        for engine, rule in rules.items():
            rule.zero_grad()
            start = time.perf_counter()
            rule.compute_gradients(batch)
            seconds[engine].append(time.perf_counter() - start)
    return {e: (statistics.median(seconds[e][3:]), peak_bytes(rule, batch)) for e, rule in rules.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(title=f"Gradient of one batch, {arguments.threads} thread(s), float32")
    for column in (
        "network",
        "explicit ms",
        "autograd ms",
        "time ratio",
        "explicit MiB",
        "autograd MiB",
        "memory ratio",
    ):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, (build, shape) in CASES.items():
        result = measure(build, shape, arguments.rounds)
        (t1, m1), (t2, m2) = result["explicit"], result["autograd"]
        row = [f"{t1 * 1e3:.2f}", f"{t2 * 1e3:.2f}", f"{t1 / t2:.2f}"]
        table.add_row(name, *row, f"{m1 / 2**20:.2f}", f"{m2 / 2**20:.2f}", f"{m1 / m2:.2f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
