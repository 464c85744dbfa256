"""Perturbations per second of multiplexed gradient descent, beside the ways in which others write it.

    python tests/benchmarks/bench_mgd.py [--rounds 15] [--threads 1]

All variants estimate the gradient of the same network from the same batch by central differences, run interleaved in
one process; times are medians. *Plain loop* is the widespread way: draw a random vector, add it, run, take it away
twice, run, put the parameters back, multiply. *torch.func* is naive vmapped code with full random vectors. A
perturbation of single samples counts once for every sample of the batch, since each has its own.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
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


def milliseconds(variants: dict[str, Step], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if number >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def compare(name: str, network: nn.Module, shape: tuple[int, ...], batch: int, count: int, rounds: int) -> None:
    x, y = torch.rand(batch, *shape), torch.arange(batch) % next(reversed(list(network.parameters()))).shape[0]
    variants = {
        "plain loop": (plain_loop(network, x, y), 1),
        "torch.func": (torch_func(network, x, y, count), count),
        "engine='vmap'": (ours(network, x, y, engine="vmap", num_perturbations=count), count),
        "engine='in_place'": (ours(network, x, y, engine="in_place"), 1),
        "engine='jvp'": (ours(network, x, y, engine="jvp", num_perturbations=count), count),
        "engine='per_sample'": (ours(network, x, y, engine="per_sample"), batch),
        "perturb='activations'": (ours(network, x, y, perturb="activations"), batch),
    }
    if batch == 1:
        del variants["engine='per_sample'"], variants["perturb='activations'"]
    found = milliseconds({n: step for n, (step, _) in variants.items()}, rounds)
    each = {n: found[n] / variants[n][1] for n in variants}
    size = sum(p.numel() for p in network.parameters())
    table = Table(title=f"{name}, {size:,} parameters, batch {batch}, {count} perturbations at once")
    for column in ("variant", "perturbations a second", "plain loop / this", "torch.func / this"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for n, value in each.items():
        ratios = (f"{each[other] / value:.1f}" for other in ("plain loop", "torch.func"))
        table.add_row(n, f"{1e3 / value:,.0f}", *ratios)
    Console(width=110).print(table)


def signs(rounds: int) -> None:
    rows = torch.arange(64)
    count = 784 + 128 + 128 + 64 + 64 + 10 + 3
    network, x = MLP((784,), 10, (128, 64)), torch.rand(64, 784)
    with torch.no_grad():
        found = milliseconds(
            {
                "forward pass of 784-128-64-10, batch 64": lambda: network(x),
                "its signs by hash, for every sample": lambda: random_signs(0, rows, 0, count),
                "by torch.randint": lambda: torch.randint(0, 2, (64, count)).float().mul_(2).sub_(1),
            },
            20 * rounds,
        )
    table = Table(title="Drawing signs")
    table.add_column("what")
    table.add_column("us", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{1e3 * value:.0f}")
    Console(width=110).print(table)


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


def memory() -> None:
    table = Table(
        title="Memory that a step adds to 64 MiB of weights; every one but inference leaves a gradient of 64 MiB"
    )
    table.add_column("variant")
    table.add_column("MiB", justify="right")
    for variant in MEMORY:
        command = [sys.executable, __file__, "--memory-of", variant]
        table.add_row(variant, subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(f"{peak_memory(options.memory_of):.0f}")
        return
    torch.manual_seed(0)
    networks = (
        ("2-2-1", SigmoidMLP((2,), 2, (2,)), (2,), 1, 1024),
        ("49-4-4", SigmoidMLP((49,), 4), (49,), 1, 1024),
        ("49-4-4", SigmoidMLP((49,), 4), (49,), 64, 256),
        ("784-128-64-10", MLP((784,), 10, (128, 64)), (784,), 64, 16),
        ("CNN 8-16", CNN((1, 28, 28), 10, (8, 16), 16), (1, 28, 28), 32, 8),
    )
    for name, network, shape, batch, count in networks:
        compare(name, network, shape, batch, count, options.rounds)
    signs(options.rounds)
    memory()


if __name__ == "__main__":
    main()
