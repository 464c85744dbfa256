"""Training, and what follows it: test, validate, predict, resume; configurations and run folders."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_nobp.cli.arguments import prepare
from lightning_nobp.cli.checkpoints import resolve
from lightning_nobp.cli.recipes import UsageError
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.rules import Backprop

DIGITS = ("--config", "digits/backprop")


def metric(text, name):
    return float(re.search(rf"{name}\D+([\d.]+)", text).group(1))


def checkpoint(path):
    return torch.load(path, weights_only=True)


def weights(path):
    return checkpoint(path)["state_dict"]


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def rows(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


# What follows a training


def test_configuration_of_a_run_stands_for_that_run():
    for version in (0, 1):
        run = Path(f"runs/digits/backprop/version_{version}")
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.ckpt").touch()
        (run / "config.yaml").write_text("seed_everything: 0\n")
        (run / "run.json").write_text(json.dumps({"recipe": "digits/backprop", "started": version}))
    for config, version in (("digits/backprop", 1), ("runs/digits/backprop/version_0/config.yaml", 0)):
        prepared = prepare(["test", "--config", config, "--ckpt_path", "last"])
        assert prepared.recipe == "digits/backprop"
        assert prepared.arguments[-1] == f"--ckpt_path=runs/digits/backprop/version_{version}/checkpoints/last.ckpt"


def a_run(folder, recipe="digits/backprop", started=0):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "run.json").write_text(json.dumps({"recipe": recipe, "started": started}))
    return f"--ckpt_path={folder}/checkpoints/last.ckpt"


def last(*arguments):
    return prepare(["test", *DIGITS, *arguments, "--ckpt_path=last"]).arguments[-1]


def test_the_newest_run_is_looked_for_where_configurations_and_options_put_runs():
    in_runs, by_root, by_logger, by_option = (a_run(Path(f) / "version_0") for f in ("runs", "root", "logs", "other"))
    Path("root.yaml").write_text("trainer: {default_root_dir: root}\n")
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    Path("logger.yaml").write_text(yaml.safe_dump({"trainer": {"default_root_dir": "nowhere", "logger": logger}}))
    Path("loggers.yaml").write_text(yaml.safe_dump({"trainer": {"default_root_dir": "none", "logger": [True, logger]}}))
    Path("name.yaml").write_text("trainer: {logger: {init_args: {name: mine}}}\n")
    Path("silent.yaml").write_text("trainer: {logger: false}\n")
    assert last() == in_runs
    assert last("--config=root.yaml") == by_root
    assert last("--config=root.yaml", "--trainer.default_root_dir=other") == by_option
    assert last("--config=logger.yaml") == last("--config=loggers.yaml") == by_logger
    assert last("--config=logger.yaml", "--config=name.yaml") == by_logger
    assert last("--config=logger.yaml", "--trainer.logger.save_dir", "other") == by_option
    assert last("--config=logger.yaml", "--config=silent.yaml", "--config=root.yaml") == by_root
    with pytest.raises(UsageError, match="under nowhere or other2 has"):
        last("--config=logger.yaml", "--trainer.logger.save_dir=other2")


def test_a_run_of_a_logger_with_a_folder_of_its_own_is_found(nobp, quick):
    to_logs = ("--config", "loggers/csv", "--trainer.logger.save_dir=logs")
    assert nobp("fit", *DIGITS, *quick, *to_logs).status == 0
    test = nobp("test", *DIGITS, *to_logs, "--ckpt_path=last")
    assert test.status == 0, test.err
    assert "test/accuracy" in test.out


def test_a_broken_configuration_is_said_to_be_no_yaml(nobp):
    Path("broken.yaml").write_text("trainer: {max_epochs: [\n")
    a_run(Path("runs/broken"), "broken")
    run = nobp("test", "--config=broken.yaml", "--ckpt_path=last")
    assert run.status == 2
    assert "broken.yaml is no YAML" in run.err


def test_testing_warns_of_no_callback_that_only_training_needs(in_trained):
    # In a process of its own, where pytest does not take the warnings.
    code = "import sys; from lightning_nobp.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "test", *DIGITS, "--ckpt_path=last"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "test/accuracy" in run.stdout
    assert "callbacks" not in run.stderr


def test_a_network_by_its_short_name_takes_arguments(nobp, quick):
    run = nobp(
        "fit", *DIGITS, *quick, "--model.network=MLP", "--model.network.hidden_dims=[9]", "--model.optimizer=Adam"
    )
    assert run.status == 0, run.err
    weight = checkpoint(resolve("last", "digits/backprop", [Path("runs")]))["state_dict"]["network.1.weight"]
    assert weight.shape == (9, 64)


@pytest.mark.parametrize("recipe", ["attitude/real", "attitude/quaternion_split"])
def test_options_of_a_recipe_whose_network_is_a_list_of_layers_are_overridden(nobp, recipe):
    options = ["--model.grad_scale=1", "--data.num_train=64", "--trainer.fast_dev_run=true"]
    run = nobp("fit", f"--config={recipe}", *options)
    assert run.status == 0, run.err


def test_what_is_not_trained_is_said(nobp):
    run = nobp("test", *DIGITS, "--trainer.enable_progress_bar=false")
    assert run.status == 0
    assert "no --ckpt_path: these are the weights that the rule starts with" in run.err


def test_what_the_trainer_must_not_be_given_is_said_without_a_traceback(nobp, quick):
    run = nobp("fit", *DIGITS, *quick, "--trainer.gradient_clip_val=1")
    assert run.status == 1
    assert "--model.gradient_clip_val=1" in run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.amplitude={'*.bias': 0.01}",), "has no pattern for parameter '1.weight'"),
        (("--data.batch_size=5000",), "training samples make no full batch of batch_size=5000"),
        (
            ("--data.batch_size=3", "--model.engine=vmap", "--model.num_perturbations=8", "--model.tau_x=1"),
            "a window of",
        ),
        (("--data.subset=20", "--data.val_size=50"), "val_size=50"),
    ],
)
def test_what_shows_only_with_the_data_is_said_in_a_line(nobp, options, message):
    run = nobp("fit", "--config", "digits/mgd", *options)
    assert run.status == 2
    assert run.err.startswith("nobp: ")
    assert message in run.err
    assert len(run.err.strip().splitlines()) == 1


def test_an_error_of_somebody_elses_code_keeps_its_traceback(nobp, quick):
    Path("broken.py").write_text(
        "from lightning_nobp.rules import Backprop\n\n\n"
        "class Broken(Backprop):\n    def compute_gradients(self, batch):\n        return {'loss': int('x')}\n"
    )
    with pytest.raises(ValueError, match="invalid literal"):
        nobp("fit", "--model=broken.Broken", "--data=DigitsDataModule", *quick)


def test_the_command_that_fit_prints_last_tests_what_it_trained(in_trained, nobp):
    command = shlex.split(in_trained.out.rpartition("next: nobp ")[2])
    assert command == ["test", "--config", "runs/digits/backprop/version_0/config.yaml", "--ckpt_path", "best"]
    test = nobp(*command)
    assert test.status == 0, test.err
    assert metric(test.out, "test/accuracy") > 0.94
    assert metric(test.out, "test/loss") < 0.4


def test_best_is_the_best_epoch_and_last_the_last(in_trained, nobp):
    best = resolve("best", "digits/backprop", [Path("runs")])
    last = resolve("last", "digits/backprop", [Path("runs")])
    assert best.parent == last.parent == Path("runs/digits/backprop/version_0/checkpoints")
    assert checkpoint(last)["epoch"] == 29
    logged = [float(row["val/accuracy"]) for row in rows(in_trained.run / "metrics.csv") if row["val/accuracy"]]
    assert checkpoint(best)["epoch"] == logged.index(max(logged))
    validated = nobp("validate", *DIGITS, "--ckpt_path", "best")
    assert metric(validated.out, "val/accuracy") == pytest.approx(max(logged))


def test_only_training_leaves_a_run_folder(in_trained, nobp):
    nobp("test", *DIGITS, "--ckpt_path=last")
    assert [p.name for p in Path("runs").iterdir()] == ["digits"]
    assert [p.name for p in Path("runs/digits/backprop").iterdir()] == ["version_0"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_in_the_order_of_the_data_and_as_good_as_the_test(in_trained, nobp, tmp_path, suffix):
    path = tmp_path / f"predictions.{suffix}"
    run = nobp("predict", *DIGITS, "--ckpt_path=best", f"--predictions.path={path}", "--data.eval_batch_size=50")
    assert f"359 predictions: {path}" in run.out
    if suffix == "csv":
        found = rows(path)
    else:
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(path).to_pylist()
    digits = DigitsDataModule().load("test").labels.tolist()
    assert [int(row["index"]) for row in found] == list(range(359))
    assert [int(row["target"]) for row in found] == digits
    right = sum(int(row["prediction"]) == target for row, target in zip(found, digits, strict=True))
    test = nobp("test", *DIGITS, "--ckpt_path=best")
    assert right / 359 == pytest.approx(metric(test.out, "test/accuracy"))


def test_predictions_go_beside_the_checkpoint_unless_told_otherwise(in_trained, nobp):
    nobp("predict", *DIGITS, "--ckpt_path=best")
    assert len(rows(in_trained.run / "predictions.csv")) == 359


def test_a_checkpoint_of_the_command_line_rebuilds_its_rule(trained):
    rule = Backprop.load_from_checkpoint(trained.run / "checkpoints" / "last.ckpt")
    assert (rule.num_classes, tuple(rule.input_shape)) == (10, (1, 8, 8))
    assert_same(rule.state_dict(), weights(trained.run / "checkpoints" / "last.ckpt"))


def test_no_run_to_take_a_checkpoint_from(nobp, quick):
    run = nobp("test", *DIGITS, "--ckpt_path=best")
    assert run.status == 2
    assert "no run of 'digits/backprop' under runs has a checkpoint" in run.err
    assert nobp("fit", *DIGITS, *quick).status == 0
    assert "no run of 'digits/backprop_mse'" in nobp("test", "--config=digits/backprop_mse", "--ckpt_path=last").err


def test_best_and_last_are_of_the_newest_run_with_a_checkpoint(nobp, quick):
    for _ in range(2):
        assert nobp("fit", *DIGITS, *quick).status == 0
    newest = Path("runs/digits/backprop/version_1/checkpoints")
    assert resolve("last", "digits/backprop", [Path("runs")]).parent == newest
    assert resolve("best", "digits/backprop", [Path("runs")]).parent == newest
    killed = Path("runs/digits/backprop/version_2")
    killed.mkdir()
    note = json.loads((newest.parent / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps(note | {"started": note["started"] + 1}))
    assert resolve("best", "digits/backprop", [Path("runs")]).parent == newest


def test_a_resumed_run_equals_the_uninterrupted_one(nobp, quick):
    fit = ("fit", *DIGITS, *quick, "--model.network.dropout=0.3")
    assert nobp(*fit, "--trainer.max_epochs=3", "--trainer.default_root_dir=whole").status == 0
    assert nobp(*fit, "--trainer.max_epochs=2").status == 0
    assert nobp(*fit, "--trainer.max_epochs=3", "--ckpt_path", "last", "--seed_everything=99").status == 0
    whole = checkpoint("whole/digits/backprop/version_0/checkpoints/last.ckpt")
    parts = checkpoint("runs/digits/backprop/version_1/checkpoints/last.ckpt")
    assert parts["global_step"] == whole["global_step"] == 12
    assert_same(parts["state_dict"], whole["state_dict"])
    assert parts["lr_schedulers"] == whole["lr_schedulers"]
    resumed = [row["val/loss"] for row in rows("runs/digits/backprop/version_1/metrics.csv") if row["val/loss"]]
    assert resumed == [r["val/loss"] for r in rows("whole/digits/backprop/version_0/metrics.csv") if r["val/loss"]][2:]


# Configurations


def printed(nobp, *arguments):
    run = nobp("fit", *arguments, "--print_config")
    assert run.status == 0, run.err
    return yaml.safe_load(run.out)


def test_later_configurations_win_and_options_win_over_all(nobp):
    Path("one.yaml").write_text("model: {init_args: {loss: mse}}\ntrainer: {max_epochs: 7, log_every_n_steps: 3}\n")
    Path("two.yaml").write_text("trainer: {max_epochs: 5}\n")
    config = printed(nobp, *DIGITS, "--config=one.yaml", "--config", "two.yaml", "--model.optimizer.lr=0.5")
    assert config["trainer"]["max_epochs"] == 5
    assert config["trainer"]["log_every_n_steps"] == 3
    assert config["model"]["init_args"]["loss"] == "mse"
    assert config["model"]["init_args"]["engine"] == "explicit"
    assert config["model"]["init_args"]["optimizer"] == {
        "class_path": "torch.optim.Adam",
        "init_args": config["model"]["init_args"]["optimizer"]["init_args"] | {"lr": 0.5},
    }
    assert printed(nobp, *DIGITS, "--config=two.yaml", "--config=one.yaml")["trainer"]["max_epochs"] == 7


def test_classes_are_exchanged_by_their_short_names(nobp):
    config = printed(nobp, *DIGITS, "--model.optimizer=SGD", "--model.optimizer.momentum=0.9", "--data=MNISTDataModule")
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"
    assert config["model"]["init_args"]["optimizer"]["init_args"]["momentum"] == 0.9
    assert config["data"]["class_path"] == "lightning_nobp.datamodules.MNISTDataModule"
    assert config["data"]["init_args"]["batch_size"] == 32


def test_a_printed_configuration_is_one_to_start_from(nobp, quick):
    arguments = (*DIGITS, *quick, "--data.batch_size=16")
    text = nobp("fit", *arguments, "--print_config").out
    Path("mine.yaml").write_text(text)
    assert printed(nobp, "--config", "mine.yaml") == yaml.safe_load(text)
    assert nobp("fit", *arguments).status == 0
    assert nobp("fit", "--config=mine.yaml").status == 0
    assert_same(
        weights("runs/digits/backprop/version_0/checkpoints/last.ckpt"),
        weights("runs/mine/version_0/checkpoints/last.ckpt"),
    )


def test_each_run_keeps_its_own_configuration_and_it_repeats_the_run(nobp, quick):
    for lr in (0.1, 0.01):
        assert nobp("fit", *DIGITS, *quick, f"--model.optimizer.lr={lr}").status == 0
    first, second = (Path(f"runs/digits/backprop/version_{k}") for k in (0, 1))
    for run, lr in ((first, 0.1), (second, 0.01)):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == lr
        assert json.loads((run / "run.json").read_text())["recipe"] == "digits/backprop"
    assert nobp("fit", "--config", first / "config.yaml", "--trainer.default_root_dir=again").status == 0
    [repeated] = set(Path().rglob("last.ckpt")) - {run / "checkpoints" / "last.ckpt" for run in (first, second)}
    assert_same(weights(repeated), weights(first / "checkpoints" / "last.ckpt"))
    assert not torch.equal(*(weights(r / "checkpoints/last.ckpt")["network.1.weight"] for r in (first, second)))


def test_number_of_classes_and_shape_come_from_the_data(nobp, quick):
    mine = {
        "model": {"class_path": "Backprop", "init_args": {"network": "cnn"}},
        "data": {"class_path": "DigitsDataModule"},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(mine))
    assert nobp("fit", "--config", "mine.yaml", *quick).status == 0
    arguments = checkpoint("runs/mine/version_0/checkpoints/last.ckpt")["hyper_parameters"]
    assert arguments["num_classes"] == 10
    assert list(arguments["input_shape"]) == [1, 8, 8]


BARE_DATA = """
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

