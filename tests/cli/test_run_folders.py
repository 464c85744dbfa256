"""Each run has a folder of its own, also when several begin at the same moment, and keeps what it wrote there."""

import csv
import errno
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from filelock import FileLock
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from test_files import files_of_at_most

from lightning_nobp.cli import compare
from lightning_nobp.cli.run_logger import RunLogger, reserve


@pytest.mark.parametrize("kind", [CSVLogger, RunLogger, TensorBoardLogger])
def test_a_number_that_another_run_has_taken_is_left_to_it(tmp_path, kind):
    one, other = kind(str(tmp_path), name="xor"), kind(str(tmp_path), name="xor")
    # Both have looked before either has a folder.
    looked = other._get_next_version()
    other._get_next_version = iter([looked, 1]).__next__
    reserve(one)
    reserve(other)
    assert (one.version, other.version) == (0, 1)
    assert sorted(p.name for p in (tmp_path / "xor").iterdir()) == ["version_0", "version_1"]


def test_a_number_that_was_given_is_used_again(tmp_path):
    for _ in range(2):
        logger = RunLogger(str(tmp_path), name="xor", version=3)
        reserve(logger)
        assert logger.version == 3


def test_other_processes_of_a_run_make_no_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.fabric.utilities.rank_zero.rank_zero_only.rank", 1)
    reserve(RunLogger(str(tmp_path), name="xor"))
    assert list(tmp_path.iterdir()) == []


def rows(logger):
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_those_of_lightnings_own_logger(tmp_path):
    loggers = [kind(str(tmp_path / kind.__name__)) for kind in (CSVLogger, RunLogger)]
    for logger in loggers:
        for step in range(250):
            logger.log_metrics({"train/loss": 1 / (step + 1)} | ({"val/loss": step} if step % 120 == 119 else {}), step)
        logger.finalize("success")
    lightnings, ours = map(rows, loggers)
    assert ours == lightnings
    assert len(ours) == 250


@pytest.mark.parametrize("more", [{"a": 1.0}, {"a": 1.0, "b": 2.0}], ids=["same columns", "a new column"])
def test_a_full_disk_costs_no_metrics_that_were_written(tmp_path, more):
    logger = RunLogger(str(tmp_path))
    logger.log_metrics({"a": 0.5}, step=0)
    logger.save()
    for step in range(1, 500):
        logger.log_metrics(more, step) if step % 100 != 99 else logger.experiment.log_metrics(more, step)
    with files_of_at_most(300), pytest.raises(OSError, match=r"metrics\.csv") as caught:
        logger.save()
    assert caught.value.errno == errno.EFBIG
    assert [(row["a"], row["step"]) for row in rows(logger)] == [("0.5", "0")]
    logger.save()
    assert [row["step"] for row in rows(logger)] == [str(step) for step in range(500)]


def test_comparisons_of_the_same_second_get_folders_of_their_own(tmp_path):
    made = [compare._new_folder(tmp_path / "compare" / "now") for _ in range(3)]
    assert [folder.name for folder in made] == ["now", "now_2", "now_3"]


def test_a_folder_in_which_a_comparison_goes_on_is_refused(nobp, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        found = nobp("compare", "xor/mgd", "--out=out")
    assert found.status == 2
    assert found.err == "nobp: --out=out: another comparison is writing there; give another folder\n"


def test_runs_that_start_at_the_same_instant_do_not_mix(tmp_path, quick):
    code = "import sys; from lightning_nobp.cli import main; sys.stdin.readline(); sys.exit(main())"
    command = [sys.executable, "-c", code, "fit", "--config=digits/backprop", *quick]
    with chdir(tmp_path):
        runs = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL) for _ in "12"]
        for run in runs:
            run.stdin.write("now\n")
            run.stdin.flush()
        assert [run.wait() for run in runs] == [0, 0]
    one, other = sorted((tmp_path / "runs/digits/backprop").iterdir())
    assert (one.name, other.name) == ("version_0", "version_1")
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    for name in ("config.yaml", "run.json", "hparams.yaml", "checkpoints/last.ckpt"):
        assert (one / name).is_file()
        assert (other / name).is_file()
