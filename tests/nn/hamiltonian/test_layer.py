"""HamiltonianLayer: three engines of the same gradient, and what it refuses on its first batch."""

import warnings

import pytest
import torch
from oscillators import error, make
from torch import nn

from lightning_nobp.functional.hamiltonian import Imperfections, leapfrog
from lightning_nobp.nn import (
    DuffingClassifier,
    DuffingNetwork,
    HamiltonianLayer,
    HamiltonianNetwork,
    HamiltonianSystem,
    LogCoshClassifier,
    LogCoshNetwork,
    PositionEncoder,
)
from lightning_nobp.nn.hamiltonian.klein_gordon import exact_convolutions

ENGINES = ("echo", "adjoint", "autograd")


def run(layer, q, p, u):
    q = q.clone().requires_grad_()
    q_end, p_end = layer(q, p, u)
    inputs = [q, *(w for w in layer.parameters() if w.requires_grad)]
    return q_end.detach(), torch.autograd.grad((q_end.sin() + p_end).sum(), inputs, allow_unused=True)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("drive", ["none", "static", "of every step"])
@pytest.mark.parametrize("name", ["duffing", "log cosh without bias", "torus", "pendulums"])
def test_all_engines_give_the_same(name, drive, damping):
    n_steps = 15
    system, q, p, u = make(name, drive, n_steps)
    if drive == "none" and name == "pendulums":
        system.lever.requires_grad_(False)
    found = {e: run(HamiltonianLayer(system, 0.1, n_steps, e, damping=damping), q, p, u) for e in ENGINES}
    expected, _ = leapfrog(system, q, p, u, dt=0.1, n_steps=n_steps, damping=damping)
    for engine, (q_end, gradients) in found.items():
        assert torch.equal(q_end, expected)
        pairs = [(f, e) for f, e in zip(gradients, found["autograd"][1], strict=True) if e is not None]
        assert error(*zip(*pairs, strict=True)) < (1e-12 if engine == "adjoint" else 1e-6)


def test_it_starts_at_rest_unless_told_otherwise():
    system, q, _, _ = make("duffing")
    layer = HamiltonianLayer(system, 0.1, 10)
    assert torch.equal(layer(q)[0], layer(q, torch.zeros_like(q))[0])


def test_the_size_of_the_nudge_suits_the_type():
    system, q, _, _ = make("duffing")
    layer = HamiltonianLayer(system, 0.1, 10)
    assert layer.simulation(q).eta == 1e-5
    assert layer.simulation(q.float()).eta == 1e-2
    layer.eta = 0.3
    assert layer.simulation(q).eta == 0.3


def test_an_imperfect_apparatus_gives_another_gradient_and_the_same_state():
    system, q, p, _ = make("duffing")
    layer = HamiltonianLayer(system, 0.1, 10)
    state, exact = run(layer, q, p, None)
    layer.imperfections = Imperfections(conjugation_error=0.1)
    again, blurred = run(layer, q, p, None)
    assert torch.equal(again, state)
    assert error(blurred, exact) > 1e-3


# The first batch


class Whirl(DuffingNetwork):
    """A force that no potential has."""

    def flows(self, drives, grid=0.0):
        return HamiltonianSystem.flows(self, drives, grid)

    def potential_gradient(self, q, u):
        return super().potential_gradient(q, u) + 0.01 * q.roll(1, dims=1)


class Memory(DuffingNetwork):
    """Forces that depend on how often they were asked for."""

    calls = 0

    def flows(self, drives, grid=0.0):
        return HamiltonianSystem.flows(self, drives, grid)

    def potential_gradient(self, q, u):
        self.calls += 1
        return super().potential_gradient(q, u) + 0.01 * (self.calls > 3)


class Lopsided(DuffingNetwork):
    """Positions that move one way faster than the other, as no kinetic energy has it."""

    def velocity(self, p):
        return p + 0.01 * p.square()


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (Whirl(6), r"HamiltonianLayer, of a Whirl: potential_gradient is \d\.\de-03 off autograd's derivative of pot"),
        (Memory(6), r"of a Memory: 10 steps of it, reversed in time, end off their start by \d\.\de-0\d"),
        (Lopsided(6), r"of a Lopsided: velocity is \d\.\de-02 off autograd's derivative of kinetic"),
    ],
)
def test_forces_that_no_echo_can_reverse_are_refused_at_the_first_batch(system, message):
    layer = HamiltonianLayer(system, 0.1, 10)
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(4, 6))
    # Whoever only wants to see where it ends may.
    layer.eval()
    assert layer(torch.randn(4, 6))[0].shape == (4, 6)


