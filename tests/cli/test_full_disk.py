"""A full disk ends a command with one line that names the file; what was saved before is whole."""

import json
import re

import pytest
from test_files import files_of_at_most

from lightning_nobp.checkpoints import load_checkpoint
from lightning_nobp.cli import compare_runs


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(nobp, tmp_path, quick):
    assert nobp("fit", "--config=digits/backprop", *quick).status == 0
    again = ("fit", "--config=digits/backprop", *quick, "--trainer.max_epochs=3", "--ckpt_path=last-good")
    with files_of_at_most(30_000):
        full = nobp(*again)
    assert full.status == 1
    start, line = full.err.splitlines()
    assert start == "nobp: goes on from runs/digits/backprop/version_0/checkpoints/last.ckpt"
    assert re.fullmatch(r"nobp: .*what was saved before is whole; .*last-good goes on.*/epoch=\S+\.ckpt'", line)
    for checkpoint in tmp_path.rglob("*.ckpt"):
        load_checkpoint(checkpoint)
    assert list(tmp_path.rglob(".*.ckpt*")) == []
    assert nobp(*again).status == 0


@pytest.mark.parametrize(("size", "name"), [(100, "hparams.yaml"), (6_000, "metrics.csv")])
def test_a_file_of_the_run_that_cannot_be_written_is_named(nobp, quick, size, name):
    long = ("--trainer.limit_train_batches=400", "--trainer.max_epochs=20", "--trainer.enable_checkpointing=false")
    with files_of_at_most(size):
        full = nobp("fit", "--config=digits/backprop", *quick, *long)
    assert full.status == 1
    assert re.fullmatch(rf"nobp: .*File too large: 'runs/digits/backprop/version_0/{name}'", full.err.strip())


@pytest.mark.parametrize("suffix", ["csv", "parquet", "pt"])
def test_predictions_that_cannot_be_written_leave_those_before(nobp, in_trained, tmp_path, suffix):
    path = tmp_path / f"predictions.{suffix}"
    command = ("predict", "--config=digits/backprop", "--ckpt_path=best", f"--predictions.path={path}")
    assert nobp(*command).status == 0
    before = path.read_bytes()
    with files_of_at_most(2000):
        full = nobp(*command)
    assert full.status == 1
    assert full.err.splitlines()[-1] == f"nobp: [Errno 27] File too large: '{path}'"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_an_export_that_cannot_be_written_leaves_the_one_before(nobp, trained, tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    path.write_bytes(b"before")
    with files_of_at_most(2000):
        full = nobp("export", trained.run / "checkpoints" / "last.ckpt", path)
    assert full.status == 2
    assert full.err.splitlines()[-1] == f"nobp: [Errno 27] File too large: '{path}'"
    assert path.read_bytes() == b"before"


def test_results_that_cannot_be_written_leave_those_before(nobp, tmp_path, monkeypatch):
    result = {"test_accuracy": 0.5, "seconds": 1.0}
    monkeypatch.setattr(compare_runs, "_in_process", lambda *_: result)
    path = tmp_path / "out" / "results.json"
    with files_of_at_most(700):
        full = nobp("compare", "xor/mgd", "--seeds=9", "--out", path.parent)
    assert full.status == 1
    assert full.err == f"nobp: [Errno 27] File too large: '{path}'\n"
    assert 0 < len(json.loads(path.read_text())["results"]) < 9


def test_a_project_that_cannot_be_written_names_the_file(nobp):
    with files_of_at_most(10):
        full = nobp("new", "mine")
    assert full.status == 1
    assert re.fullmatch(r"nobp: \[Errno 27\] File too large: 'mine/\S+'\n", full.err)
