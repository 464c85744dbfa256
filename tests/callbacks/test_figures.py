"""Figures and histograms reach whichever logger is there."""

import csv
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from test_files import files_of_at_most
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import LogFigures, run_folder
from lightning_nobp.callbacks.figures import MOST_BINS, confusion_figure, histogram_figure


def fit(folder, logger, **kwargs):
    run = trainer(folder, logger=logger, callbacks=[LogFigures(**kwargs)], max_epochs=2)
    run.fit(backprop(gradient_clip_val=1e-3), loader(), loader())
    return run


def test_pictures_without_a_logger_for_them(tmp_path):
    run = fit(tmp_path, CSVLogger(tmp_path))
    assert run_folder(run) == tmp_path / "lightning_logs" / "version_0"
    names = sorted(p.name for p in (run_folder(run) / "figures").iterdir())
    assert names == [f"{kind}-step={step}.png" for kind in ("histograms", "val_confusion") for step in (11, 5)]


def test_pictures_have_the_step_of_the_metrics_when_several_batches_make_one_step(tmp_path):
    run = trainer(tmp_path, logger=CSVLogger(tmp_path), callbacks=[LogFigures()], max_epochs=2)
    run.fit(backprop(accumulate_grad_batches=3), loader(), loader())
    with (run_folder(run) / "metrics.csv").open() as file:
        steps = {row["step"] for row in csv.DictReader(file) if row.get("val/accuracy")}
    assert run.global_step == 4
    assert steps == {"5", "11"}
    names = {p.stem for p in (run_folder(run) / "figures").iterdir()}
    assert names == {f"{kind}-step={step}" for kind in ("histograms", "val_confusion") for step in steps}


def test_fast_dev_run_writes_no_pictures(tmp_path):
    run = trainer(tmp_path, callbacks=[LogFigures()], fast_dev_run=True)
    run.fit(backprop(), loader(), loader())
    assert not list(tmp_path.iterdir())


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Mine(TensorBoardLogger):
        """A logger of one's own is still one."""

    run = fit(tmp_path, Mine(tmp_path))
    events = EventAccumulator(str(run_folder(run)), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    assert events.Tags()["images"] == ["val/confusion"]
    assert [image.step for image in events.Images("val/confusion")] == [5, 11]
    histograms = set(events.Tags()["histograms"])
    assert {"weights/network.1.weight", "gradients/network.1.weight"} <= histograms
    [first, _] = events.Histograms("weights/network.1.weight")
    assert first.histogram_value.num == 48
    assert not (run_folder(run) / "figures").exists()


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    # Lightning overwrites it; set here, it comes back for the tests that follow.
    monkeypatch.setenv("WANDB_MODE", "offline")

    class Mine(WandbLogger):
        """A logger of one's own is still one."""

    logger = Mine(project="nobp", save_dir=str(tmp_path), offline=True)
    run = fit(tmp_path, logger, bins=MOST_BINS)
    folder = Path(logger.experiment.dir).parent
    assert run_folder(run) == tmp_path / "nobp" / str(logger.version)
    wandb.finish()
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    items = [json.loads(x)["history"]["item"] for x in lines if json.loads(x).get("type") == "history"]
    keys = {key.removesuffix("._type") for item in items for key in item}
    assert {"val/confusion", "weights/network.1.weight", "gradients/network.3.bias", "trainer/global_step"} <= keys
    assert list((folder / "files" / "media" / "images").rglob("*.png"))


def test_every_second_epoch(tmp_path):
    run = fit(tmp_path, CSVLogger(tmp_path), every_n_epochs=2, histograms=False)
    assert [p.name for p in (run_folder(run) / "figures").iterdir()] == ["val_confusion-step=11.png"]


def test_confusion_figure_shows_shares_of_the_true_class():
    counts = torch.tensor([[8, 2], [0, 0]])
    figure = confusion_figure(counts, ("cat", "dog"))
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.texts] == ["80", "20", "0", "0"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat", "dog"]
    assert len(confusion_figure(torch.eye(30).long()).axes[0].texts) == 0


def test_histogram_figure_has_a_panel_each():
    made = torch.histogram(torch.randn(100), 10)
    figure = histogram_figure({f"w{k}": (made.hist, made.bin_edges) for k in range(5)})
    assert [a.get_title() for a in figure.axes if a.get_visible()] == [f"w{k}" for k in range(5)]


@pytest.mark.parametrize("name", ["every_n_epochs", "bins"])
def test_bad_arguments_are_named(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        LogFigures(**{name: 0})


def test_more_bins_than_wandb_takes_are_refused():
    assert LogFigures(bins=wandb.Histogram.MAX_LENGTH).bins == MOST_BINS
    with pytest.raises(ValueError, match="bins=513 must be at most 512"):
        LogFigures(bins=513)


def test_a_full_disk_costs_the_figures_and_not_the_run(tmp_path):
    with files_of_at_most(1000), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fit(tmp_path, logger=False)
    assert run.state.finished
    said = [str(warning.message) for warning in caught if "figures" in str(warning.message)]
    assert said == [f"figures are left out, {tmp_path / 'figures'} cannot be written: File too large"]
    assert list((tmp_path / "figures").iterdir()) == []
