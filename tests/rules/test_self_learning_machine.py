"""What a self-learning machine writes into its gradients, in float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from field_toys import NumpyCavities
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_nobp.functional.hamiltonian import COMPLEX, Simulation
from lightning_nobp.nn import (
    MLP,
    CoherentReadout,
    HomodyneReadout,
    KerrCavityArray,
    KerrCavityNetwork,
    LearningFieldNetwork,
    ModeEncoder,
    PulseEncoder,
    TwoBeamNetwork,
    TwoFieldNLSE,
    WaveFieldNetwork,
)
from lightning_nobp.rules import SelfLearningMachine

BITS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
XOR = (BITS, torch.tensor([0, 1, 1, 0]))
NETWORKS = {
    "cavities": lambda: KerrCavityNetwork((2,), 2, n_steps=100),
    "detuned cavities": lambda: KerrCavityNetwork((2,), 2, KerrCavityArray(disorder=0.03), n_steps=100),
    "waves": lambda: WaveFieldNetwork((2,), 2, n_steps=60),
    "many classes": lambda: WaveFieldNetwork((2,), 4, n_steps=60),
    "beams": lambda: TwoBeamNetwork((1, 1, 2), 2, TwoFieldNLSE((8, 8)), n_steps=20),
}
FINE = {"eta": 1e-4, "kick_cutoff": math.inf}
FIXED = FINE | {"relative": False}


def rule_with(name="cavities", **options):
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    shape = (1, 1, 2) if name == "beams" else (2,)
    loss = "cross_entropy" if name == "beams" else "distance"
    defaults = {"network": network, "num_classes": network.num_classes, "input_shape": shape, "loss": loss}
    return SelfLearningMachine(**defaults | FINE | options).double()


def batch_for(rule):
    return XOR[0].view(4, *rule.input_shape), XOR[1]


def written(rule, batch=None):
    """The gradient of the learning field, and autograd's."""
    batch = batch_for(rule) if batch is None else batch
    rule.zero_grad()
    rule.compute_gradients(batch)
    field = rule.machine().learning_field
    return field.grad, torch.autograd.grad(rule.global_loss(batch), field)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_averaged_step_is_the_gradient_times_the_learning_rate(name):
    found, wanted = written(rule_with(name, learning_rate=0.2))
    assert ((found - 0.2 * wanted).norm() / (0.2 * wanted).norm()).item() < 1e-5


@pytest.mark.parametrize("name", ["cavities", "waves"])
def test_the_learning_rate_is_the_nudge_over_the_mass(name):
    by_mass, _ = written(rule_with(name, **FIXED, mass=1e-3))
    by_rate, _ = written(rule_with(name, **FIXED, learning_rate=0.1))
    torch.testing.assert_close(by_mass, by_rate, rtol=1e-9, atol=0)


def test_without_a_rate_the_papers_is_taken():
    found, wanted = written(rule_with())
    assert (found.norm() / wanted.norm()).item() == pytest.approx(0.03, rel=1e-4)


def test_the_momentum_of_the_learning_field_is_the_gradient():
    rule = rule_with("detuned cavities")
    machine, (x, target), eta = rule.machine(), batch_for(rule), 1e-4
    simulation = Simulation(machine.system, machine.dt, machine.n_steps, machine.n_steps)
    [end] = simulation.forward((machine.start(x),), ())
    leaf = end[0].requires_grad_()
    [gradient] = torch.autograd.grad(rule.loss_function(machine.read(leaf), target), leaf)
    nudges = torch.tensor([eta] * 4 + [-eta] * 4, dtype=torch.float64)
    (echo,), _ = simulation.echo(end, [COMPLEX.direction((gradient,))], (), nudges, nudges)
    plus, minus = machine.system.learning(echo).imag.view(2, 4, -1).sum(1)
    _, wanted = written(rule)
    torch.testing.assert_close(-2 * (plus - minus) / (2 * eta), wanted, rtol=1e-5, atol=1e-7)


def test_a_single_echo_leaves_a_bias_that_two_cancel():
    rule = rule_with(mode="simple", relative=False, eta=1e-6, learning_rate=1e-6)
    found, by_position = written(rule)
    machine, (x, target) = rule.machine(), batch_for(rule)
    momentum = torch.zeros(4, 16, dtype=torch.float64, requires_grad=True)
    start = torch.complex(machine.learning_field.detach().expand(4, 16), momentum)
    by_momentum = torch.autograd.grad(rule.loss_function(machine(x, start), target), momentum)[0].sum(0)
    wanted = 1e-6 / 2 * (by_position - by_momentum)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-10)
    assert by_momentum.norm() > 0.1 * by_position.norm()


def numpy_cavities(machine):
    system = machine.system
    return NumpyCavities(system.couplings().numpy(), system.g, machine.dt, machine.n_steps)