class Bare(L.LightningDataModule):
    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        return DataLoader(TensorDataset(torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 10), 10)

    val_dataloader = test_dataloader = train_dataloader

class Late(Bare):
    def setup(self, stage):
        self.num_classes, self.input_shape = 10, (1, 8, 8)
"""
BARE = ("--model=Backprop", "--data=bare_data.Bare")


def test_number_of_classes_and_shape_given_by_hand_stand_where_the_data_have_none(nobp, quick):
    Path("bare_data.py").write_text(BARE_DATA)
    by_hand = (*BARE, "--model.num_classes=10", "--model.input_shape=[1,8,8]")
    run = nobp("fit", *by_hand, *quick)
    assert run.status == 0, run.err
    first = Path("runs/Backprop/version_0")
    arguments = checkpoint(first / "checkpoints/last.ckpt")["hyper_parameters"]
    assert (arguments["num_classes"], list(arguments["input_shape"])) == (10, [1, 8, 8])
    assert printed(nobp, *by_hand)["model"]["init_args"]["num_classes"] == 10
    assert nobp("fit", "--config", first / "config.yaml").status == 0
    [repeated] = set(Path().rglob("last.ckpt")) - {first / "checkpoints/last.ckpt"}
    assert_same(weights(repeated), weights(first / "checkpoints/last.ckpt"))
    test = nobp("test", *BARE, "--ckpt_path=last", "--trainer.enable_progress_bar=false")
    assert test.status == 0, test.err
    assert "test/accuracy" in test.out


@pytest.mark.parametrize("known", [(), ("--model.num_classes=10",)])
def test_a_shape_that_nobody_knows_is_said_in_a_line(nobp, quick, known):
    Path("bare_data.py").write_text(BARE_DATA)
    run = nobp("fit", *BARE, *quick, *known)
    missing = "input_shape" if known else "num_classes"
    assert run.status == 2
    assert run.err.splitlines()[-1].startswith(f"nobp: {missing} is not known: give Backprop({missing}=...)")
    assert "Traceback" not in run.err


def test_data_may_learn_their_shape_when_they_are_set_up(nobp, quick):
    Path("bare_data.py").write_text(BARE_DATA)
    run = nobp("fit", "--model=Backprop", "--data=bare_data.Late", *quick)
    assert run.status == 0, run.err


def test_a_network_that_the_rule_refuses_is_said_in_a_line(nobp, quick):
    Path("refusing_rule.py").write_text(
        "from lightning_nobp.rules import Backprop\n\nclass Refuses(Backprop):\n"
        "    def check_network(self, network):\n        raise TypeError('Refuses cannot train a Linear')\n"
    )
    run = nobp("fit", *DIGITS, *quick, "--model=refusing_rule.Refuses")
    assert run.status == 2
    assert run.err.splitlines()[-1] == "nobp: Refuses cannot train a Linear"


def test_a_rule_without_any_configuration_file(nobp, quick):
    run = nobp("fit", "--model=Backprop", "--data=DigitsDataModule", *quick)
    assert run.status == 0, run.err
    assert Path("runs/Backprop/version_0/config.yaml").is_file()


OWN_RULE = """
from lightning_nobp.rules import Backprop

