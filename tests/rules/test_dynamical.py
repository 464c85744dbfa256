"""DynamicalNetworkBackprop without a Trainer: gradients, closed forms, phases, options, refusals."""

import re
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.functional.dynamics import Lorenz
from lightning_nobp.functional.network_inference import infer_coupling
from lightning_nobp.metrics.networks import weight_error
from lightning_nobp.nn import LocalDynamics, PolynomialDynamics
from lightning_nobp.rules import DynamicalNetworkBackprop

NODES = 4
SHAPE = {"num_nodes": NODES, "components": 3, "dt": 0.02}
MLP = partial(LocalDynamics, hidden_dims=(9, 8))


class Own(nn.Module):
    """A local motion that is no NodeDynamics."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x).tanh()


def own(num_nodes, components) -> Own:
    return Own()


class TrueMotion(nn.Module):
    """Lorenz's equations in normalised states."""

    def __init__(self, normalisation):
        super().__init__()
        self.normalisation = normalisation
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        scale, mean = self.normalisation.scale, self.normalisation.mean
        return Lorenz()(x * scale + mean) / scale + self.shift


def data(**kwargs):
    defaults = {"num_nodes": NODES, "density": 0.6, "num_steps": 401, "num_trajectories": 2, "num_val": 0}
    defaults |= {"num_test": 1, "transient": 300, "window": 20, "stride": 17, "horizon": 100, "batch_size": 50}
    module = CoupledOscillatorsDataModule(**defaults | kwargs)
    module.setup("fit")
    return module


def rule(**kwargs):
    torch.manual_seed(0)
    made = DynamicalNetworkBackprop(**SHAPE | kwargs).double()
    with torch.no_grad():
        made.network.weights.copy_((0.3 * torch.randn(NODES, NODES)).fill_diagonal_(0))
    return made


def solved(module, **kwargs):
    made = DynamicalNetworkBackprop(**SHAPE | kwargs).double()
    for batch in module.train_dataloader():
        assert made.compute_gradients(batch) == {}
    return made, made.end_epoch()


def alternation(epoch, **kwargs):
    made = rule(method="alternation", **kwargs)
    made._ended_epochs = epoch
    return made


@pytest.mark.parametrize("local", [MLP, partial(MLP, shared=False), PolynomialDynamics, own])
@pytest.mark.parametrize(("epoch", "phase"), [(0, "couplings"), (1, "local")])
@pytest.mark.parametrize("integrator", ["rk4", "split"])
def test_gradients_are_autograds_of_what_the_epoch_descends(local, epoch, phase, integrator):
    made = alternation(epoch, local=local, integrator=integrator, l1=0.3, num_steps=7)
    assert made.phase == phase
    for p in made.network.local.parameters():
        nn.init.normal_(p, std=0.3)
    batch = (torch.randn(3, 21, NODES, 3, dtype=torch.float64),)
    loss = made.global_loss(batch)
    parameters = dict(made.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found = made.compute_gradients(batch)
    torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-12, atol=0)
    for (name, p), wanted in zip(parameters.items(), expected, strict=True):
        assert (p.grad is None) == (wanted is None) == (name.endswith("network.weights") != (phase == "couplings"))
        if wanted is not None:
            torch.testing.assert_close(p.grad, wanted, rtol=1e-10, atol=1e-12)
    assert all(
        not p.grad.diagonal().any() for n, p in parameters.items() if n == "network.weights" and phase != "local"
    )


def test_the_linearised_adjoint_is_another_gradient_and_nearly_the_same():
    batch = next(iter(data().train_dataloader()))
    grads = []
    for adjoint in ("exact", "linearised"):
        made = alternation(0, local=MLP, adjoint=adjoint)
        made.compute_gradients(batch)
        grads.append(made.network.weights.grad.flatten())
    assert 0.99 < float(torch.cosine_similarity(*grads, dim=0)) < 1 - 1e-9


def test_gradients_add_up():
    made = alternation(0, local=MLP)
    batch = torch.randn(3, 11, NODES, 3, dtype=torch.float64)
    made.compute_gradients(batch)
    once = made.network.weights.grad.clone()
    made.compute_gradients(batch)
    torch.testing.assert_close(made.network.weights.grad, 2 * once)