@pytest.mark.parametrize("cutoff", [0.1, 1e-3])
def test_steps_are_those_of_the_papers_program(cutoff):
    """One sample at a time; the second echo with the opposite nudge and mass, from where the first has led."""
    eta, mass = 1e-3, 1e-2
    rule = rule_with("detuned cavities", mode="sequential", eta=eta, relative=False, mass=mass, kick_cutoff=cutoff)
    machine, amplitude = rule.machine(), rule.machine().readout.amplitude
    cavities, theta = numpy_cavities(machine), machine.learning_field.detach().numpy()
    found = written(rule)[0]
    steps = []
    for x, target in zip(*XOR, strict=True):
        psi = np.concatenate([machine.encoder.amplitude * (2 * x.numpy() - 1), [0, 0]])
        goal = float(machine.readout.targets[target])
        # Our cost is relative to the target's intensity.
        strength = eta / amplitude**2
        once = cavities.step(psi, theta, goal, strength, mass, cutoff=cutoff)
        twice = cavities.step(psi, once, goal, -strength, -mass, cutoff=cutoff)
        steps.append(twice - theta)
    torch.testing.assert_close(-found, torch.tensor(np.mean(steps, 0).real), rtol=1e-8, atol=1e-12)


def test_echoes_one_after_the_other_agree_with_two_at_once_when_steps_are_small():
    errors = []
    for rate in (1e-3, 1e-4):
        both, _ = written(rule_with(eta=1e-6, learning_rate=rate))
        after, _ = written(rule_with(eta=1e-6, learning_rate=rate, mode="sequential"))
        errors.append(((both - after).norm() / both.norm()).item())
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] < 0.01


def test_the_step_of_a_batch_is_the_mean_of_its_samples():
    rule = rule_with("waves", kick_cutoff=0.01, eta=1e-2, learning_rate=0.5)
    whole, _ = written(rule)
    each = [written(rule, (x[None], target[None]))[0] for x, target in zip(*XOR, strict=True)]
    torch.testing.assert_close(whole, torch.stack(each).mean(0), rtol=1e-10, atol=1e-14)


def test_no_echo_moves_an_entry_beyond_the_cutoff():
    free, _ = written(rule_with(learning_rate=5.0))
    bounded, _ = written(rule_with(learning_rate=5.0, kick_cutoff=0.01))
    assert free.abs().max() > 0.1
    # Two echoes.
    assert bounded.abs().max() < 0.02 + 1e-6


@pytest.mark.parametrize(("mode", "factor"), [("simple", 0.5), ("averaged", 1.0)])
def test_what_the_decay_leaves_of_the_momentum_is_that_of_a_heavy_ball(mode, factor):
    """Against the recursion ``v <- kept * v - grad``, in the limit of a light nudge."""
    eta, mass, decay = 1e-7, 1e-4, 1.0
    rule = rule_with(mode=mode, eta=eta, relative=False, mass=mass, decay=decay)
    optimizer = rule.configure_optimizers()
    kept, velocity = math.exp(-decay), torch.zeros(16, dtype=torch.float64)
    for _ in range(4):
        before = rule.machine().learning_field.detach().clone()
        _, gradient = written(rule)
        optimizer.step()
        velocity = kept * velocity - gradient
        wanted = factor * eta / mass * (1 - kept) * velocity
        torch.testing.assert_close(rule.machine().learning_field.detach() - before, wanted, rtol=1e-2, atol=1e-8)
    torch.testing.assert_close(rule.momentum.detach(), kept * velocity * eta / 2, rtol=1e-2, atol=1e-12)


