"""A run in Weights & Biases has what a report needs, whatever the rule."""

from pathlib import Path

import pytest
import yaml
from offline_runs import offline_runs

from lightning_nobp.cli import index

WANDB = ("--config", "loggers/wandb", "--trainer.logger.offline=true")
QUICK = (
    *("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
)
BRIEF = ("--trainer.max_epochs=2",)
SERIES = ("--data.num_steps=401", "--data.num_trajectories=2", "--data.num_test=1", "--data.transient=300")
RUNS = {
    "Backprop": ("digits/backprop", BRIEF, set()),
    "ForwardForward": ("digits/forward_forward", BRIEF, {"goodness"}),
    "SymBa": ("digits/symba", BRIEF, {"goodness"}),
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


def images(run):
    """Names of figures, of which every file is there."""
    found = {name: value for name, value in run.summary.items() if str(value).startswith("{'_type': 'image-file'")}
    assert all((run.folder / "files" / value["path"]).is_file() for value in found.values())
    return set(found)


@pytest.fixture(autouse=True)
def _mode_comes_back(monkeypatch):
    # Lightning overwrites it for an offline logger.
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.parametrize("rule", [rule.name for rule in index.RULES])
def test_a_run_of_every_rule_is_ready_for_a_report(nobp, rule):
    recipe, options, figures = RUNS[rule]
    fit = nobp("fit", "--config", recipe, *WANDB, *QUICK, *options)
    assert fit.status == 0, fit.err
    [run] = offline_runs(Path("runs"))
    print(rule, sorted(k for k in run.summary if not k.startswith(("weights", "gradients"))), images(run))
