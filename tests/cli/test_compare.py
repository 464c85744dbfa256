"""Several recipes under the same conditions, some of which fail."""

import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import chdir
from functools import partial
from multiprocessing import Pipe

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_nobp.cli import compare, compare_runs, recipes
from lightning_nobp.cli.curve import Curve, TimedAlignment
from lightning_nobp.cli.report import conditions, draw
from lightning_nobp.cli.weight_noise import weight_noise
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.rules import Backprop

FAILING = """
import os
from lightning_nobp.rules import Backprop

class Raises(Backprop):
    def compute_gradients(self, batch):
        raise RuntimeError("it was meant to")

class Dies(Backprop):
    def compute_gradients(self, batch):
        os._exit(3)
"""


def write_recipe(path, rule):
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"model": {"class_path": rule}, "data": {"class_path": "DigitsDataModule"}}))


@pytest.fixture(scope="module")
def compared(tmp_path_factory, nobp):
    """Two seeds each of a recipe and of two files with rules of the current folder, both of which fail."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "failing_rules.py").write_text(FAILING)
    write_recipe(folder / "own" / "raises.yaml", "failing_rules.Raises")
    write_recipe(folder / "dies.yaml", "failing_rules.Dies")
    names = ("own/raises.yaml", folder / "dies.yaml", "digits/backprop")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        run = nobp("compare", *names, "--seeds=2", "--out", "results", "--set", "trainer.max_epochs=2")
    return folder, run, json.loads((folder / "results" / "results.json").read_text())


NO_TEST = """
import torch
from torch import nn
from lightning_nobp.rules import LearningRule

class NoTest(LearningRule):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layer = nn.Linear(64, 10)

    def compute_gradients(self, batch):
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])
            loss.backward()
        return {"loss": loss.detach()}
"""

SLOW = """
import os, pathlib, time
from lightning_nobp.rules import Backprop

class Slow(Backprop):
    def compute_gradients(self, batch):
        pathlib.Path("pid").write_text(str(os.getpid()))
        time.sleep(600)
