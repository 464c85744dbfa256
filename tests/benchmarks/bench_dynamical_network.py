"""Finding a dynamical network: the closed form, the alternation of the paper, and SINDy.

    python tests/benchmarks/bench_dynamical_network.py [--rounds 3] [--cycles 6]

What it costs to find the couplings of Lorenz systems from clean time series, and how that grows with the number of
nodes; errors are relative errors of the weights. `pysindy` fits polynomials of the state of the whole network, each
velocity by least squares of its own; it and the alternation run once.

The alternation finds the links at once too, and their weights slowly.
"""

import logging
import warnings
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from report import Plot, Report, options
from study_dynamical_network import random_network, series
from timing import medians
from torch import Tensor

from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.functional.network_inference import infer_coupling
from lightning_nobp.metrics import LinkAUROC, WeightError
from lightning_nobp.nn import LocalDynamics, NetworkDescent
from lightning_nobp.rules import DynamicalNetworkBackprop

NODES = (8, 16, 32, 64, 128, 256)


def measured(run: Callable[[], Tensor], true: Tensor, rounds: int) -> dict[str, float]:
    """CPU seconds, and how good what was found is."""
    found: list[Tensor] = []
    milliseconds = medians({"": lambda: found.append(run())}, rounds, warm_up=0)[""]
    scores = {"AUROC": float(LinkAUROC.of(found[-1], true)), "error": float(WeightError.of(found[-1], true))}
    return {"CPU seconds": milliseconds / 1e3, **scores}


def closed_form(data: CoupledOscillatorsDataModule) -> Tensor:
    return _fitted(DynamicalNetworkBackprop(), data, 1)


def alternation(data: CoupledOscillatorsDataModule, cycles: int) -> Tensor:
    """A perceptron and the couplings by turns; ``cycles`` of both after four epochs of the perceptron alone."""
    epochs = 4 + 2 * cycles
    rule = DynamicalNetworkBackprop(
        method="alternation",
        adjoint="linearised",
        local=LocalDynamics,
        initial_epochs=4,
        tolerance=0.0,
        optimizer=partial(NetworkDescent, lr=3e-3, coupling_step=2e-3),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    )
    return _fitted(rule, data, epochs)


def _fitted(rule: DynamicalNetworkBackprop, data: CoupledOscillatorsDataModule, epochs: int) -> Tensor:
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(rule, datamodule=data)
    return rule.built_network().weights.detach().cpu().double()


def sindy(x: Tensor, dt: float, nodes: int) -> Tensor:
    """Couplings by pysindy: polynomials of the whole network's state, each velocity by least squares of its own."""
    import numpy as np
    import pysindy

    first = pysindy.SINDy(
        optimizer=pysindy.STLSQ(threshold=0.05, alpha=1e-6),
        feature_library=pysindy.PolynomialLibrary(degree=2),
        differentiation_method=pysindy.FiniteDifference(order=4),
    )
    first.fit([trajectory.flatten(1).numpy() for trajectory in x], t=dt)
    names, matrix = first.get_feature_names(), first.coefficients()
    columns = [names.index(f"x{3 * node}") for node in range(nodes)]
    found = torch.from_numpy(np.asarray(matrix)[0::3][:, columns].copy())
    return found - torch.diag(found.diagonal())


def compare(report: Report, cycles: int, rounds: int) -> None:
    data = CoupledOscillatorsDataModule(window=20, stride=17, batch_size=64)
    data.setup("fit")
    windows = CoupledOscillatorsDataModule(window=10, batch_size=32)
    windows.setup("fit")
    x, true = series("lorenz", random_network("lorenz", 16)), random_network("lorenz", 16)
    runs: dict[str, tuple[Callable[[], Tensor], Tensor, int]] = {
        "infer_coupling": (lambda: infer_coupling(x, 0.02).weights, true, rounds),
        "DynamicalNetworkBackprop, closed form": (lambda: closed_form(data), data.true_weights, rounds),
        "DynamicalNetworkBackprop, alternation": (lambda: alternation(windows, cycles), windows.true_weights, 1),
    }
    if report.peer("pysindy"):
        runs["pysindy, degree 2 of 48 numbers, 2 of 8 trajectories"] = (lambda: sindy(x[:2], 0.02, 16), true, 1)
    rows = [{"method": name, **measured(*run)} for name, run in runs.items()]
    for row in rows:
        row["/ infer_coupling"] = row["CPU seconds"] / rows[0]["CPU seconds"]
    report.table("Lorenz 16, clean series", rows)


def growth(report: Report, rounds: int) -> None:
    rows = []
    for nodes in NODES:
        weights = random_network("lorenz", nodes)
        x = series("lorenz", weights, num_trajectories=2)
        rows.append({"nodes": nodes, **measured(lambda x=x: infer_coupling(x, 0.02).weights, weights, rounds)})
    title = "infer_coupling, Lorenz, 2 trajectories of 3,129 samples"
    report.table(title, rows, Plot(["CPU seconds"], "nodes", "infer_coupling, s"))


def main() -> None:
    cycles = {"type": int, "default": 6, "help": "of the alternation"}
    choices = options(__doc__, rounds=3, cycles=cycles)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    report = Report(choices)
    compare(report, choices.cycles, choices.rounds)
    growth(report, choices.rounds)


if __name__ == "__main__":
    main()
