"""Weights & Biases, offline: what a run holds is read back from its file."""

import csv
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.lib.config_util import save_config_file_from_dict

from lightning_nobp.cli import recipes


def inspect(root):
    """Configuration and history of the only run under ``root``."""
    wandb.finish()
    [folder] = (root / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    config = {}
    for record in records:
        config |= record.get("config", record.get("run", {}).get("config", {})).get("update", {})
    config.pop("_wandb", None)
    return config, [record["history"]["item"] for record in records if record["type"] == "history"]


def values(rows, step):
    """Every logged value by step and name."""
    found = {}
    for row in rows:
        names = [n for n, value in row.items() if value != "" and n not in (step, "epoch") and not n.startswith("_")]
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
    return folder, inspect(folder)


def test_values_at_each_step_equal_those_of_a_csv_file(both):
    folder, (_, history) = both
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        expected = values(csv.DictReader(file), "step")
    assert {"train/loss", "train/loss_epoch", "val/accuracy", "alignment/cosine"} <= {name for _, name in expected}
    assert values(history, "trainer/global_step") == expected


def test_nested_configuration_is_that_of_the_run_folder(both):
    folder, (config, _) = both
    [path] = (folder / "nobp").glob("*/config.yaml")
    assert config == yaml.safe_load(path.read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.003


def test_checkpoint_lies_in_the_run_folder_and_knows_the_run(both):
    folder, _ = both
    [path] = (folder / "nobp").glob("*/checkpoints/last.ckpt")
    states = torch.load(path, weights_only=True)["callbacks"]
    assert path.parent.parent.name in [state.get("wandb_id") for state in states.values()]


def sampled(parameter):
    """A value that a sweep may choose."""
    return parameter["values"][-1] if "values" in parameter else (parameter["min"] * parameter["max"]) ** 0.5


def agent_command(sweep, args):
    """What wandb's agent starts, put together as in ``wandb.wandb_agent``."""
    macros = create_sweep_command_args({"args": args}) | {"program": [sweep["program"]]}
    parts = [[p] if not p.startswith("${") else macros[p[2:-1]] for p in create_sweep_command(sweep["command"])]
    return [word for part in parts for word in part]


@pytest.fixture
def agent(monkeypatch):
    """Environment of what an agent starts; wandb reads it once."""

    def enter(args):
        save_config_file_from_dict("sweep/values.yaml", args)
        wandb.teardown()
        for name, value in {"SWEEP_ID": "a1b2", "RUN_ID": "c3d4", "SWEEP_PARAM_PATH": "sweep/values.yaml"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)

    yield enter
    wandb.teardown()


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.startswith("sweeps/")])
def test_agent_of_a_sweep_runs_with_the_values_it_chose(nobp, quick, agent, data, name):
    sweep = yaml.safe_load(recipes.find(name).read_text())
    args = {key: {"value": sampled(parameter)} for key, parameter in sweep["parameters"].items()}
    program, *command = agent_command(sweep, args)
    assert program in entry_points(group="console_scripts").names
    agent(args)
    run = nobp(*command, *quick, f"--data.root={data[0]}", "--data.val_size=0.5")
    assert run.status == 0, run.err
    config, history = inspect(Path("runs"))
    assert all(config[key] == args[key]["value"] for key in args)
    model = config["model"]["init_args"]
    chosen = {
        **config["data"]["init_args"],
        **model,
        **model["optimizer"]["init_args"],
        **model["network"]["init_args"],
    }
    for callback in config["trainer"]["callbacks"] or []:
        chosen |= callback.get("init_args", {})
    assert all(chosen[key.rpartition(".")[2]] == args[key]["value"] for key in args)
    assert [row for row in history if sweep["metric"]["name"] in row]
