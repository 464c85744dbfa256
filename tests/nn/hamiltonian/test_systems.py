"""Systems with formulas of their own: these are the derivatives of their potentials."""

import pytest
import torch
from oscillators import MAKERS, make

from lightning_nobp.functional.hamiltonian import AutogradSums
from lightning_nobp.nn import DuffingNetwork, HamiltonianSystem, KleinGordonField, LogCoshNetwork
from lightning_nobp.nn.hamiltonian.spectrum import largest_eigenvalue

WRITTEN = [name for name in MAKERS if name != "pendulums"]


@pytest.mark.parametrize("drive", ["none", "static"])
@pytest.mark.parametrize("name", WRITTEN)
def test_the_written_force_is_the_potentials(name, drive):
    system, q, _, u = make(name, drive)
    expected = HamiltonianSystem.potential_gradient(system, q, u)
    torch.testing.assert_close(system.potential_gradient(q, u), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("drive", ["none", "static"])
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("kicks", [1, 8, 21])
def test_the_written_sums_are_the_potentials(name, drive, kicks):
    system, *_ = make(name)
    weight = torch.randn(4, dtype=torch.float64)
    written, expected = system.sums(weight), AutogradSums(system, weight)
    for kick in range(kicks):
        _, q, _, u = make(name, drive, batch=8, seed=kick)
        with torch.no_grad():
            found = written.kick(q, u, 0.3 + kick)
        for f, e in zip(found, expected.kick(q, u, 0.3 + kick), strict=True):
            assert (f is None) == (e is None)
            if f is not None:
                torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-13)
    assert written.gradients().keys() == expected.gradients().keys()
    for parameter, total in written.gradients().items():
        torch.testing.assert_close(total, expected.gradients()[parameter], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", WRITTEN)
def test_sums_of_nothing_that_is_learned_are_none(name):
    system, q, _, u = make(name, "static", batch=8)
    system.requires_grad_(False)
    sums = system.sums(torch.ones(4, dtype=torch.float64))
    assert sums.kick(q, u, 1.0)[0].shape == q.shape
    assert sums.gradients() == {}


def test_little_differences_do_not_cancel_in_single_precision():
    torch.manual_seed(0)
    system, q = DuffingNetwork(40), torch.randn(16, 40)
    rows = torch.cat([q + 1e-3 * torch.randn_like(q), q])
    weight = torch.ones(16)
    sums, plain = system.sums(weight), AutogradSums(system, weight)
    for total in (sums, plain):
        with torch.no_grad():
            total.kick(rows, None, 1.0)
    exact = AutogradSums(system.double(), weight.double())
    exact.kick(rows.double(), None, 1.0)
    [[found], [autograds], [expected]] = [list(s.gradients().values()) for s in (sums, plain, exact)]
    written, rounded = ((f - expected).norm() / expected.norm() for f in (found, autograds))
    assert float(written) < 1e-6 < 1e-5 < float(rounded)


@pytest.mark.parametrize("boundary", ["periodic", "fixed"])
def test_plane_waves_have_the_frequencies_of_the_lattice(boundary):
    points, c, dx, mass = 12, 0.7, 0.4, 2.0
    system = KleinGordonField(1, (points,), kernel_size=1, c=c, dx=dx, boundary=boundary).double()
    with torch.no_grad():
        system.kernel.zero_()
        system.nonlinearity.zero_()
        system.mass_squared.fill_(mass)
    x = torch.arange(1, points + 1, dtype=torch.float64)
    wave = torch.pi * 2 / points if boundary == "periodic" else torch.pi / (points + 1)
    q = (wave * x).sin().view(1, 1, -1)
    omega_squared = mass + (2 * c / dx) ** 2 * torch.tensor(wave / 2).sin().square()
    torch.testing.assert_close(system.potential_gradient(q, None), omega_squared.double() * q, rtol=1e-6, atol=1e-12)


def test_a_plane_wave_on_a_torus():
    system = KleinGordonField(1, (6, 8), kernel_size=3).double()
    with torch.no_grad():
        system.kernel.zero_()
        system.nonlinearity.zero_()
    ways = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    phase = 2 * torch.pi * (ways[0] / 6 + 2 * ways[1] / 8)
    q = phase.cos().double().view(1, 1, 6, 8)
    omega_squared = 1 + 16 * (torch.sin(torch.tensor(torch.pi / 6)) ** 2 + torch.sin(torch.tensor(torch.pi / 4)) ** 2)
    torch.testing.assert_close(system.potential_gradient(q, None), omega_squared.double() * q, rtol=1e-5, atol=1e-5)


# The highest frequency


@pytest.mark.parametrize("drive", ["none", "static"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_highest_frequency_is_that_of_the_curvature(name, drive):
    system, q, _, u = make(name, drive)
    curvatures = []
    for row in range(4):
        acts = None if u is None else u[row : row + 1]
        hessian = torch.autograd.functional.hessian(
            lambda x, a=acts: HamiltonianSystem.energy(system, x, 0 * x, a).sum(), q[row : row + 1]
        )
        curvatures.append(torch.linalg.eigvalsh(hessian.view(q[0].numel(), -1)).max())
    mass = 2 if name == "pendulums" else 1
    expected = float((torch.stack(curvatures).max() / mass).sqrt())
    found = float(system.highest_frequency(q, u))
    if name.startswith("log cosh"):
        # A bound for all states, which is reached where no spring yields.
        assert found >= expected
        if drive == "none" and system.bias is None:
            assert found == pytest.approx(float(HamiltonianSystem.highest_frequency(system, 0 * q, None)), rel=1e-3)
    else:
        assert found == pytest.approx(expected, rel=2e-3)


def test_the_largest_eigenvalue_is_found_behind_larger_negative_ones():
    matrices = torch.diag_embed(torch.tensor([[-5.0, 1.0, 2.0], [3.0, 1.0, -1.0], [-1.0, -2.0, -3.0]])).double()
    found = largest_eigenvalue(lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1), matrices[0])
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, -1.0]).double(), rtol=1e-10, atol=0)


