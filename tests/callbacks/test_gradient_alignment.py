"""Alignment with backpropagation, and that measuring changes nothing."""

from functools import partial

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from toys import backprop, blobs, loader, trainer, weights

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.nn import MLP
from lightning_nobp.rules import Backprop, ClassificationRule, LearningRule

EVERYTHING = partial(MLP, hidden_dims=(8,), batch_norm=True, dropout=0.4)


class Flipped(Backprop):
    """Ascends in its first layer."""

    def compute_gradients(self, batch):
        values = super().compute_gradients(batch)
        self.network[1].weight.grad.neg_()
        return values


def fit(folder, rule, every=2, **kwargs):
    alignment = GradientAlignment(every)
    run = trainer(folder, callbacks=[alignment], logger=CSVLogger(folder), max_epochs=2, **kwargs)
    run.fit(rule, loader(), loader())
    return alignment


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_backprop_is_aligned_with_itself_with_dropout_and_batch_norm(tmp_path, engine, accumulate):
    rule = backprop(network=EVERYTHING, engine=engine, accumulate_grad_batches=accumulate, gradient_clip_val=0.01)
    alignment = fit(tmp_path, rule)
    assert len(alignment.cosines) == (6 if accumulate == 1 else 2)
    assert alignment.mean_cosine == pytest.approx(1, abs=1e-6)


def test_training_goes_on_as_without_it(tmp_path):
    results = []
    for callbacks in ([], [GradientAlignment(1)]):
        rule = backprop(network=EVERYTHING)
        torch.manual_seed(1)
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(rule, loader())
        results.append((weights(rule), list(rule.buffers())))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_each_parameter_is_compared_and_logged(tmp_path):
    torch.manual_seed(0)
    rule = Flipped(network=partial(MLP, hidden_dims=(8,)), num_classes=3, input_shape=(1, 2, 3))
    alignment = fit(tmp_path, rule, every=5)
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    logged = [dict(zip(columns, row.split(","), strict=True)) for row in rows[1:]]
    measured = [row for row in logged if row["alignment/cosine"]]
    assert [row["step"] for row in measured] == ["0", "5", "10"]
    assert all(float(row["alignment/cosine/network.1.weight"]) == pytest.approx(-1) for row in measured)
    assert all(float(row["alignment/cosine/network.3.weight"]) == pytest.approx(1) for row in measured)
    assert all(float(row["alignment/norm_ratio"]) == pytest.approx(1) for row in measured)
    assert -1 < alignment.mean_cosine < 1


class NoLoss(ClassificationRule):
    def global_loss(self, batch):
        return None

    def compute_gradients(self, batch):
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return {"loss": torch.zeros(())}


def test_rule_without_a_global_loss_is_said_once(tmp_path):
    rule = NoLoss(network=nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), num_classes=3)
    with pytest.warns(UserWarning, match="NoLoss has no global loss") as warned:
        alignment = fit(tmp_path, rule, every=1)
    assert alignment.mean_cosine is None
    assert len([w for w in warned if "global loss" in str(w.message)]) == 1


def test_missing_gradient_counts_as_zero(tmp_path):
    class LastLayer(Backprop):
        def compute_gradients(self, batch):
            values = super().compute_gradients(batch)
            self.network[1].weight.grad = self.network[1].bias.grad = None
            return values

    torch.manual_seed(0)
    rule = LastLayer(network=partial(MLP, hidden_dims=(8,)), num_classes=3, input_shape=(1, 2, 3))
    alignment = fit(tmp_path, rule)
    assert 0 < alignment.mean_cosine < 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_is_not_measured(tmp_path, accumulate):
    class Spoilt(Backprop):
        def compute_gradients(self, batch):
            values = super().compute_gradients(batch)
            if self.trainer.fit_loop.total_batch_idx == 4:
                self.network[1].bias.grad.fill_(torch.nan)
            return values

    torch.manual_seed(0)
    shape = {"network": partial(MLP, hidden_dims=(8,)), "num_classes": 3, "input_shape": (1, 2, 3)}
    rule = Spoilt(**shape, loss="cross_entropy", on_nonfinite="skip", accumulate_grad_batches=accumulate)
    alignment = fit(tmp_path, rule, every=1)
    assert alignment.cosines == pytest.approx([1.0] * (12 // accumulate - 1), abs=1e-6)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="every_n_steps=0"):
        GradientAlignment(0)


def test_global_loss_of_the_bare_base_is_none():
    assert LearningRule().global_loss(blobs().tensors) is None
