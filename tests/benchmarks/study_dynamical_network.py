"""How well networks are found from time series: noise, length, and for how long free runs hold.

    python tests/benchmarks/study_dynamical_network.py [--docs docs]

Simulates networks, infers their couplings in closed form, and prints tables: links and weights for clean series,
observational noise, short series with and without leaving weak links out, heterogeneous nodes, hidden nodes; and valid
prediction times of free runs beside those of the true system with inexact starts. With ``--docs`` writes
``dynamical_network.png`` and ``dynamical_free_run.png``.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_nobp.callbacks.network_figures import couplings_figure
from lightning_nobp.functional.dynamics import FIELDS, Lorenz, noisy_start, rollout, simulate_network, valid_steps
from lightning_nobp.functional.dynamics.topology import draw_links, draw_weights
from lightning_nobp.functional.network_inference import InferredNetwork, Normalisation, infer_coupling
from lightning_nobp.metrics import LinkAUROC, WeightError

DEGREES = {"lorenz": 2, "chua": 3, "fitzhugh_nagumo": 3}
STEPS, TRAJECTORIES = 3129, 8


def random_network(system: str, nodes: int, seed: int = 0) -> Tensor:
    """Weights of an Erdos-Renyi network whose nodes stay out of step."""
    generator = torch.Generator().manual_seed(seed)
    links = draw_links("random", nodes, generator, None, False)
    return draw_weights(links, *FIELDS[system].coupling, generator)


def series(system: str, weights: Tensor, noise: float = 0.0, **kwargs: Any) -> Tensor:
    """Time series with observational noise, as a fraction of the standard deviation of each component."""
    options = {"num_steps": STEPS, "num_trajectories": TRAJECTORIES, "seed": 1} | kwargs
    x = simulate_network(system, weights, dt=FIELDS[system].dt, **options)  # type: ignore[arg-type]
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    return x + noise * x.flatten(0, 2).std(dim=0) * drawn


def scores(found: Tensor, true: Tensor) -> list[str]:
    """AUROC of the links, and the relative error of the weights."""
    return [f"{float(LinkAUROC.of(found, true)):.4f}", f"{float(WeightError.of(found, true)):.2g}"]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)


def clean_series() -> None:
    rows = []
    for system, nodes in (("lorenz", 16), ("lorenz", 32), ("lorenz", 50), ("chua", 16), ("fitzhugh_nagumo", 16)):
        weights = random_network(system, nodes)
        x = series(system, weights)
        for shared in (True, False):
            found = infer_coupling(x, FIELDS[system].dt, DEGREES[system], shared)
            rows.append(
                [f"{system} {nodes}", "all alike" if shared else "each its own", *scores(found.weights, weights)]
            )
    show("Clean series", ["network", "nodes move", "AUROC", "error of weights"], rows)


def noise_curve() -> list[tuple[float, float, float]]:
    weights, rows, curve = random_network("lorenz", 16), [], []
    for noise in (0.0, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1):
        x = series("lorenz", weights, noise)
        found = {kind: infer_coupling(x, 0.02, derivative=kind).weights for kind in ("central5", "savgol")}
        rows.append([f"{noise:.1%}", *scores(found["central5"], weights), *scores(found["savgol"], weights)])
        curve.append((noise, *(float(WeightError.of(w, weights)) for w in found.values())))
    columns = ["noise", "AUROC, central", "error", "AUROC, Savitzky-Golay", "error"]
    show("Observational noise, Lorenz 16", columns, rows)
    return curve


def short_series() -> None:
    weights, rows = random_network("lorenz", 50), []
    for noise in (0.0, 0.01):
        x = series("lorenz", weights, noise, num_trajectories=1)
        for length in (150, 200, 400, 1000, 3000):
            row = [f"{noise:.0%}", str(length)]
            for density in (None, 0.15):
                found = infer_coupling(
                    x[:, :length], 0.02, derivative="savgol" if noise else "central5", density=density
                )
                row += scores(found.weights, weights)
            rows.append(row)
    columns = ["noise", "samples", "AUROC", "error", "AUROC, 15 % of links", "error"]
    show("One trajectory, Lorenz 50", columns, rows)


def other_nodes() -> None:
    weights, rows = random_network("lorenz", 16), []
    for spread in (0.01, 0.03, 0.1):
        field = Lorenz().varied(spread, 16, torch.Generator().manual_seed(3))
        start = field.start((TRAJECTORIES, 16), torch.Generator().manual_seed(4))
        x = simulate_network(field, weights, STEPS, 0.02, TRAJECTORIES, start=start)
        for shared in (True, False):
            found = infer_coupling(x, 0.02, shared=shared).weights
            rows.append([f"{spread:.0%} spread, {'all alike' if shared else 'each its own'}", *scores(found, weights)])
    x = series("lorenz", weights)
    for hidden in (1, 2, 4, 8):
        seen = slice(0, 16 - hidden)
        rows.append([f"{hidden} hidden", *scores(infer_coupling(x[:, :, seen], 0.02).weights, weights[seen, seen])])
    show("Nodes that differ, or are not seen, Lorenz 16", ["nodes", "AUROC", "error"], rows)


def times(predicted: Tensor, true: Tensor, normal: Normalisation) -> Tensor:
    """Valid prediction times in Lyapunov times."""
    exponent = Lorenz.lyapunov_exponent
    assert exponent is not None
    return valid_steps(normal(predicted), normal(true)) * 0.02 * exponent


def free_runs() -> tuple[InferredNetwork, Tensor, Tensor, Tensor]:
    weights = random_network("lorenz", 16)
    test = simulate_network("lorenz", weights, 600, 0.02, 60, seed=5)
    rows = []
    normal = Normalisation.of(test)

    def add(name: str, predicted: Tensor) -> None:
        found = times(predicted, test, normal).double()
        rows.append([name, *(f"{float(q):.2f}" for q in found.quantile(torch.tensor([0.5, 0.25, 0.75]).double()))])

    for noise in (1e-3, 1e-2):
        generator = torch.Generator().manual_seed(6)
        add(f"true system, start off by {noise:g}", noisy_start(Lorenz(), weights, test, 0.02, noise, generator))
    runs = []
    for noise in (0.0, 0.01):
        found = infer_coupling(series("lorenz", weights, noise), 0.02, derivative="savgol" if noise else "central5")
        predicted = rollout(found.field, test[:, 0], found.weights, 599, 0.02).movedim(0, 1)
        add(f"found from series with {noise:.0%} noise", predicted)
        runs.append((found, predicted))
    show("Free runs, Lorenz 16: valid prediction time, Lyapunov times", ["run", "median", "25 %", "75 %"], rows)
    clean, predicted = runs[0]
    return clean, weights, predicted[0], test[0]


def figures(curve: Sequence[tuple[float, float, float]], kept: Any, docs: Path) -> None:
    found, weights, predicted, true = kept
    couplings_figure(found.weights, weights).savefig(docs / "dynamical_network.png", dpi=110)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    shown = 400
    lyapunov_times = [0.02 * (Lorenz.lyapunov_exponent or math.nan) * step for step in range(shown)]
    for node in range(3):
        left.plot(lyapunov_times, (true[:shown, node, 0] - 45 * node).tolist(), color="black", label="true")
        left.plot(lyapunov_times, (predicted[:shown, node, 0] - 45 * node).tolist(), "--", color="C1", label="free run")
    left.set_xlabel("time, Lyapunov times")
    left.set_yticks([-45 * node for node in range(3)], [f"node {node}" for node in range(3)])
    left.legend(*(part[:2] for part in left.get_legend_handles_labels()), fontsize="small", loc="lower left")
    noises, central, smoothed = zip(*curve[1:], strict=True)
    right.loglog(noises, central, "o-", label="central differences")
    right.loglog(noises, smoothed, "o-", label="Savitzky-Golay")
    right.set_xlabel("observational noise")
    right.set_ylabel("relative error of the weights")
    right.legend(fontsize="small")
    figure.savefig(docs / "dynamical_free_run.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help="folder to draw the pictures into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clean_series()
    curve = noise_curve()
    short_series()
    other_nodes()
    kept = free_runs()
    if options.docs:
        figures(curve, kept, options.docs)


if __name__ == "__main__":
    main()
