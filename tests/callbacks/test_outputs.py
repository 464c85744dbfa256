"""The summary at the end of fit, and files of predictions."""

import csv
from pathlib import Path

import pytest
import torch
from ddp_training import predict_spawned
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import backprop, blobs, loader, trainer

from lightning_nobp.callbacks import FitSummary, PredictionWriter
from lightning_nobp.datamodules import DigitsDataModule


def read(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_summary_says_what_was_reached_and_what_to_do_next(tmp_path, capsys):
    saved = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max", filename="best")
    run = trainer(tmp_path, max_epochs=3, callbacks=[saved, FitSummary("nobp test {run}")], enable_checkpointing=True)
    run.fit(backprop(), loader(), loader())
    text = capsys.readouterr().out
    assert "3, 18" in text
    assert f"{float(saved.best_model_score):.2%}" in text
    assert f"next: nobp test {tmp_path}" in text


def test_summary_without_validation_and_checkpoints(tmp_path, capsys):
    trainer(tmp_path, callbacks=[FitSummary("nobp test {run}")]).fit(backprop(), loader())
    text = capsys.readouterr().out
    assert "parameters" in text
    assert "val/accuracy" not in text
    assert "next" not in text


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written_in_order(tmp_path, suffix):
    path = tmp_path / "some" / f"predictions.{suffix}"
    rule = backprop()
    trainer(tmp_path, callbacks=[PredictionWriter(str(path))]).predict(rule, loader())
    if suffix == "csv":
        rows = read(path)
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    x, target = blobs().tensors
    probabilities = rule(x).softmax(-1)
    assert [int(r["index"]) for r in rows] == list(range(96))
    assert [int(r["target"]) for r in rows] == target.tolist()
    assert [int(r["prediction"]) for r in rows] == probabilities.argmax(-1).tolist()
    torch.testing.assert_close(torch.tensor([float(r["probability_2"]) for r in rows]), probabilities[:, 2].detach())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_predictions_without_targets(tmp_path):
    data = torch.utils.data.DataLoader(blobs().tensors[0], batch_size=16)
    trainer(tmp_path, callbacks=[PredictionWriter()]).predict(backprop(), data)
    assert "target" not in read(tmp_path / "predictions.csv")[0]


def test_two_processes_write_one_file_in_order(tmp_path):
    predict_spawned(tmp_path)
    rows = read(tmp_path / "predictions.csv")
    data = DigitsDataModule()
    data.setup("test")
    assert [int(r["index"]) for r in rows] == list(range(359))
    assert [int(r["target"]) for r in rows] == data._sets["test"][0].labels.tolist()


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match=r"predictions\.xls.*\.csv or \.parquet"):
        PredictionWriter("predictions.xls")
