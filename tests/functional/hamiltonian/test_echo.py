"""The echo's gradient is autograd's, of the same simulation, for every system, drive and nudge."""

from functools import partial

import pytest
import torch
import torch.utils.checkpoint
from oscillators import DRIVES, MAKERS, by_autograd, cost, error, gradients, make
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from lightning_nobp.functional.hamiltonian import field_echo, hamiltonian_echo, hamiltonian_echo_trajectory, leapfrog
from lightning_nobp.nn import DuffingNetwork, HamiltonianLayer, HamiltonianSystem, NLSEField

RUN = {"dt": 0.1, "n_steps": 30}


def by_echo(*state, of=cost, **options):
    return gradients(partial(hamiltonian_echo, **RUN | options), *state, of)


@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("name", MAKERS)
def test_the_echo_tells_autograds_gradient(name, drive):
    state = make(name, drive)
    expected = by_autograd(*state, **RUN)
    assert error(by_echo(*state, eta=1e-4), expected) < 1e-6


@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("name", MAKERS)
def test_the_echo_of_no_nudge_at_all_is_exact(name, drive):
    state = make(name, drive)
    assert error(by_echo(*state, nudge="tangent"), by_autograd(*state, **RUN)) < 1e-13


@pytest.mark.parametrize("name", ["duffing", "log cosh", "ring", "pendulums"])
@pytest.mark.parametrize("dt", [0.2, 0.01])
def test_the_gradient_is_that_of_the_simulation_at_any_time_step(name, dt):
    state = make(name, "static")
    options = {"dt": dt, "n_steps": 12}
    # The finer one is no approximation of the coarse one's.
    assert error(by_echo(*state, eta=1e-5, **options), by_autograd(*state, **options)) < 1e-7


@pytest.mark.parametrize(
    ("nudge", "eta", "ratio"), [("one_sided", 1e-3, 10), ("symmetric", 1e-2, 100), ("richardson", 0.1, 1e4)]
)
@pytest.mark.parametrize("name", ["duffing", "log cosh", "ring", "pendulums"])
def test_errors_shrink_with_the_nudge_as_they_should(name, nudge, eta, ratio):
    state = make(name, "static")
    expected = by_autograd(*state, **RUN)
    coarse, fine = (error(by_echo(*state, nudge=nudge, eta=e), expected) for e in (eta, eta / 10))
    assert coarse / fine == pytest.approx(ratio, rel=0.35)


@pytest.mark.parametrize("eta", [1.0, 100.0])
@pytest.mark.parametrize("drive", ["none", "static"])
def test_of_linear_dynamics_the_symmetric_echo_is_exact_for_any_nudge(eta, drive):
    state = make("linear", drive)
    # Absolute nudges, and a cost that is not quadratic itself.
    assert error(by_echo(*state, eta=eta, relative=False), by_autograd(*state, **RUN)) < 1e-11


@pytest.mark.parametrize("eta", [1e-3, 1.0])
def test_a_cost_of_positions_alone_is_conserved_by_its_own_nudge_to_any_size(eta):
    # The echo is the flow of the cost seen from the start, which conserves it.
    system, q, p, _ = make("duffing")
    system.requires_grad_(False)
    q_end, p_end = leapfrog(system, q, p, **RUN)
    by_q = torch.autograd.functional.jacobian(lambda x: cost(x, torch.zeros_like(x)), q_end).detach()
    # The echo of a real nudge, from where a fresh run is made.
    q_back, p_back = leapfrog(system, q_end, -(p_end - eta * by_q), **RUN)
    again, _ = leapfrog(system, q_back, -p_back, **RUN)
    torch.testing.assert_close(cost(again, 0 * again), cost(q_end, 0 * q_end), rtol=1e-11, atol=0)
    moved, _ = leapfrog(system, q, p + eta * by_q, **RUN)
    assert abs(float(cost(moved, 0 * moved) - cost(q_end, 0 * q_end))) > 1e-6


