"""What every test starts from: one thread, so that results are exactly repeatable, and no wandb online."""

import os
from pathlib import Path

import pytest
import torch

from lightning_nobp import csrc

os.environ.setdefault("WANDB_MODE", "offline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels", type=Path, help="folder of compiled kernels to test, instead of the installed ones")


def pytest_configure(config: pytest.Config) -> None:
    if folder := config.getoption("--kernels"):
        csrc._FOLDER = folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_seed_of_another_test() -> None:
    # Lightning leaves its seed in the environment, and goes back to it when a later test starts processes.
    os.environ.pop("PL_GLOBAL_SEED", None)
