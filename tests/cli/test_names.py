"""Names: of recipes, classes, options and commands; list, show and copy."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lightning_nobp
import lightning_nobp.datamodules
import lightning_nobp.nn
import lightning_nobp.rules
from lightning_nobp.cli import index, listing, recipes
from lightning_nobp.cli.arguments import prepare
from lightning_nobp.cli.recipes import UsageError

DIGITS = ("fit", "--config", "digits/backprop")
ATTITUDE = ("fit", "--config", "attitude/quaternion")


def test_a_name_is_the_shipped_file():
    assert recipes.find("mnist/backprop") == recipes.folder() / "mnist" / "backprop.yaml"
    assert recipes.find("mnist/backprop.yaml") == recipes.folder() / "mnist" / "backprop.yaml"


@pytest.mark.parametrize("name", ["digits/backprop", "digits/backprop.yaml"])
def test_an_existing_path_wins_over_a_recipe(nobp, name):
    Path("digits").mkdir()
    Path(name).write_text("# My own\n")
    assert recipes.find(name) == Path(name)
    assert nobp("show", name).out == "# My own\n"


def test_patterns_name_recipes_once_and_no_loggers():
    digits = [name for name in recipes.recipe_names() if name.startswith("digits/")]
    assert recipes.expand(["digits"]) == recipes.expand(["digits/*", "digits/backprop"]) == digits
    assert not [name for name in recipes.expand(["*"]) if name.startswith(("loggers/", "sweeps/"))]
    with pytest.raises(UsageError, match="no recipe matches"):
        recipes.expand(["loggers/wandb"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti"], "unknown command 'fti'; did you mean fit?"),
        (["fit", "--config", "digits/bakprop"], "'digits/bakprop'; did you mean digits/backprop"),
        ([*DIGITS, "--config", "logers/wandb"], "'logers/wandb'; did you mean loggers/wandb"),
        (["show", "digit/backprop"], "'digit/backprop'; did you mean digits/backprop"),
        (["copy", "digit/backprop", "mine.yaml"], "'digit/backprop'; did you mean digits/backprop"),
        (["compare", "digits/backprob"], "'digits/backprob'; did you mean digits/backprop"),
        (["list", "digts/backprop"], "'digts/backprop'; did you mean digits/backprop"),
        ([*DIGITS, "--model=Backprob"], "--model=Backprob: no such class; did you mean Backprop"),
        ([*DIGITS, "--seed_everything=-1"], "--seed_everything: -1 is not in bounds"),
        (
            [*DIGITS, "--data", "DigitDataModule"],
            "--data=DigitDataModule: no such class; did you mean DigitsDataModule",
        ),
        ([*DIGITS, "--model.engin=autograd"], "'engin' of lightning_nobp.rules.Backprop; did you mean engine?"),
        ([*DIGITS, "--data.batchsize=8"], "lightning_nobp.datamodules.DigitsDataModule; did you mean batch_size"),
        ([*DIGITS, "--model.optimizer.lrr=1"], "'lrr' of torch.optim.Adam; did you mean lr?"),
        ([*DIGITS, "--model.network.hidden_dim=[8]"], "lightning_nobp.nn.MLP; did you mean hidden_dims?"),
        (
            [*ATTITUDE, "--model.network.side=right"],
            "no option 'side' of lightning_nobp.nn.EquivariantMLP\n",
        ),
        ([*ATTITUDE, "--model.network.in_features=abc"], "in_features: Expected a <class 'int'>. Got value: abc\n"),
        ([*ATTITUDE, "--model.network.in_features=30"], "nobp: in_features has 30 features: quaternions take four"),
        ([*DIGITS, "--model.help=QuaternionMLP"], "string: QuaternionMLP; did you mean QuaternionBackprop?"),
        ([*DIGITS, "--data.help=DigitDataModule"], "did you mean DigitsDataModule, "),
        ([*DIGITS, "--trainer.max_epohcs=1"], "'trainer.max_epohcs'; did you mean max_epochs"),
        ([*DIGITS, "--modle.engine=autograd"], "'modle.engine'; did you mean mode, model"),
        (["fit", "--conf=digits/backprop"], "there is no option 'conf'; did you mean config"),
        ([*DIGITS, "--data.batch_size=0"], "nobp: batch_size=0 must be at least 1"),
        ([*DIGITS, "--model.loss=hinge"], "model.loss: Expected a typing.Literal['mse', 'cross_entropy']"),
        ([*DIGITS, "--model.optimizer=Adamm"], "model.optimizer: Expected a dot import path string: Adamm; did you"),
    ],
)
def test_mistakes_are_answered_in_a_line_with_the_nearest_names(nobp, arguments, message):
    run = nobp(*arguments)
    assert run.status == 2
    assert message in run.err
    assert len(run.err.splitlines()) == 1
    assert not list(Path().iterdir())


def test_list_shows_rules_and_what_recipes_reached(nobp, tmp_path, monkeypatch):
    known = {"digits/backprop": {"test_accuracy": 0.9755, "seconds": 5.25, "note": "a note"}}
    (tmp_path / "measured.json").write_text(json.dumps(known))
    monkeypatch.setattr(listing, "measured", lambda: json.loads((tmp_path / "measured.json").read_text()))
    text = nobp("list").out
    assert all(rule.summary in text and rule.paper in text for rule in index.RULES)
    assert all(re.search(rf"{name} +\w+ ", text) for name in recipes.recipe_names())
    assert re.search(r"digits/backprop +Backprop +.* \[1\] 97\.55% +5\.2", text)
    assert "[1] a note" in text
    some = nobp("list", "mnist/*").out
    assert "mnist/backprop" in some
    assert "digits/" not in some


@pytest.mark.parametrize("part", ["symba", "digits/symb", "digits/symba*"])
def test_list_takes_a_part_of_a_name(nobp, part):
    text = nobp("list", part).out
    assert "digits/symba_cnn" in text
    assert "digits/backprop" not in text


def test_show_prints_the_recipe_unchanged(nobp):
    assert nobp("show", "digits/backprop").out == recipes.find("digits/backprop").read_text()


def test_copy_writes_a_file_and_never_over_one(nobp):
    run = nobp("copy", "digits/backprop", "some/mine.yaml")
    assert run.status == 0
    assert "next: nobp fit --config some/mine.yaml" in run.out
    assert Path("some/mine.yaml").read_text() == recipes.find("digits/backprop").read_text()
    Path("some/mine.yaml").write_text("mine")
    again = nobp("copy", "mnist/backprop", "some/mine.yaml")
    assert again.status == 2
    assert "some/mine.yaml exists" in again.err
    assert Path("some/mine.yaml").read_text() == "mine"
    assert nobp("copy", "mnist/backprop", "some").status == 0
    assert Path("some/backprop.yaml").is_file()


def test_networks_are_known_by_their_names_whoever_else_has_one():
    for network in index.NETWORKS:
        assert network in lightning_nobp.nn.__all__
        for option in ("--model.network", "--model.local"):
            for given in ([f"{option}={network}"], [option, network]):
                assert prepare(["fit", *given]).arguments == ["fit", f"{option}=lightning_nobp.nn.{network}"]


def test_index_lists_every_class():
    bases = {
        "LearningRule",
        "ClassificationRule",
        "ClosedFormRule",
        "NetworkRule",
        "ImageDataModule",
        "SeriesDataModule",
    }
    assert {rule.name for rule in index.RULES} == set(lightning_nobp.rules.__all__) - bases
    assert set(index.DATA_MODULES) == set(lightning_nobp.datamodules.__all__) - bases
    for rule in index.RULES:
        assert rule.class_path == f"lightning_nobp.rules.{rule.name}"
        assert rule.summary
        assert rule.paper


def test_each_recipe_says_what_it_is_and_anneals_to_its_last_epoch():
    for name in recipes.recipe_names():
        assert recipes.summary(name), name
        recipe = yaml.safe_load(recipes.find(name).read_text())
        scheduler = recipe["model"]["init_args"].get("lr_scheduler", {})
        if "T_max" in scheduler.get("init_args", {}):
            assert scheduler["init_args"]["T_max"] == recipe["trainer"]["max_epochs"], name
    assert set(listing.measured()) <= set(recipes.recipe_names())


def python(code, *arguments):
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


LIGHT = """
import sys
from lightning_nobp.cli import main
for command in (["list"], ["list", "mnist"], ["show", "digits/backprop"], ["copy", "digits/backprop", "mine.yaml"],
                ["--help"], ["--version"], ["fti"]):
    assert main(command) == (2 if command == ["fti"] else 0)
heavy = {"torch", "lightning", "numpy", "wandb", "matplotlib", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_does_not_train_imports_nothing_heavy():
    out = python(LIGHT)
    assert "usage: nobp COMMAND" in out
    assert f"lightning-nobp {lightning_nobp.__version__}" in out


UNASKED = """
import sys
# Lightning brings torchmetrics, which imports matplotlib wherever it is installed.
import lightning.pytorch.cli
before = set(sys.modules)
import lightning_nobp.callbacks, lightning_nobp.cli.lightning, lightning_nobp.datamodules, lightning_nobp.rules
new = {name.partition(".")[0] for name in set(sys.modules) - before}
unasked = new & {"wandb", "matplotlib", "tensorboard", "pyarrow", "onnx", "sklearn", "pandas"}
assert not unasked, unasked
assert "wandb" not in sys.modules
"""


def test_rules_import_no_logger_and_no_plots():
    python(UNASKED)
