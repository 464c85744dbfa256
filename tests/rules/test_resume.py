"""A run stopped anywhere and resumed equals the run that was not stopped, bit for bit."""

import csv
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from toys import trainer, weights

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP
from lightning_nobp.rules import Backprop

SCHEDULERS = {
    "epoch": {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.7)},
    "step": {
        "lr_scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.97),
        "lr_scheduler_interval": "step",
    },
    "plateau": {"lr_scheduler": partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5)},
}


class Noisy(Backprop):
    """Draws from every global generator, as a stochastic rule does."""

    def compute_gradients(self, batch):
        import random

        import numpy as np

        values = super().compute_gradients(batch)
        for p in self.network.parameters():
            p.grad += 1e-3 * (torch.randn_like(p) + random.random() + np.random.rand())
        return values


def rule(kind=Noisy, **kwargs):
    L.seed_everything(0, verbose=False)
    return kind(
        network=partial(MLP, hidden_dims=(16,), dropout=0.2),
        num_classes=10,
        input_shape=(1, 8, 8),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        **kwargs,
    )


def data(**kwargs):
    return DigitsDataModule(batch_size=64, subset=400, val_size=100, **kwargs)


def run(folder, every=None, ckpt_path=None, data_arguments=None, max_epochs=4, trainer_arguments=None, **kwargs):
    """Train; keep every checkpoint. Returns the trainer."""
    saved = ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1, save_last=every is None)
    arguments = {"callbacks": []} | (trainer_arguments or {})
    arguments["callbacks"] = [saved, *arguments["callbacks"]]
    fit = trainer(folder, max_epochs=max_epochs, enable_checkpointing=True, **arguments)
    module = rule(**kwargs)
    if ckpt_path is not None:
        # Another state of every generator: what the checkpoint does not restore shows.
        L.seed_everything(99, verbose=False)
    fit.fit(module, datamodule=data(**(data_arguments or {})), ckpt_path=ckpt_path)
    return fit


def assert_equal_runs(resumed, whole):
    assert resumed.global_step == whole.global_step
    assert torch.equal(weights(resumed.model), weights(whole.model))
    state, expected = resumed.optimizers[0].state_dict(), whole.optimizers[0].state_dict()
    assert state["param_groups"] == expected["param_groups"]
    for key, entry in expected["state"].items():
        assert all(torch.equal(state["state"][key][k], entry[k]) for k in entry)
    for name, value in whole.callback_metrics.items():
        torch.testing.assert_close(resumed.callback_metrics[name], value)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("step", [1, 4, 5, 8, 10])
def test_stopped_after_any_batch(tmp_path, scheduler, step):
    # 300 samples in batches of 64: five steps an epoch, the last one uneven.
    whole = run(tmp_path / "whole", every=1, **SCHEDULERS[scheduler])
    [path] = (tmp_path / "whole").glob(f"*step={step}.ckpt")
    assert_equal_runs(run(tmp_path / "resumed", ckpt_path=path, **SCHEDULERS[scheduler]), whole)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_stopped_at_the_end_of_an_epoch(tmp_path, scheduler):
    whole = run(tmp_path / "whole", **SCHEDULERS[scheduler])
    for path in sorted((tmp_path / "whole").glob("epoch=*.ckpt"))[:-1]:
        assert_equal_runs(run(tmp_path / path.stem, ckpt_path=path, **SCHEDULERS[scheduler]), whole)


