"""Figures of the page on multiplexed gradient descent, from runs of their own.

    python tests/benchmarks/study_mgd.py xor|angle|noise|hardware [--docs docs]

Each prints a table and writes ``mgd_<name>.png`` into the folder.
"""

import argparse
import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.callbacks import HardwareClock, HardwareNoise
from lightning_nobp.datamodules import NIST7x7DataModule
from lightning_nobp.functional.multiplexing import expected_cosine, schedule
from lightning_nobp.functional.perturbation import code_period, code_power, perturbation_codes
from lightning_nobp.nn import BatchedEngine, ParameterCodes, SigmoidMLP, Turn, WindowEstimator
from lightning_nobp.rules import MultiplexedGradientDescent

BITS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
PARITY = torch.tensor([0.0, 1.0, 1.0, 0.0])
REPLICAS = 200


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


# XOR: many networks at once, each with weights and codes of its own


def outputs(weights: Tensor, x: Tensor) -> Tensor:
    """Of networks 2-2-1 ``(replicas, 9)`` for inputs ``(samples, 2)``: ``(replicas, samples)``."""
    first = torch.sigmoid(x @ weights[:, :4].view(-1, 2, 2).transpose(1, 2) + weights[:, None, 4:6])
    return torch.sigmoid((first * weights[:, None, 6:8]).sum(-1) + weights[:, 8:9])


def cost(weights: Tensor, chosen: slice) -> Tensor:
    return (outputs(weights, BITS[chosen]) - PARITY[chosen]).square().mean(1)


def train_xor(kind: str, steps: int, rate: float, tau_theta: int, order: str) -> tuple[Tensor, Tensor]:
    """One perturbation of one sample a step. Costs ``(points, replicas)``, and which replicas solve XOR."""
    samples = torch.randint(4, (steps,), generator=torch.Generator().manual_seed(1)).tolist()
    weights = torch.empty(REPLICAS, 9).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
    # Replicas far apart in the sequence of one code: each has perturbations of its own.
    offsets = torch.arange(REPLICAS) * (code_period(kind, 9) or 1) * 2**30 if kind != "backprop" else None
    total, traces = torch.zeros_like(weights), []
    for step in range(steps):
        sample = step % 4 if order == "in turn" else samples[step]
        chosen = slice(sample, sample + 1)
        if offsets is None:
            total += torch.func.grad(lambda w, chosen=chosen: cost(w, chosen).sum())(weights)
        else:
            code = perturbation_codes(kind, 0, offsets + step, 9)
            change = (cost(weights + 0.01 * code, chosen) - cost(weights - 0.01 * code, chosen)) / 0.02
            total += change.unsqueeze(1) * code / code_power(kind, 9)
        if (step + 1) % tau_theta == 0:
            weights = weights - rate * total / tau_theta
            total.zero_()
        if step % 200 == 0:
            traces.append(cost(weights, slice(0, 4)))
    return torch.stack(traces), ((outputs(weights, BITS) > 0.5) == (PARITY > 0.5)).all(1)


def xor(folder: Path) -> None:
    rows, figure = [], Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    kinds = ("backprop", "rademacher", "walsh", "coordinate", "sinusoidal", "gaussian")
    settings = [(kind, 1.0, 1, order) for order in ("at random", "in turn") for kind in kinds]
    settings += [("rademacher", 1.0, tau_theta, "at random") for tau_theta in (4, 36)]
    settings += [(kind, 5.0, 1, "at random") for kind in ("backprop", "rademacher")]
    for kind, rate, tau_theta, order in settings:
        traces, solved = train_xor(kind, 40_000, rate, tau_theta, order)
        result = [f"{solved.float().mean():.2f}", f"{traces[-1].median():.1e}"]
        rows.append([kind, order, f"{rate:g}", str(tau_theta), *result])
        if (rate, tau_theta, order) == (1.0, 1, "at random") and kind in ("backprop", "rademacher", "walsh"):
            axes = panels[("backprop", "rademacher", "walsh").index(kind)]
            axes.plot(torch.arange(len(traces)) * 200, traces[:, :40], color="C0", alpha=0.25, linewidth=0.8)
            axes.plot(torch.arange(len(traces)) * 200, traces.median(1).values, color="black", label="median of 200")
            axes.set(title=kind, xlabel="time step", yscale="log")
            axes.grid(alpha=0.3)
    panels[0].set_ylabel("cost of the truth table")
    panels[0].legend()
    figure.savefig(folder / "mgd_xor.png", dpi=120)
    head = ["gradient", "samples", "rate", "tau_theta", "solved", "median cost"]
    show(f"XOR, 2-2-1, {REPLICAS} networks, 40,000 steps of one sample", head, rows)


# The angle between estimate and gradient


