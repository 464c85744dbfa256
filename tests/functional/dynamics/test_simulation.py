"""Simulated networks: symmetries, orders of integrators, what they refuse."""

import math
import re

import pytest
import torch

from lightning_nobp.functional.dynamics import (
    FIELDS,
    FitzHughNagumo,
    Lorenz,
    coupling,
    differentiate,
    noisy_start,
    rollout,
    simulate_network,
    valid_steps,
    velocity,
)


def couplings(nodes=6, scale=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)).fill_diagonal_(0)


def states(nodes=6, seed=1):
    return Lorenz().start((4, nodes), torch.Generator().manual_seed(seed))


def test_coupling_is_the_sum_of_weighted_differences():
    x, weights = states()[..., 0], couplings()
    expected = torch.stack([(weights[i] * (x - x[:, i : i + 1])).sum(dim=1) for i in range(6)], dim=1)
    torch.testing.assert_close(coupling(x, weights), expected, rtol=1e-13, atol=1e-13)


def test_symmetric_couplings_add_nothing_to_the_mean_and_are_a_laplacian():
    x, weights = states()[..., 0], couplings()
    weights = weights + weights.T
    found = coupling(x, weights)
    assert found.sum(dim=1).abs().max() < 1e-13
    laplacian = torch.diag(weights.sum(dim=1)) - weights
    torch.testing.assert_close(found, -x @ laplacian, rtol=1e-12, atol=1e-12)


def test_weights_of_nodes_to_themselves_do_nothing():
    x, weights = states()[..., 0], couplings()
    torch.testing.assert_close(coupling(x, weights + torch.eye(6)), coupling(x, weights), rtol=1e-12, atol=1e-12)


