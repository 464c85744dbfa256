"""Full and read-only disks, bad servers, damaged data.

Each command works on a disk (a small one in memory) with so much room left, from none to more than enough, in pages of
4 KiB. It either does its work, with a warning for what it can do without (pictures, decoded images), or ends
with one line that names the file; whatever it leaves behind must be whole: checkpoints with all their checksums, tables
without part of a row, pictures, predictions. Then there is room again, and the same command must do its work; a
training goes on by ``--ckpt_path last-good``.

The second table tells what commands say where a folder is read-only. The third counts downloads of every data set from
a server on this machine that misbehaves: each must end with one error that says what to do by hand, leave nothing
behind, and work at the next try. The fourth counts images and series that are cut at a random byte or deleted. The last
one is about Weights & Biases.
"""

import csv
import json
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from bad_server import FAULTS, KINDS, SAMPLES, serving
from disks import PAGE, read_only, room, small_disk
from fake_data import make_image_folder
from killing import live
from limits import time_limit
from PIL import Image
from test_load import NOBP, environment

from lightning_nobp.checkpoints import load_checkpoint
from lightning_nobp.datamodules.images import decode
from lightning_nobp.datamodules.series_files import read_series

pytestmark = pytest.mark.reliability

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
SHORT = ("--config=digits/backprop", "--trainer.limit_train_batches=20", "--trainer.log_every_n_steps=1", *QUIET)
FIT = ("fit", *SHORT, "--trainer.callbacks+=lightning_nobp.callbacks.LogFigures", "--ckpt_path=last-good")


def train_on_images(root: Path, runs: Path) -> tuple[str, ...]:
    return (
        *("fit", "--model=Backprop", "--model.network=MLP", "--model.optimizer=torch.optim.SGD"),
        *("--model.optimizer.lr=0.01", "--data=ImageFolderDataModule", f"--data.root={root}", "--data.image_size=16"),
        *("--data.val_size=6", "--data.batch_size=6", "--trainer.max_epochs=1"),
        *(f"--trainer.default_root_dir={runs}", *QUIET),
    )


def said(log: Path) -> str:
    """The line with which a command ended, after which nothing came."""
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    assert lines, "it said nothing"
    assert lines[-1].startswith("nobp: "), lines
    assert "Traceback" not in log.read_text(), log.read_text()
    return lines[-1]


