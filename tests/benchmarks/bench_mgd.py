"""Multiplexed gradient descent: perturbations a second beside the ways in which others write them.

    python tests/benchmarks/bench_mgd.py [--rounds 7] [--threads 1]

All variants estimate the gradient of the same network from the same batch by central differences. *Plain loop* is the
widespread way: draw a random vector, add it, run, take it away twice, run, put the parameters back, multiply.
*torch.func* is naive vmapped code with full random vectors. A perturbation of single samples counts once for every
sample of the batch, since each has its own. *Memory* is measured in processes of their own: every variant but inference
leaves a gradient of 64 MiB.

Many perturbations at once pay off while the network is small; where the products are large, single samples with
perturbations of their own are what makes an estimate cheap.
"""

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable

import torch
from report import Plot, Report, options
from timing import medians
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lightning_nobp.cli.measured_run import _forget_peak, _peak_bytes
from lightning_nobp.functional.counter_random import random_signs
from lightning_nobp.nn import CNN, MLP, SigmoidMLP
from lightning_nobp.rules import MultiplexedGradientDescent

AMPLITUDE = 2**-8
Step = Callable[[], object]


def plain_loop(network: nn.Module, x: Tensor, y: Tensor) -> Step:
    parameters, loss = list(network.parameters()), nn.CrossEntropyLoss()

    @torch.no_grad()
    def step() -> None:
        directions = [AMPLITUDE * torch.randn_like(p) for p in parameters]
        for p, d in zip(parameters, directions, strict=True):
            p.add_(d)
        above = loss(network(x), y)
        for p, d in zip(parameters, directions, strict=True):
            p.sub_(d, alpha=2)
        below = loss(network(x), y)
        for p, d in zip(parameters, directions, strict=True):
            p.add_(d)
            p.grad = (above - below) / (2 * AMPLITUDE**2) * d

    return step


def torch_func(network: nn.Module, x: Tensor, y: Tensor, count: int) -> Step:
    loss = nn.CrossEntropyLoss()
    weights = {n: p.detach() for n, p in network.named_parameters()}

    def cost(perturbed: dict[str, Tensor]) -> Tensor:
        return loss(functional_call(network, perturbed, (x,)), y)

    @torch.no_grad()
    def step() -> None:
        directions = {n: AMPLITUDE * torch.randn(count, *p.shape) for n, p in weights.items()}
        above = vmap(cost)({n: p + directions[n] for n, p in weights.items()})
        below = vmap(cost)({n: p - directions[n] for n, p in weights.items()})
        for n, p in network.named_parameters():
            p.grad = torch.tensordot((above - below) / (2 * AMPLITUDE**2 * count), directions[n], 1)

    return step


def ours(network: nn.Module, x: Tensor, y: Tensor, **options: object) -> Step:
    rule = MultiplexedGradientDescent(network=network, num_classes=10, amplitude=AMPLITUDE, **options)
    parameters = list(network.parameters())

    def step() -> None:
        for p in parameters:
            p.grad = None
        rule.compute_gradients((x, y))

    return step


def compare(name: str, network: nn.Module, shape: tuple[int, ...], batch: int, count: int, report: Report) -> None:
    x, y = torch.rand(batch, *shape), torch.arange(batch) % next(reversed(list(network.parameters()))).shape[0]
    variants = {
        "plain loop": (plain_loop(network, x, y), 1),
        "torch.func": (torch_func(network, x, y, count), count),
        'engine="vmap"': (ours(network, x, y, engine="vmap", num_perturbations=count), count),
        'engine="in_place"': (ours(network, x, y, engine="in_place"), 1),
        'engine="jvp"': (ours(network, x, y, engine="jvp", num_perturbations=count), count),
    }
    if batch > 1:
        variants['engine="per_sample"'] = ours(network, x, y, engine="per_sample"), batch
        variants['perturb="activations"'] = ours(network, x, y, perturb="activations"), batch
    found = medians({n: step for n, (step, _) in variants.items()}, report.options.rounds, warm_up=2)
    rates = {n: round(1e3 * variants[n][1] / found[n]) for n in variants}
    rows = []
    for n, rate in rates.items():
        ratios = {f"this / {other}": rate / rates[other] for other in ("plain loop", "torch.func")}
        rows.append({"variant": n, "perturbations a second": rate, **ratios})
    report.table(f"{name}, {size(network):,} parameters, batch {batch}, {count} perturbations at once", rows)


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def parameters(report: Report) -> None:
    """Time of an estimate from 64 perturbations against the size of a perceptron, batch 64."""
    rows = []
    for width in (2, 8, 32, 128, 512):
        network, x, y = MLP((64,), 10, (width,)), torch.rand(64, 64), torch.arange(64) % 10
        runs = {
            "torch.func": torch_func(network, x, y, 64),
            "vmap": ours(network, x, y, engine="vmap", num_perturbations=64),
            "jvp": ours(network, x, y, engine="jvp", num_perturbations=64),
            "per_sample": ours(network, x, y, engine="per_sample"),
        }
        rows.append({"parameters": size(network), **medians(runs, report.options.rounds)})
    lines = ("torch.func", "vmap", "jvp", "per_sample")
    title = "64 perturbations of a perceptron 64-n-10, batch 64, ms"
    report.table(title, rows, Plot(lines, "parameters", "64 perturbations, ms"))


