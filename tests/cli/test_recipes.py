"""Every recipe runs, on small files in the format of its data set."""

import pytest
from fake_data import patch_cifar

from lightning_nobp.cli import recipes


@pytest.mark.parametrize("recipe", recipes.recipe_names())
def test_recipe(nobp, data, tmp_path, monkeypatch, recipe):
    root, lists = data
    for kind, files in lists.items():
        patch_cifar(monkeypatch, kind, files)
    options = (
        f"--data.root={root}",
        "--data.subset=null",
        "--data.val_size=0.5",
        "--data.drop_last=false",
        "--trainer.enable_model_summary=false",
    )
    logger = ("--config", "loggers/wandb", "--trainer.logger.offline=true")
    run = nobp("fit", "--config", recipe, *logger, *options, "--trainer.fast_dev_run=2")
    assert run.status == 0, run.err
    assert "epochs, steps │ 1, " in run.out
    assert "val/accuracy" in run.out
    assert not list(tmp_path.iterdir())
