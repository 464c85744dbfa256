"""What it costs to find a network: the closed form, the alternation of the paper, and SINDy, and how cost grows.

    python tests/benchmarks/bench_dynamical_network.py [--cycles 6] [--rounds 3]

Times are CPU seconds of one thread, medians over the rounds; errors are relative errors of the weights.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from study_dynamical_network import random_network, scores, series
from torch import Tensor

from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.functional.network_inference import infer_coupling
from lightning_nobp.nn import LocalDynamics, NetworkDescent
from lightning_nobp.rules import DynamicalNetworkBackprop

NODES = (8, 16, 32, 64, 128, 256)


def cpu_seconds(run: Callable[[], Tensor], rounds: int) -> tuple[float, Tensor]:
    """Median time of a run, and what it gives."""
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        found = run()
        spent.append(time.process_time() - start)
    return statistics.median(spent), found


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


def compare(cycles: int, rounds: int) -> None:
    table = Table("method", "CPU seconds", "times the closed form's", "AUROC", "error", title="Lorenz 16, clean series")
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
    try:
        import pysindy  # noqa: F401

        runs["pysindy, degree 2 of 48 numbers, 2 of 8 trajectories"] = (lambda: sindy(x[:2], 0.02, 16), true, 1)
    except ImportError:
        print("pysindy is not installed: its row is left out")
    first = None
    for name, (run, wanted, times) in runs.items():
        seconds, found = cpu_seconds(run, times)
        first = first or seconds
        table.add_row(name, f"{seconds:.2f}", f"{seconds / first:.1f}", *scores(found, wanted))
    Console(width=110).print(table)


def growth(rounds: int) -> None:
    table = Table(
        "nodes", "CPU seconds", "AUROC", "error", title="infer_coupling, Lorenz, 2 trajectories of 3,129 samples"
    )
    for nodes in NODES:
        weights = random_network("lorenz", nodes)
        x = series("lorenz", weights, num_trajectories=2)
        seconds, found = cpu_seconds(lambda: infer_coupling(x, 0.02).weights, rounds)  # noqa: B023
        table.add_row(str(nodes), f"{seconds:.2f}", *scores(found, weights))
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=6, help="of the alternation")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    compare(options.cycles, options.rounds)
    growth(options.rounds)


if __name__ == "__main__":
    main()
