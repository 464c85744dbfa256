"""Systems of complex fields: their Hamiltonians, and what they are made of."""

import pytest
import torch
from field_toys import field

from lightning_nobp.functional.hamiltonian import DenseFlow, Drives, FourierFlow
from lightning_nobp.nn import CoupledFields, KerrCavityArray, NLSEField, TwoFieldNLSE


def hopping(lattice):
    """``2 Re`` of all products of neighbours of a square."""
    along, across = lattice[:, 1:].conj() * lattice[:, :-1], lattice[:, :, 1:].conj() * lattice[:, :, :-1]
    return 2 * (along.real.sum((1, 2)) + across.real.sum((1, 2)))


def test_the_energy_of_cavities_is_that_of_the_paper():
    torch.manual_seed(0)
    array = KerrCavityArray(width=5, J=3.0, g=-2.0, kappa=0.3, omega=0.7, disorder=0.1).double()
    psi, theta = field(2, 4), field(2, 25, seed=1)
    corners = theta.view(2, 5, 5)[:, [0, 0, 4, 4], [0, 4, 0, 4]]
    state = array.join(psi, theta)
    energy = 3 * hopping(theta.view(2, 5, 5)) + 0.6 * (psi.conj() * corners).real.sum(1)
    energy += 0.7 * psi.abs().square().sum(1) - state.abs().pow(4).sum(1)
    energy += (array.detuning * state.abs().square()).sum(1)
    torch.testing.assert_close(array.energy(state), energy)
    assert torch.equal(array.evaluation(state), psi)
    assert torch.equal(array.learning(state), theta)


def test_detunings_are_as_large_as_the_disorder_and_saved():
    torch.manual_seed(0)
    array = KerrCavityArray(width=40, disorder=0.02)
    assert array.detuning.std().item() == pytest.approx(0.02, rel=0.1)
    assert "detuning" in array.state_dict()
    assert not KerrCavityArray().detuning.any()


def test_the_energy_of_two_waves_is_that_of_their_equation():
    system = TwoFieldNLSE((16,), g=0.8, chi=1.5, length=4.0).double()
    psi, theta = field(2, 16), field(2, 16, seed=1)
    state = system.join(psi, theta)
    k = 2 * torch.pi * torch.fft.fftfreq(16, 0.25, dtype=torch.float64)
    slopes = [torch.fft.ifft(1j * k * torch.fft.fft(f)) for f in (psi, theta)]
    energy = sum(s.abs().square().sum(1) / 2 for s in slopes)
    energy = energy + 0.4 * (psi.abs().pow(4) + theta.abs().pow(4)).sum(1)
    energy = energy + 1.5 * (psi.abs() * theta.abs()).square().sum(1)
    torch.testing.assert_close(system.energy(state), energy)
    assert torch.equal(system.evaluation(state), psi)
    assert torch.equal(system.learning(state), theta)


def test_a_potential_and_a_drive_add_to_the_energy():
    system = NLSEField((4, 4), slices=2, g=2.0).double()
    torch.nn.init.normal_(system.potential)
    psi, drive = field(3, 4, 4), torch.randn(3, 4, 4).double()
    intensity = psi.abs().square()
    free = NLSEField((4, 4), g=0.0).double().energy(psi)
    for step in (0, 1):
        level = system.potential[step] + drive + intensity
        torch.testing.assert_close(system.energy(psi, u=drive, step=step), free + (level * intensity).sum((1, 2)))


def test_small_grids_use_products_and_large_ones_fourier_transforms():
    kinds = [type(NLSEField(shape).flows(Drives(()))[0]) for shape in ((64,), (128,), (16, 32), (16, 128))]
    assert kinds == [DenseFlow, FourierFlow, DenseFlow, FourierFlow]


def test_learning_fields_begin_as_they_should():
    torch.manual_seed(0)
    lattice = KerrCavityArray().initial_learning_field()
    assert lattice.shape == (16,)
    assert lattice.norm().item() == pytest.approx(1)
    assert lattice.min() >= 0
    wave = TwoFieldNLSE((32, 16), amplitude=0.5, modes=3).initial_learning_field()
    assert wave.square().mean().sqrt().item() == pytest.approx(0.5)
    spectrum = torch.fft.fft2(wave).abs()
    assert spectrum[3, 3] > 1e-3
    assert spectrum[4:29].max() < 1e-4
    assert spectrum[:, 4:13].max() < 1e-4


def test_the_strength_is_learned_where_it_is_asked_for():
    assert [name for name, _ in NLSEField((8,), learn_g=True).named_parameters()] == ["potential", "strength"]
    assert [name for name, _ in NLSEField((8,)).named_parameters()] == ["potential"]
    assert NLSEField((8,), slices=3, steps_per_slice=4).n_steps == 12


@pytest.mark.parametrize("method", ["join", "evaluation", "learning", "initial_learning_field"])
def test_a_system_without_its_methods_says_so(method):
    arguments = {"join": (None, None), "initial_learning_field": ()}.get(method, (None,))
    with pytest.raises(NotImplementedError, match=f"CoupledFields must implement {method}"):
        getattr(CoupledFields(), method)(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KerrCavityArray(width=1), "width=1 must be a whole number, at least 2"),
        (lambda: KerrCavityArray(J=float("nan")), "J=nan must be finite"),
        (lambda: KerrCavityArray(disorder=-0.1), "disorder=-0.1 is a standard deviation"),
        (lambda: NLSEField((4, 4, 4)), r"shape=\(4, 4, 4\): give the sites"),
        (lambda: NLSEField((1,)), r"shape=\(1,\)"),
        (lambda: NLSEField((8,), slices=0), "slices=0 must be positive"),
        (lambda: NLSEField((8,), length=-1.0), "length=-1.0 must be positive"),
        (lambda: NLSEField((8,), g=float("inf")), "g=inf must be finite"),
        (lambda: TwoFieldNLSE(chi=float("nan")), "chi=nan must be finite"),
        (lambda: TwoFieldNLSE(amplitude=0.0), "amplitude=0.0 must be positive"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