def test_numbering_nodes_otherwise_numbers_their_motion_so():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    x, weights = states(), couplings()
    expected = rollout(Lorenz(), x, weights, 20, 0.02)[:, :, order]
    found = rollout(Lorenz(), x[:, order], weights[order][:, order], 20, 0.02)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("integrator", "ratio"), [("rk4", 16), ("split", 2), ("euler", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(integrator, ratio):
    x, weights = states(), couplings(scale=1.0)
    exact = rollout(Lorenz(), x, weights, 4000, 1e-4)[-1]
    errors = [
        float((rollout(Lorenz(), x, weights, steps, 0.4 / steps, integrator=integrator)[-1] - exact).abs().mean())
        for steps in (160, 320)
    ]
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.2)


def test_the_current_of_neurons_keeps_its_energy():
    field = FitzHughNagumo()
    x = simulate_network(field, couplings(3, 0.02), 5000, field.dt, transient=0)[0]
    energy = x[..., 2].square() + (x[..., 3] / field.omega).square()
    assert (energy / energy[0] - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_system_stays_on_an_attractor(name):
    field = FIELDS[name]
    x = simulate_network(name, couplings(4, 0.02), 2000, field.dt, num_trajectories=2)
    assert x.shape == (2, 2000, 4, field.components)
    first, second = x[:, :1000].flatten(0, 2), x[:, 1000:].flatten(0, 2)
    assert (x.flatten(0, 2).std(dim=0) > 0).all()
    assert (first.abs().amax(dim=0) < 3 * second.abs().amax(dim=0)).all()


def test_parameters_differ_from_node_to_node_by_the_spread_asked_for():
    field = Lorenz().varied(0.1, 1000, torch.Generator().manual_seed(0))
    assert float(field.rho.std()) == pytest.approx(2.8, rel=0.1)
    assert field(states(1000)).shape == (4, 1000, 3)


def test_noise_drives_by_the_root_of_time():
    x = rollout(torch.zeros_like, torch.zeros(1, 2, 500), torch.zeros(2, 2), 100, 0.04, dynamical_noise=0.5)
    assert float(x[-1].std()) == pytest.approx(0.5 * math.sqrt(4), rel=0.1)


@pytest.mark.parametrize(("method", "order"), [("central5", 4), ("forward", 1)])
def test_derivatives_have_their_order(method, order):
    errors = []
    for dt in (0.02, 0.01):
        x = torch.sin(torch.arange(0, 3, dt, dtype=torch.float64)).view(1, -1, 1, 1)
        start = 2 if method == "central5" else 0
        found = differentiate(x, dt, method).velocity.flatten()
        errors.append(float((found - torch.cos(dt * (start + torch.arange(len(found))).double())).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_the_filter_is_exact_for_polynomials_of_its_order_and_smooths_noise():
    t = 0.1 * torch.arange(40, dtype=torch.float64)
    found = differentiate((t**4 - t).view(1, -1, 1, 1), 0.1, "savgol")
    torch.testing.assert_close(found.x.flatten(), (t**4 - t)[4:-4], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.velocity.flatten(), (4 * t**3 - 1)[4:-4], rtol=1e-9, atol=1e-9)
    noise = torch.randn(1, 4000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    filtered, differences = (differentiate(noise, 1.0, name).velocity.std() for name in ("savgol", "central5"))
    assert filtered < 0.7 * differences


def test_the_velocity_is_what_a_small_step_goes():
    x, weights = states(), couplings()
    step = rollout(Lorenz(), x, weights, 1, 1e-6)[1] - x
    torch.testing.assert_close(velocity(Lorenz(), x, weights), step / 1e-6, rtol=1e-3, atol=1e-2)


def test_predictions_are_valid_until_their_error_exceeds_the_threshold():
    true = torch.zeros(4, 6, 2, 3)
    predicted = true.clone()
    predicted[0, 3:] = 0.5
    predicted[1, 2:] = torch.nan
    predicted[2, 1:] = 0.39
    predicted[3, 1:] = 0.41
    assert valid_steps(predicted, true).tolist() == [2, 1, 5, 0]


def test_a_true_system_started_exactly_gives_back_the_truth():
    true = simulate_network("lorenz", couplings(), 50, 0.02, num_trajectories=2)
    arguments = (Lorenz(), couplings(), true, 0.02)
    torch.testing.assert_close(noisy_start(*arguments, 0.0, torch.Generator()), true, rtol=0, atol=1e-9)
    start = noisy_start(*arguments, 0.01, torch.Generator().manual_seed(0))[:, 0] - true[:, 0]
    assert float((start / true.flatten(0, 2).std(dim=0)).std()) == pytest.approx(0.01, rel=0.3)


def test_weights_may_be_an_array_or_rows():
    weights = couplings(3)
    expected = simulate_network("lorenz", weights, 5, 0.02)
    for given in (weights.numpy(), weights.tolist()):
        assert torch.equal(simulate_network("lorenz", given, 5, 0.02), expected)


def test_a_network_that_diverges_is_named_with_step_and_node():
    x = torch.zeros(1, 3, 1, dtype=torch.float64)
    x[0, 1] = 1.0
    with pytest.raises(
        FloatingPointError, match=r"not finite at step \d+, first at node 1: take a smaller dt than 0.1"
    ):
        rollout(lambda x: x**5, x, torch.zeros(3, 3, dtype=torch.float64), 100, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "henon"}, "system='henon' is not one of 'lorenz', 'chua', 'fitzhugh_nagumo', 'roessler', nor a"),
        ({"weights": torch.zeros(2, 3)}, "weights of shape (2, 3): give (nodes, nodes)"),
        ({"weights": torch.zeros(1, 1)}, "weights of one node"),
        ({"weights": torch.tensor([[0.0, torch.nan], [0, 0]])}, "weights[0, 1]=nan must be finite"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"num_trajectories": 0}, "num_trajectories=0 must be at least 1"),
        ({"transient": -1}, "transient=-1 must be at least 0"),
        ({"dt": 0.0}, "dt=0.0 must be positive"),
        ({"integrator": "verlet"}, "integrator='verlet' is not one of 'rk4', 'split', 'euler'"),
        ({"dynamical_noise": -1.0}, "dynamical_noise=-1.0 is a standard deviation"),
        ({"start": torch.zeros(5, 3)}, "start of shape (5, 3): give (num_trajectories=1, nodes=3, components)"),
        ({"system": torch.zeros_like}, "start: give states (num_trajectories, nodes, components)"),
    ],
)
def test_bad_simulations_are_named(arguments, message):
    defaults = {"system": "lorenz", "weights": couplings(3), "num_steps": 5, "dt": 0.02}
    with pytest.raises(ValueError, match=re.escape(message)):
        simulate_network(**defaults | arguments)


@pytest.mark.parametrize(
    ("method", "length", "message"),
    [
        ("spline", 20, "derivative='spline' is not one of 'central5', 'savgol', 'forward'"),
        ("central5", 4, "4 samples a trajectory are too few: derivative='central5' needs 5"),
        ("savgol", 8, "8 samples a trajectory are too few: derivative='savgol' needs 9"),
        ("forward", 1, "1 samples a trajectory are too few: derivative='forward' needs 2"),
    ],
)
def test_bad_derivatives_are_named(method, length, message):
    with pytest.raises(ValueError, match=message):
        differentiate(torch.zeros(1, length, 2, 1), 0.1, method)
