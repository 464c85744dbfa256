"""Multiplexed gradient descent stopped and resumed, on several processes, and in files."""

import copy
import pickle
from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import load, train_mgd
from lightning.pytorch.callbacks import ModelCheckpoint
from multiplexed import batch, build, gradient
from torch import nn
from toys import blobs, loader, trainer, weights

from lightning_nobp.cli.export import export
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP, SigmoidMLP
from lightning_nobp.rules import MultiplexedGradientDescent


@pytest.mark.parametrize("at", [1, 4, 6])
@pytest.mark.parametrize(
    "options",
    [
        {"engine": "per_sample"},
        {"num_perturbations": 3, "accumulate_grad_batches": 2},
        {"mode": "analog", "tau_x": 3, "tau_theta": 4, "tau_p": 2},
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, options, at):
    def run(ckpt_path=None):
        settings = {"num_classes": None, "input_shape": None, "optimizer": partial(torch.optim.Adam, lr=0.01)}
        rule = build(double=False, **options | settings)
        saved = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        fit = trainer(tmp_path, max_epochs=2, callbacks=[saved], enable_checkpointing=True)
        data = DigitsDataModule(subset=200, val_size=40, batch_size=32, repeat_batches=options.get("tau_x", 1))
        fit.fit(rule, datamodule=data, ckpt_path=ckpt_path)
        return weights(rule), rule.cost_evaluations, rule.samples_seen

    whole, resumed = run(), run(tmp_path / f"step={at}.ckpt")
    assert torch.equal(whole[0], resumed[0])
    assert whole[1:] == resumed[1:]


def test_filters_survive_a_checkpoint_that_is_written_before_the_next_batch(tmp_path):
    class SaveAtOnce(L.Callback):
        def on_train_start(self, trainer, rule):
            trainer.save_checkpoint(tmp_path / "again.ckpt")

    def run(ckpt_path=None, callbacks=()):
        rule = build(double=False, mode="analog", tau_x=2, tau_theta=4, num_classes=None, input_shape=None)
        saved = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        fit = trainer(tmp_path, max_epochs=1, callbacks=[saved, *callbacks], enable_checkpointing=True)
        data = DigitsDataModule(subset=200, val_size=40, batch_size=32, repeat_batches=2)
        fit.fit(rule, datamodule=data, ckpt_path=ckpt_path)
        return weights(rule)

    whole = run()
    assert torch.equal(run(tmp_path / "step=3.ckpt", [SaveAtOnce()]), whole)
    assert torch.equal(run(tmp_path / "again.ckpt"), whole)


def test_a_second_fit_starts_with_the_first_perturbation(tmp_path):
    rule = build(double=False)
    start = copy.deepcopy(rule.state_dict())
    found = []
    for _ in range(2):
        rule.load_state_dict(start)
        trainer(tmp_path).fit(rule, loader())
        found.append(weights(rule))
    assert torch.equal(*found)
    assert rule.samples_seen == 96


@pytest.mark.parametrize("case", ["per_sample", "activations", "window", "accumulated"])
def test_two_processes_equal_one_with_the_same_perturbations(tmp_path, case):
    train_mgd(tmp_path, "auto", case)
    train_mgd(tmp_path, "ddp_spawn", case)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=0, atol=1e-6)
    assert ranks[0]["steps"] == single["steps"]
    assert ranks[0]["counts"] == ranks[1]["counts"] == single["counts"]
    for name in ("train/loss_epoch", "val/loss", "val/accuracy"):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-5)


def test_processes_send_a_few_numbers_whatever_the_number_of_parameters(monkeypatch):
    sent = []
    monkeypatch.setattr("lightning_nobp.rules.mgd.world_size", lambda: 2)
    monkeypatch.setattr(
        "lightning_nobp.rules.mgd.gather_vectors", lambda vector: [sent.append(vector.numel()) or vector] * 2
    )
    for width in (5, 500):
        rule = build(network=partial(MLP, hidden_dims=(width,)), engine="in_place", num_perturbations=3)
        values = rule.compute_gradients(batch())
        assert values["bytes_sent"] == 8 * (3 + 2) + 32
        rule.synchronise_gradients(12, values["loss"])
    assert sent == [5, 5]


def test_a_checkpoint_builds_the_rule_again(tmp_path):
    for options in (
        {"loss": nn.MultiMarginLoss(), "amplitude": {"*.bias": 0.01, "*": 0.004}},
        {"tau_theta": 4, "tau_x": 2},
        {"num_perturbations": 3, "perturbation": "walsh", "period": 128},
    ):
        rule = build(double=False, **options)
        fit = trainer(tmp_path)
        fit.fit(rule, loader())
        fit.save_checkpoint(tmp_path / "net.ckpt")
        again = MultiplexedGradientDescent.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
        assert torch.equal(weights(again), weights(rule))
        for name in ("amplitude", "tau_theta", "tau_x", "period", "num_perturbations"):
            assert getattr(again, name) == getattr(rule, name)
        assert repr(again.loss) == repr(rule.loss)


def test_export(tmp_path):
    rule = build(double=False, network=partial(SigmoidMLP, hidden_dims=(4,)))
    trainer(tmp_path).fit(rule, loader())
    fit = trainer(tmp_path)
    fit.strategy.connect(rule)
    fit.save_checkpoint(tmp_path / "net.ckpt")
    export(tmp_path / "net.ckpt", tmp_path / "net.pt2")
    x = blobs(7).tensors[0]
    exported = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(exported(x), rule(x))


def test_a_rule_that_has_begun_travels_to_other_processes():
    rule = build()
    rule.compute_gradients(batch())
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        rule.zero_grad()
        assert torch.equal(gradient(twin, batch()), gradient(copy.deepcopy(rule), batch()))
