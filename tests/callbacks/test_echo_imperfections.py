"""Echoes of apparatus that is not perfect."""

from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from resuming import assert_resumed_equals_whole
from toys import trainer

from lightning_nobp.callbacks import EchoImperfections, GradientAlignment
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import DuffingClassifier
from lightning_nobp.rules import Backprop, HamiltonianEcho


def rule():
    torch.manual_seed(0)
    return HamiltonianEcho(network=partial(DuffingClassifier, hidden_units=10, n_steps=10), eta=1e-2)


def trained(folder, callback, *, module=None, batches=4):
    """The rule, and how its gradients aligned with those of the perfect apparatus."""
    module = module or rule()
    alignment = GradientAlignment(every_n_steps=1)
    run = trainer(folder, max_epochs=1, callbacks=[callback, alignment], limit_train_batches=batches)
    run.fit(module, datamodule=DigitsDataModule(batch_size=32, subset=200, val_size=40))
    return module, alignment.mean_cosine


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_perfect_apparatus_changes_nothing(tmp_path):
    plain, _ = trained(tmp_path, GradientAlignment())
    perfect, cosine = trained(tmp_path, EchoImperfections())
    assert torch.equal(weights(plain), weights(perfect))
    assert cosine > 0.9999


def test_a_gain_that_matches_the_damping_keeps_the_echo_exact(tmp_path):
    _, compensated = trained(tmp_path, EchoImperfections(damping=0.5))
    _, not_at_all = trained(tmp_path, EchoImperfections(damping=0.5, gain=0.0))
    assert compensated > 0.9999
    assert 0.5 < not_at_all < 0.999


@pytest.mark.parametrize("name", ["conjugation_error", "readout_noise", "noise"])
def test_what_is_wrong_turns_the_gradient_the_more_the_more_it_is(tmp_path, name):
    cosines = [trained(tmp_path, EchoImperfections(**{name: size}))[1] for size in (0.0, 0.003, 0.3)]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] > 0.9999
    assert cosines[2] < 0.99


def test_noise_that_both_echoes_share_cancels(tmp_path):
    _, apart = trained(tmp_path, EchoImperfections(noise=0.01))
    _, shared = trained(tmp_path, EchoImperfections(noise=0.01, shared_noise=True))
    assert shared > 0.99
    assert apart < shared


def test_noise_depends_on_the_seed_alone(tmp_path):
    first, again, other = (weights(trained(tmp_path, EchoImperfections(noise=0.1, seed=seed))[0]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_goes_on_where_the_checkpoint_left_off(tmp_path):
    assert_resumed_equals_whole(
        tmp_path, rule, make_callbacks=lambda: [EchoImperfections(noise=0.1, readout_noise=0.1)]
    )


def test_validation_and_test_run_on_the_same_apparatus_and_nothing_stays_behind(tmp_path):
    module, seen = rule(), []

    class Look(EchoImperfections):
        def on_test_batch_start(self, trainer, pl_module, *args):
            seen.append([m.imperfections.noise for m in pl_module.modules() if hasattr(m, "imperfections")])

    run = trainer(tmp_path, max_epochs=1, callbacks=[Look(noise=0.1)], limit_test_batches=1)
    run.test(module, datamodule=DigitsDataModule(batch_size=32, subset=200, val_size=40), verbose=False)
    assert seen == [[0.1]]
    assert [m.imperfections for m in module.modules() if hasattr(m, "imperfections")] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -1.0}, "noise=-1.0 is a standard deviation"),
        ({"readout_noise": float("nan")}, "readout_noise=nan must be finite"),
        ({"conjugation_error": 2.0}, "conjugation_error=2.0 must be from 0 to 1"),
        ({"damping": -0.1}, "damping=-0.1 must be at least 0"),
        ({"gain": float("inf")}, "gain=inf must be at least 0"),
    ],
)
def test_what_no_apparatus_has_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EchoImperfections(**options)


def test_a_rule_that_simulates_nothing_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="distorts simulations, and a Backprop has none"):
        trained(tmp_path, EchoImperfections(noise=0.1), module=Backprop())


@pytest.mark.parametrize(
    ("engine", "faults"),
    [("adjoint", {"noise": 0.1}), ("autograd", {"conjugation_error": 0.1}), ("autograd", {"readout_noise": 0.1})],
)
def test_faults_of_an_echo_need_one(tmp_path, engine, faults):
    module = HamiltonianEcho(network=partial(DuffingClassifier, hidden_units=10, n_steps=10), gradient_engine=engine)
    with pytest.raises(
        MisconfigurationException, match=f"gradient_engine='{engine}' makes none: take gradient_engine='e"
    ):
        trained(tmp_path, EchoImperfections(**faults), module=module)
