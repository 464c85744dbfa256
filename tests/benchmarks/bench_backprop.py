"""Explicit backpropagation beside autograd.

    python tests/benchmarks/bench_backprop.py [--rounds 11] [--threads 1]

Time and memory of the gradient of one batch, by `Backprop` with `engine="explicit"` and `engine="autograd"`, float32.
Memory is the growth of torch's own allocations during one call, by its allocation counter. A ratio below 1 says that
the explicit engine is faster, or needs less memory.

The explicit engine keeps no graph and frees what it recorded as the error passes; where a ReLU stands before a maximum
it keeps a quarter of the map. It is slower on small networks, whose steps last fractions of a millisecond: there the
calls of Python count. It peaks no lower on small multilayer perceptrons, where the gradients of the weights are nearly
all of the memory, and on residual networks.
"""

import torch
from report import Plot, Report, options
from timing import medians
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_nobp.nn import CNN, MLP, Residual
from lightning_nobp.rules import Backprop

ENGINES = ("explicit", "autograd")
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (8, 32, 128, 512, 2048, 8192)


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


def measure(build, shape, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds and MiB of each engine."""
    batch = (torch.randn(shape), torch.randint(10, (shape[0],)))
    rules = {}
    for engine in ENGINES:
        torch.manual_seed(0)
        rules[engine] = Backprop(network=build(), num_classes=10, loss="cross_entropy", engine=engine)

    def gradient(rule: Backprop) -> None:
        rule.zero_grad()
        rule.compute_gradients(batch)

    found = medians({engine: lambda rule=rule: gradient(rule) for engine, rule in rules.items()}, rounds, warm_up=3)
    return found, {engine: peak_bytes(rule, batch) / 2**20 for engine, rule in rules.items()}


def networks(rounds: int) -> list[dict]:
    rows = []
    for name, (build, shape) in CASES.items():
        times, memory = measure(build, shape, rounds)
        row = {"network": name, **{f"{engine}, ms": times[engine] for engine in ENGINES}}
        row["explicit / autograd"] = times["explicit"] / times["autograd"]
        row |= {f"{engine}, MiB": memory[engine] for engine in ENGINES}
        rows.append(row | {"explicit / autograd, memory": memory["explicit"] / memory["autograd"]})
    return rows


def scaling(column: str, sizes: tuple[int, ...], rounds: int, width: int = 512, batch: int = 128) -> list[dict]:
    """A perceptron of two hidden layers; one of its sizes grows."""
    rows = []
    for size in sizes:
        n, b = (size, batch) if column == "width" else (width, size)
        times, memory = measure(lambda n=n: MLP((784,), 10, (n, n)), (b, 784), rounds)
        row = {column: size, **times, "explicit / autograd": times["explicit"] / times["autograd"]}
        rows.append(row | {f"{engine}, MiB": memory[engine] for engine in ENGINES})
    return rows


def main() -> None:
    choices = options(__doc__, rounds=11)
    report = Report(choices)
    report.table("Gradient of one batch", networks(choices.rounds))
    for column, sizes, rest in (("width", WIDTHS, "batch 128"), ("batch", BATCHES, "width 512")):
        title = f"Gradient of a perceptron of two hidden layers, {rest}, ms"
        report.table(title, scaling(column, sizes, choices.rounds), Plot(ENGINES, f"{column}, {rest}", "gradient, ms"))


if __name__ == "__main__":
    main()
