"""What every test starts from: one thread, so that results are exactly repeatable, and no wandb online."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
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


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built of it where there is no compiler."""
    checkout, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("distributions")
    # A copy: building leaves files behind.
    source = folder / "source"
    for name in ("lightning_nobp", "recipes", "tests"):
        shutil.copytree(checkout / name, source / name)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(checkout / name, source)
    # What a work tree may hold beside what is meant for others.
    for name in ("lightning_nobp/cli/template/tests/__pycache__", "recipes/digits/__pycache__"):
        (source / name).mkdir(exist_ok=True)
        (source / name / "stray.cpython-311.pyc").write_bytes(b"")
    has_setuptools = int(version("setuptools").partition(".")[0]) >= 77
    isolation = ["--no-isolation"] if has_setuptools else []
    command = [sys.executable, "-m", "build", *isolation, "--outdir", str(folder), str(source)]
    run = subprocess.run(command, env=os.environ | {"CC": "false", "CXX": "false"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel
