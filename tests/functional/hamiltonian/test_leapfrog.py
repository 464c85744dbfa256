"""The simulation: reversible, symplectic, of second order, and what it refuses."""

import math
from functools import partial

import pytest
import torch
from oscillators import DRIVES, MAKERS, by_autograd, error, gradients, make

from lightning_nobp.functional.hamiltonian import (
    Imperfections,
    field_echo,
    hamiltonian_echo,
    hamiltonian_echo_trajectory,
    leapfrog,
    reversal_error,
    strang,
)
from lightning_nobp.nn import DuffingNetwork, LogCoshNetwork, NLSEField


@pytest.mark.parametrize("drive", DRIVES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_simulation_reversed_in_time_ends_where_it_began(name, drive):
    n_steps = 60
    system, q, p, u = make(name, drive, n_steps)
    q_end, p_end = leapfrog(system, q, p, u, dt=0.1, n_steps=n_steps)
    q_back, p_back = leapfrog(system, q_end, -p_end, u[::-1] if isinstance(u, list) else u, dt=0.1, n_steps=n_steps)
    assert float((q_end - q).detach().norm()) > 0.1
    assert error([q_back, -p_back], [q, p]) < 1e-11
    drives = () if u is None else (u,) if isinstance(u, torch.Tensor) else u
    found = reversal_error(system, (q, p), drives, dt=0.1, n_steps=n_steps)
    assert found.shape == (4,)
    assert float(found.max()) < 1e-11


def test_a_simulation_with_friction_is_reversed_by_a_gain():
    system, q, p, _ = make("duffing")
    assert float(reversal_error(system, (q, p), dt=0.1, n_steps=50, damping=0.3).max()) < 1e-11


class Forgetful(DuffingNetwork):
    """Moves one way faster than the other."""

    def velocity(self, p):
        return p + 0.1 * p.square()


def test_what_cannot_be_reversed_is_measured():
    system = Forgetful(6).double()
    _, q, p, _ = make("duffing")
    assert float(reversal_error(system, (q, p), dt=0.1, n_steps=20).max()) > 0.1


@pytest.mark.parametrize("name", MAKERS)
def test_the_error_of_the_energy_is_of_second_order(name):
    system, q, p, _ = make(name)
    errors = []
    for halvings in (1, 2):
        end = leapfrog(system, q, p, dt=0.04 / halvings, n_steps=50 * halvings)
        errors.append((system.energy(*end) - system.energy(q, p)).abs().max())
    assert float(errors[0] / errors[1]) == pytest.approx(4, rel=0.05)


def test_an_oscillator_keeps_its_time():
    system = DuffingNetwork(1, alpha=4.0, beta=0.0).double()
    with torch.no_grad():
        system.coupling.zero_()
    q, p = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    q_end, p_end = leapfrog(system, q, p, dt=1e-3, n_steps=1000)
    assert float(q_end) == pytest.approx(math.cos(2.0), abs=1e-5)
    assert float(p_end) == pytest.approx(-2 * math.sin(2.0), abs=1e-5)


def test_friction_takes_energy_at_its_rate():
    system, q, p, _ = make("linear")
    free = leapfrog(system, q, p, dt=0.01, n_steps=100)
    damped = leapfrog(system, q, p, dt=0.01, n_steps=100, damping=0.5)
    assert float(system.energy(*damped).sum()) < float(system.energy(*free).sum())
    # Areas of phase space shrink by exp(-rate * time) a pair of position and momentum.
    jacobian = torch.autograd.functional.jacobian(
        lambda z: torch.cat(leapfrog(system, z[None, :6], z[None, 6:], dt=0.1, n_steps=10, damping=0.5), 1)[0],
        torch.cat([q[0], p[0]]),
    )
    assert float(torch.linalg.det(jacobian)) == pytest.approx(math.exp(-0.5 * 6), rel=1e-10)


@pytest.mark.parametrize("damping", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("name", ["duffing", "log cosh", "ring", "pendulums"])
def test_with_a_gain_the_echo_of_a_damped_system_is_exact(name, damping):
    state = make(name, "static")
    options = {"dt": 0.1, "n_steps": 10, "damping": damping}
    found = gradients(lambda *s: hamiltonian_echo(*s, eta=1e-4, **options), *state)
    exact = gradients(lambda *s: hamiltonian_echo(*s, nudge="tangent", **options), *state)
    expected = by_autograd(*state, **options)
    assert error(found, expected) < 1e-5
    assert error(exact, expected) < 1e-12


def test_fixed_points_come_back_bit_for_bit_where_floating_points_lose_all():
    torch.manual_seed(0)
    system = DuffingNetwork(20).double()
    with torch.no_grad():
        system.coupling.mul_(2.0)
    q, p = torch.randn(4, 20, dtype=torch.float64), torch.zeros(4, 20, dtype=torch.float64)
    q = (q * 2**36).round() / 2**36
    backs = []
    for bits in (36, None):
        options = {"dt": 0.1, "n_steps": 5000, "fractional_bits": bits}
        q_end, p_end = leapfrog(system, q, p, **options)
        backs.append(leapfrog(system, q_end, -p_end, **options))
    assert torch.equal(backs[0][0], q)
    assert torch.equal(backs[0][1], -p)
    assert float((backs[1][0] - q).abs().max()) > 1e-3


def test_fixed_points_make_the_same_gradients_to_their_digits():
    state = make("duffing", "static")
    options = {"dt": 0.1, "n_steps": 10}
    found = gradients(lambda *s: hamiltonian_echo(*s, eta=1e-3, fractional_bits=40, **options), *state)
    expected = by_autograd(*state, **options)
    assert error(found, expected) < 1e-5
    for simulate in (leapfrog, partial(hamiltonian_echo, nudge="tangent")):
        assert error(gradients(lambda *s, f=simulate: f(*s, fractional_bits=40, **options), *state), expected) < 1e-9


# What is refused


def run(**changes):
    system, q, p, u = make("duffing", "static")
    given = {"q": q, "p": p, "u": u, "dt": 0.1, "n_steps": 10} | changes
    state = (system, given.pop("q"), given.pop("p"), given.pop("u"))
    function = {True: hamiltonian_echo_trajectory, False: hamiltonian_echo}["every" in given]
    return function(*state, **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dt": 0.0}, r"dt=0\.0 must be positive"),
        ({"dt": math.nan}, "dt=nan must be positive"),
        ({"n_steps": 0}, "n_steps=0 must be a whole number"),
        ({"every": 3}, "every=3 must divide n_steps=10"),
        ({"eta": 0.0}, r"eta=0\.0 must be positive"),
        ({"nudge": "both"}, "nudge='both' is not one of 'symmetric'"),
        ({"damping": math.inf}, "damping=inf must be finite"),
        ({"fractional_bits": 60}, "fractional_bits=60 must be from 1 to 50"),
        ({"fractional_bits": 36, "damping": 0.1}, "damping=0.1 with fractional_bits=36: a loss cannot be taken back"),
        (
            {"fractional_bits": 50, "q": torch.full((4, 6), 9.0).double()},
            r"50 leaves torch.float64 numbers up to 8, and",
        ),
        ({"n_steps": 10.0}, r"n_steps=10\.0 must be a whole number"),
        ({"u": [torch.zeros(4, 6)]}, "u has 1 drives: give one tensor, or a sequence of n_steps=10"),
        ({"u": torch.zeros(3, 6)}, r"a drive of shape \(3, 6\)"),
        ({"p": torch.zeros(4, 5, dtype=torch.float64)}, r"momenta \(4, 5\) must have the shape of positions, \(4, 6\)"),
        ({"p": torch.zeros(4, 6)}, "of the same batch and type"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(torch.int64, "real floating point"), (torch.complex64, "real floating point"), (torch.bfloat16, "an echo needs")],
)
def test_wrong_numbers_are_refused(dtype, message):
    with pytest.raises(TypeError, match=message):
        run(q=torch.zeros(4, 6, dtype=dtype), p=torch.zeros(4, 6, dtype=dtype))


def test_one_precision_for_everything_and_the_right_kind_of_system():
    system, q, p, u = make("duffing", "static")
    for function in (leapfrog, hamiltonian_echo):
        with pytest.raises(
            TypeError, match=r"a drive of type torch\.float32 for states of torch\.float64: give torch\.fl"
        ):
            function(system, q, p, u.float(), dt=0.1, n_steps=3)
        with pytest.raises(
            TypeError, match=r"DuffingNetwork has parameters of type torch\.float64 and states of torch\.fl"
        ):
            function(system, q.float(), p.float(), u.float(), dt=0.1, n_steps=3)
        with pytest.raises(
            TypeError, match="NLSEField is a system of complex fields: simulate it by strang or field_echo"
        ):
            function(NLSEField((6,)), q, p, dt=0.1, n_steps=3)
    field = torch.randn(4, 6, dtype=torch.complex128)
    for function in (strang, field_echo):
        with pytest.raises(
            TypeError, match=r"NLSEField has parameters of type torch\.float32 and states of torch\.compl"
        ):
            function(NLSEField((6,)), field, dt=0.1, n_steps=3)
        with pytest.raises(TypeError, match=r"a drive of type torch\.complex128"):
            function(NLSEField((6,)).double(), field, field, dt=0.1, n_steps=3)
        with pytest.raises(TypeError, match="DuffingNetwork is a system of positions and momenta"):
            function(system, field, dt=0.1, n_steps=3)


def test_an_adjoint_has_no_apparatus_that_could_be_imperfect():
    with pytest.raises(ValueError, match="imperfections are those of an echo, and nudge='tangent'"):
        run(nudge="tangent", imperfections=Imperfections(noise=0.1))


def test_autocast_is_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast rounds the way there"):
        run()


def test_a_simulation_that_leaves_the_finite_numbers_says_when():
    with pytest.raises(FloatingPointError, match=r"not finite after step \d+ of 100: take a smaller dt than 2\.0"):
        run(dt=2.0, n_steps=100)
    with pytest.raises(FloatingPointError, match="the state at the start is not finite"):
        run(q=torch.full((4, 6), math.nan, dtype=torch.float64))


def test_a_bounded_potential_survives_what_a_hardening_one_does_not():
    system = LogCoshNetwork(6, 9).double()
    q, p = (100 * torch.randn(2, 4, 6, dtype=torch.float64)).unbind()
    assert bool(system.potential(1e3 * q, None).isfinite().all())
    q_end, p_end = leapfrog(system, q, p, dt=0.3, n_steps=500)
    assert float(((system.energy(q_end, p_end) - system.energy(q, p)) / system.energy(q, p)).abs().max()) < 0.1
