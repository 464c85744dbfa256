"""What multiplexed gradient descent refuses, and how it says so."""

import warnings
from functools import partial

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from multiplexed import batch, build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import loader, trainer, weights

from lightning_nobp.datamodules import XORDataModule
from lightning_nobp.nn import SigmoidMLP
from lightning_nobp.rules import MultiplexedGradientDescent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perturbation": "hadamard"}, "perturbation='hadamard' is not one of 'rademacher'"),
        ({"engine": "gpu"}, "engine='gpu' is not one of"),
        ({"loss": "hinge"}, "loss='hinge' is not 'cross_entropy', 'mse' or a module"),
        ({"amplitude": 0.0}, "amplitude=0.0 must be positive"),
        ({"amplitude": {"*": -1.0}}, "must be positive"),
        ({"num_perturbations": 0}, "num_perturbations=0 must be a positive whole number"),
        ({"tau_p": 0}, "tau_p=0 must be a positive whole number"),
        ({"tau_p": 2, "tau_theta": 5}, "tau_theta=5 is no multiple of tau_p=2"),
        ({"tau_theta": 4, "tau_x": 3}, "one must be a multiple of the other"),
        ({"tau_theta": 4, "num_perturbations": 3}, "num_perturbations=3 .* are not tau_theta=4"),
        ({"tau_hp": 0.0}, "tau_hp=0.0 must be a positive number"),
        ({"engine": "per_sample", "perturbation": "walsh"}, "perturbation='walsh' cannot be given to every sample"),
        ({"perturb": "activations", "engine": "vmap"}, "engine='vmap' perturbs weights"),
        ({"engine": "per_sample", "tau_x": 2, "tau_theta": 4}, "times of one device"),
        ({"engine": "per_sample", "mode": "analog"}, "times of one device"),
        ({"engine": "jvp", "mode": "analog", "tau_x": 2}, "no cost to filter"),
        ({"mode": "analog", "tau_x": 2, "difference": "one_sided"}, "its high-pass filter"),
        ({"mode": "analog"}, "tau_x=1: the high-pass filter of mode='analog' must see a sample twice"),
        ({"lr_scale": "mgd", "perturbation": "walsh"}, "a law of random codes"),
        ({"task": "regression"}, "is for class numbers"),
        ({"normalisation": "median"}, "normalisation='median'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"perturbation": "walsh", "period": 32}, ValueError, r"period=32 cannot tell 53 parameters .* at least 64"),
        ({"period": 64}, ValueError, "period=64: rademacher codes have none to choose"),
        ({"amplitude": {"*.wieght": 0.1, "*": 0.1}}, ValueError, r"'\*.wieght' matches no trained parameter"),
        (
            {"engine": "per_sample", "network": nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.LayerNorm(3))},
            TypeError,
            "layer '2', a LayerNorm, cannot be perturbed sample by sample",
        ),
    ],
)
def test_what_does_not_fit_the_network_is_refused_when_the_rule_is_built(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(4), r"layer '2' is a BatchNorm1d in training mode.*\.eval\(\)"),
        (nn.Dropout(0.1), r"layer '2' is a Dropout: .*\.eval\(\)"),
        (nn.RReLU(), r"layer '2' is a RReLU: .*\.eval\(\)"),
    ],
)
def test_layers_of_chance_are_refused_unless_switched_off(tmp_path, layer, message):
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), layer, nn.Linear(4, 3))
    with pytest.raises(TypeError, match=message):
        build(network=network).compute_gradients(batch())
    layer.eval().requires_grad_(False)
    rule = build(double=False, network=network.float())
    trainer(tmp_path).fit(rule, loader())
    assert not layer.training