@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("nudge", ["symmetric", "richardson", "tangent"])
@pytest.mark.parametrize("name", ["duffing", "log cosh", "torus", "pendulums"])
@pytest.mark.parametrize("every", [1, 10])
def test_costs_may_run_with_time(name, nudge, drive, every):
    state = make(name, drive)

    def of(q, p):
        return sum((k + 1) * cost(*at) for k, at in enumerate(zip(q, p, strict=True)))

    def steps(system, q, p, u):
        seen = []
        for k in range(0, RUN["n_steps"], every):
            now = u[k : k + every] if isinstance(u, list) else u
            q, p = leapfrog(system, q, p, now, dt=RUN["dt"], n_steps=every)
            seen.append((q, p))
        return map(torch.stack, zip(*seen, strict=True))

    simulate = partial(hamiltonian_echo_trajectory, **RUN, every=every, nudge=nudge, eta=1e-5)
    found, expected = gradients(simulate, *state, of), gradients(steps, *state, of)
    assert error(found, expected) < (1e-12 if nudge == "tangent" else 1e-6)


@pytest.mark.parametrize("name", ["duffing", "log cosh", "ring", "pendulums"])
def test_of_a_momentum_alone_the_gradient_is_right_too(name):
    state = make(name, "static")

    def of(q, p):
        return p.flatten(1)[:, 0].sum()

    assert error(by_echo(*state, of=of, eta=1e-5), by_autograd(*state, of=of, **RUN)) < 1e-6


@pytest.mark.parametrize("nudge", ["symmetric", "one_sided", "richardson", "tangent"])
def test_samples_without_an_error_signal_disturb_no_others(nudge):
    state = make("duffing", "static")
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64).unsqueeze(1)

    def of(q, p):
        return (mask * q.sin()).sum()

    found = by_echo(*state, of=of, nudge=nudge, eta=1e-5)
    assert error(found, by_autograd(*state, of=of, **RUN)) < (1e-4 if nudge == "one_sided" else 1e-6)
    # Nothing but rounding: a nudge of size zero comes back twice the same.
    assert float(found[0][1].abs().max()) == float(found[2][3].abs().max()) == 0


def test_a_system_that_is_used_twice_gets_the_sum_of_both():
    state = make("duffing")

    def twice(simulate):
        return lambda system, q, p, u: simulate(system, *simulate(system, q, p, u, **RUN), u, **RUN)

    found, expected = (gradients(twice(s), *state) for s in (partial(hamiltonian_echo, eta=1e-5), leapfrog))
    assert error(found, expected) < 1e-6


def test_only_what_requires_gradients_gets_any():
    for name in ("duffing", "log cosh", "ring", "pendulums"):
        system, q, p, u = make(name, "static")
        frozen = next(iter(system.parameters())).requires_grad_(False)
        q_end, p_end = hamiltonian_echo(system, q.requires_grad_(), p, u, **RUN)
        cost(q_end, p_end).backward()
        assert frozen.grad is None
        assert p.grad is u.grad is None
        assert bool(q.grad.any())
        assert all(bool(w.grad.any()) for w in system.parameters() if w.requires_grad)


def test_nothing_of_the_way_there_is_stored():
    system, q, p, _ = make("duffing")
    kept = []
    for n_steps in (3, 300):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            hamiltonian_echo(system, q.requires_grad_(), p, dt=0.01, n_steps=n_steps)
        kept.append(sum(sizes))
    assert kept[0] == kept[1] == 2 * q.numel() + 36
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        leapfrog(system, q, p, dt=0.01, n_steps=300)
    assert sum(kept) > 300 * q.numel()


def test_parameters_that_change_before_the_backward_pass_are_found_out():
    system, q, p, _ = make("duffing")
    q_end, _ = hamiltonian_echo(system, q, p, **RUN)
    with torch.no_grad():
        system.coupling.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        q_end.sum().backward()


def test_gradients_of_gradients_are_refused():
    system, q, p, _ = make("duffing")
    q_end, _ = hamiltonian_echo(system, q.requires_grad_(), p, **RUN)
    (by_q,) = torch.autograd.grad(q_end.sin().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        by_q.sum().backward()


def float32_error(relative, scale, nudge="symmetric", eta=1e-2):
    torch.manual_seed(0)
    system, q, p = DuffingNetwork(30), torch.randn(8, 30), torch.zeros(8, 30)

    def of(q, p):
        return scale * q.sin().sum()

    options = {"dt": 0.1, "n_steps": 20}
    simulate = partial(hamiltonian_echo, nudge=nudge, eta=eta, relative=relative, **options)
    found = gradients(simulate, system, q, p, None, of)
    expected = by_autograd(system.double(), q.double(), p.double(), None, of, **options)
    return error([f.double() for f in found], expected)


def test_a_relative_nudge_holds_in_single_precision_however_small_gradients_are():
    assert float32_error(True, 1.0) < 1e-3
    assert float32_error(True, 1e-6) == pytest.approx(float32_error(True, 1.0), rel=0.5)
    # A nudge of a fixed size drowns in rounding.
    assert float32_error(False, 1e-6) > 0.5


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-19, 1e19, 1e30])
def test_a_relative_nudge_holds_for_gradients_whose_squares_leave_single_precision(scale):
    assert float32_error(True, scale) == pytest.approx(float32_error(True, 1.0), rel=0.5)


