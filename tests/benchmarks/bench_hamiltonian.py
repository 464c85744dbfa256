"""Echoes beside autograd and the reversible adjoint: time, memory, and errors of the gradient.

    python tests/benchmarks/bench_hamiltonian.py [--rounds 9] [--pictures docs]

*Time*: one step of training, float32, one thread, interleaved in one process; medians of the thread's CPU time. All
engines run the same leapfrog with the same hand-written forces; autograd's graph goes through all time steps. The steps
are those of the recipes: 74 driven units on MNIST of 14x14 pixels, and 334 coupled Duffing oscillators.

*Memory*: growth of the resident memory of a child process while 334 Duffing oscillators, batch 32, are simulated and
learn once, from 100 to 5000 time steps.

*Errors*: of the gradient of 30 Duffing oscillators, against autograd in float64, by size and kind of the nudge.

With ``--pictures`` the last two are drawn too, as ``hamiltonian_memory.png`` and ``hamiltonian_nudge.png``.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_nobp.functional.hamiltonian import hamiltonian_echo, leapfrog
from lightning_nobp.nn import DuffingClassifier, DuffingNetwork, HamiltonianLayer, HamiltonianNetwork, LogCoshClassifier

BATCH, MEMORY_BATCH = 128, 32
ENGINES = ("autograd", "echo", "adjoint")
STEPS = (100, 200, 500, 1000, 2000, 5000)
NUDGES = ("one_sided", "symmetric", "richardson")
CONSOLE = Console(width=110)

NETWORKS: dict[str, Callable[[], HamiltonianNetwork]] = {
    "74 driven units, n=12": partial(LogCoshClassifier, (1, 28, 28), 10, pool=2, dt=0.25),
    "334 Duffing, n=20": partial(DuffingClassifier, (1, 28, 28), 10, hidden_units=128, pool=2),
    "334 Duffing, n=100": partial(DuffingClassifier, (1, 28, 28), 10, hidden_units=128, pool=2, n_steps=100, dt=0.05),
}


def training_step(network: HamiltonianNetwork, x: Tensor, target: Tensor) -> None:
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(x), target).backward()


def times(make: Callable[[], HamiltonianNetwork], rounds: int) -> dict[str, float]:
    """Milliseconds of a step by each engine, and of the simulation alone, taken in turns."""
    torch.manual_seed(0)
    network, x = make(), torch.rand(BATCH, 1, 28, 28)
    target = torch.randint(10, (BATCH,))
    found: dict[str, list[float]] = {name: [] for name in ("forward", *ENGINES)}
    for _ in range(rounds + 1):
        for name, all_ in found.items():
            network.layer.gradient_engine = "echo" if name == "forward" else name
            start = time.thread_time()
            if name == "forward":
                network(x)
            else:
                training_step(network, x, target)
            all_.append(1e3 * (time.thread_time() - start))
    # The first pays for memory.
    return {name: statistics.median(all_[1:]) for name, all_ in found.items()}


def show_times(rounds: int) -> None:
    table = Table(title=f"A step of {BATCH} samples, ms of CPU time", title_justify="left")
    for column in ("network", "forward alone", *ENGINES, "echo / autograd", "adjoint / autograd"):
        table.add_column(column, justify="right")
    for name, make in NETWORKS.items():
        found = times(make, rounds)
        ratios = (f"{found[engine] / found['autograd']:.2f}" for engine in ("echo", "adjoint"))
        table.add_row(name, *(f"{value:.1f}" for value in found.values()), *ratios)
    CONSOLE.print(table)


# Memory


def _grow(engine: str, n_steps: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = HamiltonianLayer(DuffingNetwork(334), 1e-3, n_steps, engine).eval()
    q = torch.randn(MEMORY_BATCH, 334)
    warm = HamiltonianLayer(layer.system, 1e-3, 10, engine).eval()
    warm(q)[0].sin().sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    layer(q)[0].sin().sum().backward()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def growth(engine: str, n_steps: int) -> float:
    """MiB that the peak of a fresh process's resident memory grows."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_grow, args=(engine, n_steps, sender))
    process.start()
    # Or a child that is killed for its memory would never be missed.
    sender.close()
    found: float = receiver.recv()
    process.join()
    return found


def show_memory(folder: Path | None) -> None:
    table = Table(title="Growth of the peak of resident memory, MiB", title_justify="left")
    for column in ("time steps", *ENGINES):
        table.add_column(column, justify="right")
    found = {engine: [growth(engine, n_steps) for n_steps in STEPS] for engine in ENGINES}
    for row, n_steps in enumerate(STEPS):
        table.add_row(str(n_steps), *(f"{found[engine][row]:.0f}" for engine in ENGINES))
    CONSOLE.print(table)
    if folder is not None:
        draw_memory(found, folder / "hamiltonian_memory.png")


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


def show_errors(folder: Path | None) -> None:
    etas = [10 ** (exponent / 2) for exponent in range(-14, 0)]
    table = Table(title="Relative error of the gradient", title_justify="left")
    table.add_column("eta")
    kinds = [(nudge, dtype) for dtype in (torch.float64, torch.float32) for nudge in NUDGES]
    for nudge, dtype in kinds:
        table.add_column(f"{nudge}\n{str(dtype).removeprefix('torch.')}", justify="right")
    found = {(nudge, dtype): errors(nudge, dtype, etas) for nudge, dtype in kinds}
    for row, eta in enumerate(etas):
        table.add_row(f"{eta:.1e}", *(f"{found[kind][row]:.1e}" for kind in kinds))
    tangents = {dtype: errors("tangent", dtype, [1.0])[0] for dtype in (torch.float64, torch.float32)}
    CONSOLE.print(table)
    CONSOLE.print("without a nudge (adjoint): " + ", ".join(f"{d}: {e:.1e}" for d, e in tangents.items()))
    if folder is not None:
        draw_errors(etas, found, tangents, folder / "hamiltonian_nudge.png")


# Pictures


def draw_memory(found: dict[str, list[float]], file: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for engine, marker in zip(ENGINES, "os^", strict=True):
        axes.plot(STEPS, found[engine], marker=marker, label=engine)
    axes.set(xscale="log", xlabel="time steps", ylabel="growth of peak memory, MiB")
    # Zero has a place on it.
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=-0.5)
    axes.legend()
    figure.savefig(file, dpi=120)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=Path, help="folder to draw into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    show_times(options.rounds)
    show_errors(options.pictures)
    show_memory(options.pictures)


if __name__ == "__main__":
    main()
