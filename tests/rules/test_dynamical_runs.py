"""DynamicalNetworkBackprop under a Trainer: processes, resume, checkpoints, tests, and what it reaches."""

import json
from functools import partial

import pytest
import torch
from ddp_training import FORKED, load, train_dynamical
from lightning.fabric.utilities.exceptions import MisconfigurationException
from resuming import assert_resumed_equals_whole
from torch import nn
from toys import trainer

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.cli.export import export
from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.functional.dynamics import Lorenz
from lightning_nobp.functional.network_inference import Normalisation
from lightning_nobp.nn import LocalDynamics, NetworkDescent
from lightning_nobp.rules import DynamicalNetworkBackprop

SMALL_MLP = partial(LocalDynamics, hidden_dims=(16,))


def data(**kwargs):
    defaults = {"num_nodes": 4, "density": 0.6, "num_steps": 241, "num_trajectories": 2, "transient": 300}
    defaults |= {"num_test": 2, "window": 12, "horizon": 120, "batch_size": 8}
    return CoupledOscillatorsDataModule(**defaults | kwargs)


def alternating(**kwargs):
    return DynamicalNetworkBackprop(method="alternation", local=SMALL_MLP, initial_epochs=1, **kwargs)


MAKE = {
    "variable_projection": lambda: DynamicalNetworkBackprop(local=SMALL_MLP, initial_epochs=1),
    "alternation": alternating,
    "constrained": lambda: alternating(symmetric=True, non_negative=True, optimizer=torch.optim.Adam),
}

STEPS = {"variable_projection": (2, 5, 7), "alternation": (2, 5, 7, 12), "constrained": (2, 5, 7, 12)}
"""Where runs of five steps an epoch are stopped."""


@pytest.mark.parametrize("method", ["variable_projection", "alternation"])
def test_two_processes_equal_one(tmp_path, method):
    for strategy in ("auto", FORKED):
        train_dynamical(tmp_path, strategy, method)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-7, atol=1e-9)
    for name in ("val/loss", "train/loss_epoch", "val/weight_error"):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-4)


@pytest.mark.parametrize("kind", MAKE)
def test_stopped_in_the_middle_of_an_epoch_and_resumed(tmp_path, kind):
    """Of sums, couplings and local motion each."""
    assert_resumed_equals_whole(tmp_path, MAKE[kind], data, steps=STEPS[kind], max_epochs=3)


@pytest.mark.parametrize("kind", MAKE)
def test_a_checkpoint_brings_back_the_network(tmp_path, kind):
    run = trainer(tmp_path, max_epochs=2)
    rule = MAKE[kind]()
    run.fit(rule, datamodule=data())
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = DynamicalNetworkBackprop.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert (again.num_nodes, again.components, again.dt) == (4, 3, 0.02)
    x = 5 * torch.randn(2, 4, 3)
    assert torch.equal(again.network.simulate(x, 5), rule.network.simulate(x, 5))


def test_the_closed_form_finds_everything_in_an_epoch_and_stops(tmp_path):
    module = data(num_steps=1500, num_test=4, window=20, stride=17, batch_size=64)
    rule = DynamicalNetworkBackprop()
    run = trainer(tmp_path, max_epochs=10)
    run.fit(rule, datamodule=module)
    assert run.current_epoch == 1
    metrics = run.callback_metrics
    assert metrics["val/link_auroc"] == metrics["val/link_average_precision"] == 1
    assert metrics["val/weight_error"] < 0.01
    assert metrics["val/loss"] < 1e-5
    [tested] = run.test(rule, datamodule=module, verbose=False)
    times = [tested[f"test/valid_prediction_time{kind}"] for kind in ("", "_true_0.001", "_true_0.01")]
    # Windows end after 2.2 Lyapunov times.
    assert times[0] > 0.9 * times[1] >= 0.9 * times[2] > 0
    assert times[1] <= 120 * 0.02 * 0.906 + 1e-6


class TrueMotion(nn.Module):
    """Lorenz's equations in normalised states."""

    def __init__(self, normalisation):
        super().__init__()
        self.normalisation = normalisation

    def forward(self, x):
        scale, mean = self.normalisation.scale, self.normalisation.mean
        return Lorenz()(x * scale + mean) / scale


