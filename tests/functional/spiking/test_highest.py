"""The highest potential of a silent neuron, and its written gradient."""

import pytest
import torch
from spiking_toys import INF, TAUS, random_train, random_weight

from lightning_nobp.functional.spiking.highest import (
    Moments,
    highest_potential,
    potential_at,
    potential_at_vjp,
    window_times,
)
from lightning_nobp.functional.spiking.potential import free_potential

F64 = torch.float64


def dense(train, inputs):
    """The events as spike times ``(batch, inputs, events)``."""
    spikes = torch.full((len(train.times), inputs, train.times.shape[1]), INF, dtype=train.times.dtype)
    for sample, count in enumerate(train.counts.tolist()):
        for event in range(count):
            spikes[sample, int(train.index[sample, event]), event] = train.times[sample, event]
    return spikes


@pytest.mark.parametrize("taus", TAUS)
def test_it_is_the_best_of_the_windows_times(taus):
    train, weight = random_train(4, 9, 5), random_weight(5, 6)
    potential = torch.stack([free_potential(dense(train, 5), weight, t, *taus) for t in window_times(1.5)])
    value, time = highest_potential(train, weight, 1.5, *taus)
    assert torch.allclose(value, potential.amax(0), rtol=1e-12, atol=1e-14)
    assert torch.equal(time, torch.tensor(window_times(1.5), dtype=F64)[potential.argmax(0)])
    assert len(time.unique()) > 1


def moments():
    """Some neurons of some samples, one of them twice, and before and after all events."""
    time = torch.tensor([0.4, 1.7, 0.6, 1e-9, 0.6], dtype=F64)
    return Moments(torch.tensor([0, 2, 1, 0, 0]), torch.tensor([3, 1, 1, 0, 3]), time)


@pytest.mark.parametrize("taus", TAUS)
def test_the_potential_at_a_moment_is_a_sum_of_kernels(taus):
    train, weight = random_train(4, 9, 5), random_weight(5, 6)
    expected = [
        free_potential(dense(train, 5), weight, float(t), *taus)[sample, neuron]
        for sample, neuron, t in zip(*moments(), strict=True)
    ]
    assert torch.allclose(potential_at(moments(), train, weight, *taus), torch.stack(expected), rtol=1e-12)


@pytest.mark.parametrize("taus", TAUS)
def test_its_gradients_are_autograds(taus):
    finite = INF not in taus
    train, weight = random_train(4, 9, 5), random_weight(5, 6).requires_grad_()
    constants = [torch.tensor(tau, dtype=F64, requires_grad=True) if finite else tau for tau in taus]
    train.times.requires_grad_()
    value = potential_at(moments(), train, weight, *constants)
    grad = torch.randn_like(value)
    leaves = [train.times, weight, *(constants if finite else [])]
    expected = torch.autograd.grad(value, leaves, grad)
    with torch.no_grad():
        found = potential_at_vjp(grad, moments(), train, weight, *taus, needs_tau_grad=finite)
    assert all(e.norm() > 0 for e in expected)
    # Where the constants are all but equal, autograd differentiates a branch.
    tolerance = 1e-7 if finite and abs(taus[0] - taus[1]) < 1e-6 else 1e-12
    for f, e in zip(found, expected, strict=finite):
        torch.testing.assert_close(f, e, rtol=tolerance, atol=tolerance)
