"""Public functions that infer networks, each beside loops or least squares written out."""

from itertools import product
from random import Random

import torch
from reliability.dynamics_cases import felt, matrix, refuses
from reliability.fuzzing import Arguments, Case, leading, numbers

from lightning_nobp.functional import dynamics as D
from lightning_nobp.functional import network_inference as N


def sums_arguments(chance: Random) -> Arguments:
    samples, nodes, terms = chance.randint(20, 30), chance.randint(2, 3), chance.randint(1, 3)
    parts = {"features": (samples, nodes, terms), "h": (samples, nodes), "velocity": (samples, nodes, 2)}
    return {name: numbers(chance, *shape) for name, shape in parts.items()}


def summed(features, h, velocity):
    samples, nodes, _ = features.shape
    assert h.shape == (samples, nodes) == velocity.shape[:2]
    return (
        torch.einsum("tj,tk->jk", h, h),
        torch.einsum("tj,tik->ijk", h, features),
        torch.einsum("ti,tj->ij", velocity[..., 0], h),
        torch.einsum("tia,tib->iab", features, features),
        torch.einsum("tia,tic->iac", features, velocity),
        velocity.square().sum(0),
        h.sum(0),
        torch.tensor(float(samples)),
    )


def solve_arguments(chance: Random) -> Arguments:
    return sums_arguments(chance) | {"shared": chance.random() < 0.5, "ridge": 1e-12}


def designs(features, h, shared):
    """Least squares written out: unknowns are all couplings, then all coefficients."""
    samples, nodes, terms = features.shape
    pairs = [(i, j) for i, j in product(range(nodes), range(nodes)) if i != j]
    alone = 1 if shared else nodes
    rows = torch.zeros(samples, nodes, len(pairs) + alone * terms, dtype=features.dtype)
    for k, (i, j) in enumerate(pairs):
        rows[:, i, k] = h[:, j] - h[:, i]
    for i in range(nodes):
        start = len(pairs) + (0 if shared else i) * terms
        rows[:, i, start : start + terms] = features[:, i]
    return rows.flatten(0, 1), pairs


def least_squares(features, h, velocity, shared, ridge=0.0):
    _samples, nodes, terms = features.shape
    assert shared in (True, False)
    rows, pairs = designs(features, h, shared)
    first = torch.linalg.lstsq(rows, velocity[..., 0].flatten()).solution
    rest = torch.linalg.lstsq(rows[:, len(pairs) :], velocity[..., 1:].flatten(0, 1)).solution
    weights = torch.zeros(nodes, nodes, dtype=features.dtype)
    for k, (i, j) in enumerate(pairs):
        weights[i, j] = first[k]
    return weights, torch.cat([first[len(pairs) :, None], rest], 1).view(-1, terms, velocity.shape[-1])


def left_over(features, h, velocity, shared, ridge=0.0):
    weights, coefficients = least_squares(features, h, velocity, shared)
    found = torch.einsum("tia,iac->tic", features, coefficients.expand(features.shape[1], -1, -1)).clone()
    found[..., 0] += felt(h, weights)
    return (velocity - found).square().mean()


def local_arguments(chance: Random) -> Arguments:
    given = solve_arguments(chance)
    nodes = given["h"].shape[1]
    return given | {"weights": numbers(chance, nodes, nodes)}


def local(features, h, velocity, weights, shared, ridge):
    rows, pairs = designs(features, h, shared)
    right = velocity.clone()
    right[..., 0] -= felt(h, weights)
    found = torch.linalg.lstsq(rows[:, len(pairs) :], right.flatten(0, 1)).solution
    return found.view(-1, features.shape[2], velocity.shape[-1])


def constrained(weights, symmetric, non_negative):
    assert weights.dim() == 2
    assert weights.shape[0] == weights.shape[1]
    found = weights.clone()
    for i, j in product(range(len(weights)), repeat=2):
        value = (weights[i, j] + weights[j, i]) / 2 if symmetric else weights[i, j]
        found[i, j] = 0.0 if non_negative and value < 0 else value
    return found