@pytest.mark.parametrize("adjoint", ["exact", "linearised"])
def test_beside_the_true_motion_couplings_descend_to_the_true_ones(tmp_path, adjoint):
    module = data(num_steps=601, window=10, integrator="split", num_test=1)
    module.setup("fit")
    rule = DynamicalNetworkBackprop(
        method="alternation",
        local=TrueMotion(module.normalisation),
        freeze_local=True,
        integrator="split",
        adjoint=adjoint,
        optimizer=partial(NetworkDescent, coupling_step=5e-3),
        lr_scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.6),
    )
    run = trainer(tmp_path, max_epochs=12, precision="64-true")
    run.fit(rule, datamodule=module)
    assert run.callback_metrics["val/link_auroc"] == 1
    assert run.callback_metrics["val/weight_error"] < 0.01


def test_the_alternation_tells_links_beside_a_perceptron(tmp_path):
    module = data(
        num_nodes=6, density=0.5, num_steps=2001, window=10, coupling_mean=0.3, integrator="split", num_test=1
    )
    rule = DynamicalNetworkBackprop(
        method="alternation",
        local=partial(LocalDynamics, hidden_dims=(64,)),
        integrator="split",
        adjoint="linearised",
        initial_epochs=8,
        optimizer=partial(NetworkDescent, lr=3e-2, coupling_step=4e-3),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=14),
    )
    run = trainer(tmp_path, max_epochs=14)
    run.fit(rule, datamodule=module)
    assert run.callback_metrics["val/link_auroc"] > 0.85
    assert run.callback_metrics["val/weight_error"] < 0.8


def test_an_alternation_that_has_come_to_rest_stops(tmp_path):
    rest = partial(NetworkDescent, lr=0.0, coupling_step=0.0)
    rule = alternating(optimizer=rest, tolerance=0.01)
    run = trainer(tmp_path, max_epochs=20)
    run.fit(rule, datamodule=data(shuffle=False))
    # One epoch before, then two cycles, of which the second changes nothing.
    assert run.current_epoch == 4
    frozen = DynamicalNetworkBackprop(method="alternation", freeze_local=True, optimizer=rest)
    run = trainer(tmp_path, max_epochs=20)
    run.fit(frozen, datamodule=data(shuffle=False))
    assert run.current_epoch == 2


def test_constraints_hold_after_every_step(tmp_path):
    rule = MAKE["constrained"]()
    trainer(tmp_path, max_epochs=2).fit(rule, datamodule=data())
    weights = rule.network.weights.detach()
    assert torch.equal(weights, weights.T)
    assert weights.min() >= 0
    assert weights.max() > 0


@pytest.mark.parametrize("kind", MAKE)
def test_measuring_the_alignment_changes_nothing(tmp_path, kind):
    found = []
    for callbacks in ([], [GradientAlignment(every_n_steps=1)]):
        torch.manual_seed(0)
        rule = MAKE[kind]()
        trainer(tmp_path, max_epochs=3, callbacks=callbacks).fit(rule, datamodule=data())
        found.append(torch.cat([p.detach().flatten() for p in rule.parameters()]))
    assert torch.equal(*found)
    if kind == "alternation":
        assert callbacks[0].mean_cosine == pytest.approx(1, abs=1e-4)


def test_predictions_are_free_runs_in_the_units_of_the_data(tmp_path):
    module = data(num_steps=1000, window=20, stride=17)
    rule = DynamicalNetworkBackprop()
    run = trainer(tmp_path)
    run.fit(rule, datamodule=module)
    predicted = torch.cat(run.predict(rule, datamodule=module))
    true = module.batches("test").__getitems__(list(range(len(predicted))))[0]
    true = true * module.normalisation.scale + module.normalisation.mean
    assert predicted.shape == true.shape
    torch.testing.assert_close(predicted[:, :20].double(), true[:, :20], rtol=0.01, atol=0.5)


