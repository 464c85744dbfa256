"""A spiking network by its spike times, beside the same network on a grid of 100 time steps.

    python tests/benchmarks/bench_spiking.py [--rounds 7]

One step of 784-800-10, batch 100, float32, one thread, interleaved in one process; times are medians of the thread's
CPU time, forward and backward apart. Inputs are images with 150 of 784 pixels lit, in latency code. *Events* is
``lif_spike_times`` by the compiled kernels, *loop* the same in torch. *Clock* is how it is done without spike times:
layers advance step by step, with a surrogate gradient through every spike, and one product for all steps of a layer;
*snnTorch* is that library's, if it is installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_nobp.functional.spiking import (
    events_from_spikes,
    first_spike_cross_entropy,
    latency_encode,
    lif_spike_times,
)

try:
    import snntorch
except ImportError:
    snntorch = None

INF = float("inf")
BATCH, SIZES, STEPS, T_MAX, MAX_SPIKES = 100, (784, 800, 10), 100, 2.0, 16
# Membrane and synaptic time constants and the spread of the first weights, which decides how many spikes there are.
CASES = {
    "no leak": (INF, INF, 0.17),
    "1 / 0.5": (1.0, 0.5, 0.3),
    "1 / 0.5, busy": (1.0, 0.5, 1.0),
}
Forward = Callable[[], Tensor]
"""From inputs to a loss, or to outputs and their gradient."""


class Surrogate(torch.autograd.Function):
    """A step whose gradient is that of a fast sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + 25 * x.abs()).square()


def by_events(x: Tensor, target: Tensor, weights: list[Tensor], tau_v: float, tau_i: float, backend: Any) -> Forward:
    def run() -> Tensor:
        train, options = latency_encode(x), {"t_max": T_MAX, "backend": backend}
        for weight in weights:
            arguments = train.times, train.index, train.counts, weight, MAX_SPIKES, tau_v, tau_i
            spikes, _ = lif_spike_times(*arguments, **options)
            if weight is not weights[-1]:
                train = events_from_spikes(spikes)
        loss = first_spike_cross_entropy(spikes.detach(), target, 0.05, T_MAX)
        # A number with the loss's gradient.
        return (torch.where(loss.grad != 0, spikes, 0.0) * loss.grad).sum()

    return run


def on_a_grid(x: Tensor) -> Tensor:
    """Inputs of every step, ``(steps, batch, inputs)``."""
    step = ((1 - x) * STEPS / T_MAX).long()
    return torch.zeros(STEPS, *x.shape).scatter_(0, step[None], (x > 0).to(x.dtype)[None])


def by_clock(x: Tensor, target: Tensor, weights: list[Tensor], tau_v: float, tau_i: float) -> Forward:
    dt = T_MAX / STEPS
    decay_v, decay_i = (float(torch.exp(torch.tensor(-dt / tau))) for tau in (tau_v, tau_i))

    def layer(inputs: Tensor, weight: Tensor) -> Tensor:
        drive, spikes = inputs @ weight, []
        v = i = torch.zeros_like(drive[0])
        for step in range(STEPS):
            i = decay_i * i + drive[step]
            v = decay_v * v + dt * i
            spike = Surrogate.apply(v - 1)
            v = v * (1 - spike.detach())
            spikes.append(spike)
        return torch.stack(spikes)

    def run() -> Tensor:
        spikes = on_a_grid(x)
        for weight in weights:
            spikes = layer(spikes, weight)
        return torch.nn.functional.cross_entropy(spikes.sum(0), target)

    return run


def by_snntorch(x: Tensor, target: Tensor, weights: list[Tensor], tau_v: float, tau_i: float) -> Forward:
    dt = T_MAX / STEPS
    beta, alpha = (float(torch.exp(torch.tensor(-dt / tau))) for tau in (tau_v, tau_i))
    neurons = [snntorch.Synaptic(alpha=alpha, beta=beta, reset_mechanism="zero") for _ in weights]

    def run() -> Tensor:
        total, inputs = torch.zeros(len(x), SIZES[-1]), on_a_grid(x)
        states = [neuron.reset_mem() for neuron in neurons]
        for step in range(STEPS):
            spikes = inputs[step]
            for n, weight in enumerate(weights):
                spikes, *states[n] = neurons[n](spikes @ weight * dt, *states[n])
            total = total + spikes
        return torch.nn.functional.cross_entropy(total, target)

    return run


def medians(runs: dict[str, Forward], weights: list[Tensor], rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds forward and backward of each, taken in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.thread_time()
            loss = run()
            middle = time.thread_time()
            torch.autograd.grad(loss, weights)
            times[name].append((1e3 * (middle - start), 1e3 * (time.thread_time() - middle)))
    # The first pays for memory.
    forward, backward = (
        {name: statistics.median(t[k] for t in all_[1:]) for name, all_ in times.items()} for k in (0, 1)
    )
    return {name: (forward[name], backward[name]) for name in runs}


def case(tau_v: float, tau_i: float, spread: float, rounds: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """Spikes a hidden neuron, and times."""
    torch.manual_seed(0)
    x = torch.where(torch.rand(BATCH, SIZES[0]) < 150 / 784, torch.rand(BATCH, SIZES[0]), 0.0)
    target = torch.randint(SIZES[-1], (BATCH,))
    weights = [spread * torch.randn(SIZES[0], SIZES[1]), 0.05 + 0.1 * torch.randn(SIZES[1], SIZES[2])]
    weights = [weight.requires_grad_() for weight in weights]
    train = latency_encode(x)
    arguments = train.times, train.index, train.counts, weights[0].detach(), MAX_SPIKES, tau_v, tau_i
    _, counts = lif_spike_times(*arguments, t_max=T_MAX)
    problem = x, target, weights, tau_v, tau_i
    runs = {
        "events": by_events(*problem, "native"),
        "loop": by_events(*problem, "torch"),
        "clock": by_clock(*problem),
    }
    if snntorch is not None:
        runs["snnTorch"] = by_snntorch(*problem)
    return float(counts.float().mean()), medians(runs, weights, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="A step of 100 samples, ms", title_justify="left")
    for column in ("tau_v / tau_i", "spikes a neuron", "", "forward", "backward", "together", "/ events"):
        table.add_column(column, justify="right")
    for name, (tau_v, tau_i, spread) in CASES.items():
        spikes, found = case(tau_v, tau_i, spread, options.rounds)
        for kind, (forward, backward) in found.items():
            both = forward + backward
            cells = f"{forward:.1f}", f"{backward:.1f}", f"{both:.1f}", f"{both / sum(found['events']):.1f}"
            table.add_row(name, f"{spikes:.2f}", kind, *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
