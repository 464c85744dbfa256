"""Spiking layers by spike times, beside the same on a grid of time steps.

    python tests/benchmarks/bench_spiking.py [--rounds 3]

One step of 784-800-10, batch 100, float32. Inputs are images with 150 of 784 pixels lit, in latency code. *events* is
`lif_spike_times` by the compiled kernels, *loop* the same in torch, what runs where there is no compiler. *clock* is
how it is done without spike times: layers advance through 100 time steps, with a surrogate gradient through every
spike, and one product for all steps of a layer; *snntorch* and *norse* are those libraries, with the same grid.

Events cost what spikes cost: the busier the network, the smaller the gain. The libraries let all layers advance
together, which is faster in wide layers than one product for all steps: theirs are the times to compare with there.
"""

import statistics
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from report import Plot, Report, options
from timing import clock
from torch import Tensor

from lightning_nobp.functional.spiking import (
    events_from_spikes,
    first_spike_cross_entropy,
    latency_encode,
    lif_spike_times,
)

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


def by_snntorch(snntorch: ModuleType, x: Tensor, target: Tensor, weights: list[Tensor], *taus: float) -> Forward:
    dt = T_MAX / STEPS
    beta, alpha = (float(torch.exp(torch.tensor(-dt / tau))) for tau in taus)
    neurons = [snntorch.Synaptic(alpha=alpha, beta=beta, reset_mechanism="zero") for _ in weights]

    def run() -> Tensor:
        states = [neuron.reset_mem() for neuron in neurons]

        def layer(n: int, drive: Tensor) -> Tensor:
            spikes, *states[n] = neurons[n](drive * dt, *states[n])
            return spikes

        return step_by_step(layer, x, target, weights)

    return run


def by_norse(norse: ModuleType, x: Tensor, target: Tensor, weights: list[Tensor], *taus: float) -> Forward:
    membrane, synapse = (torch.tensor(1 / tau) for tau in taus)
    neuron = norse.LIFCell(norse.LIFParameters(tau_mem_inv=membrane, tau_syn_inv=synapse), dt=T_MAX / STEPS)

    def run() -> Tensor:
        states: list[Any] = [None for _ in weights]

        def layer(n: int, drive: Tensor) -> Tensor:
            spikes, states[n] = neuron(drive, states[n])
            return spikes

        return step_by_step(layer, x, target, weights)

    return run


def step_by_step(layer: Callable[[int, Tensor], Tensor], x: Tensor, target: Tensor, weights: list[Tensor]) -> Tensor:
    """All layers advance together, as the libraries' own examples do it."""
    total, inputs = torch.zeros(len(x), weights[-1].shape[1]), on_a_grid(x)
    for spikes in inputs:
        for n, weight in enumerate(weights):
            spikes = layer(n, spikes @ weight)
        total = total + spikes
    return torch.nn.functional.cross_entropy(total, target)


def medians(runs: dict[str, Forward], weights: list[Tensor], rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds forward and backward of each, taken in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            loss = run()
            middle = clock()
            torch.autograd.grad(loss, weights)
            times[name].append((1e3 * (middle - start), 1e3 * (clock() - middle)))
    # The first pays for memory.
    return {
        name: (statistics.median(t[0] for t in each[1:]), statistics.median(t[1] for t in each[1:]))
        for name, each in times.items()
    }


class Problem:
    """Inputs, targets and weights of a network with one hidden layer.

    Args:
        hidden: Its neurons.
        tau_v: Membrane time constant.
        tau_i: Synaptic time constant.
        spread: Of the first weights.
    """

    def __init__(self, hidden: int, tau_v: float, tau_i: float, spread: float) -> None:
        torch.manual_seed(0)
        inputs, outputs = SIZES[0], SIZES[2]
        self.x = torch.where(torch.rand(BATCH, inputs) < 150 / 784, torch.rand(BATCH, inputs), 0.0)
        self.target = torch.randint(outputs, (BATCH,))
        weights = [spread * torch.randn(inputs, hidden), 0.05 + 0.1 * torch.randn(hidden, outputs)]
        self.weights, self.taus = [weight.requires_grad_() for weight in weights], (tau_v, tau_i)

    def spikes(self) -> float:
        """Of a hidden neuron."""
        train = latency_encode(self.x)
        arguments = train.times, train.index, train.counts, self.weights[0].detach(), MAX_SPIKES, *self.taus
        return float(lif_spike_times(*arguments, t_max=T_MAX)[1].float().mean())

    def runs(self, report: Report, loop: bool = True) -> dict[str, Forward]:
        """Those of the libraries only where they are installed, and the slow loop where it is asked for."""
        problem = self.x, self.target, self.weights, *self.taus
        runs = {"events": by_events(*problem, "native")}
        if loop:
            runs["loop"] = by_events(*problem, "torch")
        runs["clock"] = by_clock(*problem)
        for name, module, run in (("snntorch", "snntorch", by_snntorch), ("norse", "norse.torch", by_norse)):
            if peer := report.peer(module):
                runs[name] = run(peer, *problem)
        return runs


def time_constants(report: Report, rounds: int) -> None:
    rows = []
    for name, taus_and_spread in CASES.items():
        problem = Problem(SIZES[1], *taus_and_spread)
        found = medians(problem.runs(report), problem.weights, rounds)
        for kind, (forward, backward) in found.items():
            both = forward + backward
            about = {"tau_v / tau_i": name, "spikes a neuron": problem.spikes(), "way": kind}
            times = {"forward": forward, "backward": backward, "together": both}
            rows.append({**about, **times, "/ events": both / sum(found["events"])})
    report.table(f"A step of {BATCH} samples, ms", rows)


def growth(report: Report, column: str, problems: list[Problem], rounds: int) -> None:
    rows = []
    for problem in problems:
        found = medians(problem.runs(report, loop=False), problem.weights, rounds)
        size = len(problem.weights[1]) if column == "hidden neurons" else problem.spikes()
        rows.append({column: size, **{kind: sum(times) for kind, times in found.items()}})
    title = f"A step of {BATCH} samples against {column}, ms"
    report.table(title, rows, Plot(list(rows[0])[1:], column, "a step, ms"))


def main() -> None:
    choices = options(__doc__, rounds=3)
    report = Report(choices)
    time_constants(report, choices.rounds)
    # Few spikes a neuron for every width, since inputs are the same.
    widths = [Problem(hidden, 1.0, 0.5, 0.3) for hidden in (100, 200, 400, 800, 1600)]
    growth(report, "hidden neurons", widths, max(1, choices.rounds // 3))
    busy = [Problem(SIZES[1], 1.0, 0.5, spread) for spread in (0.2, 0.3, 0.5, 1.0, 2.0, 4.0)]
    growth(report, "spikes of a hidden neuron", busy, max(1, choices.rounds // 3))


if __name__ == "__main__":
    main()