class Scaled(Backprop):
    def __init__(self, *, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
"""


def test_a_rule_of_the_current_folder_takes_over_what_it_accepts_from_a_recipe(nobp, quick):
    Path("my_scaled_rule.py").write_text(OWN_RULE)
    run = nobp("fit", *DIGITS, *quick, "--model", "my_scaled_rule.Scaled", "--model.factor=3")
    assert run.status == 0, run.err
    [path] = Path("runs").rglob("last.ckpt")
    arguments = checkpoint(path)["hyper_parameters"]
    assert arguments["_class_path"] == "my_scaled_rule.Scaled"
    assert (arguments["factor"], arguments["loss"]) == (3, "cross_entropy")


def test_checkpoints_of_the_users_own_come_on_top(nobp, quick):
    own = ("--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.filename=own")
    run = nobp("fit", *DIGITS, *quick, *own)
    assert run.status == 0, run.err
    [folder] = Path("runs").rglob("checkpoints")
    assert {path.name for path in folder.iterdir()} == {"own.ckpt", "last.ckpt", "epoch=0-step=4.ckpt"}
    assert resolve("best", "digits/backprop", [Path("runs")]).name == "epoch=0-step=4.ckpt"


def test_best_follows_checkpoints_that_moved(nobp, quick):
    assert nobp("fit", *DIGITS, *quick, "--trainer.max_epochs=2").status == 0
    before = resolve("best", "digits/backprop", [Path("runs")])
    Path("runs").rename("moved")
    moved = resolve("best", "digits/backprop", [Path("moved")])
    assert moved == Path("moved") / before.relative_to("runs")
    assert moved.name.startswith("epoch=")


def test_fast_dev_run_leaves_nothing_behind(nobp):
    run = nobp("fit", *DIGITS, "--trainer.fast_dev_run=true")
    assert run.status == 0, run.err
    assert "1, 1" in run.out
    assert "run folder" not in run.out
    assert not list(Path().rglob("*"))


def test_neither_logger_nor_checkpoints(nobp, quick):
    off = ("--trainer.logger=false", "--trainer.enable_checkpointing=false")
    run = nobp("fit", *DIGITS, *quick, *off)
    assert run.status == 0, run.err
    assert "checkpoint:" not in run.out
    assert not list(Path().rglob("*.ckpt"))


def test_runs_without_a_logger_keep_their_own_files(nobp, quick):
    for lr in (0.1, 0.01):
        run = nobp("fit", *DIGITS, *quick, "--trainer.logger=false", f"--model.optimizer.lr={lr}")
        assert run.status == 0, run.err
    first, second = (Path(f"runs/digits/backprop/version_{k}") for k in (0, 1))
    assert f"run folder    │ {second}" in run.out
    for folder, lr in ((first, 0.1), (second, 0.01)):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == lr
        assert checkpoint(folder / "checkpoints/last.ckpt")["hyper_parameters"]["optimizer"]["init_args"]["lr"] == lr
    assert {p.name for p in Path("runs").iterdir()} == {"digits"}
    assert resolve("last", "digits/backprop", [Path("runs")]).is_relative_to(second)


def test_a_run_without_validation_names_its_last_checkpoint(nobp, quick):
    run = nobp("fit", *DIGITS, *quick, "--data.val_size=0")
    assert run.status == 0, run.err
    assert "checkpoint: runs/digits/backprop/version_0/checkpoints/last.ckpt" in run.out
    command = shlex.split(run.out.rpartition("next: nobp ")[2])
    assert "test/accuracy" in nobp(*command).out


ATTITUDE = (
    *("--config=attitude/quaternion", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.limit_train_batches=2", "--trainer.logger=false", "--model.network.hidden_dims=[16]"),
)


def test_a_run_that_ends_before_its_first_validation_can_be_tested_and_resumed(nobp):
    fit = nobp("fit", *ATTITUDE, "--trainer.max_epochs=2")
    assert fit.status == 0, fit.err
    assert "none was due" in fit.out
    path = Path(fit.out.partition("checkpoint: ")[2].splitlines()[0])
    assert path.name == "last.ckpt"
    tested = nobp("test", *ATTITUDE, "--ckpt_path=best")
    assert f"weights of {path}" in tested.err
    assert nobp("fit", *ATTITUDE, "--trainer.max_epochs=3", "--ckpt_path=last").status == 0
    assert nobp("fit", *ATTITUDE, "--trainer.max_epochs=3").status == 0
    resumed, at_once = sorted(Path("runs").rglob("version_[12]/checkpoints/last.ckpt"))
    assert_same(weights(resumed), weights(at_once))


def test_predictions_without_classes_are_the_outputs(nobp):
    run = nobp("predict", "--config=attitude/quaternion", "--predictions.path=p.csv")
    assert run.status == 0, run.err
    assert list(rows("p.csv")[0])[:3] == ["index", "output_0", "output_1"]
    maps = nobp("predict", "--config=attitude/quaternion", "--model.network.out_features=1004")
    assert maps.status == 2
    assert "outputs of shape (1004,) make no table: write a .pt file" in maps.err


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_shipped_loggers_merge_into_a_recipe(nobp, quick, logger):
    run = nobp("fit", *DIGITS, *quick, "--config", f"loggers/{logger}")
    assert run.status == 0, run.err
    folder = Path("runs") / logger / "version_0"
    assert (folder / "config.yaml").is_file()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert list(folder.glob("metrics.csv" if logger == "csv" else "events.out.tfevents*"))
    assert resolve("last", "digits/backprop", [Path("runs")]) == folder / "checkpoints" / "last.ckpt"


def test_help_names_the_options(nobp):
    text = nobp("fit", "--help").out
    assert "--config" in text
    assert "--ckpt_path" in text


def test_a_network_from_time_series_is_fitted_tested_and_run_ahead(nobp, tmp_path):
    series = ("--data.num_steps=401", "--data.num_trajectories=2", "--data.num_test=1", "--data.horizon=30")
    fitted = nobp("fit", "--config=lorenz16/dynamical_network", *series)
    assert fitted.status == 0, fitted.err
    assert "link AUROC" in fitted.out
    run = ("--config=runs/lorenz16/dynamical_network/version_0/config.yaml", "--ckpt_path=best")
    tested = nobp("test", *run)
    assert tested.status == 0, tested.err
    assert "test/valid_prediction_time" in tested.out
    predicted = nobp("predict", *run, "--predictions.path=ahead.pt")
    assert predicted.status == 0, predicted.err
    ahead = torch.load(tmp_path / "ahead.pt")
    assert ahead["output"].shape == (13, 31, 16, 3)