def perturbations(report: Report) -> None:
    """Time of an estimate against the number of perturbations."""
    network, x, y = MLP((64,), 10, (32,)), torch.rand(64, 64), torch.arange(64) % 10
    loop, rows = plain_loop(network, x, y), []
    for count in (1, 4, 16, 64, 256):
        runs = {
            "plain loop": lambda count=count: [loop() for _ in range(count)],
            "torch.func": torch_func(network, x, y, count),
            "vmap": ours(network, x, y, engine="vmap", num_perturbations=count),
            "jvp": ours(network, x, y, engine="jvp", num_perturbations=count),
        }
        rows.append({"perturbations": count, **medians(runs, report.options.rounds)})
    title = "An estimate for a perceptron 64-32-10, batch 64, ms"
    report.table(title, rows, Plot(list(rows[0])[1:], "perturbations", "an estimate, ms"))


def signs(report: Report) -> None:
    rows = torch.arange(64)
    count = 784 + 128 + 128 + 64 + 64 + 10 + 3
    network, x = MLP((784,), 10, (128, 64)), torch.rand(64, 784)
    runs = {
        "forward pass of 784-128-64-10, batch 64": lambda: network(x),
        "its signs by hash, for every sample": lambda: random_signs(0, rows, 0, count),
        "by torch.randint": lambda: torch.randint(0, 2, (64, count)).float().mul_(2).sub_(1),
    }
    with torch.no_grad():
        found = medians(runs, 20 * report.options.rounds)
    report.table("Drawing signs", [{"what": name, "us": 1e3 * value} for name, value in found.items()])


MEMORY = ("inference", "plain loop", "in_place", "per_sample", "backward")


def peak_memory(variant: str) -> float:
    """MiB that a step adds, in this process: 16 layers of 1024 x 1024, 64 MiB of weights."""
    torch.manual_seed(0)
    network = nn.Sequential(*[layer for _ in range(16) for layer in (nn.Linear(1024, 1024), nn.ReLU())])
    x, y = torch.rand(8, 1024), torch.arange(8)
    gc.collect()
    # Imports have had a peak of their own.
    _forget_peak()
    before = _peak_bytes()
    if variant == "inference":
        with torch.no_grad():
            network(x)
    elif variant == "backward":
        nn.functional.cross_entropy(network(x), y).backward()
    elif variant == "plain loop":
        plain_loop(network, x, y)()
    else:
        ours(network, x, y, engine=variant)()
    return (_peak_bytes() - before) / 2**20


def memory(report: Report) -> None:
    rows = []
    for variant in MEMORY:
        command = [sys.executable, __file__, "--memory-of", variant]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append({"variant": variant, "MiB": float(printed)})
    report.table("Memory that a step adds to 64 MiB of weights", rows)


def main() -> None:
    choices = options(__doc__, rounds=7, memory_of={"choices": MEMORY, "help": argparse.SUPPRESS})
    if choices.memory_of:
        print(peak_memory(choices.memory_of))
        return
    report = Report(choices)
    networks = (
        ("2-2-1", SigmoidMLP((2,), 2, (2,)), (2,), 1, 1024),
        ("49-4-4", SigmoidMLP((49,), 4), (49,), 1, 1024),
        ("49-4-4", SigmoidMLP((49,), 4), (49,), 64, 256),
        ("784-128-64-10", MLP((784,), 10, (128, 64)), (784,), 64, 16),
        ("CNN 8-16", CNN((1, 28, 28), 10, (8, 16), 16), (1, 28, 28), 32, 8),
    )
    for name, network, shape, batch, count in networks:
        compare(name, network, shape, batch, count, report)
    parameters(report)
    perturbations(report)
    signs(report)
    memory(report)


if __name__ == "__main__":
    main()