def test_an_amplitude_that_drowns_in_rounding_is_told_with_the_ratio():
    x, y = batch()
    rule = build(double=False, amplitude=1e-7, num_perturbations=8)
    with pytest.warns(
        UserWarning, match=r"amplitude=1e-07 changes the cost by \d+\.\d roundings of torch.float32 only"
    ):
        rule.compute_gradients((x.float(), y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule.compute_gradients((x.float(), y))
        build(double=False, num_perturbations=8).compute_gradients((x.float(), y))


def test_a_cost_that_is_no_number_is_named():
    rule = build(loss=nn.CrossEntropyLoss(reduction="none"), num_perturbations=2)
    with pytest.raises(ValueError, match=r"shape \(12,\): a cost is one number, take its mean"):
        rule.compute_gradients(batch())


@pytest.mark.parametrize("engine", ["per_sample", "vmap", "in_place"])
def test_a_cost_that_is_not_finite_is_named_and_may_be_skipped(tmp_path, engine):
    x, y = batch()
    x[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"not finite at update 0: the cost under a perturbation.*skip"):
        build(engine=engine).compute_gradients((x, y))
    rule = build(engine=engine, on_nonfinite="skip")
    before = weights(rule)
    data = DataLoader(TensorDataset(x, y), batch_size=12)
    fit = trainer(tmp_path, precision="64-true")
    fit.fit(rule, data)
    assert torch.equal(weights(rule), before)
    assert fit.callback_metrics["train/skipped_steps"] == 1


def test_a_batch_smaller_than_its_window_is_refused(tmp_path):
    rule = build(double=False, tau_theta=32, tau_x=1)
    with pytest.raises(ValueError, match="a batch of 16 samples does not fill a window of tau_theta / tau_x = 32"):
        trainer(tmp_path).fit(rule, loader())


def test_a_sample_longer_than_the_window_must_come_again(tmp_path):
    analog = build(double=False, mode="analog", tau_x=3)
    with pytest.warns(UserWarning, match="a batch stays for 3 training steps; the data must show each as often"):
        trainer(tmp_path).fit(analog, loader())
    with pytest.warns(UserWarning, match="tau_x=4 is longer than tau_theta=2"):
        rule = MultiplexedGradientDescent(network=SigmoidMLP, loss="mse", tau_theta=2, tau_x=4)
    with pytest.raises(MisconfigurationException, match=r"comes 1 times in a row: set data.repeat_batches=2"):
        trainer(tmp_path).fit(rule, datamodule=XORDataModule(repeats=1))
    trainer(tmp_path).fit(rule, datamodule=XORDataModule(repeats=1, repeat_batches=2))


def test_targets_that_do_not_fit_are_named(tmp_path):
    x = torch.randn(8, 2)
    rule = MultiplexedGradientDescent(network=nn.Linear(2, 1), task="regression", loss="mse")
    with pytest.raises(ValueError, match=r"targets of shape \(8,\) do not fit the network's outputs of shape \(8, 1\)"):
        rule.compute_gradients((x, torch.randn(8)))
    with pytest.raises(ValueError, match="are no values: give floating point numbers"):
        trainer(tmp_path).fit(rule, DataLoader(TensorDataset(x, torch.arange(8)), batch_size=8))
    with pytest.raises(ValueError, match="without classes its outputs are not known"):
        MultiplexedGradientDescent(network="mlp", task="regression", loss="mse", input_shape=(2,))


def test_precisions(tmp_path):
    with pytest.raises(MisconfigurationException, match="supports 32-true, 64-true"):
        trainer(tmp_path, precision="bf16-mixed").fit(build(double=False), loader())
    fit = trainer(tmp_path, precision="64-true")
    fit.fit(build(double=False), loader())
    assert next(fit.lightning_module.parameters()).dtype == torch.float64


def test_data_modules_give_the_shape(tmp_path):
    L.seed_everything(0, verbose=False)
    rule = MultiplexedGradientDescent(network=partial(SigmoidMLP, hidden_dims=(2,)), loss="mse")
    trainer(tmp_path).fit(rule, datamodule=XORDataModule(batch_size=4))
    assert rule.num_perturbed == 9
    assert rule.samples_seen == 400
