"""Weights & Biases, offline: what a run holds is read back from its file."""

import csv

import pytest
import torch
import yaml
from offline_runs import offline_runs

from lightning_nobp.cli import recipes


def values(rows, step):
    """Every logged number by step and name; pictures are none."""
    found = {}
    for row in rows:
        names = [n for n, value in row.items() if value != "" and n not in (step, "epoch") and not n.startswith("_")]
        names = [n for n in names if not n.startswith(("val/confusion", "weights/", "gradients/"))]
        found |= {(int(row[step]), name): float(row[name]) for name in names}
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory, nobp, quick):
    """A run that the shipped loggers for W&B and for CSV write together."""
    folder = tmp_path_factory.mktemp("both")
    loggers = [yaml.safe_load(recipes.find(f"loggers/{n}").read_text())["trainer"]["logger"] for n in ("wandb", "csv")]
    for logger in loggers:
        logger["init_args"]["save_dir"] = str(folder)
    (folder / "both.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    alignment = "--trainer.callbacks=lightning_nobp.callbacks.GradientAlignment"
    more = ("--trainer.max_epochs=3", alignment, "--trainer.callbacks.every_n_steps=2")
    run = nobp("fit", "--config=digits/backprop", "--config", folder / "both.yaml", *quick, *more)
    assert run.status == 0, run.err
    [logged] = offline_runs(folder)
    return folder, logged


def test_values_at_each_step_equal_those_of_a_csv_file(both):
    folder, logged = both
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        expected = values(csv.DictReader(file), "step")
    assert {"train/loss", "train/loss_epoch", "val/accuracy", "alignment/cosine"} <= {name for _, name in expected}
    assert values(logged.history, "trainer/global_step") == expected


def test_nested_configuration_is_that_of_the_run_folder(both):
    folder, logged = both
    [path] = (folder / "nobp").glob("*/config.yaml")
    config = logged.config
    assert config == yaml.safe_load(path.read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.003


def test_checkpoint_lies_in_the_run_folder_and_knows_the_run(both):
    folder, _ = both
    [path] = (folder / "nobp").glob("*/checkpoints/last.ckpt")
    states = torch.load(path, weights_only=True)["callbacks"]
    assert path.parent.parent.name in [state.get("wandb_id") for state in states.values()]
