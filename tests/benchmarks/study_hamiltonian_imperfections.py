"""Accuracy and gradients of echoes made by apparatus that is not perfect.

    python tests/benchmarks/study_hamiltonian_imperfections.py [--epochs 10] [--docs docs]

Trains Duffing oscillators on scikit-learn's digits for several strengths of each imperfection, and prints test accuracy
and the mean cosine between the echo's gradient and that of the apparatus without noise and errors. With ``--docs``
writes ``hamiltonian_imperfections.png``.
"""

import argparse
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lightning_nobp.callbacks import EchoImperfections, GradientAlignment
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import DuffingClassifier
from lightning_nobp.rules import HamiltonianEcho

STEPS, DT = 20, 0.2
TIME = STEPS * DT
# By name: how it is said, the strengths, and the options of the callback for each.
STUDIES: dict[str, tuple[str, list[float], Any]] = {
    "damped, echo not amplified": (
        "damping x time",
        [0.0, 0.03, 0.1, 0.3, 1.0, 3.0],
        lambda x: {"damping": x / TIME, "gain": 0.0},
    ),
    "damped, echo amplified": ("damping x time", [0.0, 0.1, 1.0, 3.0], lambda x: {"damping": x / TIME}),
    "noise, nudge 0.01": ("noise", [0.0, 1e-4, 1e-3, 1e-2, 1e-1], lambda x: {"noise": x}),
    "noise, nudge 0.1": ("noise", [0.0, 1e-4, 1e-3, 1e-2, 1e-1], lambda x: {"noise": x}),
    "noise both echoes share": ("noise", [0.0, 1e-3, 1e-2, 1e-1], lambda x: {"noise": x, "shared_noise": True}),
    "momentum lost in reversal": ("fraction", [0.0, 0.01, 0.03, 0.1, 0.3], lambda x: {"conjugation_error": x}),
    "error signal misread": ("over its size", [0.0, 0.1, 0.3, 1.0, 3.0], lambda x: {"readout_noise": x}),
}


def trained(options: dict[str, Any], eta: float, epochs: int) -> tuple[float, float]:
    """Test accuracy and mean cosine of the gradients."""
    L.seed_everything(0, verbose=False)
    rule = HamiltonianEcho(
        network=partial(DuffingClassifier, hidden_units=64, n_steps=STEPS, dt=DT),
        eta=eta,
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    )
    alignment = GradientAlignment(every_n_steps=20, per_parameter=False)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[EchoImperfections(**options), alignment],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitsDataModule(batch_size=64, val_size=0.15)
    trainer.fit(rule, datamodule=data)
    (found,) = trainer.test(rule, datamodule=data, verbose=False)
    assert alignment.mean_cosine is not None
    return found["test/accuracy"], alignment.mean_cosine


def show(results: dict[str, list[tuple[float, float, float]]]) -> None:
    table = Table("imperfection", "strength", "test %", "cosine")
    for name, rows in results.items():
        for strength, accuracy, cosine in rows:
            table.add_row(name, f"{strength:g} {STUDIES[name][0]}", f"{100 * accuracy:.2f}", f"{cosine:.4f}")
    Console(width=100).print(table)


def figure(results: dict[str, list[tuple[float, float, float]]]) -> Figure:
    units = list(dict.fromkeys(unit for unit, _, _ in STUDIES.values()))
    found = Figure(figsize=(13, 6), layout="constrained")
    axes = found.subplots(2, len(units), sharey="row")
    for name, rows in results.items():
        column = units.index(STUDIES[name][0])
        # Nothing wrong has no place on a logarithmic axis.
        strengths, accuracies, cosines = zip(*rows[1:], strict=True)
        axes[0, column].semilogx(strengths, [100 * a for a in accuracies], "o-", label=name)
        axes[1, column].semilogx(strengths, cosines, "o-", label=name)
        axes[1, column].set_xlabel(STUDIES[name][0])
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[1, 0].set_ylabel("cosine to the perfect gradient")
    for axis in axes[1]:
        axis.legend(fontsize="small")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--docs", type=Path, help="folder to draw the picture into")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = {}
    for name, (_, strengths, build) in STUDIES.items():
        eta = 0.1 if name.endswith("0.1") else 0.01
        results[name] = [(s, *trained(build(s), eta, options.epochs)) for s in strengths]
    show(results)
    if options.docs:
        figure(results).savefig(options.docs / "hamiltonian_imperfections.png", dpi=120)


if __name__ == "__main__":
    main()
