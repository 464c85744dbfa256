"""What residual compensation owes to each of its parts: accuracy on images left out, with one thing changed.

    python tests/benchmarks/ablation_residual_compensation.py --mnist data [--cifar10 data/cifar10-jpeg]
        [--samples 10000] [--depth 6]

Fits on a part of MNIST and of CIFAR-10 (an image folder), each with 5000 other training images for validation.
"""

import argparse
import logging
import tempfile
import warnings
from functools import partial
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from lightning_nobp.callbacks import DepthCurve
from lightning_nobp.datamodules import ImageFolderDataModule, MNISTDataModule
from lightning_nobp.datamodules.base import ImageDataModule
from lightning_nobp.nn import ResCNet
from lightning_nobp.rules import ResidualCompensation

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "every layer fitted to the targets (late fusion)": ({}, {"combine": "late_fusion"}),
    "shrinkage=1": ({}, {"shrinkage": 1.0}),
    "shrinkage=0.3": ({}, {"shrinkage": 0.3}),
    "cross_fit_folds=4": ({}, {"cross_fit_folds": 4}),
    "ridge / 10": ({}, {"ridge": 0.1}),
    "ridge x 10": ({}, {"ridge": 10.0}),
    "views: original and flip": ({}, {"views": ("original", "flip")}),
    "random filters": ({"filters": "random"}, {}),
    "discrete cosines": ({"filters": "dct"}, {}),
    "Saab filters": ({"filters": "saab"}, {}),
    "discriminant filters": ({"filters": "lda"}, {}),
    "filters of unit length (whiten=False)": ({"whiten": False}, {}),
    "patch means taken off": ({"remove_patch_mean": True}, {}),
    "no activation (identity)": ({"activation": "identity"}, {}),
    "activation=abs": ({"activation": "abs"}, {}),
    "second_order features alone": ({"pooling": {"second_order": 2}}, {}),
    "crelu_mean features alone": ({"pooling": {"crelu_mean": 4}}, {}),
}


def accuracies(
    data: ImageDataModule, network: dict[str, Any], rule: dict[str, Any], options: argparse.Namespace
) -> list[float]:
    """Validation accuracy in per cent after the first, the best and the last layer, and the best depth."""
    L.seed_everything(options.seed, verbose=False)
    curve = DepthCurve()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    build = partial(ResCNet, depth=options.depth, **{"channels": 16} | network)
    # The curve's files are of no use here.
    with tempfile.TemporaryDirectory() as folder:
        quiet |= {"default_root_dir": folder, "enable_model_summary": False}
        trainer = L.Trainer(max_epochs=-1, callbacks=[curve], accelerator="cpu", **quiet)
        trainer.fit(ResidualCompensation(network=build, cache="ram", pca_fraction=0.3, **rule), datamodule=data)
    found = [100 * point["val/accuracy"] for point in curve.points]
    return [found[0], max(found), found[-1], 1 + found.index(max(found))]


def study(title: str, make: Any, ridge: float, options: argparse.Namespace) -> Table:
    table = Table(title=f"{title}, {options.samples} images, depth {options.depth}, seed {options.seed}")
    for name in ("variant", "1 layer", "best", "at depth", "last layer"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for name, (network, rule) in VARIANTS.items():
        penalty = {"ridge": ridge * rule.get("ridge", 1.0)}
        first, best, last, depth = accuracies(make(), network, rule | penalty, options)
        table.add_row(name, f"{first:.2f}", f"{best:.2f}", f"{depth}", f"{last:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", help="folder of data sets")
    parser.add_argument("--cifar10", help="image folder with train and test")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    common = {"subset": options.samples + 5000, "val_size": 5000, "batch_size": 2500}
    common |= {"shuffle": False, "with_index": True}
    if options.mnist:
        make = partial(MNISTDataModule, root=options.mnist, **common)
        Console(width=120).print(study("MNIST", make, 1e-2, options))
    if options.cifar10:
        make = partial(ImageFolderDataModule, root=options.cifar10, image_size=32, **common)
        Console(width=120).print(study("CIFAR-10", make, 0.1, options))


if __name__ == "__main__":
    main()
