"""Simulations of fields, and gradients from their echo, in float64."""

import pytest
import torch
from field_toys import CASES, case, cost, field, gradients, linear, relative_error

from lightning_nobp.functional.hamiltonian import (
    COMPLEX,
    DenseFlow,
    Drives,
    Simulation,
    field_echo,
    field_echo_trajectory,
    strang,
)
from lightning_nobp.functional.hamiltonian.integrator import run
from lightning_nobp.nn import FieldSystem

ALL = pytest.mark.parametrize("name", CASES)


def echo_of(nudge="symmetric", eta=1e-4, relative=True, **times):
    return lambda system, psi, u: field_echo(system, psi, u, eta=eta, nudge=nudge, relative=relative, **times)


def plain(**times):
    return lambda system, psi, u: strang(system, psi, u, **times)


def returned(system, start, eta, gradient_of, **times):
    """What comes back of a field, nudged with a fixed size."""
    simulation = Simulation(system.requires_grad_(False), times["dt"], times["n_steps"], times["n_steps"])
    [end] = simulation.forward((start,), ())
    direction = COMPLEX.direction((gradient_of(end[0]),))
    nudges = torch.full((len(start),), eta, dtype=torch.float64)
    (back,), _ = simulation.echo(end, [direction], (), nudges, nudges)
    return back


@ALL
def test_reversed_in_time_fields_return_to_where_they_began(name):
    system, psi, times = case(name)
    back = returned(system, psi, 0.0, torch.zeros_like, **times)
    torch.testing.assert_close(back, psi, rtol=0, atol=1e-11)


@ALL
def test_norms_are_kept_and_energies_err_with_the_square_of_the_step(name):
    errors = []
    for finer in (1, 2):
        system, psi, times = case(name)
        # A potential that changes does work.
        if hasattr(system, "potential"):
            system.slices, system.potential = 1, torch.nn.Parameter(0.3 * system.potential[:1])
        step, total = times["dt"] / (4 * finer), times["n_steps"] * finer
        end = strang(system, psi, dt=step, n_steps=total)
        norms = end.abs().square().flatten(1).sum(1), psi.abs().square().flatten(1).sum(1)
        torch.testing.assert_close(*norms, rtol=1e-12, atol=1e-12)
        errors.append((system.energy(end) - system.energy(psi)).abs().max().item())
    assert errors[0] > 1e-9
    assert 3.5 < errors[0] / errors[1] < 4.5


@ALL
@pytest.mark.parametrize("nudge", ["symmetric", "tangent", "richardson"])
def test_the_echo_tells_the_gradients_of_autograd(name, nudge):
    system, psi, times = case(name)
    drive = 0.3 * torch.randn(psi.shape, dtype=torch.float64)
    wanted = gradients(plain(**times), system, psi, drive)
    found = gradients(echo_of(nudge, **times), system, psi, drive)
    assert relative_error(found, wanted) < (1e-10 if nudge == "tangent" else 1e-5)


@pytest.mark.parametrize(("nudge", "order", "eta"), [("one_sided", 1, 1e-4), ("symmetric", 2, 1e-3)])
@ALL
def test_errors_shrink_with_the_nudge(name, nudge, order, eta):
    system, psi, times = case(name)
    wanted = gradients(plain(**times), system, psi)
    errors = [
        relative_error(gradients(echo_of(nudge, eta / factor, **times), system, psi), wanted) for factor in (1, 10)
    ]
    assert errors[0] / errors[1] == pytest.approx(10**order, rel=0.2)


@pytest.mark.parametrize("name", ["two waves", "cavities"])
def test_richardsons_error_is_of_the_fourth_order(name):
    system, psi, times = case(name)
    wanted = gradients(plain(**times), system, psi)
    errors = [
        relative_error(gradients(echo_of("richardson", eta, **times), system, psi), wanted) for eta in (0.1, 0.01)
    ]
    assert 3e3 < errors[0] / errors[1] < 3e4


@pytest.mark.parametrize("eta", [1.0, 100.0])
@ALL
def test_linear_waves_have_an_exact_echo_at_any_nudge(name, eta):
    system, psi, times = case(name)
    system = linear(system)
    wanted = gradients(plain(**times), system, psi)
    found = gradients(echo_of(eta=eta, relative=False, **times), system, psi)
    assert relative_error(found, wanted) < 1e-10


