"""Files from strangers.

Checkpoints, archives, images and tables come from elsewhere. None of them may run code, write outside of its folder, or
take memory that has nothing to do with its size. Each file here is read in a process of its own: what must be refused
is refused with one message that names it, and the peak of memory above that at the start is noted.

The first table counts checkpoints with code in them, at every place where the command line or the library takes a file
of weights: the code leaves a file behind if it runs. In the second, checkpoints are damaged at random inside (with
checksums that are right again), or ask for a terabyte. Then come archives, as the data sets are downloaded in (none of
these has the checksum that a download must have; they are unpacked all the same), single images, folders of images, and
tables: IDX, CSV, NumPy's and Parquet.
"""

import copy
import io
import random
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import hostile_files as hostile
import pytest
import torch
from fake_data import make_cifar, make_image_folder, patch_cifar
from hostile_data import IMAGE_FOLDERS, TABLES, make_hostile_cache, read_table
from peaks import alone
from torch import nn
from torchvision import datasets

from lightning_nobp.callbacks import load_layers
from lightning_nobp.checkpoints import DamagedCheckpointError, load_checkpoint
from lightning_nobp.cli import main
from lightning_nobp.datamodules import CIFAR10DataModule, ImageFolderDataModule, cifar, tiny_imagenet
from lightning_nobp.datamodules.archives import unpack
from lightning_nobp.datamodules.images import decode
from lightning_nobp.nn import ResCNet
from lightning_nobp.rules import SparseProp

pytestmark = pytest.mark.reliability

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
RECIPE = ("--config=digits/backprop", *QUIET)


def command(*arguments: str) -> None:
    """A command's refusal as an error."""
    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        status = main(arguments)
    if status:
        raise ValueError(err.getvalue())


def layers(path: Path) -> None:
    shutil.copy(path, path.with_name("layer_0001.pt"))
    load_layers(ResCNet((1, 8, 8), 10, depth=2, channels=6, first_kernel_size=3), path.parent)


