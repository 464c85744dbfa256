"""The potential of neurons that do not spike: a sum of kernels, with written gradients."""

import pytest
import torch
from spiking_toys import INF, TAUS

from lightning_nobp.functional.spiking import free_potential, free_potential_vjp, psc_kernel

F64 = torch.float64


def spikes(*shape):
    """Sorted times from 0 to 1, some of them missing."""
    times = torch.rand(shape, dtype=F64).sort(-1).values
    return torch.where(torch.rand(shape) < 0.2, INF, times).sort(-1).values


@pytest.mark.parametrize(("tau_v", "tau_i"), TAUS)
def test_a_free_membrane_is_a_sum_of_kernels(tau_v, tau_i):
    x, weight = spikes(3, 4, 2), torch.randn(4, 5, dtype=F64)
    expected = torch.zeros(3, 5, dtype=F64)
    for b, j, k in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        if x[b, j, k] < 0.6:
            expected[b] += weight[j] * psc_kernel(0.6 - x[b, j, k], tau_v, tau_i)
    torch.testing.assert_close(free_potential(x, weight, 0.6, tau_v, tau_i), expected)


@pytest.mark.parametrize(("tau_v", "tau_i"), TAUS)
def test_a_free_membranes_gradients_are_autograds(tau_v, tau_i):
    finite = INF not in (tau_v, tau_i)
    x, weight = spikes(3, 4, 2).requires_grad_(), torch.randn(4, 5, dtype=F64, requires_grad=True)
    taus = [torch.tensor(tau, dtype=F64, requires_grad=True) if finite else tau for tau in (tau_v, tau_i)]
    y = free_potential(x, weight, 0.6, *taus)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, [x, weight, *(taus if finite else [])], grad)
    with torch.no_grad():
        found = free_potential_vjp(grad, x, weight, 0.6, tau_v, tau_i, needs_tau_grad=finite)
    # Where the constants are all but equal, autograd differentiates a branch.
    for f, e in zip(found, expected, strict=finite):
        torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-7)