def graph_arguments(chance: Random) -> Arguments:
    weights = matrix(chance)
    return {
        "weights": weights,
        "standard_error": chance.choice((None, weights.abs())),
        "least": chance.choice((0.0, 0.5)),
    }


def listed(weights, standard_error=None, least=0.0):
    assert weights.dim() == 2
    assert weights.shape[0] == weights.shape[1]
    assert standard_error is None or standard_error.shape == weights.shape
    rows = []
    for i, j in product(range(len(weights)), repeat=2):
        weight = float(weights[i, j])
        if i != j and weight != 0 and abs(weight) >= least:
            rows.append((j, i, weight, *(() if standard_error is None else (float(standard_error[i, j]),))))
    return sorted(rows, key=lambda row: -abs(row[2]))


def as_rows(found):
    return [(int(a.source), int(a.target), a.weight, a.standard_error) for a in found]


def edges(**given):
    graph = N.network_graph(**given)
    rows = [(int(a), int(b), *data.values()) for a, b, data in graph.edges(data=True)]
    return sorted(rows, key=lambda row: -abs(row[2]))


def monomials_arguments(chance: Random) -> Arguments:
    return {"components": chance.randint(1, 3), "degree": chance.randint(0, 3)}


def monomials(components, degree):
    """All exponents up to a total, by their sets: the order is the function's own."""
    assert isinstance(components, int)
    assert isinstance(degree, int)
    assert components >= 1
    assert degree >= 0
    found = [e for e in product(range(degree + 1), repeat=components) if sum(e) <= degree]
    return torch.tensor(sorted(found)).view(-1, components)


def polynomial_arguments(chance: Random) -> Arguments:
    components, degree = chance.randint(1, 3), chance.randint(0, 3)
    x = numbers(chance, *leading(chance), components)
    return {"x": x, "exponents": N.polynomial_exponents(components, degree), "degree": chance.choice((None, degree))}


def polynomial(x, exponents, degree=None):
    assert bool((exponents >= 0).all())
    assert x.shape[-1] == exponents.shape[1]
    assert degree is None or degree >= int(exponents.max())
    terms = [torch.stack([x[..., i] ** int(e) for i, e in enumerate(row)]).prod(0) for row in exponents]
    return torch.stack(terms, -1)


def bootstrap_arguments(chance: Random) -> Arguments:
    return {"num_bootstrap": chance.randint(2, 5), "count": chance.randint(2, 5), "seed": chance.randint(0, 9)}


def windows_of(count: int) -> list:
    chance = Random(0)
    return [N.statistics(**sums_arguments_of(chance)) for _ in range(count)]


def sums_arguments_of(chance: Random) -> Arguments:
    parts = {"features": (20, 2, 1), "h": (20, 2), "velocity": (20, 2, 1)}
    return {name: numbers(chance, *shape) for name, shape in parts.items()}


def resampled(num_bootstrap, count, seed):
    windows, generator, found = windows_of(count), torch.Generator().manual_seed(seed), []
    for _ in range(num_bootstrap):
        drawn = torch.randint(count, (count,), generator=generator)
        found.append(torch.stack([windows[k].driven for k in drawn.tolist()]).sum(0))
    return torch.stack(found).std(0)


def inferred_arguments(chance: Random) -> Arguments:
    nodes = chance.randint(2, 3)
    weights = 0.3 * (matrix(chance, nodes).abs() + 0.5)
    return {"weights": weights, "seed": chance.randint(0, 5), "shared": chance.random() < 0.5}


def inferred(weights, seed, shared):
    x = D.simulate_network("lorenz", weights, 400, 0.01, num_trajectories=2, seed=seed)
    return (N.infer_coupling(x, 0.01, shared=shared).weights / 100).round(decimals=2)


def series_checked(chance: Random) -> Arguments:
    return {"x": numbers(chance, chance.randint(3, 6), chance.randint(1, 3), chance.randint(1, 2))}