def pretrained(path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    SparseProp(network=network, num_classes=10, input_shape=(1, 8, 8)).load_pretrained(path)


DOORS: dict[str, Callable[[Path], Any]] = {
    **{
        f"nobp {name}": partial(lambda name, path: command(name, *RECIPE, f"--ckpt_path={path}"), name)
        for name in ("fit", "validate", "test", "predict")
    },
    "nobp export": lambda path: command("export", str(path), "net.pt2"),
    "load_checkpoint": load_checkpoint,
    "load_layers": layers,
    "SparseProp(pretrained=...)": pretrained,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, in which code would leave its mark."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    assert not list(tmp_path.rglob(hostile.TOUCHED))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", f"--trainer.default_root_dir={root}")
    alone(command, "fit", *RECIPE, *short)
    return load_checkpoint(next(root.rglob("last.ckpt")))


def with_code(content: dict[str, Any]) -> dict[str, Any]:
    """The same with code in each part of it."""
    places = ("callbacks", "hyper_parameters", "optimizer_states", "state_dict")
    found: dict[str, Any] = {f"in {key}": content | {key: {"x": hostile.Code()}} for key in places}
    return found | {"alone": hostile.Code(), "as a weight": content | {"state_dict": {"w": hostile.Code()}}}


@pytest.mark.parametrize("door", DOORS)
def test_code_in_a_checkpoint(folder, trained, count, door):
    tried, path, peak = 0, folder / "file.ckpt", 0.0
    for save in hostile.SAVED_WITH_CODE.values():
        for content in with_code(copy.deepcopy(trained)).values():
            save(content, path)
            found = alone(DOORS[door], path)
            assert found.said is not None
            assert "file.ckpt" in found.said or "layer_0001.pt" in found.said, found.said
            assert "Traceback" not in found.said
            assert not (folder / hostile.TOUCHED).exists()
            tried, peak = tried + 1, max(peak, found.mib)
    count("Code in checkpoints", given_to=door, files=tried, refused_by_name=tried, code_run=0, peak_mib=peak)


CALLS: dict[str, dict[str, Any]] = {
    "network": {"class_path": "subprocess.Popen", "init_args": {"args": "touch it-ran", "shell": True}},
    "optimizer": {"class_path": "subprocess.Popen", "init_args": {"args": "touch it-ran", "shell": True}},
    "lr_scheduler": {"class_path": "subprocess.Popen", "dict_kwargs": {"args": "touch it-ran", "shell": True}},
    "_class_path": "subprocess.Popen",
    "_instantiator": "os.system",
}


@pytest.mark.parametrize("door", ["nobp fit", "nobp validate", "nobp test", "nobp predict", "nobp export"])
def test_commands_as_arguments_in_a_checkpoint(folder, trained, count, door):
    """Safe loading lets names of classes through: they must be those of networks, optimizers and rules."""
    refused = 0
    for name, value in CALLS.items():
        torch.save(trained | {"hyper_parameters": trained["hyper_parameters"] | {name: value}}, folder / "file.ckpt")
        found = alone(DOORS[door], folder / "file.ckpt")
        assert not (folder / hostile.TOUCHED).exists()
        refused += found.said is not None
        assert found.said is not None or name == "_instantiator"
    count("Names of commands in checkpoints", given_to=door, files=len(CALLS), refused=refused, command_run=0)


def test_a_cache_of_images(folder, count):
    contents = {
        "code": hostile.Code(),
        "a terabyte of zeros": torch.zeros(1, dtype=torch.uint8).expand(2**40),
        "zeros of the right shape that take one byte": torch.zeros(1, dtype=torch.uint8).expand(24, 3, 8, 8),
        "floating point": torch.zeros(24, 3, 8, 8),
        "no tensor": [1, 2, 3],
    }
    for name, content in contents.items():
        root = folder / name
        make_hostile_cache(root, content)
        data = ImageFolderDataModule(root=str(root), image_size=8)
        with pytest.warns(UserWarning, match="train-8x8.pt is damaged"):
            images = data.load("train").images(torch.arange(24))
        assert images[0, 0, 0, 0] == 0
        assert images[23, 0, 0, 0] > 100
        count("Caches of decoded images, with right checksums", holds=name, came_of_it="a warning; images decoded anew")


def test_a_batch_of_cifar(folder, monkeypatch, count):
    patch_cifar(monkeypatch, datasets.CIFAR10, make_cifar(folder))
    batches = sorted((folder / "cifar-10-batches-py").iterdir())
    for path in batches:
        content = path.read_bytes()
        hostile.plain_pickle(hostile.Code(), path)
        with pytest.raises(ValueError, match=f"{path.name} is damaged: its md5 sum"):
            CIFAR10DataModule(root=str(folder)).load("train")
        path.write_bytes(content)
    about = {"files": len(batches), "refused_by_name": len(batches), "code_run": 0}
    count("Code in checkpoints", given_to="CIFAR10DataModule, as a batch of it", **about)


def damaged_inside(path: Path, into: Path, source: random.Random) -> None:
    """Some bytes of the pickle changed, with checksums that are right again."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        spoilt = bytearray(data)
        for _ in range(source.randint(1, 8)):
            spoilt[source.randrange(len(spoilt))] = source.randrange(256)
        return bytes(spoilt[: source.choice((len(spoilt), source.randrange(len(spoilt))))])

    hostile.rewrite(path, into, change)


def try_damaged(path: Path, into: Path, tries: int) -> dict[str, int]:
    found = {"refused": 0, "read": 0}
    source = random.Random(0)
    for _ in range(tries):
        damaged_inside(path, into, source)
        found["refused" if is_refused_by_name(into) else "read"] += 1
    return found


def is_refused_by_name(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except DamagedCheckpointError as error:
        return str(path) in str(error)
    return False


def test_checkpoints_damaged_inside(folder, trained, count, repetitions):
    torch.save(trained, folder / "whole.ckpt")
    tries = repetitions(3000)
    found = alone(try_damaged, folder / "whole.ckpt", folder / "file.ckpt", tries, seconds=600)
    assert found.said is None
    table = "Checkpoints that are damaged inside, or ask for memory"
    count(table, holds="changed bytes in its pickle", files=tries, **found.result, peak_mib=found.mib)
    assert found.mib < 1000


MEMORY: dict[str, Callable[[Path], None]] = {
    "3 GiB of zeros, compressed": lambda path: hostile.zip_of(
        path, "file/data/0", hostile.zeros(3 * hostile.GIB), 3 * hostile.GIB
    ),
    "50,000 names for the same 100 MiB": hostile.ZIPS["50,000 names for the same 100 MiB"],
    "a call that asks for a terabyte": lambda path: torch.save({"state_dict": {"w": hostile.Large()}}, path),
}


@pytest.mark.parametrize("name", MEMORY)
def test_checkpoints_that_ask_for_memory(folder, count, name):
    MEMORY[name](folder / "file.ckpt")
    found = alone(load_checkpoint, folder / "file.ckpt")
    assert "file.ckpt" in str(found.said)
    assert found.mib < 100
    table = "Checkpoints that are damaged inside, or ask for memory"
    count(table, holds=name, files=1, refused=1, read=0, peak_mib=found.mib)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, cases in (("zip", hostile.ZIPS), ("tar", hostile.TARS)) for name in cases]
)
def test_archives(folder, count, kind, name):
    archive, cases = (folder / "a.zip", hostile.ZIPS) if kind == "zip" else (folder / "a.tar.gz", hostile.TARS)
    limits = tiny_imagenet.LIMITS if kind == "zip" else cifar.LIMITS
    cases[name](archive)
    (folder / "in" / "to").mkdir(parents=True)
    found = alone(unpack, archive, folder / "in" / "to", limits)
    assert found.said is not None
    assert sorted(path.name for path in folder.iterdir()) == [archive.name, "in"]
    assert [path.name for path in (folder / "in").iterdir()] == ["to"]
    written = sum(path.stat().st_size for path in folder.rglob("to/**/*") if path.is_file())
    assert written <= limits.size
    about = {"bytes": archive.stat().st_size, "written_outside": 0, "written_mib": round(written / hostile.MIB)}
    count("Archives, all refused", archive=kind, holds=name, **about, peak_mib=found.mib)
    assert found.mib < 600


@pytest.mark.parametrize("name", hostile.REFUSED_IMAGES | hostile.READ_IMAGES)
def test_images(folder, count, name):
    suffix, make = (hostile.REFUSED_IMAGES | hostile.READ_IMAGES)[name]
    path = folder / f"image{suffix}"
    path.write_bytes(make())
    found = alone(decode, path, (32, 32), True)
    assert (found.said is not None) == (name in hostile.REFUSED_IMAGES)
    assert found.said is None or str(path) in found.said
    came_of_it = "read" if found.said is None else "refused by name"
    count("Images", image=name, bytes=path.stat().st_size, came_of_it=came_of_it, peak_mib=found.mib)
    assert found.mib < 600


def load(root: Path) -> None:
    data = ImageFolderDataModule(root=str(root), image_size=8, val_size=0)
    data.prepare_data()


@pytest.mark.parametrize("name", IMAGE_FOLDERS)
def test_image_folders(folder, count, name):
    change, words = IMAGE_FOLDERS[name]
    change(make_image_folder(folder))
    found = alone(load, folder)
    assert (found.said is None) == (words is None), found.said
    assert words is None or words in str(found.said)
    assert "\n" not in str(found.said)
    came_of_it = "read" if found.said is None else "refused by name"
    count("Folders of images", holds=name, came_of_it=came_of_it, peak_mib=found.mib)
    assert found.mib < 200


@pytest.mark.parametrize("name", TABLES)
def test_tables(folder, count, name):
    suffix, make = TABLES[name]
    path = folder / f"table.{suffix}"
    make(path)
    found = alone(read_table, path)
    assert str(path) in str(found.said), found.said
    assert "\n" not in str(found.said)
    count("Tables, all refused by name", file=name, bytes=path.stat().st_size, peak_mib=found.mib)
    assert found.mib < 300