def test_a_right_force_is_checked_once(monkeypatch):
    calls = []
    monkeypatch.setattr(HamiltonianLayer, "check", lambda *_: calls.append(1))
    layer = HamiltonianLayer(DuffingNetwork(6), 0.1, 10)
    for _ in range(3):
        layer(torch.randn(4, 6))
    assert len(calls) == 1


def springs(omega):
    system = DuffingNetwork(3, alpha=omega**2, beta=0.0)
    with torch.no_grad():
        system.coupling.zero_()
    return system


def test_a_time_step_that_is_too_long_is_refused_with_the_longest():
    layer = HamiltonianLayer(springs(10.0), 0.25, 10)
    message = (
        r"dt=0\.25 times the highest frequency omega=10 is 2\.50, and leapfrog is unstable from 2 on: .* below 0\.2,"
    )
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(4, 3))


def test_a_time_step_that_is_nearly_too_long_is_warned_of():
    with pytest.warns(UserWarning, match=r"omega=10 is 1\.90, and leapfrog is unstable from 2 on"):
        HamiltonianLayer(springs(10.0), 0.19, 10)(torch.randn(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HamiltonianLayer(springs(10.0), 0.17, 10)(torch.randn(4, 3))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_that_is_not_finite_names_layer_and_step(engine):
    layer = HamiltonianLayer(springs(10.0), 0.25, 1000, engine).eval()
    layer.label = "network.layer"
    with pytest.raises(FloatingPointError, match=r"network\.layer, of a DuffingNetwork: .*not finite after step \d+"):
        layer(torch.randn(4, 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q0": torch.zeros(2, 7)}, r"positions of shape \(2, 7\) do not fit the LogCoshNetwork: give \(batch, 6\)"),
        ({"q0": torch.zeros(2, 6), "u": torch.zeros(2, 6)}, r"a drive of shape \(2, 6\) .*give \(batch, 9\)"),
        ({"q0": torch.zeros(2, 6), "u": [torch.zeros(2, 9)] * 3}, "u has 3 drives: give one tensor, or n_steps=10"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        HamiltonianLayer(LogCoshNetwork(6, 9), 0.1, 10)(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_engine": "adjoin"}, "gradient_engine='adjoin' is not one of 'echo', 'adjoint', 'autograd'"),
        ({"nudge": "tangent"}, "nudge='tangent' is not one of 'symmetric'"),
        ({"nudge": "none"}, "nudge='none' is not one of"),
        ({"eta": -1.0}, r"eta=-1\.0 must be positive"),
        ({"dt": -0.1}, r"dt=-0\.1 must be positive"),
        ({"n_steps": 0}, "n_steps=0 must be a whole number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HamiltonianLayer(DuffingNetwork(3), **{"dt": 0.1, "n_steps": 10} | options)


# Networks


def test_pixels_are_positions_and_the_last_positions_scores():
    network = DuffingClassifier((1, 2, 2), 3, hidden_units=5, amplitude=0.5, gain=2.0).double()
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    q0 = torch.cat([0.5 * x.flatten(1), torch.zeros(4, 8, dtype=torch.float64)], 1)
    q, _ = leapfrog(network.layer.system, q0, 0 * q0, dt=0.2, n_steps=20)
    torch.testing.assert_close(network(x), 2 * q[:, -3:])


@pytest.mark.parametrize("linear_readout", [False, True])
def test_pixels_are_a_drive(linear_readout):
    network = LogCoshClassifier((1, 4, 4), 3, 6, 9, pool=2, linear_readout=linear_readout).double()
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    u = network.encoder.linear(nn.functional.avg_pool2d(x, 2).flatten(1))
    q0 = torch.zeros(4, 6, dtype=torch.float64)
    q, _ = leapfrog(network.layer.system, q0, q0, u, dt=0.25, n_steps=12)
    torch.testing.assert_close(network(x), network.readout(q) if linear_readout else 4 * q[:, -3:])


def test_networks_of_ones_own_take_any_encoder_and_readout():
    network = HamiltonianNetwork(PositionEncoder(8), HamiltonianLayer(DuffingNetwork(8), 0.1, 5), nn.Linear(8, 2))
    network(torch.randn(3, 6)).sum().backward()
    assert all(bool(p.grad.any()) for p in network.parameters())


@pytest.mark.parametrize("factory", [DuffingClassifier, LogCoshClassifier])
def test_networks_can_be_built_without_memory(factory):
    with torch.device("meta"):
        network = factory((1, 28, 28), 10, pool=2)
    assert next(network.parameters()).is_meta


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (lambda: DuffingClassifier((1, 4, 4), 3, hidden_units=-1), "hidden_units=-1 must be at least 0"),
        (
            lambda: DuffingClassifier((16,), 3, pool=2),
            r"pool=2 shrinks images \(chan.*, not \(16,\)",
        ),
        (lambda: LogCoshClassifier((1, 4, 4), 3, pool=0), "pool=0 must be at least 1"),
        (lambda: LogCoshClassifier((1, 4, 4), 3, n_units=2), "n_units=2 must be at least num_classes=3"),
    ],
)
def test_networks_that_cannot_be_are_refused(maker, message):
    with pytest.raises(ValueError, match=message):
        maker()


# Where autograd is not at hand


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_force_by_autograd_is_there_in_inference_too(mode, training):
    system, q, p, u = make("pendulums", "static")
    layer = HamiltonianLayer(system, 0.1, 10).train(training)
    expected = layer(q, p, u)
    with mode():
        found = layer(q.clone(), p.clone(), u.clone())
        assert layer.dt_omega(q.clone(), [u.clone()]) == pytest.approx(layer.dt_omega(q, [u]))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert not found[0].requires_grad


class Total(DuffingNetwork):
    """One energy for the whole batch."""

    def potential(self, q, u):
        return super().potential(q, u).sum()


class Crowd(HamiltonianSystem):
    """Samples that feel where the others are."""

    def potential(self, q, u):
        return (q - q.mean(dim=0)).square().sum(dim=1)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (
            Total(6),
            r"Total\.potential gives energies of shape \(\) for positions of shape \(4, 6\): it must give \(batch",
        ),
        (Crowd(), r"of a Crowd: a sample's force is 1.0e.00 off the one that it feels alone"),
    ],
)
def test_energies_are_one_a_sample(system, message):
    with pytest.raises(ValueError, match=message):
        HamiltonianLayer(system, 0.1, 10)(torch.randn(4, 6))


@pytest.mark.parametrize("broken", ["q", "u"])
def test_inputs_that_are_not_finite_are_named_before_the_force_is_blamed(broken):
    layer = HamiltonianLayer(LogCoshNetwork(6, 6), 0.1, 10)
    given = {"q": torch.randn(4, 6), "u": torch.randn(4, 6)}
    given[broken][1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match=r"(start|drive) is not finite: check the inputs"):
        layer(given["q"], u=given["u"])
    layer(torch.randn(4, 6), u=torch.randn(4, 6))


class Cut(HamiltonianSystem):
    """Energies that autograd cannot follow."""

    def potential(self, q, u):
        return q.detach().square().sum(dim=1)


def test_a_potential_without_a_graph_is_named():
    with pytest.raises(ValueError, match=r"Cut\.potential has no derivative by q: build it of torch's operations"):
        HamiltonianLayer(Cut(), 0.1, 10)(torch.randn(4, 6))


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_may_be_empty(engine):
    layer = HamiltonianLayer(DuffingNetwork(6), 0.1, 10, engine)
    q, _ = layer(torch.randn(0, 6))
    q.sum().backward()
    assert q.shape == (0, 6)
    assert not layer.system.coupling.grad.any()


def test_shapes_are_known_without_memory():
    layer = HamiltonianLayer(DuffingNetwork(6), 0.1, 10).to("meta")
    assert layer(torch.randn(4, 6, device="meta"))[0].shape == (4, 6)


def test_no_input_is_left_out_for_want_of_units():
    with pytest.raises(ValueError, match="n_units=3 are fewer than the 5 inputs"):
        PositionEncoder(3)(torch.rand(2, 5))


def test_what_is_diagnosed_leaves_the_noise_of_training_alone():
    system, q, p, _ = make("duffing")
    layer = HamiltonianLayer(system, 0.1, 10)
    expected = layer.diagnose((q, p), ())
    generator = torch.Generator().manual_seed(0)
    layer.imperfections = Imperfections(noise=0.1, generator=generator)
    before = generator.get_state()
    assert layer.diagnose((q, p), ()) == expected
    assert torch.equal(generator.get_state(), before)


def test_a_runaway_that_a_shorter_time_step_would_prevent_says_so_in_validation_too():
    layer = HamiltonianLayer(DuffingNetwork(6), 3.0, 60).eval()
    with pytest.raises(
        FloatingPointError, match=r"not finite after step \d+ of 60.*frequency is \d+\.\d\d at the start"
    ):
        layer(torch.ones(4, 6))


def test_cudnn_keeps_its_other_settings_and_rounds_nothing(monkeypatch):
    class OnGPU:
        is_cuda = True

    assert torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with exact_convolutions(OnGPU()):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.enabled
    assert torch.backends.cudnn.allow_tf32
