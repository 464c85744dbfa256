"""What the convolutional Forward-Forward network owes to each of its parts: validation accuracy without it.

    python tests/benchmarks/ablation_forward_forward.py --root data/cifar10-jpeg [--samples 5000] [--epochs 3]

Short trainings on a part of CIFAR-10, as an image folder; every variant changes one thing in the recipe
``cifar10/symba_cnn``.
"""

import argparse
import logging
import time
import warnings
from functools import partial
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from lightning_nobp.callbacks import LayerAccuracy
from lightning_nobp.datamodules import ImageFolderDataModule
from lightning_nobp.datamodules.augment import RandomHorizontalFlip
from lightning_nobp.nn import ForwardForwardCNN
from lightning_nobp.rules import SymBa

RULE = {"hard_temperature": 20.0, "hard_scope": "each"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as in the recipe": ({}, {}),
    "labelled stream, hard labels of the first layer": ({"stream": "labelled"}, {"hard_scope": "first"}),
    "the same with the label in the first layer only": (
        {"stream": "labelled", "label_layers": "first"},
        {"hard_scope": "first"},
    ),
    "hard labels of the first layer": ({}, {"hard_scope": "first"}),
    "random labels": ({}, {"negatives": "random", "hard_scope": "first"}),
    "hard_temperature=5": ({}, {"hard_temperature": 5.0}),
    "labels constant over the image (label_grid=1)": ({"label_grid": 1}, {}),
    "label_grid=8": ({"label_grid": 8}, {}),
    "random class patterns (label='icp', 100 planes)": ({"label": "icp", "pattern_dim": 100}, {}),
    "no batch normalisation": ({"batch_norm": False}, {}),
    "loss='ff'": ({}, {"loss": "ff"}),
    "loss='class_softmax'": ({}, {"loss": "class_softmax", "hard_scope": "first"}),
}


def train(network: dict[str, Any], rule: dict[str, Any], options: argparse.Namespace) -> tuple[list[float], float]:
    """Validation accuracy in per cent, of all layers and of each, and seconds."""
    L.seed_everything(options.seed, verbose=False)
    build = partial(ForwardForwardCNN, channels=(96, 160, 256), pools=(2, 2, 1), **network)
    adam = partial(torch.optim.Adam, lr=1e-2, betas=(0.9, 0.99), fused=True)
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=options.epochs)
    data = ImageFolderDataModule(
        root=options.root,
        image_size=32,
        batch_size=50,
        subset=options.samples + 5000,
        val_size=5000,
        transforms=RandomHorizontalFlip(),
    )
    trainer = L.Trainer(
        max_epochs=options.epochs,
        callbacks=[LayerAccuracy()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(SymBa(network=build, optimizer=adam, lr_scheduler=cosine, **RULE | rule), data)
    seconds = time.perf_counter() - start
    names = ["val/accuracy", *(f"layer_accuracy/{number}" for number in range(3))]
    return [100 * float(trainer.callback_metrics[name]) for name in names], seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="image folder with train and test")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    table = Table(title=f"CIFAR-10, {options.samples} images, {options.epochs} epochs, seed {options.seed}")
    for name in ("variant", "val %", "layer 0", "layer 1", "layer 2", "seconds"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for name, (network, rule) in VARIANTS.items():
        accuracies, seconds = train(network, rule, options)
        table.add_row(name, *(f"{a:.1f}" for a in accuracies), f"{seconds:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
