"""The kernel of one input spike, against its closed forms and high precision."""

import math
from fractions import Fraction

import pytest
import torch
from spiking_toys import TAUS

from lightning_nobp.functional.spiking import psc_kernel
from lightning_nobp.functional.spiking.kernel import Rates, kernel_rate_derivatives, response

INF = math.inf
TIMES = torch.tensor([0.0, 1e-9, 1e-5, 1e-4, 2e-4, 0.01, 0.3, 1.0, 5.0, 40.0], dtype=torch.float64)


def exponential(x):
    """``exp`` of a fraction, far beyond float64."""
    halvings = max(0, math.ceil(math.log2(abs(x) + 1))) + 2
    x = Fraction(x) / 2**halvings
    total = term = Fraction(1)
    for n in range(1, 30):
        term = (term * x / n).limit_denominator(10**60)
        total += term
    for _ in range(halvings):
        total = (total * total).limit_denominator(10**80)
    return total


def exact_kernel(s, tau_v, tau_i):
    s = Fraction(s)
    rate_v, rate_i = (Fraction(0) if math.isinf(tau) else Fraction(1 / tau) for tau in (tau_v, tau_i))
    if rate_v == rate_i:
        return float(s * exponential(-s * rate_v))
    return float((exponential(-s * rate_v) - exponential(-s * rate_i)) / (rate_i - rate_v))


@pytest.mark.parametrize("taus", TAUS)
def test_it_is_exact_to_the_last_digits_for_all_time_constants(taus):
    expected = torch.tensor([exact_kernel(float(s), *taus) for s in TIMES], dtype=torch.float64)
    assert torch.allclose(psc_kernel(TIMES, *taus), expected, rtol=3e-15, atol=0)


def test_it_has_the_closed_forms_of_its_limits():
    assert torch.equal(psc_kernel(TIMES, INF, INF), TIMES)
    assert torch.allclose(psc_kernel(TIMES, 0.5, 0.5), TIMES * torch.exp(-2 * TIMES), rtol=1e-15, atol=0)
    assert torch.allclose(psc_kernel(TIMES, 2.0, INF), -2 * torch.expm1(-TIMES / 2), rtol=1e-15, atol=0)
    assert torch.allclose(psc_kernel(TIMES, INF, 2.0), -2 * torch.expm1(-TIMES / 2), rtol=1e-15, atol=0)


def test_it_is_symmetric_and_finite_for_the_most_unlike_constants():
    s = torch.tensor([1e-6, 1.0, 1e4], dtype=torch.float64)
    one, other = psc_kernel(s, 1e-4, INF), psc_kernel(s, INF, 1e-4)
    assert torch.equal(one, other)
    assert torch.allclose(one[1:], torch.full((2,), 1e-4, dtype=torch.float64), rtol=1e-15)


def test_it_is_differentiable_in_all_arguments_also_for_equal_constants():
    s = TIMES[5:].clone().requires_grad_()
    for tau_v, tau_i in ((1.0, 0.4), (0.7, 0.7), (0.5, 1.0)):
        taus = [torch.tensor(tau, dtype=torch.float64, requires_grad=True) for tau in (tau_v, tau_i)]
        rates = Rates.of(tau_v, tau_i, 1.0)
        by_s, by_v, by_i = torch.autograd.grad(psc_kernel(s, *taus).sum(), [s, *taus])
        left = response(s.detach(), rates)
        assert torch.allclose(by_s, left.i - rates.v * left.kernel, rtol=1e-9, atol=1e-15)
        if tau_v != tau_i:  # where autograd takes one side of a minimum
            expected = [d.sum() for d in kernel_rate_derivatives(s.detach(), rates)]
            assert math.isclose(by_v, -(rates.v**2) * expected[0], rel_tol=1e-9)
            assert math.isclose(by_i, -(rates.i**2) * expected[1], rel_tol=1e-9)


@pytest.mark.parametrize("taus", TAUS)
def test_derivatives_by_rates_are_those_of_differences(taus):
    s, h = TIMES[5:-1], 1e-5
    rate_v, rate_i, _ = rates = Rates.of(*taus, 1.0)
    inverse = 1 / torch.tensor([rate_v + h, rate_v - h, rate_i + h, rate_i - h], dtype=torch.float64)
    by_v, by_i = kernel_rate_derivatives(s, rates)
    found_v = (psc_kernel(s, inverse[0], taus[1]) - psc_kernel(s, inverse[1], taus[1])) / (2 * h)
    found_i = (psc_kernel(s, taus[0], inverse[2]) - psc_kernel(s, taus[0], inverse[3])) / (2 * h)
    assert torch.allclose(found_v, by_v, rtol=1e-6, atol=1e-9)
    assert torch.allclose(found_i, by_i, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("taus", TAUS)
def test_the_response_is_that_of_the_equations(taus):
    rates = Rates.of(*taus, 1.0)
    left = response(TIMES, rates)
    assert torch.allclose(left.v, torch.exp(-TIMES * rates.v), rtol=1e-14)
    assert torch.allclose(left.i, torch.exp(-TIMES * rates.i), rtol=1e-14)
    assert torch.allclose(left.kernel, psc_kernel(TIMES, *taus), rtol=1e-15)
