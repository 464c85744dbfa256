"""Time and memory of closed-form layers: patch moments, a layer's pass, peak memory by cache, PCANet's features.

    python tests/benchmarks/bench_residual_compensation.py [--rounds 5] [--threads 1]

Images are random, of the sizes of MNIST and CIFAR-10. *unfold* is the plain way: write the patches out and multiply.
Times are medians of interleaved rounds; a layer's pass is one of a fit; memory is measured in processes of their own.
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import IncrementalPCA
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.datamodules import ImageDataModule
from lightning_nobp.datamodules.base import TensorSource
from lightning_nobp.functional.patches import patch_second_moment, pca_filters
from lightning_nobp.nn import HashingNetwork, ResCNet
from lightning_nobp.rules import ResidualCompensation

SHAPES = ((1, 28, 7), (3, 32, 5), (16, 14, 3), (32, 14, 3), (64, 8, 3), (32, 14, 5))
"""Channels, height and kernel size."""


class Noise(ImageDataModule):
    """Images of noise with the labels written into a corner.

    Args:
        count: How many.
        shape: ``(channels, height, width)``.
    """

    num_classes = 10
    class_names = tuple(map(str, range(10)))

    def __init__(self, count: int = 10_000, shape: tuple[int, int, int] = (1, 28, 28), **kwargs: Any) -> None:
        super().__init__(val_size=0, shuffle=False, **kwargs)
        self.count, self.input_shape = count, shape
        self.mean, self.std = (0.5,) * shape[0], (0.25,) * shape[0]

    def load(self, split: str) -> TensorSource:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.count) % 10
        images = torch.randint(256, (self.count, *self.input_shape), dtype=torch.uint8, generator=generator)
        images[:, :, 0, 0] = 25 * labels.to(torch.uint8).unsqueeze(1)
        return TensorSource(images, labels)


def medians(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def moments(rounds: int) -> Table:
    kernels = ("unfold", "row", "autocorrelation", "auto")
    table = Table(title="Second moments of patches, microseconds an image")
    for name in ("maps", *kernels, "unfold / auto"):
        table.add_column(name, justify="left" if name == "maps" else "right")
    for channels, size, kernel in SHAPES:
        x = torch.randn(400, channels, size, size)
        calls = {k: partial(patch_second_moment, x, kernel, kernel // 2, algorithm=k) for k in kernels}
        found = medians(calls, rounds)
        cells = [f"{1e6 * found[k] / len(x):.0f}" for k in kernels]
        ratio = f"{found['unfold'] / found['auto']:.1f}"
        table.add_row(f"{channels} x {size} x {size}, kernel {kernel}", *cells, ratio)
    return table


def incremental_pca(x: Tensor, num_filters: int) -> None:
    """What public code does for images that do not fit into memory: scikit-learn, 64 images at a time."""
    pca = IncrementalPCA(num_filters)
    for part in x.split(64):
        pca.partial_fit(F.unfold(part, 5, padding=2).transpose(1, 2).flatten(0, 1).numpy())


def filters(rounds: int) -> Table:
    x = torch.randn(384, 1, 28, 28)
    calls = {
        "IncrementalPCA of patches": partial(incremental_pca, x, 16),
        "patch_second_moment and pca_filters": lambda: pca_filters(*patch_second_moment(x, 5, 2), 16),
    }
    found = medians(calls, min(rounds, 3))
    table = Table(title="16 filters of 5x5 from 384 images of 28x28")
    for name in ("way", "ms", "ratio"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for name, seconds in found.items():
        table.add_row(name, f"{1e3 * seconds:.1f}", f"{found['IncrementalPCA of patches'] / seconds:.1f}")
    return table


def fit(count: int, network: dict[str, Any], shape: tuple[int, int, int], cache: str, depth: int) -> list[float]:
    """Seconds of each layer's pass."""
    seconds: list[float] = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seconds.append(pl_module.solution["layer_seconds"])

    # In a process of its own, nothing has been silenced yet.
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=-1, callbacks=[Watch()], accelerator="cpu", enable_model_summary=False, **options)
    rule = ResidualCompensation(network=partial(ResCNet, depth=depth, **network), cache=cache, pca_fraction=0.1)
    trainer.fit(rule, datamodule=Noise(count, shape, batch_size=2000, with_index=True))
    return seconds


