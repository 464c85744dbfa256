"""Closed-form layers: patch moments, a layer's pass, peak memory by cache, PCANet's features.

    python tests/benchmarks/bench_residual_compensation.py [--rounds 3] [--threads 1]

Images are random, of the sizes of MNIST and CIFAR-10. *unfold* is the plain way: write the patches out and multiply.
`auto` chooses rows for one channel, autocorrelation otherwise. `IncrementalPCA` is scikit-learn's, 64 images at a time,
what public code takes where images do not fit into memory; *image by image* is how public code makes PCANet's
histograms: loops over images, maps and blocks. A layer's pass is one of a fit, which is timed once.

A fit without a cache, or with one on the disk, needs the same memory for any number of images.
"""

import logging
import multiprocessing
import os
import statistics
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from report import Plot, Report, options
from sklearn.decomposition import IncrementalPCA
from timing import clock, medians
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.datamodules import ImageDataModule
from lightning_nobp.datamodules.base import TensorSource
from lightning_nobp.functional.patches import patch_second_moment, pca_filters
from lightning_nobp.nn import HashingNetwork, ResCNet
from lightning_nobp.rules import ResidualCompensation

SHAPES = ((1, 28, 7), (3, 32, 5), (16, 14, 3), (32, 14, 3), (64, 8, 3), (32, 14, 5))
"""Channels, height and kernel size."""
CACHES = ("none", "disk", "ram")
COUNTS = (1_000, 4_000, 16_000)


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


def moments(report: Report) -> None:
    kernels = ("unfold", "row", "autocorrelation", "auto")
    rows = []
    for channels, size, kernel in SHAPES:
        x = torch.randn(400, channels, size, size)
        calls = {k: partial(patch_second_moment, x, kernel, kernel // 2, algorithm=k) for k in kernels}
        found = medians(calls, report.options.rounds)
        row = {"maps": f"{channels} x {size} x {size}, kernel {kernel}"}
        row |= {k: 1e3 * found[k] / len(x) for k in kernels}
        rows.append({**row, "unfold / auto": found["unfold"] / found["auto"]})
    report.table("Second moments of patches, microseconds an image", rows)


def incremental_pca(x: Tensor, num_filters: int) -> None:
    pca = IncrementalPCA(num_filters)
    for part in x.split(64):
        pca.partial_fit(F.unfold(part, 5, padding=2).transpose(1, 2).flatten(0, 1).numpy())


def filters(report: Report) -> None:
    x = torch.randn(384, 1, 28, 28)
    calls = {
        "IncrementalPCA of patches": partial(incremental_pca, x, 16),
        "patch_second_moment and pca_filters": lambda: pca_filters(*patch_second_moment(x, 5, 2), 16),
    }
    found = medians(calls, report.options.rounds)
    slow = found["IncrementalPCA of patches"]
    rows = [{"way": name, "ms": ms, "IncrementalPCA / this": slow / ms} for name, ms in found.items()]
    report.table("16 filters of 5x5 from 384 images of 28x28", rows)


def fit(count: int, network: dict[str, Any], shape: tuple[int, int, int], cache: str, depth: int) -> list[float]:
    """Seconds of each layer's pass."""
    seconds: list[float] = []

    class Watch(L.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            self.start = clock()

        def on_train_epoch_end(self, *_: Any) -> None:
            seconds.append(clock() - self.start)

    # In a process of its own, nothing has been silenced yet.
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=-1, callbacks=[Watch()], accelerator="cpu", enable_model_summary=False, **quiet)
    rule = ResidualCompensation(network=partial(ResCNet, depth=depth, **network), cache=cache, pca_fraction=0.1)
    trainer.fit(rule, datamodule=Noise(count, shape, batch_size=2000, with_index=True))
    return seconds


def layers(report: Report) -> None:
    rows = []
    for name, network, shape in (
        ("28x28, 16 filters", {"channels": 16}, (1, 28, 28)),
        ("28x28, 32 filters", {"channels": 32, "first_kernel_size": 7}, (1, 28, 28)),
        ("32x32x3, 32 filters", {"channels": 32}, (3, 32, 32)),
    ):
        seconds = fit(5_000, network, shape, "ram", 3)
        count = ResCNet(shape, 10, depth=1, **network).compensation(1).readout.num_features
        later = statistics.mean(seconds[2:4])
        rates = {"layer 1": round(5e3 / seconds[1]), "layers 2 and 3": round(5e3 / later)}
        rows.append({"network": name, "features": count, **rates})
    report.table("A layer's pass over 5,000 images, cache='ram', pca_fraction=0.1: images a second", rows)


def images(report: Report) -> None:
    rows = []
    for count in (500, 1_000, 2_000, 4_000, 8_000):
        found = {cache: statistics.mean(fit(count, {"channels": 16}, (1, 28, 28), cache, 3)[2:4]) for cache in CACHES}
        rows.append({"images": count, **found})
    title = "Seconds of the pass of a later layer of 16 filters over images of 28x28, by cache"
    report.table(title, rows, Plot(CACHES, "images", "a layer's pass, s"))


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


def memory(report: Report) -> None:
    rows = [{"images": count, **{cache: peak(count, cache) for cache in CACHES}} for count in COUNTS]
    title = "Peak memory that a fit of 3 layers of 16 filters adds, by cache, without the images, MiB"
    report.table(title, rows, Plot(CACHES, "images", "memory of a fit, MiB"))


def peak(count: int, cache: str) -> float:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=peak_of, args=(count, cache, theirs))
    child.start()
    # Or a child that is killed for its memory would never be missed.
    theirs.close()
    found: float = ours.recv()
    child.join()
    return found


def image_by_image(network: HashingNetwork, x: Tensor) -> Tensor:
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


def histograms(report: Report) -> None:
    network, x = HashingNetwork((1, 28, 28), 10), torch.randn(100, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(image_by_image(network, x).float(), network.histograms(x))
        calls = {
            "image by image": partial(image_by_image, network, x),
            "HashingNetwork": lambda: torch.cat([network.histograms(part) for part in x.split(50)]),
        }
        found = medians(calls, report.options.rounds)
    slow = found["image by image"]
    rows = [{"way": n, "ms an image": ms / len(x), "image by image / this": slow / ms} for n, ms in found.items()]
    report.table("PCANet's features, 8 x 8 filters of 7x7, 28x28", rows)


def main() -> None:
    choices = options(__doc__, rounds=3)
    # For processes of their own.
    os.environ["OMP_NUM_THREADS"] = str(choices.threads)
    report = Report(choices)
    for measure in (moments, filters, histograms, layers, images, memory):
        measure(report)


if __name__ == "__main__":
    main()
