"""Every recipe runs, on small files in the format of its data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_data import patch_cifar
from lightning.pytorch import LightningModule

from lightning_nobp.cli import recipes
from lightning_nobp.functional.dynamics import simulate_network
from lightning_nobp.nn import MLP, sparsify


def pretrained(recipe, data):
    """A network for a recipe that begins with one: what its recipe would have left in ``runs``."""
    if not recipe.endswith("_transfer"):
        return ()
    root, _ = data
    network = sparsify(MLP((1, 28, 28), 10, hidden_dims=(300, 100)), 0.95, distribution="erk")
    torch.save(network.state_dict(), root / "pretrained.pt")
    return (f"--model.pretrained={root / 'pretrained.pt'}",)


def write_series(path):
    """What the recipe for a table of one's own reads: two nodes."""
    weights = torch.tensor([[0.0, 0.3], [0.1, 0.0]])
    x = simulate_network("lorenz", weights, 600, 0.02)[0].flatten(1)
    rows = torch.cat([0.02 * torch.arange(600.0).unsqueeze(1), x], dim=1)
    np.savetxt(path, rows.numpy(), delimiter=",", header="time,a.x,a.y,a.z,b.x,b.y,b.z", comments="")


def small(recipe, root):
    """What makes the data of a recipe small."""
    if recipe.startswith("attitude/"):
        return ("--data.num_train=300", "--data.test_size=20")
    if "dynamical_network" in recipe:
        series = ("--data.num_steps=401", "--data.num_trajectories=2", "--data.num_test=1", "--data.transient=300")
        return (
            *((f"--data.path={root / 'series.csv'}",) if recipe.startswith("from_csv/") else series),
            "--data.horizon=30",
        )
    if recipe.startswith("yin_yang/"):
        return ("--data.num_train=300", "--data.val_size=100", "--data.test_size=20")
    if recipe.endswith("_gray_to_colour"):
        images = (f"--data.images.root={root}", "--data.images.val_size=0.5")
        return (*images, "--data.num_train=4", "--data.num_val=4", "--data.batch_size=2")
    return (f"--data.root={root}", "--data.subset=null", "--data.val_size=0.5", "--data.drop_last=false")


@pytest.mark.parametrize("recipe", recipes.recipe_names())
def test_recipe(nobp, data, tmp_path, monkeypatch, recipe):
    root, lists = data
    for kind, files in lists.items():
        patch_cifar(monkeypatch, kind, files)
    if recipe.startswith("from_csv/"):
        write_series(root / "series.csv")
    options = (*small(recipe, root), "--trainer.enable_model_summary=false")
    logger = ("--config", "loggers/wandb", "--trainer.logger.offline=true")
    run = nobp("fit", "--config", recipe, *logger, *options, *pretrained(recipe, data), "--trainer.fast_dev_run=2")
    assert run.status == 0, run.err
    assert "epochs, steps │ 1, " in run.out
    regresses = "monitor: val/loss" in recipes.find(recipe).read_text()
    assert ("val/loss" if regresses else "val/accuracy") in run.out
    assert not list(tmp_path.iterdir())


SMALLEST = ("xor", "parity", "nist7x7", "digits", "yin_yang", "attitude", "wave_field", "lorenz16", "mnist", "cifar10")
"""Data sets in the order in which a kind of network is looked for."""


def kinds():
    """A recipe for each rule and class of network that any recipe has, of the smallest data set."""
    found = {}
    for recipe in sorted(recipes.recipe_names(), key=lambda r: (_place(r), r)):
        model = yaml.safe_load(recipes.find(recipe).read_text())["model"]
        arguments = model.get("init_args", {})
        parts = [arguments.get(name) for name in ("network", "local")]
        names = [part["class_path"] if isinstance(part, dict) else part for part in parts]
        found.setdefault((model["class_path"], *names), recipe)
    return list(found.values())


def _place(recipe):
    data = recipe.split("/")[0]
    return SMALLEST.index(data) if data in SMALLEST else len(SMALLEST)


SHORTER = {
    "xor/self_learning_machine": ("--model.network=KerrCavityNetwork", "--model.network.n_steps=20"),
    "wave_field/self_learning_machine": ("--model.network=WaveFieldNetwork", "--model.network.n_steps=20"),
}
"""Fewer time steps of a recipe's own network: all are in the graph."""


@pytest.fixture(scope="module")
def fitted(nobp, data, tmp_path_factory):
    """The checkpoint of a recipe after a step or two of training."""
    root, lists = data
    one = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
    quiet = ("--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false")
    checkpoints = {}

    def fit(recipe):
        if recipe not in checkpoints:
            folder = tmp_path_factory.mktemp("fitted")
            options = (*one, *quiet, f"--trainer.default_root_dir={folder}", "--trainer.enable_model_summary=false")
            options += SHORTER.get(recipe, ())
            with pytest.MonkeyPatch.context() as patch:
                for kind, files in lists.items():
                    patch_cifar(patch, kind, files)
                run = nobp("fit", "--config", recipe, *small(recipe, root), *options)
            assert run.status == 0, run.err
            [checkpoints[recipe]] = folder.rglob("last.ckpt")
        return checkpoints[recipe]

    return fit


REFUSED = {".pt2": ("spiking",), ".onnx": ("spiking", "self_learning_machine", "nlse")}
"""Recipes, by a part of their names, whose networks have no graph of this kind."""


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("recipe", kinds())
def test_every_kind_of_network_leaves_the_package_or_is_refused_in_a_line(nobp, fitted, recipe, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    checkpoint, file = fitted(recipe), Path(f"net{suffix}")
    run = nobp("export", checkpoint, file)
    if any(part in recipe for part in REFUSED[suffix]):
        assert run.status == 2
        assert run.err.count("\n") == 1
        assert "load_from_checkpoint" in run.err
        assert not file.exists()
        return
    assert run.status == 0, run.err
    scores, shape = exported(file)
    # A batch of another size than the one that was exported.
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = LightningModule.load_from_checkpoint(checkpoint).eval()(x)
    torch.testing.assert_close(scores(x), expected, atol=1e-4, rtol=1e-4)


def exported(file):
    """What a file computes, and the shape of its inputs."""
    if file.suffix == ".pt2":
        about = {"lightning_nobp.json": ""}
        network = torch.export.load(file, extra_files=about).module()
        return network, json.loads(about["lightning_nobp.json"])["input_shape"]
    import onnx.reference

    model = onnx.load(file)
    [shape] = [json.loads(entry.value) for entry in model.metadata_props if entry.key == "input_shape"]
    session = onnx.reference.ReferenceEvaluator(model)
    return lambda x: torch.from_numpy(session.run(None, {model.graph.input[0].name: x.numpy()})[0]), shape
