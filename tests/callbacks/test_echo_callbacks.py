"""EchoGradientCheck and ReversalMonitor find out what goes wrong while it trains, and change nothing."""

import csv
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from toys import backprop, loader, trainer, weights

from lightning_nobp.callbacks import EchoGradientCheck, ReversalMonitor, WrongGradientError
from lightning_nobp.cli import main
from lightning_nobp.functional.hamiltonian import Imperfections
from lightning_nobp.nn import DuffingClassifier, LogCoshClassifier
from lightning_nobp.rules import HamiltonianEcho

CALLBACKS = {"check": partial(EchoGradientCheck, 2), "monitor": partial(ReversalMonitor, 2)}


def rule(network=None, **options):
    torch.manual_seed(0)
    network = network or DuffingClassifier((1, 2, 3), 3, hidden_units=4)
    return HamiltonianEcho(network=network, num_classes=3, input_shape=(1, 2, 3), **options)


def fit(folder, rule, *callbacks, **options):
    torch.manual_seed(1)
    run = trainer(folder, callbacks=list(callbacks), logger=CSVLogger(folder), max_epochs=2, **options)
    run.fit(rule, loader())
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if name.startswith("heb/")}


@pytest.mark.parametrize("options", [{}, {"gradient_engine": "adjoint"}, {"nudge": "richardson"}], ids=str)
def test_right_echoes_pass(tmp_path, options):
    check = EchoGradientCheck(every_n_steps=2)
    logged = fit(tmp_path, rule(**options), check)
    assert logged["heb/relative_error"] == pytest.approx(check.errors)
    assert len(check.errors) == 6
    assert max(check.errors) < 5e-3
    assert min(logged["heb/cosine"]) > 0.9999


def test_the_nudge_is_named_that_was_taken_by_default(tmp_path):
    with pytest.raises(WrongGradientError, match=r": eta=0\.01 is too"):
        fit(tmp_path, rule(), EchoGradientCheck(tolerance=1e-12))


def test_nudges_of_the_wrong_size_stop_the_training(tmp_path):
    message = r"off by .* more than tolerance=0\.05, most of it in network\.layer\.system\.coupling: eta=1e-09 is too"
    with pytest.raises(RuntimeError, match=message):
        fit(tmp_path, rule(eta=1e-9), EchoGradientCheck(every_n_steps=2))


def test_without_a_tolerance_an_imperfect_apparatus_is_logged_alone(tmp_path):
    mine = rule()
    mine.network.layer.imperfections = Imperfections(conjugation_error=0.5)
    logged = fit(tmp_path, mine, EchoGradientCheck(every_n_steps=4, tolerance=None))
    assert min(logged["heb/relative_error"]) > 0.1


@pytest.mark.parametrize("callback", CALLBACKS)
def test_training_goes_on_as_without_them(tmp_path, callback):
    found = []
    for number, callbacks in enumerate(([], [CALLBACKS[callback]()])):
        mine = rule()
        fit(tmp_path / str(number), mine, *callbacks)
        found.append(weights(mine))
        assert mine.network.layer.watcher is None
    assert torch.equal(*found)


def test_other_rules_and_tolerances_are_refused(tmp_path):
    with pytest.raises(TypeError, match="EchoGradientCheck checks a HamiltonianEcho rule, not a Backprop"):
        fit(tmp_path, backprop(), EchoGradientCheck())
    with pytest.raises(TypeError, match="ReversalMonitor watches simulations, and Backprop has none"):
        fit(tmp_path, backprop(), ReversalMonitor())
    with pytest.raises(ValueError, match="tolerance=0 must be positive"):
        EchoGradientCheck(tolerance=0)
    with pytest.raises(ValueError, match="every_n_steps=0 must be at least 1"):
        ReversalMonitor(0)


@pytest.mark.parametrize(("precision", "rounding"), [("32-true", 1e-3), ("64-true", 1e-11)])
@pytest.mark.parametrize("network", [DuffingClassifier, partial(LogCoshClassifier, n_units=6, hidden_features=8)])
def test_what_can_be_reversed_is_logged_as_such(tmp_path, network, precision, rounding):
    mine = rule(network((1, 2, 3), 3))
    logged = fit(tmp_path, mine, ReversalMonitor(every_n_steps=3), precision=precision)
    assert {len(values) for values in logged.values()} == {4}
    assert 0 <= max(logged["heb/reversal_error"]) < rounding
    assert 0 < max(logged["heb/energy_drift"]) < 0.3
    assert 0 < min(logged["heb/dt_omega"]) <= max(logged["heb/dt_omega"]) < 2


def test_energy_that_is_taken_is_no_drift(tmp_path):
    mine = rule()
    mine.network.layer.damping = 0.2
    assert set(fit(tmp_path, mine, ReversalMonitor())) == {"heb/reversal_error", "heb/dt_omega"}


class Stiffen(ReversalMonitor):
    """Learning that raises frequencies."""

    def __init__(self, to):
        super().__init__(every_n_steps=1)
        self.to = to

    def on_train_batch_end(self, trainer, pl_module, *rest):
        layer = pl_module.network.layer
        if trainer.global_step == 3:
            with torch.no_grad():
                layer.system.weight.zero_()
                layer.system.weight[0, 0] = ((self.to / layer.dt) ** 2 - 1) ** 0.5
        super().on_train_batch_end(trainer, pl_module, *rest)


@pytest.mark.filterwarnings("ignore:.*")
def test_time_steps_that_learning_makes_too_long_stop_the_training(tmp_path):
    bounded = LogCoshClassifier((1, 2, 3), 3, n_units=6, hidden_features=8)
    with pytest.raises(ValueError, match=r"network\.layer, of a LogCoshNetwork: dt=0\.25 .* is 2\.10, and leapfrog"):
        fit(tmp_path, rule(bounded), Stiffen(2.1))


def test_time_steps_that_learning_makes_long_are_warned_of(tmp_path):
    bounded = LogCoshClassifier((1, 2, 3), 3, n_units=6, hidden_features=8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(tmp_path, rule(bounded, optimizer=partial(torch.optim.SGD, lr=1e-6)), Stiffen(1.9))
    assert any("is 1.90, and leapfrog is unstable from 2 on" in str(w.message) for w in told)


def test_a_gradient_that_is_wrong_stops_the_command_with_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check = ["--trainer.callbacks+=lightning_nobp.callbacks.EchoGradientCheck"]
    noise = ["--trainer.callbacks+=lightning_nobp.callbacks.EchoImperfections", "--trainer.callbacks.noise=0.1"]
    quick = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    assert main(["fit", "--config", "xor/hamiltonian_echo", *check, *noise, *quick]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("nobp: EchoGradientCheck: the written gradient is off by")]
    assert "Traceback" not in " ".join(said)