def test_symmetric_couplings_have_symmetric_gradients():
    made = alternation(0, local=MLP, symmetric=True)
    made.compute_gradients(torch.randn(3, 11, NODES, 3, dtype=torch.float64))
    assert torch.equal(made.network.weights.grad, made.network.weights.grad.T)


def test_the_epochs_of_an_alternation_follow_its_options():
    made = rule(method="alternation", initial_epochs=2, coupling_epochs=2, local_epochs=1)
    phases = []
    for _ in range(8):
        phases.append(made.phase)
        made.end_epoch()
    assert phases == ["local", "local", "couplings", "couplings", "local", "couplings", "couplings", "local"]
    frozen = rule(method="alternation", freeze_local=True)
    frozen.end_epoch()
    assert frozen.phase == "couplings"


def test_a_closed_form_is_done_after_its_epoch():
    made = rule(local=MLP, initial_epochs=1)
    phases = [made.phase]
    made.end_epoch()
    phases.append(made.phase)
    made._ended_epochs = 2
    phases.append(made.phase)
    assert phases == ["local", "sums", "done"]
    assert made.compute_gradients(torch.zeros(1, 11, NODES, 3)) == {}


@pytest.mark.parametrize("shared", [True, False])
def test_the_closed_form_is_that_of_the_functions(shared):
    """Windows that use each sample once leave out only a rest that fills no window."""
    module = data(num_steps=4 + 17 * 20)
    made, values = solved(module, local=partial(PolynomialDynamics, shared=shared))
    normal = module.batches("train").samples.view(2, -1, NODES, 3)
    expected = infer_coupling(normal, 0.02, shared=shared)
    torch.testing.assert_close(made.network.weights.detach(), expected.weights, rtol=0, atol=1e-8)
    x = torch.randn(5, NODES, 3, dtype=torch.float64)
    torch.testing.assert_close(made.network.local(x), expected.field(x), rtol=0, atol=1e-6)
    assert 0 < values["loss"] < 1e-2
    assert weight_error(made.network.weights.detach(), module.true_weights) < 0.02


def test_the_loss_of_the_closed_form_is_what_is_left_of_the_velocities():
    module = data()
    made, values = solved(module)
    batch = (torch.cat([b[0] for b in module.train_dataloader()]),)
    made.method, made._ended_epochs, made._has_converged = "alternation", 1, False
    assert made.phase == "local"
    assert values["loss"] == pytest.approx(float(made.compute_gradients(batch)["loss"]), rel=1e-4)


def test_maps_are_found_to_rounding():
    module = data(integrator="euler")
    made, _ = solved(module, derivative="forward", integrator="euler", ridge=0.0)
    assert weight_error(made.network.weights.detach(), module.true_weights) < 1e-9


def test_a_perceptron_has_its_last_layer_solved_for():
    module = data()
    made = DynamicalNetworkBackprop(**SHAPE, local=partial(LocalDynamics, hidden_dims=(60,))).double()
    hidden = made.network.local.weights[0].clone()
    for batch in module.train_dataloader():
        made.compute_gradients(batch)
    made.end_epoch()
    assert torch.equal(made.network.local.weights[0], hidden)
    assert weight_error(made.network.weights.detach(), module.true_weights) < 0.3


def test_a_motion_that_is_given_stays_and_gives_the_weights():
    module = data()
    local = TrueMotion(module.normalisation).double()
    made, _ = solved(module, local=local, freeze_local=True)
    assert not any(p.requires_grad for p in made.network.local.parameters())
    assert [group["params"] for group in made.optimised()] == [[made.network.weights]]
    assert weight_error(made.network.weights.detach(), module.true_weights) < 0.02


def test_density_keeps_the_strongest_links():
    made, _ = solved(data(), density=0.5)
    assert int((made.network.weights != 0).sum()) == 6


@pytest.mark.parametrize("option", ["symmetric", "non_negative"])
def test_constraints_hold_for_the_closed_form_and_its_motion_is_solved_for_again(option):
    module = data(directed=True, negative_fraction=0.5, seed=3)
    free, loss = solved(module)
    made, constrained = solved(module, **{option: True})
    free.network.constrain_(option == "symmetric", option == "non_negative")
    torch.testing.assert_close(made.network.weights, free.network.weights)
    assert not torch.equal(made.network.local.coefficients, free.network.local.coefficients)
    assert constrained["loss"] > loss["loss"]