def is_no_series(x):
    if x.dim() != 3 or 0 in x.shape or x.shape[1] < 2 or not bool(x.isfinite().all()):
        return True
    return bool((x == x[:1]).all(0).any())


def couplings_checked(chance: Random) -> Arguments:
    x = numbers(chance, 50, chance.randint(2, 4))
    if chance.random() < 0.5:
        x[:, 1] = 2 * x[:, 0]
    return {"couplings": x.T @ x}


def depend(couplings):
    size = couplings.diagonal().sqrt()
    alike = couplings / size / size[:, None]
    away = (1 / size / (1 / size).norm())[:, None]
    space = torch.linalg.svd(away, full_matrices=True).U[:, 1:]
    return bool(torch.linalg.eigvalsh(space.T @ alike @ space)[0] <= len(size) * 1e-12)


CASES_OF_INFERENCE = {
    "statistics": Case(N.statistics, sums_arguments, summed),
    "solve": Case(
        lambda shared, ridge, **a: N.solve(N.statistics(**a), shared=shared, ridge=ridge),
        solve_arguments,
        least_squares,
        fixed=("ridge",),
        without=("expanded", "values"),
    ),
    "solve_sparse": Case(
        lambda shared, ridge, **a: N.solve_sparse(N.statistics(**a), 1.0, shared=shared, ridge=ridge),
        solve_arguments,
        least_squares,
        fixed=("ridge",),
        without=("expanded", "values"),
    ),
    "solve_local": Case(
        lambda weights, shared, ridge, **a: N.solve_local(N.statistics(**a), weights, shared=shared, ridge=ridge),
        local_arguments,
        local,
        fixed=("ridge",),
        without=("expanded", "values"),
    ),
    "residual": Case(
        lambda shared, ridge, **a: N.residual(N.statistics(**a), N.Solution(*least_squares(**a, shared=shared))),
        solve_arguments,
        left_over,
        fixed=("ridge",),
        without=("expanded", "values"),
    ),
    "constrained": Case(
        N.constrained,
        lambda c: {"weights": matrix(c), "symmetric": c.random() < 0.5, "non_negative": c.random() < 0.5},
        constrained,
    ),
    "links": Case(lambda **a: as_rows(N.links(**a)), graph_arguments, listed, without=("type",)),
    "network_graph": Case(edges, graph_arguments, listed, without=("type",)),
    "polynomial_exponents": Case(
        lambda components, degree: torch.tensor(
            sorted(N.polynomial_exponents(components, degree).tolist()), dtype=torch.int64
        ).view(-1, components),
        monomials_arguments,
        monomials,
    ),
    "polynomial_features": Case(N.polynomial_features, polynomial_arguments, polynomial),
    "standard_error": Case(
        lambda num_bootstrap, count, seed: N.standard_error(windows_of(count), lambda s: s.driven, num_bootstrap, seed),
        bootstrap_arguments,
        resampled,
        fixed=("count",),
    ),
    "infer_coupling": Case(
        inferred,
        inferred_arguments,
        lambda weights, seed, shared: ((weights - torch.diag(weights.diagonal())) / 100).round(decimals=2),
    ),
    "check_series": Case(refuses(lambda x: N.check_series([x])), series_checked, is_no_series),
    "check_enough": Case(
        refuses(N.check_enough),
        lambda c: {
            "samples": c.randint(0, 20),
            "nodes": c.randint(2, 5),
            "terms": c.randint(1, 9),
            "shared": c.random() < 0.5,
        },
        lambda samples, nodes, terms, shared: (
            samples * (nodes if shared else 1) < (nodes - 1) * (nodes if shared else 1) + terms
        ),
    ),
    "check_resolved": Case(
        refuses(N.check_resolved),
        lambda c: {"speed": numbers(c, 3).abs(), "dt": c.choice((0.01, 0.1, 1.0))},
        lambda speed, dt: not bool((speed * dt <= 0.3).all()),
    ),
    "check_identifiable": Case(
        refuses(N.check_identifiable), couplings_checked, depend, without=("expanded", "values")
    ),
}