"""


def trained(content):
    return [r for r in content["results"] if r["recipe"] == "digits/backprop"]


def test_a_failure_is_said_and_loses_no_other_result(compared):
    folder, run, content = compared
    assert run.status == 1
    results = content["results"]
    assert [r["seed"] for r in results] == [0, 1] * 3
    assert [r.get("error", "").partition(";")[0] for r in results] == [
        *["RuntimeError: it was meant to"] * 2,
        *["ended with exit code 3"] * 2,
        *["", ""],
    ]
    assert "failed: own/raises.yaml, seed 1: RuntimeError: it was meant to" in run.out
    assert "RuntimeError: it was meant to" in (folder / "results/own/raises/seed-0/log.txt").read_text()
    for result in trained(content):
        assert result["test_accuracy"] > 0.3
        assert (result["epochs"], result["steps"], result["parameters"]) == (2, 78, 17226)
        assert [point["epoch"] for point in result["curve"]] == [1, 2]
        for clock in ("seconds", "cpu_seconds"):
            assert 0 < result["curve"][0][clock] < result["curve"][1][clock] <= result[clock]
        assert result["alignment"] == pytest.approx(1, abs=1e-6)
        assert result["peak_memory_mib"] > 0


def test_nothing_is_written_outside_of_the_results(compared):
    folder, _, _ = compared
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == {"failing_rules.py", "own", "dies.yaml", "results"}


def test_runs_of_a_comparison_are_no_recipes_newest(compared, nobp, monkeypatch):
    folder, _, _ = compared
    monkeypatch.chdir(folder)
    assert len(list((folder / "results" / "digits").rglob("config.yaml"))) == 2
    assert not list((folder / "results").rglob("run.json"))
    looked = nobp("test", "--config=digits/backprop", "--trainer.default_root_dir=results", "--ckpt_path=best")
    assert looked.status == 2
    assert "no run of 'digits/backprop' under results has a checkpoint" in looked.err


def test_seeds_share_the_split_of_the_data(compared):
    folder, _, content = compared
    found = [yaml.safe_load(p.read_text()) for p in sorted((folder / "results" / "digits").rglob("config.yaml"))]
    assert [config["seed_everything"] for config in found] == [0, 1]
    assert found[0]["data"] == found[1]["data"]
    first, second = trained(content)
    assert first["curve"][0]["val/loss"] != second["curve"][0]["val/loss"]


def test_table_report_and_csv_agree_with_the_results(compared):
    folder, run, content = compared
    accuracies = [r["test_accuracy"] for r in trained(content)]
    cell = f"{statistics.fmean(accuracies):.2%} ± {100 * statistics.stdev(accuracies):.2f}"
    report = (folder / "results" / "report.md").read_text()
    assert re.search(rf"digits/backprop +{re.escape(cell)} +[\d.]+ +17,226", run.out)
    assert f"| digits/backprop | {cell} |" in report
    assert "| own/raises.yaml | failed |" in report
    assert "nobp compare own/raises.yaml" in report
    with (folder / "results" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["test_accuracy"] for row in rows] == ["", "", "", "", *map(str, accuracies)]
    assert (folder / "results" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_longest_time_ends_each_training_and_it_is_tested_all_the_same(nobp, tmp_path):
    run = nobp("compare", "digits/backprop", "--max_time=00:00:02", "--out=out", "--set=trainer.max_epochs=100000")
    assert run.status == 0, run.out
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert 0 < result["epochs"] < 100000
    assert result["test_accuracy"] > 0.3


def test_a_wrong_option_is_explained(nobp, tmp_path):
    run = nobp("compare", "digits/backprop", "--out=out", "--set", "trainer.max_epohcs=1")
    assert run.status == 1
    assert "there is no option 'trainer.max_epohcs'; did you mean max_epochs" in run.out.replace("\n", " ")
    assert "failed" in (tmp_path / "out" / "report.md").read_text()


def test_a_time_in_another_form_is_refused_before_anything_runs(nobp, tmp_path):
    run = nobp("compare", "digits", "--max_time=30")
    assert run.status == 2
    assert "'30' is not HH:MM:SS or DD:HH:MM:SS" in run.err
    assert not list(tmp_path.iterdir())


def test_a_rule_without_a_test_has_no_test_accuracy(nobp, tmp_path):
    (tmp_path / "no_test_rule.py").write_text(NO_TEST)
    write_recipe(tmp_path / "no_test.yaml", "no_test_rule.NoTest")
    run = nobp("compare", "no_test.yaml", "--out=out", "--set=trainer.max_epochs=1")
    assert run.status == 0, run.out
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["test_accuracy"] is None
    assert (result["steps"], result["parameters"]) == (11, 650)
    assert "| no_test.yaml |  |" in (tmp_path / "out" / "report.md").read_text()


def test_an_interrupt_keeps_what_is_finished_and_ends_the_running_one(tmp_path):
    (tmp_path / "slow_rule.py").write_text(SLOW)
    write_recipe(tmp_path / "slow.yaml", "slow_rule.Slow")
    code = "import sys; from lightning_nobp.cli import main; sys.exit(main(sys.argv[1:]))"
    names = ("digits/backprop", "slow.yaml", "digits/backprop_mse")
    command = [sys.executable, "-c", code, "compare", *names, "--out=out", "--set=trainer.max_epochs=1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Whoever runs the tests in the background may have had interrupts ignored, which children inherit.
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=hearing, **pipes)
    while not (tmp_path / "pid").exists() and process.poll() is None:
        time.sleep(0.1)
    # As a terminal does: to all of them.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "nobp: interrupted, 1 of 3 runs are finished" in err
    assert "Traceback" not in err
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [r["recipe"] for r in content["results"]] == ["digits/backprop"]
    assert content["results"][0]["test_accuracy"] > 0.3
    assert "Interrupted: 1 of 3 runs are finished." in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "curves.png").is_file()
    assert (tmp_path / "out" / "results.csv").is_file()
    assert "report:" in out
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seeds=0", "--seeds: '0' is not a number from 1 on"),
        ("--seeds=-2", "--seeds: '-2' is not a number from 1 on"),
        ("--seeds=two", "--seeds: 'two' is not a number from 1 on"),
        ("--first-seed=-1", "--first-seed: '-1' is not a number from 0 on"),
        ("--out=a_file", "--out: 'a_file' is a file, not a folder"),
        ("--out=a_file/results", "--out: 'a_file' is a file, not a folder"),
        ("--set=trainer.max_epochs", "--set: 'trainer.max_epochs' is not KEY=VALUE"),
        ("--record --vary=model.amplitude=1,2", "--record notes what recipes reach as they are"),
        ("--record --budget=2", "--record notes what recipes reach as they are"),
        ("--budget=0", "--budget: '0' is not a number above 0"),
        ("--budget=long", "--budget: 'long' is not a number above 0"),
        ("--budget=2 --set=trainer.max_epochs=3", "--budget decides how many epochs there are"),
        ("--weight-noise=inf", "--weight-noise: 'inf' is not a number above 0"),
        ("--vary=model.amplitude", "--vary: 'model.amplitude' is not KEY=VALUE"),
        ("--vary=model.amplitude=1,,2", "--vary: 'model.amplitude=1,,2' has an empty value"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(nobp, tmp_path, option, message):
    (tmp_path / "a_file").touch()
    run = nobp("compare", "digits/backprop", *option.split())
    assert run.status == 2
    assert message in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["a_file"]


def test_a_run_that_hangs_is_given_up():
    ours, _theirs = Pipe(duplex=False)
    assert compare_runs._follow(ours, deadline=0.0, display=None) == {"error": "took too long and was stopped"}


def test_recording_notes_means_beside_the_recipes(tmp_path, monkeypatch):
    shutil.copytree(recipes.folder(), tmp_path / "recipes")
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "recipes")
    measured = {"seconds": 2.0, "cpu_seconds": 3.0, "parameters": 5, "peak_memory_mib": 1.0, "alignment": None}
    results = [{"recipe": "digits/backprop", "seed": s, "test_accuracy": a} | measured for s, a in ((0, 0.9), (1, 0.8))]
    results += [{"recipe": "digits/backprop_mse", "seed": 0, "error": "no"}]
    before = json.loads((tmp_path / "recipes" / "measured.json").read_text())
    compare.record(results, "nobp compare digits", "a note")
    after = json.loads((tmp_path / "recipes" / "measured.json").read_text())
    entry = after["digits/backprop"]
    assert (entry["test_accuracy"], entry["seconds"], entry["seeds"]) == (pytest.approx(0.85), 2.0, [0, 1])
    assert (entry["command"], entry["note"]) == ("nobp compare digits", "a note")
    assert {k: v for k, v in after.items() if k != "digits/backprop"} == {
        k: v for k, v in before.items() if k != "digits/backprop"
    }


def test_what_a_test_logs_beside_accuracy_is_reported_and_noted(nobp, tmp_path, monkeypatch):
    shutil.copytree(recipes.folder(), tmp_path / "recipes")
    monkeypatch.setattr(recipes, "folder", lambda: tmp_path / "recipes")
    small = ("--set", "trainer.max_epochs=1", "--set", "data.num_train=100", "--set", "data.test_size=10")
    run = nobp("compare", "attitude/quaternion", "--seeds=2", "--out=out", "--record", *small)
    assert run.status == 0, run.err
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    angles = [r["test_others"]["angle_any_frame"] for r in runs]
    entry = json.loads((tmp_path / "recipes" / "measured.json").read_text())["attitude/quaternion"]
    assert entry["test_others"]["angle_any_frame"]["mean"] == pytest.approx(sum(angles) / 2, rel=1e-3)
    assert entry["test_others"]["angle_any_frame"]["std"] == pytest.approx(
        abs(angles[0] - angles[1]) / 2**0.5, rel=1e-3
    )
    assert "test_accuracy" not in entry
    line = f"angle_any_frame {sum(angles) / 2:.4g} ± "
    assert line in run.out
    assert line in (tmp_path / "out" / "report.md").read_text()
    assert "angle" in nobp("list", "attitude").out


def test_values_are_tried_one_after_another(nobp, tmp_path):
    noise = ("--set", "trainer.callbacks+=lightning_nobp.callbacks.HardwareNoise")
    run = nobp(
        *("compare", "xor/mgd", "--out=out", "--set", "trainer.max_epochs=1", "--set", "data.repeats=20", *noise),
        *("--vary", "trainer.callbacks.update_noise=0.001,10", "--vary", "model.network.hidden_dims=[2],[3,2]"),
    )
    assert run.status == 0, run.err
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    changes = [f"update_noise={a}, hidden_dims={b}" for a in ("0.001", "10") for b in ("[2]", "[3,2]")]
    assert [r["recipe"] for r in content["results"]] == [f"xor/mgd, {change}" for change in changes]
    assert content["results"][0]["test_loss"] < content["results"][2]["test_loss"]
    assert [r["parameters"] for r in content["results"][:2]] == [9, 20]
    # Central differences on four samples, twenty times.
    assert content["results"][0]["cost_evaluations"] == 2 * content["results"][0]["samples_seen"] == 160
    assert (tmp_path / "out" / "xor" / "mgd" / "update_noise=10,hidden_dims=[2]" / "seed-0" / "log.txt").is_file()


def test_a_budget_is_filled_by_every_recipe_and_learning_rates_fall_over_it(nobp, tmp_path):
    names = ("digits/backprop", "digits/residual_compensation")
    run = nobp("compare", *names, "--seeds=2", "--out=out", "--budget=2", "--set=trainer.log_every_n_steps=1")
    assert run.status == 0, run.out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["budget"] == 2
    assert "Each training had 2 seconds of the processor." in (tmp_path / "out" / "report.md").read_text()
    first, second, *solved = content["results"]
    # The recipe's 30 epochs and their schedule have become as many as fit; both seeds have the same.
    config = yaml.safe_load(next((tmp_path / "out/digits/backprop/seed-1").rglob("config.yaml")).read_text())
    epochs = config["trainer"]["max_epochs"]
    assert config["model"]["init_args"]["lr_scheduler"]["init_args"]["T_max"] == epochs
    for result in (first, second):
        assert result["epochs"] <= epochs
        # The last batch of an epoch is smaller.
        assert result["samples"] == pytest.approx(result["steps"] * 32, rel=0.05)
        # It ends with the budget, or with the epochs that the rehearsal found.
        assert result["training_cpu_seconds"] >= 2 or result["epochs"] == epochs
        assert result["training_cpu_seconds"] <= result["cpu_seconds"]
        points = [point["training_cpu_seconds"] for point in result["curve"]]
        assert len(points) >= 2
        assert points == sorted(points)
    # What solves for its weights has no more epochs than it needs, on a slow machine those that fit.
    assert all(1 <= result["epochs"] <= 5 for result in solved)


def test_an_epoch_longer_than_the_budget_is_cut_and_validated_on_the_way(nobp, tmp_path):
    run = nobp("compare", "digits/backprop", "--out=out", "--budget=0.5", "--set=data.batch_size=1")
    assert run.status == 0, run.out
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert 0 < result["samples"] < 1222
    assert result["curve"][0]["epoch"] < 1
    assert result["curve"][-1]["epoch"] == pytest.approx(result["samples"] / 1222)


@pytest.mark.parametrize(("max_epochs", "budget", "validated"), [(5, None, [3]), (5, 60, [3, 5]), (4, 0.001, [1])])
def test_what_a_budget_taught_last_is_validated(max_epochs, budget, validated):
    ours, theirs = Pipe(duplex=False)
    curve = Curve(theirs, TimedAlignment(), budget)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=max_epochs, check_val_every_n_epoch=3, callbacks=[curve], **quiet)
    trainer.fit(Backprop(optimizer=partial(torch.optim.SGD, lr=0.1)), DigitsDataModule(batch_size=2000))
    assert [point["epoch"] for point in curve.points] == validated
    assert ours.recv()[0] == "epoch"


def test_limits_of_steps_and_time_hold_for_a_run_and_not_for_its_rehearsal(nobp, tmp_path):
    options = ("--set=trainer.max_steps=4", "--max_time=00:01:00")
    run = nobp("compare", "digits/backprop", "--out=out", "--budget=0.5", *options)
    assert run.status == 0, run.out
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["steps"] == 4


def test_a_configuration_for_all_leaves_each_run_its_seed(nobp, tmp_path):
    (tmp_path / "more.yaml").write_text("{seed_everything: 7, trainer: {max_epochs: 1}}")
    run = nobp("compare", "digits/backprop", "--seeds=2", "--out=out", "--config=more.yaml")
    assert run.status == 0, run.out
    first, second = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert first["epochs"] == second["epochs"] == 1
    assert first["test_loss"] != second["test_loss"]


def test_a_configuration_that_there_is_not_is_said_before_anything_runs(nobp, tmp_path):
    run = nobp("compare", "digits/backprop", "--config=loggers/wnadb", "--out=out")
    assert run.status == 2
    assert "no recipe and no file 'loggers/wnadb'; did you mean loggers/wandb" in run.err
    assert not list(tmp_path.iterdir())


def test_weights_with_noise_are_tested_as_those_without(nobp, tmp_path):
    run = nobp(
        *("compare", "digits/backprop", "--out=out", "--weight-noise=1e-9"),
        *("--set=trainer.max_epochs=1", "--set=trainer.precision=64-true"),
    )
    assert run.status == 0, run.out
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["noisy_test_accuracy"] == pytest.approx(result["test_accuracy"])


def test_weight_noise_is_one_more_test(nobp, tmp_path):
    run = nobp("compare", "digits/backprop", "--out=out", "--weight-noise=3", "--set=trainer.max_epochs=3")
    assert run.status == 0, run.out
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert result["noisy_test_accuracy"] < 0.8 * result["test_accuracy"]
    line = f"digits/backprop: accuracy with noisy weights {result['noisy_test_accuracy']:.2%}"
    assert line in run.out
    assert f"- {line}\n" in (tmp_path / "out" / "report.md").read_text()
    with next((tmp_path / "out").rglob("metrics.csv")).open() as file:
        assert sum(row["test/accuracy"] != "" for row in csv.DictReader(file)) == 1


def test_weight_noise_multiplies_and_is_taken_back():
    layer = torch.nn.Linear(100, 100)
    before = [p.detach().clone() for p in layer.parameters()]
    with weight_noise(layer, 0.1, seed=3):
        ratios = torch.cat([(p / b - 1).flatten() for p, b in zip(layer.parameters(), before, strict=True)])
        assert ratios.std().item() == pytest.approx(0.1, rel=0.05)
        assert ratios.mean().item() == pytest.approx(0, abs=0.005)
    assert all(map(torch.equal, layer.parameters(), before))


def test_the_configuration_that_fit_prints_is_a_recipe(nobp, tmp_path):
    (tmp_path / "whole.yaml").write_text(nobp("fit", "--config=digits/backprop", "--print_config").out)
    run = nobp("compare", "whole.yaml", "--out=results", "--set", "trainer.max_epochs=1")
    assert run.status == 0, run.out
    content = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [result["epochs"] for result in content["results"]] == [1]


def test_report_says_how_many_threads_there_were(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert conditions()["threads"] == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert conditions()["threads"] >= 1


POINT = {"epoch": 20, "cpu_seconds": 1.0}


def test_the_picture_of_rules_without_classes_shows_the_validation_loss():
    figure = draw([{"recipe": "one", "curve": [POINT | {"val/loss": 0.1}]}, {"recipe": "two", "error": "it failed"}])
    panel = figure.axes[0]
    assert panel.get_ylabel() == "validation loss"
    assert panel.get_yscale() == "log"
    [line] = panel.get_lines()
    assert line.get_marker() == "o"
    assert list(line.get_ydata()) == [0.1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one"]


def test_the_picture_shows_the_accuracy_where_there_is_one_and_no_empty_legend():
    classes = [POINT | {"val/loss": 0.1, "val/accuracy": 0.5}]
    assert draw([{"recipe": "one", "curve": classes}]).axes[0].get_ylabel() == "validation accuracy, %"
    assert not draw([{"recipe": "one", "curve": []}]).legends


def test_a_killed_comparison_has_lost_nothing_but_the_run_under_way(tmp_path):
    out = tmp_path / "out"
    code = "import sys; from lightning_nobp.cli import main; sys.exit(main())"
    quick = ("--set", "trainer.max_epochs=1", "--set", "data.repeats=1")
    command = [sys.executable, "-c", code, "compare", "xor/mgd", "--seeds=50", *quick, f"--out={out}"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (out / "results.json").is_file() or len(list(out.rglob("log.txt"))) < 3:
            assert run.poll() is None
            time.sleep(0.01)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    found = json.loads((out / "results.json").read_text())
    assert found["planned"] == 50
    assert [result["seed"] for result in found["results"]] == list(range(len(found["results"])))
    # A run begins when the one before it is kept.
    assert len(found["results"]) >= len(list(out.rglob("log.txt"))) - 1 > 0