class Ramp(HamiltonianSystem):
    def potential(self, q, u):
        return q.sum(1)


def test_a_force_that_is_the_same_everywhere_has_no_frequency():
    assert float(Ramp().highest_frequency(torch.randn(2, 3), None)) == 0


def test_the_random_state_is_left_alone():
    system, q, _, _ = make("duffing")
    before = torch.get_rng_state()
    system.highest_frequency(q, None)
    assert torch.equal(torch.get_rng_state(), before)


# What is refused


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (lambda: DuffingNetwork(0), "n_units=0 must be at least 1"),
        (lambda: DuffingNetwork(3, beta=-1.0), r"beta=-1\.0 must be at least 0"),
        (lambda: LogCoshNetwork(3, 0), "n_units=3 and hidden_features=0 must be at least 1"),
        (lambda: KleinGordonField(0, (8,)), "channels=0 must be at least 1"),
        (lambda: KleinGordonField(1, (8, 8, 8)), r"shape=\(8, 8, 8\): give the points of a line or a plane"),
        (lambda: KleinGordonField(1, (2,)), r"shape=\(2,\): .*at least 3 a side"),
        (lambda: KleinGordonField(1, (8,), kernel_size=2), "kernel_size=2 must be odd"),
        (lambda: KleinGordonField(1, (8,), dx=0.0), r"dx=0\.0 positive"),
        (lambda: KleinGordonField(1, (8,), boundary="open"), "boundary='open' is not one of 'periodic', 'fixed'"),
    ],
)
def test_wrong_arguments_are_refused(maker, message):
    with pytest.raises(ValueError, match=message):
        maker()


def test_a_system_without_a_potential_says_what_is_missing():
    with pytest.raises(NotImplementedError, match=r"HamiltonianSystem must implement potential\(q, u\)"):
        HamiltonianSystem().potential(torch.zeros(1, 1), None)