def test_free_runs_that_diverge_are_told_of(tmp_path):
    module = data()
    rule = DynamicalNetworkBackprop()
    run = trainer(tmp_path)
    run.fit(rule, datamodule=module)
    with torch.no_grad():
        rule.network.local.coefficients.mul_(1e3)
    with pytest.warns(UserWarning, match=r"free runs of batch 0 diverge: from step \d+ on not all are finite"):
        run.predict(rule, datamodule=module)
    with pytest.warns(UserWarning, match=r"val/loss=(nan|inf): free runs of the network diverge within num_steps=10"):
        run.validate(rule, datamodule=module, verbose=False)


def test_series_in_other_units_are_followed_in_those_of_the_network(tmp_path):
    """A file that is normalised otherwise than the one the network was trained on."""
    module = data(num_steps=1000, window=20, stride=17)
    rule = DynamicalNetworkBackprop()
    run = trainer(tmp_path)
    run.fit(rule, datamodule=module)
    [expected] = run.test(rule, datamodule=module, verbose=False)
    predicted = torch.cat(run.predict(rule, datamodule=module))
    other = data(num_steps=1000, window=20, stride=17)
    other.setup("test")
    ours = other.normalisation
    other.normalisation = Normalisation(ours.mean + torch.tensor([3.0, -2.0, 5.0]), 2 * ours.scale)
    windows = other.batches("test")
    windows.samples = other.normalisation(windows.samples * ours.scale + ours.mean)
    [found] = run.test(rule, datamodule=other, verbose=False)
    assert found["test/loss"] == pytest.approx(expected["test/loss"], rel=0.01)
    torch.testing.assert_close(
        torch.cat(run.predict(rule, datamodule=other))[:, :20], predicted[:, :20], rtol=0, atol=0.01
    )


def test_an_interval_that_is_not_the_data_modules_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"dt=0\.1 of DynamicalNetworkBackprop is not that of the data module, dt=0\.02"
    ):
        trainer(tmp_path).fit(DynamicalNetworkBackprop(dt=0.1), datamodule=data())


def test_without_the_truth_nothing_is_said_of_links(tmp_path):
    module = data()
    module.setup("fit")
    module.true_weights = None
    run = trainer(tmp_path)
    run.fit(DynamicalNetworkBackprop(), datamodule=module)
    assert not [name for name in run.callback_metrics if "link" in name]
    assert "val/loss" in run.callback_metrics


def test_a_network_of_another_data_module_is_named(tmp_path):
    rule = DynamicalNetworkBackprop(num_nodes=5, components=3, dt=0.02)
    with pytest.raises(ValueError, match="do not fit"):
        trainer(tmp_path).fit(rule, datamodule=data())


def test_a_data_module_without_a_shape_is_named(tmp_path):
    module = data()
    rule = DynamicalNetworkBackprop()
    with pytest.raises(ValueError, match="num_nodes is not known: give DynamicalNetworkBackprop"):
        trainer(tmp_path).fit(rule, train_dataloaders=[torch.zeros(2, 11, 4, 3)])
    assert module.num_nodes == 4


def test_mixed_precision_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="supports 32-true, 64-true"):
        trainer(tmp_path, precision="bf16-mixed").fit(DynamicalNetworkBackprop(), datamodule=data())


@pytest.mark.parametrize("local", ["polynomial", "mlp"])
def test_an_exported_step_repeated_is_a_simulation(tmp_path, local):
    run = trainer(tmp_path, precision="64-true")
    rule = DynamicalNetworkBackprop(local=local)
    run.fit(rule, datamodule=data())
    run.save_checkpoint(tmp_path / "run.ckpt")
    export(tmp_path / "run.ckpt", tmp_path / "net.pt2")
    extra = {"lightning_nobp.json": ""}
    step = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    about = json.loads(extra["lightning_nobp.json"])
    mean, scale = (torch.tensor(about[name], dtype=torch.float64) for name in ("mean", "scale"))
    network = rule.built_network()
    assert about["dt"] == network.dt
    start = network.mean + network.scale * torch.randn(2, *about["input_shape"], dtype=torch.float64)
    x = (start - mean) / scale
    for _ in range(3):
        x = step(x)
    torch.testing.assert_close(x * scale + mean, network.simulate(start, 3)[:, -1])
