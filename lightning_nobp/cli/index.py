"""The rules by name, without importing torch."""

from typing import NamedTuple


class RuleEntry(NamedTuple):
    """One line of ``nobp list``."""

    name: str
    class_path: str
    summary: str
    paper: str


RULES = (
    RuleEntry(
        "Backprop",
        "lightning_nobp.rules.Backprop",
        "backpropagation written out by hand: the yardstick",
        "Learning representations by back-propagating errors (Nature 323, 1986)",
    ),
)

NETWORKS = ("CNN", "MLP")
"""Networks of :mod:`lightning_nobp.nn` that the command line knows by these names: other packages have an MLP too."""

DATA_MODULES = (
    "DigitsDataModule",
    "MNISTDataModule",
    "FashionMNISTDataModule",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "TinyImageNetDataModule",
    "ImageFolderDataModule",
)