@ALL
def test_a_cost_of_real_parts_is_the_same_after_an_echo_of_any_nudge(name):
    """The nudge is then the cost's own flow, and the whole echo that of the cost seen from the start."""
    system, psi, times = case(name)

    def of_end(end):
        return end.real.pow(4).flatten(1).sum(1) / 4 + (end.real * field(*end.shape, seed=2).real).flatten(1).sum(1)

    def gradient(end):
        end = end.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(of_end(end).sum(), end)[0]

    back = returned(system, psi, 0.3, gradient, **times)
    assert relative_error([back], [psi]) > 1e-2
    again = of_end(strang(system, back, **times))
    torch.testing.assert_close(again, of_end(strang(system, psi, **times)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [1e-2, 3e-3])
def test_single_precision_gradients_hold_at_any_scale_of_the_loss(eta):
    system, psi, times = case("two waves")
    wanted = gradients(plain(**times), system, psi)
    for scale in (1.0, 1e-6):
        single = psi.to(torch.complex64).requires_grad_()
        end = field_echo(system.float(), single, eta=eta, **times)
        found = torch.autograd.grad(scale * cost(end.to(torch.complex128)), single)[0] / scale
        assert end.dtype == torch.complex64
        assert relative_error([found.to(torch.complex128)], wanted) < 2e-3


def test_a_cost_that_runs_with_time_has_the_gradients_of_autograd():
    system, psi, times = case("waves")
    every = 5

    flows = system.flows(Drives(()))

    def seen_plainly(start):
        seen = [(start,)]
        for first in range(0, times["n_steps"], every):
            seen.append(run(flows, seen[-1], dt=times["dt"], order=range(first, first + every)))
        return torch.stack([fields for (fields,) in seen[1:]])

    starts = [psi.clone().requires_grad_() for _ in range(2)]
    wanted = torch.autograd.grad(cost(seen_plainly(starts[0])), [starts[0], system.potential])
    seen = field_echo_trajectory(system, starts[1], every=every, **times)
    assert seen.shape == (4, *psi.shape)
    found = torch.autograd.grad(cost(seen), [starts[1], system.potential])
    assert relative_error(found, wanted) < 1e-5


def test_drives_may_change_at_every_step():
    system, psi, times = case("cavities", n_steps=7)
    drives = [torch.randn(psi.shape, dtype=torch.float64, requires_grad=True) for _ in range(7)]
    wanted = torch.autograd.grad(cost(strang(system, psi, drives, **times)), drives)
    found = torch.autograd.grad(cost(field_echo(system, psi, drives, **times)), drives)
    assert relative_error(found, wanted) < 1e-5


def test_uniform_loss_has_an_exact_echo_under_gain_where_waves_are_linear():
    system, psi, times = case("light", damping=0.5)
    system = linear(system)
    inputs = [psi.clone().requires_grad_(), system.potential]
    ends = [simulate(system, inputs[0], **times) for simulate in (strang, field_echo)]
    wanted, found = (torch.autograd.grad(cost(end), inputs) for end in ends)
    norm = ends[0].abs().square().sum() / psi.abs().square().sum()
    assert norm.item() == pytest.approx(torch.exp(torch.tensor(-0.5 * 0.05 * 12)).item())
    assert relative_error(found, wanted) < 1e-5


class Mixed(FieldSystem):
    """Two tensors that share one linear flow."""

    def flows(self, drives, grid=0.0):
        ring = torch.eye(6, dtype=torch.float64).roll(1, 0)
        return DenseFlow([ring + ring.T]), DenseFlow([torch.diag(torch.arange(6.0).double())])


def test_several_fields_run_beside_each_other():
    pair = field(2, 6), field(2, 3, 6, seed=1)
    first, second = strang(Mixed(), pair, dt=0.1, n_steps=9)
    echoed = field_echo(Mixed(), pair, dt=0.1, n_steps=9)
    torch.testing.assert_close(echoed, (first, second))
    torch.testing.assert_close(second, strang(Mixed(), pair[1], dt=0.1, n_steps=9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt": 0.0}, "dt=0.0 must be positive"),
        ({"n_steps": 0}, "n_steps=0 must be a whole number"),
        ({"u": [torch.zeros(3, 20)] * 3}, "u has 3 drives"),
        ({"u": torch.zeros(2, 20)}, "a drive of shape"),
        ({"damping": float("inf")}, "damping=inf must be finite"),
    ],
)
@pytest.mark.parametrize("simulate", [strang, field_echo])
def test_bad_arguments_are_refused(simulate, options, message):
    system, psi, times = case("cavities")
    with pytest.raises(ValueError, match=message):
        simulate(system, psi, **times | options)


def test_what_is_no_field_is_refused():
    system, psi, times = case("cavities")
    with pytest.raises(TypeError, match=r"give complex numbers"):
        strang(system, psi.real, **times)
    with pytest.raises(ValueError, match="nudge='both' is not one of"):
        field_echo(system, psi, nudge="both", **times)
    with pytest.raises(FloatingPointError, match="the state at the start is not finite"):
        field_echo(system, psi / 0, **times)
    with pytest.raises(NotImplementedError, match=r"FieldSystem must implement flows\(drives\)"):
        strang(FieldSystem(), psi, **times)
