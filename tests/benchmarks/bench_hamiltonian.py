"""Hamiltonian echoes beside autograd and the reversible adjoint.

    python tests/benchmarks/bench_hamiltonian.py [--rounds 5] [--pictures docs]

All engines run the same leapfrog with the same hand-written forces; autograd's graph goes through all time steps. The
first steps are those of the recipes: 74 driven units on MNIST of 14x14 pixels, and 334 coupled Duffing oscillators.
*Memory* is the growth of the peak of resident memory of a child process while 334 Duffing oscillators, batch 32, are
simulated and learn once, against the number of time steps; less than one MiB is drawn as one. *Errors* are of the
gradient of 30 Duffing oscillators, against autograd in float64, by size and kind of the nudge; with `--pictures` they
are drawn too, as `hamiltonian_nudge.png`.

Memory is the gain, not speed: by its count of matrix products an echo of two copies costs four simulations where
autograd costs three, and in exchange stores nothing.
"""

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import Plot, Report, options
from timing import medians
from torch import Tensor

from lightning_nobp.cli.measured_run import _forget_peak, _peak_bytes
from lightning_nobp.functional.hamiltonian import hamiltonian_echo, leapfrog
from lightning_nobp.nn import DuffingClassifier, DuffingNetwork, HamiltonianLayer, HamiltonianNetwork, LogCoshClassifier

BATCH, MEMORY_BATCH = 128, 32
ENGINES = ("autograd", "echo", "adjoint")
STEPS = (100, 200, 500, 1000, 2000, 5000)
NUDGES = ("one_sided", "symmetric", "richardson")

NETWORKS: dict[str, Callable[[], HamiltonianNetwork]] = {
    "74 driven units, n=12": partial(LogCoshClassifier, (1, 28, 28), 10, pool=2, dt=0.25),
    "334 Duffing, n=20": partial(DuffingClassifier, (1, 28, 28), 10, hidden_units=128, pool=2),
    "334 Duffing, n=100": partial(DuffingClassifier, (1, 28, 28), 10, hidden_units=128, pool=2, n_steps=100, dt=0.05),
}


def training_step(network: HamiltonianNetwork, x: Tensor, target: Tensor) -> None:
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(x), target).backward()


def times(make: Callable[[], HamiltonianNetwork], rounds: int) -> dict[str, float]:
    """Milliseconds of a step by each engine, and of the simulation alone."""
    network, x = make(), torch.rand(BATCH, 1, 28, 28)
    target = torch.randint(10, (BATCH,))

    def step(engine: str) -> None:
        network.layer.gradient_engine = engine
        training_step(network, x, target)

    runs = {"forward alone": lambda: network(x), **{engine: partial(step, engine) for engine in ENGINES}}
    return medians(runs, rounds)


def recipes(report: Report, rounds: int) -> None:
    rows = []
    for name, make in NETWORKS.items():
        found = times(make, rounds)
        ratios = {f"{engine} / autograd": found[engine] / found["autograd"] for engine in ("echo", "adjoint")}
        rows.append({"network": name, **found, **ratios})
    report.table(f"A step of {BATCH} samples, ms", rows)


