"""A run in Weights & Biases has what a report needs, whatever the rule."""

import json
from pathlib import Path

import pytest
import yaml
from offline_runs import offline_runs

from lightning_nobp.cli import index
from lightning_nobp.cli.rule_figures import spacing

QUICK = (
    *("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
)
BRIEF = ("--trainer.max_epochs=1",)
SERIES = (
    *("--data.num_steps=401", "--data.num_trajectories=2", "--data.num_test=1", "--data.transient=300"),
    "--data.horizon=30",
)
RUNS = {
    "Backprop": ("digits/backprop", BRIEF, set()),
    "ForwardForward": ("digits/forward_forward", BRIEF, {"val/goodness"}),
    "SymBa": ("digits/symba", BRIEF, {"val/goodness"}),
    "MultiplexedGradientDescent": ("digits/mgd", (*BRIEF, "--data.batch_size=50"), set()),
    "SparseProp": ("digits/sparseprop", BRIEF, set()),
    "QuaternionBackprop": ("digits/quaternion", BRIEF, set()),
    "SpikeTimingBackprop": ("digits/spiking", BRIEF, {"val/spikes"}),
    "HamiltonianEcho": ("digits/hamiltonian_echo", BRIEF, set()),
    "SelfLearningMachine": ("xor/self_learning_machine", BRIEF, set()),
    "DynamicalNetworkBackprop": ("lorenz16/dynamical_network", SERIES, {"val/couplings", "val/free_run", "val/errors"}),
    "ResidualCompensation": ("digits/residual_compensation", (), {"depth", "filters/1", "filters/2"}),
    "PCANet": ("digits/pcanet", (), {"filters/1", "filters/2"}),
}
"""For each rule a recipe, options that make it short, and the figures that only this rule has."""

CLOSED_FORM = ("DynamicalNetworkBackprop", "ResidualCompensation", "PCANet")
"""Rules whose recipe here solves for weights: what a step logs is the solution's, not a loss."""


@pytest.fixture
def wandb_options(tmp_path, monkeypatch):
    """An offline run in this test's folder."""
    # Lightning overwrites it for an offline logger.
    monkeypatch.setenv("WANDB_MODE", "offline")
    # W&B's own process is shared by all tests, and stays in the folder of the first.
    return ("--config=loggers/wandb", "--trainer.logger.offline=true", f"--trainer.logger.save_dir={tmp_path / 'runs'}")


def images(run):
    """Names of figures, of which every file is there."""
    paths = {key.removesuffix(".path"): value for key, value in run.summary.items() if key.endswith(".path")}
    assert all((run.folder / "files" / path).is_file() for path in paths.values())
    return set(paths)


@pytest.mark.parametrize("rule", [rule.name for rule in index.RULES])
def test_a_run_of_every_rule_is_ready_for_a_report(nobp, wandb_options, rule):
    recipe, options, figures = RUNS[rule]
    fit = nobp("fit", "--config", recipe, *wandb_options, *QUICK, *options)
    assert fit.status == 0, fit.err
    [run] = offline_runs(Path("runs"))
    assert run.exit_code == 0
    assert run.run["display_name"] == f"{recipe}, seed 0"
    assert run.run["run_group"] == recipe.split("/")[0]
    assert run.run["tags"] == [rule, recipe]
    assert run.run["job_type"] == "fit"
    [folder] = Path("runs/nobp").iterdir()
    assert [config for config in run.configs if "model" in config] == [
        yaml.safe_load((folder / "config.yaml").read_text())
    ]
    assert all("trainer/global_step" in row for row in run.history)
    classifies = rule != "DynamicalNetworkBackprop"
    names = {name for row in run.history for name in row}
    assert {"val/loss"} | ({"val/accuracy"} if classifies else set()) <= names
    if rule not in CLOSED_FORM:
        assert {"train/loss", "train/loss_epoch"} <= names
    monitor, best = ("val/accuracy", max) if classifies else ("val/loss", min)
    assert run.summary[f"best/{monitor}"] == best(row[monitor] for row in run.history if monitor in row)
    assert images(run) == figures | ({"val/confusion"} if classifies else set())


def test_what_is_given_holds(nobp, wandb_options, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "environment's")
    options = ("--trainer.logger.name=mine", "--trainer.logger.tags=[mine]", "--trainer.logger.job_type=trial")
    callback = ("--trainer.callbacks+=lightning_nobp.callbacks.LogFigures", "--trainer.callbacks.confusion=false")
    fit = nobp("fit", "--config=digits/backprop", *wandb_options, *QUICK, *BRIEF, *options, *callback)
    assert fit.status == 0, fit.err
    [run] = offline_runs(Path("runs"))
    assert (run.run["display_name"], run.run["tags"], run.run["job_type"]) == ("mine", ["mine"], "trial")
    assert run.run.get("run_group") != "digits"
    assert images(run) == set()
    assert [key for key in run.summary if key.startswith("gradients/")]


def test_figures_can_be_left_out(nobp, wandb_options):
    fit = nobp("fit", "--config=digits/backprop", *wandb_options, *QUICK, *BRIEF, "--figures=0")
    assert fit.status == 0, fit.err
    [run] = offline_runs(Path("runs"))
    assert not [key for key in run.summary if key.startswith(("weights/", "gradients/", "val/confusion"))]


@pytest.mark.parametrize(("max_epochs", "sets", "every"), [(30, 10, 3), (7, 10, 1), (201, 10, 67), (11, 10, 11)])
def test_figures_are_spread_over_a_training_and_come_at_its_end(max_epochs, sets, every):
    assert spacing(max_epochs, sets) == every
    assert spacing(-1, sets) == spacing(None, sets) == 1


def test_a_resumed_run_goes_on_as_the_same_one(nobp, wandb_options):
    arguments = ("--config=digits/backprop", *wandb_options, *QUICK, "--figures=0")
    assert nobp("fit", *arguments, "--trainer.max_epochs=1").status == 0
    assert nobp("fit", *arguments, "--trainer.max_epochs=3", "--ckpt_path=last").status == 0
    assert nobp("test", *arguments, "--ckpt_path=best").status == 0
    first, second, tested = offline_runs(Path("runs"))
    assert first.run["run_id"] == second.run["run_id"] == tested.run["run_id"]
    assert second.run["resume"]
    assert {run.run["display_name"] for run in (first, second, tested)} == {"digits/backprop, seed 0"}
    assert {run.run["job_type"] for run in (first, second, tested)} == {"fit"}
    steps = [[row["trainer/global_step"] for row in run.history if "train/loss" in row] for run in (first, second)]
    assert steps == [[0, 1], [2, 3, 4, 5]]
    # Each file has steps of its own from zero, so that one plots against the global step.
    assert [run.history[0]["_step"] for run in (first, second)] == [0, 0]
    accuracies = [row["val/accuracy"] for run in (first, second) for row in run.history if "val/accuracy" in row]
    assert second.summary["best/val/accuracy"] == max(accuracies)
    assert [row for row in tested.history if "test/accuracy" in row]
    assert len(list(Path("runs/nobp").iterdir())) == 1


def test_a_checkpoint_can_start_a_run_of_its_own(nobp, wandb_options):
    arguments = ("--config=digits/backprop", *wandb_options, *QUICK, "--figures=0")
    assert nobp("fit", *arguments, "--trainer.max_epochs=1").status == 0
    other = ("--ckpt_path=last", "--trainer.logger.id=other")
    assert nobp("fit", *arguments, "--trainer.max_epochs=2", *other).status == 0
    first, second = offline_runs(Path("runs"))
    assert first.run["run_id"] != "other"
    assert second.run["run_id"] == "other"


@pytest.mark.parametrize("recipe", ["digits/backprop", "digits/residual_compensation"])
def test_checkpoints_are_artifacts_and_only_the_best_is_called_so(nobp, wandb_options, recipe):
    options = [option for option in wandb_options if "offline" not in option]
    log_model = ("--trainer.logger.log_model=all", "--trainer.max_epochs=5", "--figures=0")
    fit = nobp("fit", "--config", recipe, *options, *QUICK, *log_model)
    assert fit.status == 0, fit.err
    [run] = offline_runs(Path("runs"))
    assert {artifact["name"] for artifact in run.artifacts} == {f"model-{run.run['run_id']}"}
    aliases = [(json.loads(artifact["metadata"]), artifact["aliases"]) for artifact in run.artifacts]
    best = [about for about, names in aliases if "best" in names]
    assert best[-1]["score"] == run.summary["best/val/accuracy"]
    last = [names for about, names in aliases if about["original_filename"] == "last.ckpt"]
    assert last
    assert all(names == ["latest"] for names in last)


def test_compared_recipes_are_runs_of_their_own(nobp, wandb_options):
    settings = [
        word for option in (*wandb_options[1:], *QUICK, *BRIEF) for word in ("--set", option.removeprefix("--"))
    ]
    compared = nobp("compare", "digits/backprop", "--seeds=2", "--config=loggers/wandb", *settings, "--out=out")
    assert compared.status == 0, compared.err
    runs = offline_runs(Path("runs"))
    assert [run.run["display_name"] for run in runs] == ["digits/backprop, seed 0", "digits/backprop, seed 1"]
    assert {run.run["job_type"] for run in runs} == {"compare"}
    assert [run.exit_code for run in runs] == [0, 0]
    assert len({run.run["run_id"] for run in runs}) == 2
    assert all("test/accuracy" in run.summary for run in runs)


def test_a_compared_configuration_of_a_run_that_was_resumed_starts_a_run_of_its_own(nobp, wandb_options):
    arguments = ("--config=digits/backprop", *wandb_options, *QUICK, "--figures=0")
    assert nobp("fit", *arguments, "--trainer.max_epochs=1").status == 0
    assert nobp("fit", *arguments, "--trainer.max_epochs=2", "--ckpt_path=last").status == 0
    [resumed] = Path("runs/nobp").glob("*/config.yaml")
    assert "last.ckpt" in resumed.read_text()
    compared = nobp("compare", resumed, "--out=out")
    assert compared.status == 0, compared.err
    first, second, third = offline_runs(Path("runs"))
    assert first.run["run_id"] == second.run["run_id"] != third.run["run_id"]
    assert third.run["job_type"] == "compare"
