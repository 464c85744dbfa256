"""Every recipe runs, on small files in the format of its data set."""

import numpy as np
import pytest
import torch
from fake_data import patch_cifar

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