def test_a_decay_of_a_hundred_is_that_of_the_limit():
    full, _ = written(rule_with(**FIXED))
    paper, _ = written(rule_with(**FIXED, decay=100.0))
    torch.testing.assert_close(full, paper, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", ["mse", nn.HuberLoss()])
def test_values_are_learned_through_any_cost(loss):
    torch.manual_seed(0)
    network = LearningFieldNetwork(
        TwoFieldNLSE((32,)), PulseEncoder(32, 2), HomodyneReadout(32, 3, 0.05), dt=0.03, n_steps=60
    ).double()
    rule = SelfLearningMachine(network=network, task="regression", loss=loss, learning_rate=1.0, **FINE).double()
    batch = BITS, torch.randn(4, 3, dtype=torch.float64)
    rule.check_batch(batch)
    found, wanted = written(rule, batch)
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-5
    assert set(rule.compute_gradients(batch)) == {"loss"}


def test_classes_are_learned_by_cross_entropy_too():
    found, wanted = written(rule_with("many classes", loss="cross_entropy", learning_rate=1.0))
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-5


def test_no_graph_is_built_and_gradients_add_up():
    rule = rule_with()
    values = rule.compute_gradients(XOR)
    once = rule.machine().learning_field.grad.clone()
    rule.compute_gradients(XOR)
    torch.testing.assert_close(rule.machine().learning_field.grad, 2 * once)
    assert not any(value.requires_grad for value in [*values.values(), once])
    assert set(values) == {"loss", "accuracy"}


def test_the_smallest_errors_still_teach_in_single_precision():
    """A relative nudge does not drown in rounding where a fixed one does."""
    cosines = []
    for relative, eta in ((True, 1e-2), (False, 1e-4)):
        rule = rule_with("waves", relative=relative, eta=eta, loss=Faint(), learning_rate=300.0).float()
        found, wanted = written(rule, (XOR[0].float(), XOR[1]))
        cosines.append(nn.functional.cosine_similarity(found, wanted, dim=0).item())
    assert cosines[0] > 0.999
    assert cosines[1] < 0.9


class Faint(nn.Module):
    """Distances, a ten-thousandth of them."""

    def forward(self, scores, target):
        return -1e-4 * scores.gather(1, target.unsqueeze(1)).mean()


class Several(nn.Module):
    def forward(self, scores, target):
        return scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ranking"}, "task='ranking' is not one of 'classification', 'regression'"),
        ({"mode": "both"}, "mode='both' is not one of 'simple', 'averaged', 'sequential'"),
        ({"loss": "mse"}, "loss='mse' is no loss of task='classification': take one of distance, cross_entropy"),
        ({"eta": 0.0}, "eta=0.0 must be positive"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be positive"),
        ({"mass": 0.0}, "mass=0.0 must be positive"),
        ({"decay": 0.0}, "decay=0.0 must be positive"),
        ({"kick_cutoff": 0.0}, "kick_cutoff=0.0 must be positive"),
        (
            {"mass": 1.0, "learning_rate": 1.0, "relative": False},
            "mass=1.0 and learning_rate=1.0: one follows from the other: give one",
        ),
        ({"mass": 1.0}, "mass=1.0 is that of a field whose nudges have one size: give relative=False"),
        ({"decay": 1.0}, "decay=1.0 is that of a field"),
        ({"task": "regression", "loss": "mse", "network": "cavity"}, "give a module of your own"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelfLearningMachine(**options)


def test_networks_that_an_echo_does_not_teach_are_refused():
    with pytest.raises(TypeError, match="network=MLP has no learning field"):
        SelfLearningMachine(network=partial(MLP, hidden_dims=(3,)), num_classes=2, input_shape=(2,))
    with pytest.raises(TypeError, match="loss='distance' goes with a CoherentReadout, not with DetectorReadout"):
        rule_with("beams", loss="distance")
    encoder = nn.Sequential(nn.Linear(2, 2), ModeEncoder(4, (0, 1)))
    network = LearningFieldNetwork(KerrCavityArray(), encoder, CoherentReadout(4, 2, modes=(3,)))
    with pytest.raises(TypeError, match=r"freeze encoder\.0\.weight, encoder\.0\.bias"):
        SelfLearningMachine(network=network, num_classes=2, input_shape=(2,))
    encoder.requires_grad_(False)
    SelfLearningMachine(network=network, num_classes=2, input_shape=(2,)).compute_gradients((XOR[0].float(), XOR[1]))


def test_leftover_momentum_goes_with_its_own_optimizer_alone():
    for options in (
        {"optimizer": partial(torch.optim.Adam, lr=1.0)},
        {"optimizer": partial(torch.optim.SGD, lr=0.1)},
        {"lr_scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1)},
    ):
        with pytest.raises(MisconfigurationException, match=r"decay=1\.0 leaves momentum"):
            rule_with(relative=False, decay=1.0, **options).configure_optimizers()


def test_losses_and_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"loss=Several gives numbers of shape \(4, 2\)"):
        rule_with(loss=Several()).compute_gradients(XOR)
    network = LearningFieldNetwork(TwoFieldNLSE((32,)), PulseEncoder(32, 2), HomodyneReadout(32, 3), n_steps=2)
    rule = SelfLearningMachine(network=network, task="regression", loss="mse")
    with pytest.raises(ValueError, match=r"targets of shape \(4, 1\) do not fit outputs of shape \(4, 3\)"):
        rule.compute_gradients((BITS.float(), torch.zeros(4, 1)))


def test_inputs_that_are_not_finite_are_refused_or_skipped():
    broken = (BITS * math.inf, XOR[1])
    with pytest.raises(FloatingPointError, match=r"network, of a .*: the state at the start is not finite"):
        rule_with().compute_gradients(broken)
    rule = rule_with(on_nonfinite="skip")
    assert rule.compute_gradients(broken)["loss"].isnan()
    assert rule.machine().learning_field.grad is None


def test_autocast_is_refused_without_a_trainer_too():
    machine = rule_with()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast rounds"):
        machine.compute_gradients(XOR)
