"""The rule against backpropagation, and in a short training."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning_nobp.cli import main
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP

from my_project.rule import WeightPerturbation

CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"


def test_the_mean_over_directions_is_backpropagations_gradient():
    torch.manual_seed(0)
    network = partial(MLP, hidden_dims=[3])
    rule = WeightPerturbation(network=network, num_directions=5000, epsilon=1e-5, num_classes=2, input_shape=(2,))
    rule.double()
    batch = torch.randn(8, 2, dtype=torch.float64), torch.arange(8) % 2
    rule.compute_gradients(batch)
    expected = torch.autograd.grad(rule.global_loss(batch), list(rule.parameters()))
    written, expected = (torch.cat([g.flatten() for g in gs]) for gs in ([p.grad for p in rule.parameters()], expected))
    assert torch.cosine_similarity(written, expected, dim=0) > 0.98


def test_it_learns(tmp_path):
    L.seed_everything(0)
    rule = WeightPerturbation(
        network=partial(MLP, hidden_dims=[16]), num_directions=4, optimizer=partial(torch.optim.Adam, lr=1e-2)
    )
    trainer = L.Trainer(default_root_dir=tmp_path, max_epochs=5, logger=False, enable_checkpointing=False)
    trainer.fit(rule, datamodule=DigitsDataModule(batch_size=32))
    assert trainer.callback_metrics["val/accuracy"] > 0.5


def test_the_experiment_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
    assert main(["fit", "--config", str(CONFIG), *quick]) == 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_directions=0"):
        WeightPerturbation(num_directions=0)
