"""Couplings and local motion from time series, in closed form."""

import re

import pytest
import torch

from lightning_nobp.functional.dynamics import (
    Lorenz,
    differentiate,
    draw_links,
    draw_weights,
    rollout,
    simulate_network,
    velocity,
)
from lightning_nobp.functional.network_inference import (
    Normalisation,
    check_identifiable,
    infer_coupling,
    polynomial_exponents,
    polynomial_features,
    residual,
    solve,
    solve_local,
    standard_error,
    statistics,
)

DT = 0.02


def network(nodes=8, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    links = draw_links("random", nodes, generator, density=0.3, directed=True)
    return draw_weights(links, 0.15, 0.02, generator, directed=True, **kwargs)


def series(weights, steps=600, **kwargs):
    return simulate_network("lorenz", weights, steps, DT, num_trajectories=2, transient=500, **kwargs)


def error(found, weights):
    return float((found - weights).norm() / weights.norm())


def sums_of(x, degree=2, derivative="central5"):
    found = differentiate(x, DT, derivative)
    normal = Normalisation.of(x)
    states = normal(found.x.flatten(0, 1))
    features = polynomial_features(states, polynomial_exponents(x.shape[-1], degree))
    return features, states[..., 0], found.velocity.flatten(0, 1) / normal.scale


@pytest.mark.parametrize("shared", [True, False])
def test_links_and_weights_of_lorenz_systems_are_found(shared):
    weights = network()
    found = infer_coupling(series(weights), DT, shared=shared)
    assert error(found.weights, weights) < 0.01
    assert (found.weights.diagonal() == 0).all()
    assert found.weights.abs()[weights != 0].min() > 10 * found.weights.abs()[weights == 0].max()


def test_negative_weights_are_found():
    weights = network(negative_fraction=0.4)
    assert (weights < 0).any()
    assert error(infer_coupling(series(weights), DT).weights, weights) < 0.02


@pytest.mark.parametrize(("system", "dt"), [("chua", 0.02), ("fitzhugh_nagumo", 0.05)])
def test_other_systems_are_found_by_polynomials_of_degree_three(system, dt):
    weights = network() * 0.02 / 0.15
    x = simulate_network(system, weights, 1500, dt, num_trajectories=4, transient=1000)
    assert error(infer_coupling(x, dt, degree=3).weights, weights) < 0.02


def test_maps_are_found_to_rounding():
    weights = network()
    x = series(weights, integrator="euler")
    assert error(infer_coupling(x, DT, derivative="forward", ridge=0.0).weights, weights) < 1e-10
    assert error(infer_coupling(x, DT, derivative="forward").weights, weights) < 1e-6


def test_the_motion_found_is_that_of_the_nodes():
    weights = network()
    x = series(weights)
    found = infer_coupling(x, DT)
    torch.testing.assert_close(found.field(x[0, :50]), Lorenz()(x[0, :50]), rtol=0.01, atol=0.2)
    start = x[:, 0]
    ahead = rollout(found.field, start, found.weights, 50, DT).movedim(0, 1)
    assert float((ahead - x[:, :51]).square().mean().sqrt()) < 0.05 * float(x.std())


def test_couplings_do_not_feel_units_or_normalisation():
    weights = network()
    x = series(weights)
    other = 3.0 * x + torch.tensor([5.0, -2.0, 100.0])
    torch.testing.assert_close(infer_coupling(other, DT).weights, infer_coupling(x, DT).weights, rtol=0, atol=1e-9)


def test_numbering_nodes_otherwise_numbers_weights_so():
    order = torch.tensor([3, 0, 5, 1, 7, 4, 2, 6])
    x = series(network())
    expected = infer_coupling(x, DT).weights[order][:, order]
    torch.testing.assert_close(infer_coupling(x[:, :, order], DT).weights, expected, rtol=0, atol=1e-9)


def test_trajectories_may_have_any_lengths():
    """Cutting them apart leaves out the derivatives at the cut alone."""
    x = series(network())
    parts = [x[0].numpy(), x[1, :200], x[1, 196:].float()]
    torch.testing.assert_close(infer_coupling(parts, DT).weights, infer_coupling(x, DT).weights, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=re.escape("x[1] of shape (200, 7, 3): give trajectories")):
        infer_coupling([x[0], x[1, :200, :7]], DT)


def brute_force(features, h, moved, shared):
    """One least-squares problem for all weights and coefficients of the first component."""
    samples, nodes, terms = features.shape
    differences = h.unsqueeze(1) - h.unsqueeze(2)
    blocks = [] if not shared else [features.movedim(1, 0).reshape(nodes * samples, terms)]
    for i in range(nodes):
        others = [j for j in range(nodes) if j != i]
        own = [] if shared else [features[:, i]]
        part = torch.cat([*own, differences[:, i, others]], dim=1)
        block = torch.zeros(nodes, samples, part.shape[1], dtype=torch.float64)
        block[i] = part
        blocks.append(block.flatten(0, 1))
    found = torch.linalg.lstsq(torch.cat(blocks, dim=1), moved.T.reshape(-1, 1), driver="gelsd").solution.flatten()
    weights = torch.zeros(nodes, nodes, dtype=torch.float64)
    place = terms if shared else 0
    for i in range(nodes):
        place += 0 if shared else terms
        others = [j for j in range(nodes) if j != i]
        weights[i, others] = found[place : place + nodes - 1]
        place += nodes - 1
    return weights


@pytest.mark.parametrize("shared", [True, False])
def test_the_closed_form_is_joint_least_squares(shared):
    features, h, moved = sums_of(series(network(5), steps=120))
    found = solve(statistics(features, h, moved), shared=shared, ridge=0.0)
    expected = brute_force(features, h, moved[..., 0], shared)
    torch.testing.assert_close(found.weights, expected, rtol=0, atol=1e-8)


def test_links_that_are_ruled_out_have_no_weight_and_the_rest_is_fitted_without_them():
    features, h, moved = sums_of(series(network(5), steps=120))
    links = torch.ones(5, 5, dtype=torch.bool)
    links[0, 3] = links[2] = False
    found = solve(statistics(features, h, moved), shared=False, ridge=0.0, links=links)
    assert (found.weights[~links] == 0).all()
    chosen = torch.cat([features[:, 0], (h - h[:, :1])[:, [1, 2, 4]]], dim=1)
    expected = torch.linalg.lstsq(chosen, moved[:, 0, :1]).solution.flatten()
    torch.testing.assert_close(found.weights[0, [1, 2, 4]], expected[-3:], rtol=0, atol=1e-8)


@pytest.mark.parametrize("shared", [True, False])
def test_the_residual_is_what_a_solution_leaves_of_the_velocities(shared):
    features, h, moved = sums_of(series(network(5), steps=120))
    sums = statistics(features, h, moved)
    found = solve(sums, shared=shared, ridge=0.0)
    predicted = torch.einsum("snk,nkc->snc", features, found.coefficients.expand(5, -1, -1))
    predicted[..., 0] += h @ found.weights.T - h * found.weights.sum(dim=1)
    expected = (moved - predicted).square().mean()
    torch.testing.assert_close(residual(sums, found), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_the_motion_beside_the_best_weights_is_the_best_motion(shared):
    sums = statistics(*sums_of(series(network(5), steps=120)))
    found = solve(sums, shared=shared, ridge=0.0)
    again = solve_local(sums, found.weights, shared=shared, ridge=0.0)
    torch.testing.assert_close(again, found.coefficients, rtol=0, atol=1e-8)


def test_sums_of_parts_add_up_to_those_of_the_whole():
    features, h, moved = sums_of(series(network(5), steps=120))
    whole = statistics(features, h, moved)
    parts = [statistics(features[a:b], h[a:b], moved[a:b]) for a, b in ((0, 50), (50, 51), (51, len(h)))]
    joined = parts[0] + parts[1] + parts[2]
    for name in vars(whole):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(getattr(whole * 2.0, name), 2 * getattr(whole, name), rtol=0, atol=0)


def test_leaving_out_the_weakest_links_helps_where_data_are_short():
    weights = network(16, seed=1)
    x = series(weights, steps=60)
    full, sparse = (infer_coupling(x, DT, density=density).weights for density in (None, 0.35))
    assert int((sparse != 0).sum()) == round(0.35 * 16 * 15)
    assert error(sparse, weights) < 0.8 * error(full, weights)


def test_standard_errors_tell_the_size_of_errors():
    weights = network()
    x = series(weights, dynamical_noise=0.5)
    found = infer_coupling(x, DT, num_bootstrap=20)
    ratio = (found.weights - weights).abs() / found.standard_error
    others = ~torch.eye(8, dtype=torch.bool)
    assert found.standard_error.shape == (8, 8)
    assert 0.2 < float(ratio[others].median()) < 3
    assert infer_coupling(x, DT).standard_error is None


def test_windows_that_do_not_determine_the_couplings_are_told_of():
    features, h, moved = sums_of(series(network(5), steps=20))
    windows = [statistics(features[t : t + 1], h[t : t + 1], moved[t : t + 1]) for t in range(6)]
    with pytest.raises(ValueError, match="of 6 windows, as a resampling drew them, do not determine the couplings"):
        standard_error(windows, lambda sums: solve(sums, shared=True, ridge=0.0).weights, 20)


def test_series_that_are_too_short_to_tell_nodes_apart_say_so():
    x = series(network(16), steps=31)[:1]
    with pytest.raises(ValueError, match=r"in this series .* depend on each other linearly.*Take a longer series"):
        infer_coupling(x, DT)


def test_polynomials_are_all_monomials_up_to_the_degree():
    exponents = polynomial_exponents(2, 3)
    assert exponents.tolist()[:4] == [[0, 0], [1, 0], [0, 1], [2, 0]]
    assert len(exponents) == 10
    x = torch.randn(5, 2, dtype=torch.float64)
    expected = torch.stack([x[:, 0] ** a * x[:, 1] ** b for a, b in exponents.tolist()], dim=1)
    torch.testing.assert_close(polynomial_features(x, exponents), expected, rtol=1e-12, atol=1e-12)


def test_nodes_in_synchrony_are_named():
    x = series(network(4), steps=400)
    x[:, :, 3] = x[:, :, 1]
    with pytest.raises(ValueError, match=r"nodes 1 and 3 move together \(correlation 1.000000\)"):
        infer_coupling(x, DT)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("factor", "offset"), [(1.0, 3.0), (-1.0, 0.0), (0.5, -2.0)])
def test_nodes_that_follow_each_other_by_an_offset_or_a_factor_are_named(factor, offset, shared):
    """The local motion takes up what is constant or a node's own: the joint least squares has no single solution."""
    x = series(network(4), steps=400)
    x[:, :, 3, 0] = factor * x[:, :, 1, 0] + offset
    with pytest.raises(ValueError, match=rf"nodes 1 and 3 move together \(correlation {factor / abs(factor):.6f}\)"):
        infer_coupling(x, DT, shared=shared)


def test_a_component_that_is_the_sum_of_others_is_named():
    x = series(network(4), steps=400)
    x[:, :, 3, 0] = x[:, :, 1, 0] + x[:, :, 2, 0]
    with pytest.raises(ValueError, match="first components of nodes 1, 2, 3 depend on each other linearly"):
        infer_coupling(x, DT)


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_network_that_is_all_but_in_synchrony_is_refused(nodes):
    x = series(network(4), steps=400)[:, :, :1].expand(-1, -1, nodes, -1)
    x = x + 1e-8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    with pytest.raises(ValueError, match="move together"):
        infer_coupling(x, DT)


def test_beside_a_given_motion_only_differences_of_nodes_must_differ():
    h = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h[:, 3] = 1e7 * (h[:, 1] + 3)
    check_identifiable(h.T @ h)
    with pytest.raises(ValueError, match="nodes b and d move together"):
        check_identifiable(h.T @ h, h.sum(dim=0), 500, names=("a", "b", "c", "d"))
    h[:, 3] = h[:, 1]
    with pytest.raises(ValueError, match="nodes 1 and 3 move together"):
        check_identifiable(h.T @ h)


def with_value(value, *place):
    x = series(network(4), steps=100)
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (with_value(torch.nan, 1, 7, 2, 0), {}, "x[1, 7, 2, 0]=nan is not finite: trajectory 1, time 7, node 2"),
        (with_value(torch.inf, 0, 3, 1, 2), {}, "x[0, 3, 1, 2]=inf is not finite"),
        (with_value(1.0, slice(None), slice(None), 2, 1), {}, "component 1 of node 2 never changes"),
        (torch.randn(2, 100, 1, 3), {}, "x holds one node"),
        (torch.randn(100, 4, 3), {}, "x of shape (100, 4, 3): give (trajectories, time, nodes, components)"),
        (series(network(30), steps=20)[:1], {}, "16 samples cannot tell 29 weights and a local motion of 10 terms"),
        (torch.randn(1, 300, 4, 3), {}, "from one sample to the next a node goes"),
        (None, {"dt": 0.0}, "dt=0.0 must be positive"),
        (None, {"degree": 2.5}, "degree=2.5 must be at least 1, and whole"),
        (None, {"degree": 0}, "degree=0 must be at least 1"),
        (None, {"ridge": -1.0}, "ridge=-1.0 must be at least 0"),
        (None, {"density": 2.0}, "density=2.0 must be above 0 and at most 1"),
        (None, {"num_bootstrap": 1}, "num_bootstrap=1, num_windows=20: both must be at least 2"),
        (None, {"derivative": "spline"}, "derivative='spline' is not one of"),
    ],
)
def test_bad_series_and_arguments_are_named(x, arguments, message):
    x = series(network(4), steps=100) if x is None else x
    with pytest.raises(ValueError, match=re.escape(message)):
        infer_coupling(x, **{"dt": DT} | arguments)


def test_the_true_velocity_leaves_nothing():
    """With the derivatives of the equations instead of differences, weights come out to rounding."""
    weights = network()
    x = series(weights).flatten(0, 1)
    normal = Normalisation.of(x)
    features = polynomial_features(normal(x), polynomial_exponents(3, 2))
    moved = velocity(Lorenz(), x, weights) / normal.scale
    found = solve(statistics(features, normal(x)[..., 0], moved), shared=True, ridge=0.0)
    assert error(found.weights, weights) < 1e-9