def test_positions_may_be_one_number_a_sample():
    class Spring(HamiltonianSystem):
        def potential(self, q, u):
            return q.square() / 2 + q.pow(4) / 4

    q = torch.randn(4, dtype=torch.float64)
    found = gradients(partial(hamiltonian_echo, eta=1e-5, **RUN), Spring(), q, q + 1, None)
    assert error(found, by_autograd(Spring(), q, q + 1, None, **RUN)) < 1e-6


def test_richardsons_nudges_reach_further_in_single_precision():
    assert float32_error(True, 1.0, "richardson", 2e-2) < float32_error(True, 1.0, "symmetric", 2e-2) / 3
    assert float32_error(True, 1.0, "tangent") < 1e-5


class Heavy(HamiltonianSystem):
    """Learned masses, of which one parameter is that of springs too."""

    def __init__(self):
        super().__init__()
        self.mass = nn.Parameter(torch.rand(5) + 1)
        self.tie = nn.Parameter(torch.randn(5))

    def potential(self, q, u):
        return 1 - q.cos().sum(1) + (self.mass * q.pow(4)).sum(1) / 4 + (q @ self.tie).sin()

    def kinetic(self, p):
        return (p.square() / self.mass).sum(1) / 2 + (p @ self.tie).square() / 2

    def velocity(self, p):
        return p / self.mass + (p @ self.tie).unsqueeze(1) * self.tie


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("nudge", ["symmetric", "richardson", "tangent"])
def test_masses_are_learned_too(nudge, damping):
    torch.manual_seed(0)
    system, (q, p) = Heavy().double(), torch.randn(2, 4, 5, dtype=torch.float64)
    run = {"dt": 0.05, "n_steps": 20, "damping": damping}
    found = gradients(partial(hamiltonian_echo, nudge=nudge, eta=1e-5, **run), system, q, p, None)
    assert error(found, by_autograd(system, q, p, None, **run)) < 1e-6


class Bent(nn.Module):
    def forward(self, w):
        return w + w.sin() / 2


@pytest.mark.parametrize("name", ["duffing", "log cosh", "ring", "pendulums"])
@pytest.mark.parametrize("nudge", ["symmetric", "tangent"])
def test_parametrized_systems_learn_what_their_parameters_are_made_of(name, nudge):
    system, q, p, u = make(name, "static")
    register_parametrization(system, next(iter(dict(system.named_parameters()))), Bent())
    found = gradients(partial(hamiltonian_echo, nudge=nudge, eta=1e-5, **RUN), system, q, p, u)
    assert error(found, by_autograd(system, q, p, u, **RUN)) < 1e-6


def recomputed(simulate):
    return partial(torch.utils.checkpoint.checkpoint, simulate, use_reentrant=False)


def offloaded(simulate):
    def run(*state):
        with torch.autograd.graph.save_on_cpu():
            return simulate(*state)

    return run


@pytest.mark.parametrize("saver", [recomputed, offloaded])
def test_what_is_saved_may_be_copied_on_its_way(saver):
    state = make("duffing", "static")
    simulate = partial(hamiltonian_echo, eta=1e-5, **RUN)
    found, expected = gradients(saver(simulate), *state), gradients(simulate, *state)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_parameters_that_are_replaced_before_the_backward_pass_are_found_out():
    system, q, p, _ = make("duffing")
    module = HamiltonianLayer(system, 0.1, 10)
    others = {name: w.detach().clone().requires_grad_() for name, w in module.named_parameters()}
    q_end, _ = torch.func.functional_call(module, others, (q, p))
    with pytest.raises(RuntimeError, match="DuffingNetwork has other parameters than when it ran"):
        q_end.sum().backward()


def test_no_parameter_of_a_field_is_left_out_in_silence():
    field = NLSEField((8,)).double()
    register_parametrization(field, "potential", Bent())
    end = field_echo(field, torch.randn(3, 8, dtype=torch.complex128), dt=0.1, n_steps=5)
    with pytest.raises(RuntimeError, match=r"flows record nothing of parameters of shape \(1, 8\)"):
        end.real.sum().backward()
