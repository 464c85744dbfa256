"""Seconds of loading one epoch of MNIST: the data module beside a DataLoader over torchvision's data set.

    python tests/benchmarks/bench_loading.py [--root data] [--rounds 5] [--batch-size 128]

60,000 training images in shuffled, normalised batches, one thread and no workers. The variants run in turn, round
after round; the table gives medians, and ratios of medians to the data module's.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from lightning_nobp.datamodules import MNISTDataModule


def variants(root: str | None, batch_size: int) -> dict[str, Callable[[], Iterable]]:
    def module(**kwargs) -> Iterable:
        data = MNISTDataModule(root=root, batch_size=batch_size, val_size=0, **kwargs)
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader()

    plain, augmented = module(), module(augment=True)
    normalise = [transforms.ToTensor(), transforms.Normalize(MNISTDataModule.mean, MNISTDataModule.std)]
    shift = [transforms.RandomCrop(28, padding=2)]

    def usual(steps: list) -> Iterable:
        source = datasets.MNIST(MNISTDataModule(root=root).root, transform=transforms.Compose(steps))
        return DataLoader(source, batch_size=batch_size, shuffle=True)

    return {
        "MNISTDataModule": lambda: plain,
        "DataLoader over torchvision.datasets.MNIST": lambda: usual(normalise),
        "MNISTDataModule, random shifts": lambda: augmented,
        "DataLoader over torchvision.datasets.MNIST, random shifts": lambda: usual(shift + normalise),
    }


def epoch(loader: Iterable) -> float:
    start = time.perf_counter()
    samples = sum(len(target) for _, target in loader)
    assert samples == 60_000
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = variants(arguments.root, arguments.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(arguments.rounds):
        for name, make in found.items():
            seconds[name].append(epoch(make()))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    table = Table(title=f"One epoch of MNIST, batch {arguments.batch_size}, one thread")
    table.add_column("loader")
    table.add_column("seconds", justify="right")
    table.add_column("ratio", justify="right")
    for name, median in medians.items():
        baseline = medians["MNISTDataModule, random shifts" if "shifts" in name else "MNISTDataModule"]
        table.add_row(name, f"{median:.3f}", f"{median / baseline:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
