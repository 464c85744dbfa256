"""Loading images: the data module beside a DataLoader over torchvision's data set.

    python tests/benchmarks/bench_loading.py [--rounds 1] [--root data] [--batch-size 128]

One epoch of MNIST: 60,000 training images in shuffled, normalised batches, without workers. MNIST is read from
`NOBP_DATA`, or from `--root`.
"""

from collections.abc import Callable, Iterable

from report import Report, options
from timing import medians
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


def epoch(loader: Iterable) -> None:
    samples = sum(len(target) for _, target in loader)
    assert samples == 60_000


def main() -> None:
    root = {"help": "folder of the data"}
    choices = options(__doc__, rounds=1, root=root, batch_size={"type": int, "default": 128})
    report = Report(choices)
    loaders = variants(choices.root, choices.batch_size)
    runs = {name: lambda make=make: epoch(make()) for name, make in loaders.items()}
    found = medians(runs, choices.rounds, warm_up=0)
    rows = []
    for name, milliseconds in found.items():
        ours = found["MNISTDataModule, random shifts" if "shifts" in name else "MNISTDataModule"]
        rows.append({"loader": name, "seconds": milliseconds / 1e3, "/ MNISTDataModule": milliseconds / ours})
    report.table(f"One epoch of MNIST, batch {choices.batch_size}", rows)


if __name__ == "__main__":
    main()
