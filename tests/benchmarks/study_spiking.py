"""Accuracy and spikes of spiking networks against their time constants, and the spikes of one sample.

    python tests/benchmarks/study_spiking.py [--train 10000] [--epochs 6] [--docs docs]

Trains 784-800-10 on part of MNIST for every pair of time constants, with many spikes a neuron and with one, and prints
test accuracy, spikes of a hidden neuron, time of the first output spike and synaptic operations of a sample. With
``--docs`` writes ``spiking_tau.png``, and ``spiking_raster.png``, the spikes of one test sample at 1 and 0.5.
"""

import argparse
import itertools
import logging
import math
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lightning_nobp.callbacks.spike_raster import raster_figure
from lightning_nobp.datamodules import MNISTDataModule
from lightning_nobp.nn import SpikingMLP
from lightning_nobp.rules import SpikeTimingBackprop

TAUS_V = (math.inf, 2.0, 1.0, 0.5)
TAUS_I = (math.inf, 1.0, 0.5, 0.25)
MOST_SPIKES = (16, 1)
SHOWN = (("accuracy", 100, "test accuracy, %"), ("spikes_per_neuron/1", 1, "spikes of a hidden neuron"))


def trained(tau_v: float, tau_i: float, most: int, samples: int, epochs: int) -> tuple[SpikeTimingBackprop, dict]:
    """The rule and what its test found."""
    L.seed_everything(0, verbose=False)
    data = MNISTDataModule(batch_size=50, subset=samples, val_size=0.1)
    rule = SpikeTimingBackprop(
        network=partial(SpikingMLP, hidden_dims=(800,), tau_v=tau_v, tau_i=tau_i, max_spikes=most, sigma=0.05),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        t_ref=1.2,
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", **quiet)
    trainer.fit(rule, datamodule=data)
    (found,) = trainer.test(rule, datamodule=data, verbose=False)
    return rule, {name.removeprefix("test/"): value for name, value in found.items()}


def show(results: dict[tuple[float, float, int], dict]) -> None:
    table = Table("tau_v", "tau_i", "most spikes", "test %", "spikes a hidden neuron", "decision", "operations")
    for (tau_v, tau_i, most), found in results.items():
        table.add_row(
            f"{tau_v:g}",
            f"{tau_i:g}",
            str(most),
            f"{100 * found['accuracy']:.2f}",
            f"{found['spikes_per_neuron/1']:.2f}",
            f"{found['decision_time']:.2f}",
            f"{found['synaptic_operations']:,.0f}",
        )
    Console(width=110).print(table)


def tau_figure(results: dict[tuple[float, float, int], dict]) -> Figure:
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    shortest_first = TAUS_V[::-1]
    for axis, (name, factor, label) in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        for tau_i, most in itertools.product(TAUS_I, MOST_SPIKES):
            values = [factor * results[tau_v, tau_i, most][name] for tau_v in shortest_first]
            style = "o-" if most > 1 else "x--"
            color = f"C{TAUS_I.index(tau_i)}"
            axis.plot(range(len(TAUS_V)), values, style, color=color, label=f"tau_i {tau_i:g}, at most {most}")
        axis.set_xticks(range(len(TAUS_V)), [f"{tau:g}" for tau in shortest_first])
        axis.set_xlabel("tau_v")
        axis.set_ylabel(label)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", fontsize="small")
    return figure


def raster(rule: SpikeTimingBackprop) -> Figure:
    data = MNISTDataModule(batch_size=50)
    data.prepare_data()
    data.setup("test")
    x, target = next(iter(data.test_dataloader()))[:2]
    outputs = rule.outputs(x)
    trains = [outputs[name][0].detach().flatten(0, -2) for name in outputs if name.startswith("spikes/")]
    return raster_figure(trains, int(target[0]), 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=10_000, help="training samples, those for validation among them")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--docs", type=Path, help="folder to draw the pictures into")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results, drawn = {}, None
    for kind in itertools.product(TAUS_V, TAUS_I, MOST_SPIKES):
        rule, results[kind] = trained(*kind, options.train, options.epochs)
        drawn = rule if kind == (1.0, 0.5, 16) else drawn
    show(results)
    if options.docs:
        assert drawn is not None
        tau_figure(results).savefig(options.docs / "spiking_tau.png", dpi=130)
        raster(drawn).savefig(options.docs / "spiking_raster.png", dpi=130)


if __name__ == "__main__":
    main()