def angle(folder: Path) -> None:
    torch.manual_seed(0)
    data = NIST7x7DataModule(batch_size=100)
    data.setup("fit")
    x, target = next(iter(data.train_dataloader()))
    network = SigmoidMLP((1, 7, 7), 4)
    y = F.one_hot(target, 4).float()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(F.mse_loss(network(x), y), network.parameters())])
    size, times = len(gradient), [2**k for k in range(3, 15)]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, rows = figure.subplots(), {t: [str(t), f"{expected_cosine(t, size):.3f}"] for t in times}
    for kind in ("rademacher", "walsh", "sinusoidal", "coordinate", "gaussian"):
        cosines = [_cosine(kind, network, x, y, gradient, t) for t in times]
        axes.plot(times, cosines, marker="o", markersize=3, label=kind)
        for t, cosine in zip(times, cosines, strict=True):
            rows[t].append(f"{cosine:.3f}")
    axes.plot(times, [expected_cosine(t, size) for t in times], "k--", label="law of random signs")
    axes.axvline(size, color="grey", linewidth=0.8)
    axes.set(xlabel="perturbations", ylabel="cosine to the gradient", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "mgd_angle.png", dpi=120)
    head = ["perturbations", "law", "rademacher", "walsh", "sinusoidal", "coordinate", "gaussian"]
    show(f"Cosine to the gradient, 49-4-4, {size} parameters, one batch", head, list(rows.values()))


def _cosine(kind: str, network: SigmoidMLP, x: Tensor, y: Tensor, gradient: Tensor, total: int) -> float:
    codes = ParameterCodes(network, kind, 2**-8, 0)
    estimator = WindowEstimator(codes, BatchedEngine(network, F.mse_loss, codes), schedule(1, total, total))
    network.zero_grad()
    estimator.add_gradient(estimator.estimate(x, y, Turn(0)).coefficients, Turn(0))
    return float(F.cosine_similarity(torch.cat([p.grad.flatten() for p in network.parameters()]), gradient, dim=0))


# NIST7x7 under noise, and in the time of hardware


def train_nist(
    folder: str, callback: L.Callback, samples: int = 250_000, batch_size: int = 500, rate: float = 0.05, seed: int = 0
) -> float:
    """Validation accuracy of 49-4-4 in per cent."""
    L.seed_everything(seed, verbose=False)
    data = NIST7x7DataModule(batch_size=batch_size)
    steps = samples // batch_size
    rule = MultiplexedGradientDescent(
        network=partial(SigmoidMLP, hidden_dims=(4,)),
        loss="mse",
        engine="per_sample",
        num_perturbations=4,
        seed=seed,
        optimizer=partial(torch.optim.Adam, lr=rate, betas=(0.9, 0.99)),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        lr_scheduler_interval="step",
    )
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=max(1, min(steps // 20, 35_750 // batch_size)),
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(rule, datamodule=data)
    return 100 * float(trainer.callback_metrics["val/accuracy"])


def noise(folder: Path) -> None:
    kinds: dict[str, Callable[[float], HardwareNoise]] = {
        "cost read-out": lambda level: HardwareNoise(cost_noise=level),
        "parameter update": lambda level: HardwareNoise(update_noise=level),
        "activations, unit to unit": lambda level: HardwareNoise(activation_variation=level),
    }
    levels = [1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, rows = figure.subplots(), [[f"{level:g}"] for level in levels]
    with tempfile.TemporaryDirectory() as runs:
        ideal = [train_nist(runs, HardwareNoise(), seed=seed) for seed in range(3)]
        for kind, make in kinds.items():
            means = []
            for level, row in zip(levels, rows, strict=True):
                found = torch.tensor([train_nist(runs, make(level), seed=seed) for seed in range(3)])
                means.append(float(found.mean()))
                row.append(f"{found.mean():.1f} ± {found.std():.1f}")
            axes.plot(levels, means, marker="o", label=kind)
    axes.axhline(sum(ideal) / 3, color="grey", linestyle="--", label="none")
    axes.set(xlabel="standard deviation", ylabel="validation accuracy, %", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "mgd_noise.png", dpi=120)
    spread = torch.tensor(ideal).std()
    title = f"NIST7x7, 49-4-4, 250,000 samples, seeds 0-2; without noise {sum(ideal) / 3:.1f} ± {spread:.1f}"
    show(title, ["standard deviation", *kinds], rows)


def hardware(folder: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, rows = figure.subplots(), []
    for batch_size, rate in ((50, 0.01), (200, 0.02), (1000, 0.05), (5000, 0.1)):
        with tempfile.TemporaryDirectory() as runs:
            train_nist(runs, HardwareClock("memristive"), 500_000, batch_size, rate)
            with next(Path(runs).rglob("hardware.csv")).open() as file:
                points = list(csv.DictReader(file))
        seconds = [float(p["hardware_seconds"]) for p in points]
        accuracies = [100 * float(p["val_accuracy"]) for p in points]
        # Four perturbations of each sample: tau_x = 4.
        axes.plot([1e3 * s for s in seconds], accuracies, label=f"tau_theta = {4 * batch_size}")
        last = points[-1]
        rows.append([str(4 * batch_size), f"{rate:g}", f"{accuracies[-1]:.1f}", f"{seconds[-1]:.3f}"])
        rows[-1] += [f"{int(last['cost_evaluations']):,}", f"{float(last['seconds']):.0f}"]
    axes.set(xlabel="milliseconds on the memristive platform", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "mgd_hardware.png", dpi=120)
    head = ["tau_theta", "rate", "accuracy, %", "hardware seconds", "cost evaluations", "seconds here"]
    show("NIST7x7, 49-4-4, 500,000 samples, tau_x = 4, memristive platform, seed 0", head, rows)


def main() -> None:
    studies = {"xor": xor, "angle": angle, "noise": noise, "hardware": hardware}
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=studies)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    studies[options.study](options.docs)


if __name__ == "__main__":
    main()
