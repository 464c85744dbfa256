"""Backpropagation through time by the couplings, against autograd, differences and real-time recurrent learning."""

import pytest
import torch

from lightning_nobp.functional.dynamics import (
    FitzHughNagumo,
    Lorenz,
    autograd_vjp,
    coupling_adjoint,
    rollout,
    simulate_network,
)

INTEGRATORS = ("rk4", "split", "euler")
NODES, DT = 5, 0.02
LORENZ = Lorenz()
VJP = autograd_vjp(LORENZ)


def couplings(seed=0, scale=0.2):
    weights = scale * torch.rand(NODES, NODES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weights.fill_diagonal_(0)


def windows(weights, dt=DT, integrator="split", steps=10, batch=4):
    x = simulate_network("lorenz", weights, batch * steps + 1, dt, transient=500, integrator=integrator)[0]
    return torch.stack([x[k * steps : (k + 1) * steps + 1] for k in range(batch)])


def loss(field, data, weights, integrator, dt=DT):
    predicted = rollout(field, data[:, 0], weights, data.shape[1] - 1, dt, integrator=integrator)
    return (predicted[1:].movedim(0, 1) - data[:, 1:]).square().mean()


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_exact_adjoint_is_autograd_through_the_rollout(integrator):
    data, weights = windows(couplings(0)), couplings(1).requires_grad_()
    expected = loss(LORENZ, data, weights, integrator)
    expected.backward()
    found = coupling_adjoint(VJP, data, weights.detach(), DT, integrator=integrator)
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.weights, weights.grad, rtol=1e-11, atol=1e-13 * float(weights.grad.abs().max()))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_exact_adjoint_is_what_differences_find(integrator):
    data, weights, h = windows(couplings(0)), couplings(1), 1e-5
    found = coupling_adjoint(VJP, data, weights, DT, integrator=integrator).weights
    for i, j in ((0, 1), (3, 2), (4, 0)):
        unit = torch.zeros_like(weights)
        unit[i, j] = h
        up, down = (loss(LORENZ, data, weights + sign * unit, integrator) for sign in (1, -1))
        assert float(found[i, j]) == pytest.approx(float((up - down) / (2 * h)), rel=1e-6)


@pytest.mark.parametrize("adjoint", ["exact", "linearised"])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_nodes_have_no_weight_to_themselves(integrator, adjoint):
    found = coupling_adjoint(VJP, windows(couplings(0)), couplings(1), DT, integrator=integrator, adjoint=adjoint)
    assert (found.weights.diagonal() == 0).all()


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_linearised_adjoint_is_real_time_recurrent_learning(integrator):
    """Sensitivities carried forwards by the same Jacobians give the same gradient."""
    data, weights = windows(couplings(0), batch=1), couplings(1)
    path = rollout(LORENZ, data[:, 0], weights, 10, DT, integrator=integrator).squeeze(1)
    size = NODES * 3
    carried = torch.zeros(size, NODES, NODES, dtype=torch.float64)
    expected = torch.zeros(NODES, NODES, dtype=torch.float64)

    def euler(state, w):
        return rollout(LORENZ, state, w, 1, DT, integrator="euler")[1]

    for before, after, target in zip(path[:-1], path[1:], data[0, 1:], strict=True):
        by_state, by_weights = torch.func.jacrev(euler, argnums=(0, 1))(before, weights)
        carried = torch.einsum("ab,bij->aij", by_state.reshape(size, size), carried)
        carried = carried + by_weights.reshape(size, NODES, NODES)
        expected += 2 * torch.einsum("a,aij->ij", (after - target).flatten(), carried) / (10 * size)
    found = coupling_adjoint(VJP, data, weights, DT, integrator=integrator, adjoint="linearised").weights
    torch.testing.assert_close(found, expected.fill_diagonal_(0), rtol=1e-12, atol=1e-14 * float(expected.abs().max()))


def test_the_linearised_adjoint_turns_into_the_exact_one_as_steps_get_short():
    angles = []
    for dt in (0.02, 0.01, 0.005):
        data = windows(couplings(0), dt)
        exact, linearised = (
            coupling_adjoint(VJP, data, couplings(1), dt, adjoint=adjoint).weights.flatten()
            for adjoint in ("exact", "linearised")
        )
        angles.append(1 - float(torch.cosine_similarity(exact, linearised, dim=0)))
    assert 0.01 > angles[0] > 2 * angles[1] > 4 * angles[2] > 0


@pytest.mark.parametrize("adjoint", ["exact", "linearised"])
def test_the_truth_has_no_gradient(adjoint):
    weights = couplings(0)
    found = coupling_adjoint(VJP, windows(weights), weights, DT, adjoint=adjoint)
    assert float(found.loss) == 0
    assert (found.weights == 0).all()


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_nodes_in_perfect_synchrony_have_no_gradient(integrator):
    """Whatever the couplings are, they do nothing then: they cannot be told."""
    alone = simulate_network("lorenz", couplings(0), 11, DT, integrator=integrator)[:, :, :1]
    data = alone.expand(1, 11, NODES, 3)
    found = coupling_adjoint(autograd_vjp(Lorenz(rho=27.0)), data, couplings(1), DT, integrator=integrator)
    assert float(found.loss) > 0
    assert found.weights.abs().max() < 1e-14 * float(found.loss)


def test_fields_with_more_components_are_followed_too():
    field = FitzHughNagumo()
    weights = couplings(0, 0.02)
    data = simulate_network(field, weights, 11, 0.05, transient=200)
    other = couplings(1, 0.02).requires_grad_()
    loss(field, data, other, "rk4", 0.05).backward()
    found = coupling_adjoint(autograd_vjp(field), data, other.detach(), 0.05, integrator="rk4")
    torch.testing.assert_close(found.weights, other.grad, rtol=1e-10, atol=1e-12 * float(other.grad.abs().max()))


@pytest.mark.parametrize(
    ("shape", "adjoint", "message"),
    [
        ((2, 1, 5, 3), "exact", r"windows of shape \(2, 1, 5, 3\)"),
        ((2, 5, 3), "exact", r"windows of shape \(2, 5, 3\)"),
        ((2, 3, 5, 3), "forward", "adjoint='forward' is not one of 'exact', 'linearised'"),
    ],
)
def test_bad_arguments_are_named(shape, adjoint, message):
    with pytest.raises(ValueError, match=message):
        coupling_adjoint(VJP, torch.zeros(shape, dtype=torch.float64), couplings(0), DT, adjoint=adjoint)