def layers() -> Table:
    table = Table(title="A layer's pass over 10,000 images, cache='ram', pca_fraction=0.1: images a second")
    for name in ("network", "features", "layer 1", "layers 2 and 3", "seconds for 60,000 images of layer 2"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for name, network, shape in (
        ("28x28, 16 filters", {"channels": 16}, (1, 28, 28)),
        ("28x28, 32 filters", {"channels": 32, "first_kernel_size": 7}, (1, 28, 28)),
        ("32x32x3, 32 filters", {"channels": 32}, (3, 32, 32)),
    ):
        seconds = fit(10_000, network, shape, "ram", 3)
        count = ResCNet(shape, 10, depth=1, **network).compensation(1).readout.num_features
        later = statistics.mean(seconds[2:4])
        table.add_row(name, f"{count}", f"{1e4 / seconds[1]:.0f}", f"{1e4 / later:.0f}", f"{6 * later:.1f}")
    return table


def peak_of(count: int, cache: str, pipe: Any) -> None:
    """Send the MiB that a fit adds to the process, its images not counted."""
    data = Noise(count, batch_size=1000, with_index=True)
    data.load("train")
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    fit(count, {"channels": 16}, (1, 28, 28), cache, 3)
    # The fit makes the images again.
    pipe.send(_peak() - before - count * 28 * 28 / 2**20)


def _peak() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def memory() -> Table:
    counts = (4_000, 16_000, 64_000)
    table = Table(title="Peak memory that a fit of 3 layers of 16 filters adds, MiB, without the images")
    for name in ("cache", *(f"{count:,} images" for count in counts)):
        table.add_column(name, justify="left" if name == "cache" else "right")
    context = multiprocessing.get_context("spawn")
    for cache in ("none", "disk", "ram"):
        cells = []
        for count in counts:
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=peak_of, args=(count, cache, theirs))
            child.start()
            cells.append(f"{ours.recv():.0f}")
            child.join()
        table.add_row(cache, *cells)
    return table


def image_by_image(network: HashingNetwork, x: Tensor) -> Tensor:
    """As public code makes histograms: loops over images, maps and blocks."""
    features = []
    for image in x:
        codes = []
        for channel in network.first(image.unsqueeze(0))[0]:
            z = network.second(channel.view(1, 1, *channel.shape))[0]
            codes.append(sum(2**bit * (z[bit] > 0).long() for bit in range(len(z))))
        found = [
            code[i : i + 7, j : j + 7].flatten().bincount(minlength=256)
            for code in codes
            for i in range(0, 22, 4)
            for j in range(0, 22, 4)
        ]
        features.append(torch.cat(found))
    return torch.stack(features)


def histograms(rounds: int) -> Table:
    network, x = HashingNetwork((1, 28, 28), 10), torch.randn(100, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(image_by_image(network, x).float(), network.histograms(x))
        calls = {
            "image by image": partial(image_by_image, network, x),
            "HashingNetwork": lambda: torch.cat([network.histograms(part) for part in x.split(50)]),
        }
        found = medians(calls, rounds)
    table = Table(title="PCANet's features, 8 x 8 filters of 7x7, 28x28")
    for name in ("way", "ms an image", "ratio"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for name, seconds in found.items():
        table.add_row(name, f"{10 * seconds:.2f}", f"{found['image by image'] / seconds:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    console = Console(width=120)
    for table in (moments(options.rounds), filters(options.rounds), histograms(options.rounds), layers(), memory()):
        console.print(table)


if __name__ == "__main__":
    main()