def time_steps(report: Report, rounds: int) -> None:
    rows = []
    for n_steps in STEPS:
        torch.manual_seed(0)
        system, q = DuffingNetwork(334), torch.randn(MEMORY_BATCH, 334)
        layers = {engine: HamiltonianLayer(system, 1e-3, n_steps, engine).eval() for engine in ENGINES}
        runs = {engine: partial(there_and_back, layer, q) for engine, layer in layers.items()}
        rows.append({"time steps": n_steps, **medians(runs, max(1, rounds // 3), warm_up=0)})
    title = f"A step of 334 Duffing oscillators, batch {MEMORY_BATCH}, ms"
    report.table(title, rows, Plot(ENGINES, "time steps", "a step, ms"))


def there_and_back(layer: HamiltonianLayer, q: Tensor) -> None:
    layer(q)[0].sin().sum().backward()


# Memory


def _grow(engine: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    system, q = DuffingNetwork(334), torch.randn(MEMORY_BATCH, 334)
    there_and_back(HamiltonianLayer(system, 1e-3, 10, engine).eval(), q)
    # A child begins with the peak of its parent.
    _forget_peak()
    before = _peak_bytes()
    for n_steps in STEPS:
        there_and_back(HamiltonianLayer(system, 1e-3, n_steps, engine).eval(), q)
        pipe.send((_peak_bytes() - before) / 2**20)


def growth(engine: str) -> list[float]:
    """MiB that the peak of a fresh process's resident memory grows, after each number of time steps."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_grow, args=(engine, sender))
    process.start()
    # Or a child that is killed for its memory would never be missed.
    sender.close()
    found = [receiver.recv() for _ in STEPS]
    process.join()
    return found


def memory(report: Report) -> None:
    found = {engine: growth(engine) for engine in ENGINES}
    rows = [{"time steps": n, **{engine: found[engine][k] for engine in ENGINES}} for k, n in enumerate(STEPS)]
    title = "Growth of the peak of resident memory, MiB"
    report.table(title, rows, Plot(ENGINES, "time steps", "growth of peak memory, MiB"))


# Errors


def gradients(run: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """By positions and couplings, of 30 Duffing oscillators and a cost that is not quadratic."""
    torch.manual_seed(0)
    system, q = DuffingNetwork(30).double(), torch.randn(16, 30, dtype=torch.float64)
    system, q = system.to(dtype), q.to(dtype).requires_grad_()
    q_end, p_end = run(system, q, torch.zeros_like(q), dt=0.1, n_steps=50)
    cost = (q_end.sin() + p_end.square()).mean()
    return torch.cat([g.double().flatten() for g in torch.autograd.grad(cost, [q, system.coupling])])


def errors(nudge: str, dtype: torch.dtype, etas: list[float]) -> list[float]:
    """Relative errors by size of the nudge."""
    exact = gradients(leapfrog, torch.float64)
    found = (gradients(partial(hamiltonian_echo, eta=eta, nudge=nudge), dtype) for eta in etas)
    return [float((f - exact).norm() / exact.norm()) for f in found]


def nudges(report: Report, folder: Path | None) -> None:
    etas = [10 ** (exponent / 2) for exponent in range(-14, 0)]
    kinds = [(nudge, dtype) for dtype in (torch.float64, torch.float32) for nudge in NUDGES]
    found = {(nudge, dtype): errors(nudge, dtype, etas) for nudge, dtype in kinds}
    names = {kind: f"{kind[0]}, {str(kind[1]).removeprefix('torch.')}" for kind in kinds}
    rows = [{"eta": f"{eta:.1e}", **{names[kind]: found[kind][k] for kind in kinds}} for k, eta in enumerate(etas)]
    tangents = {dtype: errors("tangent", dtype, [1.0])[0] for dtype in (torch.float64, torch.float32)}
    report.table("Relative error of the gradient, by size of the nudge", rows)
    told = [{"dtype": str(dtype).removeprefix("torch."), "error": error} for dtype, error in tangents.items()]
    report.table("Relative error of the gradient without a nudge, by the adjoint", told)
    if folder is not None:
        draw_errors(etas, found, tangents, folder / "hamiltonian_nudge.png")


def draw_errors(
    etas: list[float],
    found: dict[tuple[str, torch.dtype], list[float]],
    tangents: dict[torch.dtype, float],
    file: Path,
) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    colours = dict(zip(NUDGES, ("tab:red", "tab:blue", "tab:green"), strict=True))
    styles = {torch.float64: "-", torch.float32: "--"}
    for (nudge, dtype), values in found.items():
        name = str(dtype).removeprefix("torch.")
        axes.plot(etas, values, styles[dtype], color=colours[nudge], marker=".", label=f"{nudge}, {name}")
    for dtype, error in tangents.items():
        axes.axhline(error, color="grey", linestyle=styles[dtype], linewidth=0.8)
    axes.set(
        xscale="log", yscale="log", ylim=(1e-16, 2), xlabel="eta, relative", ylabel="relative error of the gradient"
    )
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(file, dpi=120)


def main() -> None:
    choices = options(__doc__, rounds=5, pictures={"type": Path, "help": "folder to draw into"})
    report = Report(choices)
    recipes(report, choices.rounds)
    time_steps(report, choices.rounds)
    memory(report)
    nudges(report, choices.pictures)


if __name__ == "__main__":
    main()