def check(root: Path) -> int:
    """How many files there are; each must be whole."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "ballast"]
    for path in files:
        if path.suffix == ".ckpt":
            load_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict), path
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                assert len({len(row) for row in csv.reader(file)}) == 1, path
            assert path.read_bytes().endswith(b"\n"), path
        elif path.suffix in (".png", ".jpg"):
            Image.open(path).load()
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".parquet":
            pyarrow.parquet.read_table(path)
        elif path.suffix == ".onnx":
            onnx.load(path)
        elif path.suffix == ".pt2":
            torch.export.load(path)
        else:
            # Of others it is enough that none lies under a name of something half done.
            assert not path.name.startswith(".") or path.name.endswith(".lock"), path
    return len(files)


def sweep(disk: Path, log: Path, command: tuple[str, ...], pages: list[int], prepare: Any) -> dict[str, Any]:
    """Try a command with so much room each time, and again with all of it."""
    named: Counter[str] = Counter()
    checked = finished = 0
    for page in pages:
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        prepare(disk)
        log.unlink(missing_ok=True)
        with room(disk, page * PAGE):
            status = live(command, log).status
            checked += check(disk)
        if status:
            line = said(log)
            assert "No space left" in line, line
            path = Path(line.rpartition("'")[0].rpartition("'")[2])
            assert path.name, line
            named["*.ckpt" if path.suffix == ".ckpt" else (path.suffix and path.name) or "a folder"] += 1
        finished += not status
        assert live(command, log).status == 0, log.read_text()
        check(disk)
    about = ", ".join(f"{name} {number}" for name, number in named.most_common())
    return {"tries": len(pages), "did_its_work": finished, "ended_with_a_line_about": about, "files_checked": checked}


def spread(most: int, number: int) -> list[int]:
    """So many different numbers from 0 to the most."""
    return sorted({round(most * k / max(1, number - 1)) for k in range(number)})


@pytest.fixture
def disk(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", mib=16) as folder:
        monkeypatch.chdir(folder)
        yield folder
        monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(tmp_path):
    """A folder in which a recipe was trained for an epoch."""
    root = tmp_path / "trained"
    command = ("fit", *SHORT, "--trainer.max_epochs=1", f"--trainer.default_root_dir={root}")
    assert live(command, tmp_path / "log.txt").status == 0
    return root


def test_training_on_a_disk_that_fills_up(disk, tmp_path, trained, count, repetitions):
    command = (*FIT, "--trainer.max_epochs=2")
    with time_limit(1800):
        found = sweep(
            disk,
            tmp_path / "log.txt",
            command,
            spread(180, repetitions(24)),
            lambda d: shutil.copytree(trained, d / "runs"),
        )
    count("Full disks", what="going on with a training", **found)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "pt"])
def test_predictions_on_a_full_disk(disk, tmp_path, trained, count, repetitions, suffix):
    [checkpoint] = trained.rglob("last.ckpt")
    command = ("predict", *SHORT, f"--ckpt_path={checkpoint}", f"--predictions.path=predictions.{suffix}")
    found = sweep(disk, tmp_path / "log.txt", command, spread(30, repetitions(6)), lambda d: None)
    count("Full disks", what=f"predictions as .{suffix}", **found)


@pytest.mark.parametrize(("what", "most"), [("net.pt2", 60), ("net.onnx", 20)])
def test_an_export_on_a_full_disk(disk, tmp_path, trained, count, repetitions, what, most):
    [checkpoint] = trained.rglob("last.ckpt")
    pages = spread(most, repetitions(4))
    found = sweep(disk, tmp_path / "log.txt", ("export", str(checkpoint), what), pages, lambda d: None)
    count("Full disks", what=f"exporting {what}", **found)


def test_a_project_on_a_full_disk(disk, tmp_path, count, repetitions):
    log = tmp_path / "log.txt"
    named = 0
    for page in spread(8, repetitions(9)):
        with room(disk, page * PAGE):
            status = live(("new", "mine"), log).status
        assert (status == 0) or "No space left" in said(log)
        named += status != 0
        shutil.rmtree(disk / "mine", ignore_errors=True)
    count("Full disks", what="a new project", tries=repetitions(9), did_its_work=repetitions(9) - named)


def test_decoded_images_on_a_full_disk(disk, tmp_path, count, repetitions):
    make_image_folder(tmp_path / "source")
    found = sweep(
        disk,
        tmp_path / "log.txt",
        train_on_images(disk / "images", tmp_path / "runs"),
        spread(10, repetitions(6)),
        lambda d: shutil.copytree(tmp_path / "source", d / "images"),
    )
    # The cache is all that is written there: the training needs no room.
    assert found["did_its_work"] == found["tries"]
    count("Full disks", what="training on images, of which none can be kept decoded", **found)


def test_a_comparison_on_a_full_disk(disk, tmp_path, count, repetitions):
    quick = ("--set", "trainer.max_epochs=1", "--set", "data.repeats=20")
    command = ("compare", "xor/mgd", "--seeds=2", *quick, "--out=out")
    named, pages = 0, spread(120, repetitions(5))
    for page in pages:
        with room(disk, page * PAGE):
            run = subprocess.run([*NOBP, *command], cwd=disk, env=environment(), capture_output=True, text=True)
            check(disk)
        assert "Traceback" not in run.stderr
        assert run.returncode == 0 or "No space left" in run.stderr + run.stdout, run.stderr + run.stdout
        named += run.returncode != 0
        shutil.rmtree(disk / "out", ignore_errors=True)
    count("Full disks", what="a comparison", tries=len(pages), did_its_work=len(pages) - named)


def test_read_only_folders(tmp_path, monkeypatch, trained, count):
    log, folder = tmp_path / "log.txt", tmp_path / "locked"
    [checkpoint] = trained.rglob("last.ckpt")
    make_image_folder(folder / "images")
    commands = {
        "data that are there": (0, train_on_images(folder / "images", tmp_path / "runs")),
        "data to be downloaded": (
            1,
            (
                "fit",
                "--config=mnist/backprop",
                f"--data.root={folder / 'data'}",
                f"--trainer.default_root_dir={tmp_path / 'runs'}",
            ),
        ),
        "the folder of runs": (1, ("fit", *SHORT, f"--trainer.default_root_dir={folder / 'runs'}")),
        "the current folder": (1, ("fit", *SHORT)),
        "predictions": (1, ("predict", *SHORT, f"--ckpt_path={checkpoint}", f"--predictions.path={folder / 'p.csv'}")),
        "results of a comparison": (1, ("compare", "xor/mgd", f"--out={folder / 'out'}")),
        "an exported network": (2, ("export", str(checkpoint), str(folder / "net.pt2"))),
        "a copied recipe": (1, ("copy", "xor/mgd", str(folder / "mine.yaml"))),
        "a new project": (1, ("new", str(folder / "mine"))),
    }
    with read_only(folder):
        monkeypatch.chdir(folder)
        for what, (status, command) in commands.items():
            log.unlink(missing_ok=True)
            assert live(command, log).status == status, log.read_text()
            line = said(log) if status else "done: images are decoded anew"
            line = line.replace(str(folder), "FOLDER")
            count("Read-only folders", read_only=what, exit_status=status, said=line.removeprefix("nobp: "))
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_downloads_from_bad_servers(kind, tmp_path, monkeypatch, count, repetitions):
    tries = repetitions(10)
    with serving(kind, tmp_path, monkeypatch) as server:
        for number in range(tries):
            for fault in FAULTS:
                server.fault, root = fault, tmp_path / f"{number}-{fault}"
                data = kind(root=str(root), val_size=0.2)
                with (
                    time_limit(30),
                    pytest.raises(OSError, match=r"could not be downloaded \(.+ To do it by hand, .*root="),
                ):
                    data.prepare_data()
                assert [path for path in root.rglob("*") if not path.name.endswith(".lock")] == []
                server.fault = ""
                data.prepare_data()
                assert len(data.load("train").labels) == SAMPLES[kind]
    name = kind.__name__.removesuffix("DataModule")
    refused = tries * len(FAULTS)
    count(
        "Bad servers",
        data=name,
        faults=len(FAULTS),
        downloads=refused,
        refused=refused,
        installed_by_the_next_try=refused,
    )


def refused_by_name(path: Path) -> bool:
    try:
        read_series(path) if path.stem == "series" else decode(path, (40, 40), resize=False)
    except ValueError as error:
        return str(path) in str(error)
    return False


def test_files_cut_at_any_byte(tmp_path, count, repetitions):
    x = np.random.default_rng(0).normal(size=(60, 3, 2))
    np.savez_compressed(tmp_path / "series.npz", x=x)
    np.save(tmp_path / "series.npy", x)
    pyarrow.parquet.write_table(pyarrow.table({"a.x": x[:, 0, 0], "a.y": x[:, 0, 1]}), tmp_path / "series.parquet")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "bmp", "gif", "tiff", "webp", "ppm"):
        image.save(tmp_path / f"image.{suffix}")
    source = random.Random(0)
    for path in sorted(tmp_path.iterdir()):
        content, whole = path.read_bytes(), 0
        cuts = [source.randrange(len(content)) for _ in range(repetitions(200))]
        for cut in cuts:
            path.write_bytes(content[:cut])
            whole += not refused_by_name(path)
        count(
            "Files cut short",
            file=path.suffix,
            cuts=len(cuts),
            refused_by_name=len(cuts) - whole,
            read_all_the_same=whole,
        )
        # Of some formats the last bytes hold nothing.
        assert whole <= len(cuts) / 20


@pytest.mark.parametrize("how", ["read-only", "full"])
def test_weights_and_biases_that_cannot_write(tmp_path, disk, count, how):
    """Its record may be lost, the run's own checkpoints may not."""
    runs = tmp_path / "runs"
    command = ["fit", *SHORT, "--trainer.max_epochs=3", "--config=loggers/wandb", "--trainer.logger.offline=true"]
    command += [f"--trainer.logger.save_dir={disk}", f"--checkpoint.dirpath={runs}"]
    variables = environment() | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*NOBP, *command], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
        )

    if how == "full":
        with room(disk, 40 * PAGE):
            found = run()
    else:
        with read_only(disk):
            found = run()
    assert "Traceback" not in found.stderr, found.stderr
    lines = [line.replace(str(disk), "FOLDER") for line in found.stderr.splitlines() if line.startswith("nobp: ")]
    checkpoints = [load_checkpoint(path) for path in runs.rglob("*.ckpt")]
    assert found.returncode in (0, 1)
    assert (found.returncode == 1) == bool(lines)
    assert checkpoints or found.returncode == 1
    count(
        "Weights & Biases",
        folder=how,
        exit_status=found.returncode,
        said="; ".join(lines),
        checkpoints=len(checkpoints),
    )