def test_batches_that_are_not_finite_spoil_no_sums():
    made = rule()
    batch = torch.randn(3, 11, NODES, 3)
    batch[1, 2, 3, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"windows of a batch are not finite\. The sums are untouched"):
        made.compute_gradients(batch)
    assert made.statistics is None
    skipping = rule(on_nonfinite="skip")
    assert skipping.compute_gradients(batch) == {}
    assert skipping.statistics is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "sindy"}, "method='sindy' is not one of 'variable_projection', 'alternation'"),
        ({"adjoint": "none"}, "adjoint='none' is not one of 'exact', 'linearised'"),
        ({"derivative": "spline"}, "derivative='spline' is not one of 'central5', 'savgol', 'forward'"),
        ({"ridge": -1.0}, "ridge=-1.0 must be at least 0"),
        ({"l1": float("nan")}, "l1=nan must be finite"),
        ({"tolerance": -1.0}, "tolerance=-1.0 must be at least 0"),
        ({"density": 0.0}, "density=0.0 must be above 0 and at most 1"),
        ({"initial_epochs": -1}, "initial_epochs=-1 must be at least 0"),
        ({"coupling_epochs": 0}, "coupling_epochs=0 must be at least 1"),
        ({"local_epochs": -1}, "local_epochs=-1 must be at least 0"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"derivative": "forward"}, "derivative='forward' does not go with integrator='rk4'"),
        ({"integrator": "euler"}, "derivative='central5' does not go with integrator='euler'"),
        ({"method": "alternation", "density": 0.5}, "density=0.5 belongs to method='variable_projection'"),
        ({"l1": 0.1}, "l1=0.1 belongs to method='alternation'"),
        ({"freeze_local": True, "initial_epochs": 2}, "initial_epochs=2 would fit what freeze_local=True keeps"),
        ({"local": "fourier"}, "local='fourier' is not one of 'polynomial', 'mlp', nor a class path"),
        ({"local": Own()}, "local=Own has no coefficients that the closed form could find"),
        ({"integrator": "verlet"}, "integrator='verlet' is not one of"),
        ({"dt": 0.0}, "dt=0.0 must be positive"),
        ({"num_nodes": 1}, "num_nodes=1: a network has at least two"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DynamicalNetworkBackprop(**SHAPE | arguments)


def test_without_a_shape_the_network_waits():
    with pytest.raises(RuntimeError, match="the network is built once its shape is known"):
        DynamicalNetworkBackprop().built_network()


def test_local_motions_are_taken_by_name():
    assert isinstance(rule(local="mlp").network.local, LocalDynamics)
    assert isinstance(rule(local="LocalDynamics").network.local, LocalDynamics)
    assert isinstance(rule(local="lightning_nobp.nn.PolynomialDynamics").network.local, PolynomialDynamics)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ("windows", TypeError, "learns from windows, a tensor or a tuple of one, not <class 'str'>"),
        ((), TypeError, "learns from windows"),
        (torch.zeros(2, 11, NODES), ValueError, "windows of shape (2, 11, 4) do not fit (batch, steps + 1, nodes=4"),
        (torch.zeros(2, 11, NODES, 2), ValueError, "do not fit (batch, steps + 1, nodes=4, components=3)"),
        (torch.zeros(2, 10, NODES, 3), ValueError, "num_steps=10 is longer than the windows, of 9 steps"),
    ],
)
def test_bad_batches_are_named(batch, error, message):
    with pytest.raises(error, match=re.escape(message)):
        rule().check_batch(batch)


def test_what_has_no_solution_is_named():
    with pytest.raises(RuntimeError, match="no batch was summed in this epoch"):
        rule().end_epoch()

    def end(windows):
        made = rule()
        made.compute_gradients(windows)
        made.end_epoch()

    module = data(batch_size=500)
    [(windows,)] = module.train_dataloader()
    with pytest.raises(MisconfigurationException, match="1 samples cannot tell 3 weights"):
        end(windows[:1, :5])
    with pytest.raises(MisconfigurationException, match="from one sample to the next a node goes"):
        end(windows[:, ::7].repeat(1, 3, 1, 1))
    windows = windows.clone()
    windows[..., 3, :] = windows[..., 0, :]
    with pytest.raises(MisconfigurationException, match=r"nodes 0 and 3 move together \(correlation 1.000000\)"):
        end(windows)
