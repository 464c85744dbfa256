"""Running the command line in this process, and a training that several tests read."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import wandb
from fake_data import make_cifar, make_mnist, make_tiny_imagenet
from torchvision import datasets

from lightning_nobp.cli import main


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


class Trained(NamedTuple):
    folder: Path
    """Where the command was called."""
    run: Path
    out: str


@pytest.fixture(scope="session")
def nobp() -> Callable[..., Outcome]:
    """Call the command line; what it prints is returned."""

    def run(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main([str(a) for a in arguments])
            except SystemExit as stop:
                status = int(stop.code or 0)
        return Outcome(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Rich makes tables no wider than the terminal.
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(autouse=True)
def _no_run_is_left_open() -> Iterator[None]:
    assert os.environ["WANDB_MODE"] == "offline"
    yield
    wandb.finish()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, nobp: Callable[..., Outcome]) -> Trained:
    """A complete training on the digits."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    with chdir(folder):
        fit = nobp("fit", "--config", "digits/backprop")
    assert fit.status == 0, fit.err
    return Trained(folder, folder / "runs" / "digits" / "backprop" / "version_0", fit.out)


@pytest.fixture
def in_trained(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The current folder is that of the training."""
    monkeypatch.chdir(trained.folder)
    return trained


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Options of a training that takes no time."""
    return (
        *("--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=1"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[type, dict[str, list[list[str]]]]]:
    """The folder of all data sets, and what torchvision is to expect of CIFAR."""
    root = tmp_path_factory.mktemp("data")
    for name in ("MNIST", "FashionMNIST"):
        make_mnist(root, name)
    make_tiny_imagenet(root)
    return root, {datasets.CIFAR10: make_cifar(root), datasets.CIFAR100: make_cifar(root, num_classes=100)}
