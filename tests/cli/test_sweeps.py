"""The sweeps that ship with the package, as W&B's agents carry them out."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
import wandb
import yaml
from offline_runs import offline_runs
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.lib.config_util import save_config_file_from_dict

from lightning_nobp.cli import recipes
from lightning_nobp.cli.arguments import prepare
from lightning_nobp.cli.lightning import NobpCLI, command_line

SWEEPS = [name for name in recipes.names() if name.startswith("sweeps/")]
TUNABLE = {
    *("Backprop", "ForwardForward", "SymBa", "MultiplexedGradientDescent", "SparseProp", "QuaternionBackprop"),
    *("SpikeTimingBackprop", "HamiltonianEcho", "SelfLearningMachine", "DynamicalNetworkBackprop"),
    "ResidualCompensation",
}


def read(name):
    return yaml.safe_load(recipes.find(name).read_text())


def sampled(parameter, where):
    """A value that a sweep may choose: at the ``low`` or ``high`` end, or between."""
    if "values" in parameter:
        return parameter["values"][{"low": 0, "high": -1, "between": len(parameter["values"]) // 2}[where]]
    low, high = parameter["min"], parameter["max"]
    return {"low": low, "high": high, "between": (low * high) ** 0.5 or high / 2}[where]


def choice(sweep, where):
    return {key: {"value": sampled(parameter, where)} for key, parameter in sweep["parameters"].items()}


def agent_command(sweep, args):
    """What wandb's agent starts, put together as in ``wandb.wandb_agent``."""
    macros = create_sweep_command_args({"args": args}) | {"program": [sweep["program"]]}
    parts = [[p] if not p.startswith("${") else macros[p[2:-1]] for p in create_sweep_command(sweep["command"])]
    return [word for part in parts for word in part]


def option(config, key):
    """The value of an option like ``model.optimizer.lr`` in a configuration."""
    for part in key.split("."):
        node = config[-1] if isinstance(config, list) else config
        config = node["init_args"][part] if "init_args" in node else node[part]
    return config


def as_number(value):
    return float("inf") if value == ".inf" else value


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


def test_every_rule_with_something_to_tune_has_a_sweep():
    named = [recipe for name in SWEEPS for recipe in read(name)["command"] if recipe in recipes.recipe_names()]
    rules = {read(name)["model"]["class_path"].rpartition(".")[2] for name in named}
    assert rules == TUNABLE


@pytest.mark.parametrize("where", ["low", "high"])
@pytest.mark.parametrize("name", SWEEPS)
def test_both_ends_of_every_range_are_accepted(name, where):
    sweep = read(name)
    args = choice(sweep, where)
    _, _, *command = agent_command(sweep, args)
    prepared = prepare(command)
    with command_line(prepared.arguments):
        built = NobpCLI(prepared.recipe, run=False)
    config = yaml.safe_load(built.parser.dump(built.config))
    assert {key: option(config, key) for key in args} == {key: as_number(arg["value"]) for key, arg in args.items()}


@pytest.mark.parametrize("name", SWEEPS)
def test_agent_of_a_sweep_runs_with_the_values_it_chose(nobp, quick, agent, data, name):
    sweep = read(name)
    args = choice(sweep, "between")
    program, *command = agent_command(sweep, args)
    assert program in entry_points(group="console_scripts").names
    agent(args)
    series = ("--data.num_steps=401", "--data.num_trajectories=2", "--data.num_test=1", "--data.transient=300")
    images = (f"--data.root={data[0]}", "--data.val_size=0.5", "--data.drop_last=false")
    small = (*series, "--data.horizon=30") if "dynamical_network" in name else images
    run = nobp(*command, *quick, *small, "--figures=0")
    assert run.status == 0, run.err
    [logged] = offline_runs(Path("runs"))
    assert all(logged.config[key] == args[key]["value"] for key in args)
    chosen = {key: option(logged.config, key) for key in args}
    assert chosen == {key: as_number(arg["value"]) for key, arg in args.items()}
    assert [row for row in logged.history if sweep["metric"]["name"] in row]
    # W&B numbers the runs of a sweep.
    assert "display_name" not in logged.run
