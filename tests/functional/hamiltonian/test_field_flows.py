"""Flows of complex fields: each solves its equation of motion, and keeps what it must."""

import pytest
import torch
from field_toys import CASES, case, field, relative_error

from lightning_nobp.functional.hamiltonian import DenseFlow, Drives, FourierFlow, PhaseFlow, strang
from lightning_nobp.nn.hamiltonian import field_system


def drive_like(fields):
    return torch.randn(fields.shape, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_fields_move_as_the_energy_says(name):
    system, psi, _ = case(name)
    psi.requires_grad_()
    for flow in system.flows(Drives([drive_like(psi)])):
        # Torch's gradient is twice that by the conjugate.
        [gradient] = torch.autograd.grad(flow.energy((psi,), 0).sum(), psi)
        h = 1e-5
        velocity = (flow((psi,), h, 0)[0] - flow((psi,), -h, 0)[0]) / (2 * h)
        torch.testing.assert_close(1j * velocity, gradient / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_flow_back_undoes_it_and_so_does_the_flow_of_the_conjugate(name):
    system, psi, _ = case(name)
    for flow in system.flows(Drives([drive_like(psi)])):
        end = flow((psi,), 0.3, 2)
        torch.testing.assert_close(flow(end, -0.3, 2)[0], psi, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(flow((end[0].conj(),), 0.3, 2)[0].conj(), psi, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(10,), (7,), (6, 9)])
def test_a_product_moves_waves_as_fourier_transforms_do(shape, monkeypatch):
    dense = field_system.free_waves(shape, 0.25, torch.device("cpu"))
    monkeypatch.setattr(field_system, "_MOST_DENSE", 1)
    fourier = field_system.free_waves(shape, 0.25, torch.device("cpu"))
    assert isinstance(dense, DenseFlow)
    assert isinstance(fourier, FourierFlow)
    psi = field(3, 2, *shape)
    torch.testing.assert_close(dense((psi,), 0.4, 0), fourier((psi,), 0.4, 0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense.energy((psi,), 0), fourier.energy((psi,), 0), rtol=1e-12, atol=1e-12)


def test_a_plane_wave_turns_with_half_the_square_of_its_wave_number():
    flow, k = field_system.free_waves((64,), 0.25, torch.device("cpu")), 2 * torch.pi * 3 / 16
    x = 0.25 * torch.arange(64, dtype=torch.float64)
    wave = torch.polar(torch.ones_like(x), k * x)[None]
    turn = torch.polar(torch.ones(()).double(), torch.tensor(-(k**2) / 2 * 0.7).double())
    torch.testing.assert_close(flow((wave,), 0.7, 0)[0], wave * turn)


def test_slices_come_one_after_the_other_and_begin_again():
    flow = PhaseFlow(torch.zeros(()), torch.zeros(3, 5), steps_per_slice=2)
    assert [flow.slice(step) for step in range(8)] == [0, 0, 1, 1, 2, 2, 0, 0]


def test_a_drive_is_a_potential():
    system, psi, times = case("waves")
    drive, run = torch.randn(32, dtype=torch.float64), {"dt": 0.05, "n_steps": 4}
    driven = strang(system, psi, drive.expand(3, 32), **run)
    with torch.no_grad():
        system.potential += drive
    torch.testing.assert_close(driven, strang(system, psi, **run))
    assert relative_error([driven], [strang(system, psi, drive.expand(3, 32), **times)]) > 0.1


def test_a_soliton_keeps_its_shape():
    system = field_system.free_waves((256,), 0.125, torch.device("cpu"))
    kerr = PhaseFlow(torch.tensor(-1.0, dtype=torch.float64), None)

    class Soliton(field_system.FieldSystem):
        def flows(self, drives, grid=0.0):
            return system, kerr

    x = 0.125 * (torch.arange(256, dtype=torch.float64) - 128)
    start = torch.complex(1 / x.cosh(), torch.zeros_like(x))[None]
    end = strang(Soliton(), start, dt=0.002, n_steps=1000)
    # It turns with half its squared amplitude.
    turned = start * torch.polar(torch.ones(1, 1).double(), torch.ones(1, 1).double())
    torch.testing.assert_close(end, turned, rtol=0, atol=2e-5)
