"""A user's project: the wheel beside the other packages, a rule and data of one's own, training, resuming, loading."""

import os
import subprocess
import sys

import pytest
import yaml

RULES = '''
import torch
from lightning_nobp.rules import ClassificationRule


class MyRule(ClassificationRule):
    """Moves the last layer only."""

    def __init__(self, *, strength: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.strength = strength

    def compute_gradients(self, batch):
        x, target = batch
        *hidden, last = self.built_network()
        features = torch.nn.Sequential(*hidden)(x).detach()
        with torch.enable_grad():
            loss = self.loss_function(last(features), target)
            grads = torch.autograd.grad(loss, list(last.parameters()))
        for parameter, grad in zip(last.parameters(), grads):
            parameter.grad = self.strength * grad
        return {"loss": loss.detach()}
'''

DATA = '''
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class MyData(L.LightningDataModule):
    """Three classes of noisy points."""

    num_classes = 3
    input_shape = (4,)

    def __init__(self, noise: float = 0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        target = torch.arange(90) % 3
        x = torch.randn(3, 4, generator=generator)[target] + noise * torch.randn(90, 4, generator=generator)
        self.points = TensorDataset(x, target)

    def train_dataloader(self):
        return DataLoader(self.points, batch_size=15)

    def val_dataloader(self):
        return DataLoader(self.points, batch_size=90)

    test_dataloader = predict_dataloader = val_dataloader
'''

CONFIG = {
    "model": {
        "class_path": "my_rules.MyRule",
        "init_args": {
            "strength": 2.0,
            "network": {"class_path": "lightning_nobp.nn.MLP", "init_args": {"hidden_dims": [16]}},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.02}},
        },
    },
    "data": {"class_path": "my_data.MyData", "init_args": {"noise": 0.2}},
    "trainer": {"max_epochs": 4, "enable_progress_bar": False, "enable_model_summary": False},
}

RESUME_AND_LOAD = """
import pathlib, sys
import torch
import lightning_nobp
from lightning_nobp.cli import main, recipes
from my_data import MyData
from my_rules import MyRule

site = pathlib.Path(sys.argv[1])
assert site in pathlib.Path(lightning_nobp.__file__).parents
assert recipes.folder() == site / "lightning_nobp" / "recipes"
assert {"digits/backprop", "loggers/wandb"} <= set(recipes.names())
assert all((site / "lightning_nobp" / name).is_file() for name in ("py.typed", "recipes/measured.json"))
assert main(["new", "new-rules"]) == 0
assert pathlib.Path("new-rules/new_rules/rule.py").is_file()

assert main(["fit", "--config", "configs/my.yaml", "--ckpt_path=last", "--trainer.max_epochs=8"]) == 0
rule = MyRule.load_from_checkpoint("runs/my/version_1/checkpoints/last.ckpt")
assert (rule.strength, rule.num_classes, tuple(rule.input_shape)) == (2.0, 3, (4,))
x, target = MyData(noise=0.2).points.tensors
assert (rule(x).argmax(1) == target).float().mean() > 0.9
"""


@pytest.fixture(scope="module")
def site(distributions, tmp_path_factory):
    """Where the wheel is installed, without what it depends on."""
    _, wheel = distributions
    folder = tmp_path_factory.mktemp("site")
    call("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def call(*command, **settings):
    run = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, **settings)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_own_rule_and_data_train_resume_and_load(site, tmp_path):
    (tmp_path / "my_rules.py").write_text(RULES)
    (tmp_path / "my_data.py").write_text(DATA)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "my.yaml").write_text(yaml.safe_dump(CONFIG))
    here = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}}
    # The console script itself, which does not put the current folder on the path.
    nobp = site / "bin" / "nobp"

    first = call(nobp, "fit", "--config", "configs/my.yaml", **here)
    assert "epochs, steps │ 4, 24" in first
    assert "run folder    │ runs/my/version_0" in first
    second = call("-c", RESUME_AND_LOAD, site, **here)
    assert "epochs, steps │ 8, 48" in second
