"""The summary at the end of fit, and files of predictions."""

import csv
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from ddp_training import predict_spawned
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import backprop, blobs, loader, trainer

from lightning_nobp.callbacks import FitSummary, PredictionWriter
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import EquivariantMLP, QuaternionAutoencoder
from lightning_nobp.rules import QuaternionBackprop


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


def test_a_small_loss_is_no_zero_in_the_summary(tmp_path, capsys):
    class Tiny(FitSummary):
        def on_fit_end(self, trainer, pl_module):
            trainer.callback_metrics["train/loss_epoch"] = torch.tensor(1.5e-9)
            super().on_fit_end(trainer, pl_module)

    trainer(tmp_path, callbacks=[Tiny()]).fit(backprop(), loader())
    assert "1.5e-09 (mean of the last epoch)" in capsys.readouterr().out


def test_summary_without_validation_and_checkpoints(tmp_path, capsys):
    trainer(tmp_path, callbacks=[FitSummary("nobp test {run}")]).fit(backprop(), loader())
    text = capsys.readouterr().out
    assert "parameters" in text
    assert "val/accuracy" not in text
    assert "next" not in text


def test_summary_without_validation_names_the_last_checkpoint(tmp_path, capsys):
    never, last = ModelCheckpoint(tmp_path, monitor="val/accuracy"), ModelCheckpoint(tmp_path, filename="last")
    callbacks = [never, last, FitSummary("nobp test {run}")]
    trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True).fit(backprop(), loader())
    text = capsys.readouterr().out
    assert f"checkpoint: {tmp_path / 'last.ckpt'}" in text.replace("\n", "")
    assert "next: nobp test" in text


def test_summary_of_a_fast_dev_run_names_no_folder(tmp_path, capsys):
    trainer(tmp_path, callbacks=[FitSummary()], fast_dev_run=True).fit(backprop(), loader(), loader())
    text = capsys.readouterr().out
    assert "parameters" in text
    assert "run folder" not in text


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written_in_order(tmp_path, suffix):
    path = tmp_path / "some" / f"predictions.{suffix}"
    rule = backprop()
    trainer(tmp_path, callbacks=[PredictionWriter(str(path))]).predict(rule, loader())
    rows = read(path) if suffix == "csv" else pyarrow.parquet.read_table(path).to_pylist()
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


def batches(num_samples):
    """A loader of whole batches, which knows of no samples."""
    x, target = blobs(num_samples).tensors
    pieces = [(x[k : k + 16], target[k : k + 16]) for k in range(0, num_samples, 16)]
    return torch.utils.data.DataLoader(pieces, batch_size=None)


def predict_on_two(folder, rule, data):
    writer = PredictionWriter(str(folder / "predictions.csv"))
    run = trainer(folder, strategy="ddp_spawn", devices=2, callbacks=[writer])
    run.predict(rule, data, return_predictions=False)


def assert_rows_are_those_of(rows, data, rule):
    x, target = data.tensors
    assert [int(r["index"]) for r in rows] == list(range(len(target)))
    assert [int(r["target"]) for r in rows] == target.tolist()
    found = torch.tensor([float(r["probability_2"]) for r in rows])
    torch.testing.assert_close(found, rule(x).softmax(-1)[:, 2].detach())


def test_a_shuffled_loader_gives_rows_in_the_order_of_the_data(tmp_path):
    rule = backprop()
    callbacks = [PredictionWriter(str(tmp_path / "p.csv"))]
    trainer(tmp_path, callbacks=callbacks).predict(rule, loader(103, shuffle=True))
    assert_rows_are_those_of(read(tmp_path / "p.csv"), blobs(103), rule)


def test_two_processes_with_an_ordinary_loader_write_rows_in_the_order_of_the_data(tmp_path):
    rule = backprop()
    predict_on_two(tmp_path, rule, loader(103))
    assert_rows_are_those_of(read(tmp_path / "predictions.csv"), blobs(103), rule)


def test_two_processes_with_a_loader_that_tells_no_indices_leave_them_away(tmp_path, capfd):
    predict_on_two(tmp_path, backprop(), batches(48))
    rows = read(tmp_path / "predictions.csv")
    assert list(rows[0]) == ["prediction", "target", *(f"probability_{k}" for k in range(3))]
    first, second, third = (target.tolist() for _, target in batches(48))
    assert [int(r["target"]) for r in rows] == [*first, *third, *second]
    assert capfd.readouterr().err.count("the predictions have no column 'index'") == 1


def test_one_process_counts_the_rows_of_a_loader_that_tells_no_indices(tmp_path):
    rule = backprop()
    trainer(tmp_path, callbacks=[PredictionWriter()]).predict(rule, batches(48))
    assert_rows_are_those_of(read(tmp_path / "predictions.csv"), blobs(48), rule)


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match=r"predictions\.xls.*\.csv, \.parquet or \.pt"):
        PredictionWriter("predictions.xls")


def predict_regression(folder, name, network, inputs, targets):
    rule = QuaternionBackprop(network=network, task="regression", loss="mse")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=4)
    trainer(folder, callbacks=[PredictionWriter(str(folder / name))]).predict(rule, data)
    return rule(inputs).detach()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_without_classes_the_columns_are_outputs_and_targets(tmp_path, suffix):
    inputs, targets = torch.randn(6, 8), torch.randn(6, 4)
    outputs = predict_regression(tmp_path, f"p.{suffix}", EquivariantMLP(8, hidden_dims=()), inputs, targets)
    rows = (
        read(tmp_path / "p.csv") if suffix == "csv" else pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist()
    )
    assert list(rows[0]) == ["index", *(f"output_{k}" for k in range(4)), *(f"target_{k}" for k in range(4))]
    for name, expected in (("output", outputs), ("target", targets)):
        found = torch.tensor([[float(row[f"{name}_{k}"]) for k in range(4)] for row in rows])
        torch.testing.assert_close(found, expected)


def test_maps_make_no_table_but_a_file_of_tensors(tmp_path):
    images = torch.rand(6, 3, 20, 20)
    network = QuaternionAutoencoder(channels=(4,))
    with pytest.raises(ValueError, match=r"outputs of shape \(3, 20, 20\) make no table: .*predictions\.path=.*\.pt"):
        predict_regression(tmp_path, "p.csv", network, images, images)
    assert not (tmp_path / "p.csv").exists()
    outputs = predict_regression(tmp_path, "p.pt", network, images, images)
    found = torch.load(tmp_path / "p.pt", weights_only=True)
    assert found["index"].tolist() == list(range(6))
    torch.testing.assert_close(found["output"], outputs)
    assert torch.equal(found["target"], images)


def test_classes_make_a_file_of_tensors_too(tmp_path):
    trainer(tmp_path, callbacks=[PredictionWriter(str(tmp_path / "p.pt"))]).predict(backprop(), loader())
    found = torch.load(tmp_path / "p.pt", weights_only=True)
    assert list(found) == ["index", "prediction", "target", "probability"]
    assert torch.equal(found["prediction"], found["probability"].argmax(-1))


def test_summary_says_that_no_validation_was_due(tmp_path, capsys):
    trainer(tmp_path, check_val_every_n_epoch=9, callbacks=[FitSummary()]).fit(backprop(), loader(), loader())
    assert "none was due" in capsys.readouterr().out
    trainer(tmp_path, callbacks=[FitSummary()]).fit(backprop(), loader(), loader())
    assert "none was due" not in capsys.readouterr().out