@pytest.mark.parametrize("step", [3, 7])
def test_stopped_while_gradients_accumulate(tmp_path, step):
    """Saved by hand between two batches of one optimizer step."""

    class SaveAt(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch * 5 + batch_idx + 1 == step:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    settings = {"accumulate_grad_batches": 2}
    whole = run(tmp_path / "whole", trainer_arguments={}, **settings)
    fit = trainer(tmp_path / "saving", max_epochs=4, callbacks=[SaveAt()])
    fit.fit(rule(**settings), datamodule=data())
    assert torch.equal(weights(fit.model), weights(whole.model))
    assert_equal_runs(run(tmp_path / "resumed", ckpt_path=tmp_path / "middle.ckpt", **settings), whole)


def test_with_data_loader_workers(tmp_path):
    settings = {"data_arguments": {"num_workers": 2}, "max_epochs": 2}
    whole = run(tmp_path / "whole", every=1, **settings)
    assert_equal_runs(whole, run(tmp_path / "alone", max_epochs=2))
    [path] = (tmp_path / "whole").glob("*step=3.ckpt")
    assert_equal_runs(run(tmp_path / "resumed", ckpt_path=path, **settings), whole)


def test_validation_in_the_middle_of_an_epoch(tmp_path):
    settings = {"trainer_arguments": {"val_check_interval": 2}}
    whole = run(tmp_path / "whole", every=1, **settings)
    for step in (2, 3, 9):
        [path] = (tmp_path / "whole").glob(f"*step={step}.ckpt")
        assert_equal_runs(run(tmp_path / str(step), ckpt_path=path, **settings), whole)


class Starts(L.Callback):
    """Counts the epochs that were told to start."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)


@pytest.mark.parametrize("steps", [(5, 10, 15), (5, 12, 15), (4, 5, 10), (10, 15, 19)])
def test_stopped_again_and_again(tmp_path, steps):
    whole, path = run(tmp_path / "whole", every=1, **SCHEDULERS["epoch"]), None
    for number, step in enumerate((*steps, 20)):
        folder = tmp_path / str(number)
        resumed = run(folder, every=1, ckpt_path=path, **SCHEDULERS["epoch"])
        assert_equal_runs(resumed, whole)
        [path] = folder.glob(f"*step={step}.ckpt")


class SaveFirstValidation(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_stopped_while_a_missed_validation_is_made_up_for(tmp_path):
    whole = run(tmp_path / "whole", every=1, **SCHEDULERS["epoch"])
    for folder, step in (("whole", 5), ("5", 10), ("10", 15)):
        [path] = (tmp_path / folder).glob(f"*step={step}.ckpt")
        made_up = tmp_path / f"made_up_{step}.ckpt"
        settings = {"trainer_arguments": {"callbacks": [SaveFirstValidation(made_up)]}}
        run(tmp_path / "stopped", ckpt_path=path, **SCHEDULERS["epoch"], **settings)
        assert torch.load(made_up)["global_step"] == step
        assert_equal_runs(run(tmp_path / str(step), every=1, ckpt_path=made_up, **SCHEDULERS["epoch"]), whole)


def test_the_epoch_after_one_that_is_made_up_for_is_told_to_start(tmp_path):
    run(tmp_path, every=1)
    [path] = tmp_path.glob("*step=10.ckpt")
    starts = Starts()
    fit = trainer(tmp_path, max_epochs=4, callbacks=[starts])
    fit.fit(rule(), datamodule=data(), ckpt_path=path)
    assert starts.epochs == [2, 3]


class Solver(Noisy):
    """Sums over an epoch and settles at its end, as rules in closed form do."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("solved", torch.zeros(4))

    def compute_gradients(self, batch):
        self.seen += len(batch[0])
        return super().compute_gradients(batch)

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.solved[self.solved.count_nonzero()] = self.seen
        self.seen.zero_()


def losses_by_epoch(folder):
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return {row["epoch"]: row["train/loss_epoch"] for row in csv.DictReader(file) if row["train/loss_epoch"]}


@pytest.mark.parametrize("step", [5, 10, 12])
def test_end_of_an_epoch_is_made_up_for_and_logged(tmp_path, step):
    def fit(folder, every=None, ckpt_path=None):
        saved = ModelCheckpoint(folder, every_n_train_steps=every, save_top_k=-1)
        logger = CSVLogger(folder)
        made = trainer(folder, max_epochs=4, callbacks=[saved], enable_checkpointing=True, logger=logger)
        made.fit(rule(Solver), datamodule=data(), ckpt_path=ckpt_path)
        return made

    whole = fit(tmp_path / "whole", every=1)
    [path] = (tmp_path / "whole").glob(f"*step={step}.ckpt")
    resumed = fit(tmp_path / "resumed", ckpt_path=path)
    assert_equal_runs(resumed, whole)
    assert torch.equal(resumed.model.solved, torch.full((4,), 300.0))
    expected = losses_by_epoch(tmp_path / "whole")
    assert list(expected) == ["0", "1", "2", "3"]
    found = losses_by_epoch(tmp_path / "resumed")
    assert found == {epoch: expected[epoch] for epoch in found}
    assert list(found) == [str(epoch) for epoch in range((step - 1) // 5, 4)]


def test_a_second_fit_starts_anew(tmp_path):
    arguments = {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)}
    module = rule(**arguments)
    rates = []
    for _ in range(2):
        fit = trainer(tmp_path, max_epochs=3)
        fit.fit(module, datamodule=data())
        rates.append(fit.lr_scheduler_configs[0].scheduler.get_last_lr())
    assert rates[0] == rates[1] == [0.01 * 0.5**3]


def test_a_rule_from_a_checkpoint_starts_anew(tmp_path):
    arguments = {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)}
    fit = run(tmp_path, max_epochs=3, **arguments)
    fit.save_checkpoint(tmp_path / "rule.ckpt")
    again = Noisy.load_from_checkpoint(tmp_path / "rule.ckpt")
    other = trainer(tmp_path, max_epochs=2)
    L.seed_everything(5, verbose=False)
    expected = torch.randn(3)
    L.seed_everything(5, verbose=False)

    class Draw(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.drawn = torch.randn(3)

    other.callbacks.append(Draw())
    other.fit(again, datamodule=data())
    assert torch.equal(other.callbacks[-1].drawn, expected)
    assert other.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.01 * 0.5**2]


def test_batch_norm_statistics_are_part_of_it(tmp_path):
    def fit(folder, ckpt_path=None):
        L.seed_everything(0, verbose=False)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
        module = Backprop(network=network, num_classes=10)
        saved = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1)
        made = trainer(folder, max_epochs=2, callbacks=[saved], enable_checkpointing=True)
        made.fit(module, datamodule=data(), ckpt_path=ckpt_path)
        return made

    whole = fit(tmp_path / "whole")
    [path] = (tmp_path / "whole").glob("*step=7.ckpt")
    assert_equal_runs(fit(tmp_path / "resumed", path), whole)


def test_double_precision_survives_a_checkpoint(tmp_path):
    # Restored into single precision first, the weights would be rounded.
    settings = {"trainer_arguments": {"precision": "64-true"}, "max_epochs": 2}
    whole = run(tmp_path / "whole", every=1, **settings)
    [path] = (tmp_path / "whole").glob("*step=7.ckpt")
    assert_equal_runs(run(tmp_path / "resumed", ckpt_path=path, **settings), whole)
