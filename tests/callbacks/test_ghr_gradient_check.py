"""A wrong quaternion derivative is found while it trains."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from toys import backprop, loader, trainer, weights

from lightning_nobp.callbacks import GHRGradientCheck
from lightning_nobp.nn import QuaternionLinear
from lightning_nobp.rules import QuaternionBackprop


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(6, 8), QuaternionLinear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )


def rule(**options):
    return QuaternionBackprop(network=network(), num_classes=3, input_shape=(1, 2, 3), **options)


def fit(folder, rule, *callbacks):
    run = trainer(folder, callbacks=list(callbacks), logger=CSVLogger(folder), max_epochs=2)
    run.fit(rule, loader())


@pytest.mark.parametrize("options", [{}, {"grad_scale": 1}, {"backward_mode": "autograd"}], ids=str)
def test_right_derivatives_pass(tmp_path, options):
    check = GHRGradientCheck(every_n_steps=2)
    fit(tmp_path, rule(**options), check)
    assert len(check.errors) == 6
    assert max(check.errors) < 1e-5
    logged = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "ghr/relative_error" in logged.splitlines()[0]


@pytest.mark.parametrize("mode", ["naive", "noconj", "truncated"])
def test_wrong_ones_stop_the_training(tmp_path, mode):
    with pytest.raises(
        RuntimeError, match=rf"off by .* more than tolerance=0.001, most of it in network.*is '{mode}' on purpose"
    ):
        fit(tmp_path, rule(backward_mode=mode), GHRGradientCheck(every_n_steps=2))


def test_without_a_tolerance_the_error_is_logged_alone(tmp_path):
    check = GHRGradientCheck(every_n_steps=4, tolerance=None)
    fit(tmp_path, rule(backward_mode="truncated"), check)
    assert len(check.errors) == 3
    assert min(check.errors) > 0.01


class WrongByHand(QuaternionBackprop):
    def loss_derivative(self, y, target):
        loss, grad = super().loss_derivative(y, target)
        return loss, 1.1 * grad


def test_a_derivative_of_ones_own_is_checked(tmp_path):
    mine = WrongByHand(network=network(), num_classes=3, input_shape=(1, 2, 3))
    with pytest.raises(RuntimeError, match=r"off by 1\.0e-01.*a backward pass is wrong$"):
        fit(tmp_path, mine, GHRGradientCheck())


def test_training_goes_on_as_without_it(tmp_path):
    found = []
    for callbacks in ([], [GHRGradientCheck(1)]):
        mine = rule()
        torch.manual_seed(1)
        fit(tmp_path, mine, *callbacks)
        found.append(weights(mine))
    assert torch.equal(*found)


def test_other_rules_and_tolerances_are_refused(tmp_path):
    with pytest.raises(TypeError, match="GHRGradientCheck checks a QuaternionBackprop rule, not a Backprop"):
        fit(tmp_path, backprop(), GHRGradientCheck())
    with pytest.raises(ValueError, match="tolerance=0 must be positive"):
        GHRGradientCheck(tolerance=0)
