"""Public functions of dynamics, each beside loops, closed forms or autograd."""

import math
from random import Random

import torch
from reliability.fuzzing import Arguments, Case, leading, numbers
from torch import Tensor

from lightning_nobp.functional import dynamics as D


def field(x: Tensor) -> Tensor:
    return x.sin() - 0.1 * x


def felt(h: Tensor, weights: Tensor) -> Tensor:
    """The sum of ``w_ij (h_j - h_i)``, node by node."""
    nodes = h.shape[-1]
    assert weights.shape == (nodes, nodes)
    rows = [sum(weights[i, j] * (h[..., j] - h[..., i]) for j in range(nodes)) for i in range(nodes)]
    return torch.stack(rows, -1) if rows else h.clone()


def moved(x: Tensor, weights: Tensor, of=field) -> Tensor:
    y = of(x).clone()
    y[..., 0] += felt(x[..., 0], weights)
    return y


def rk4(f, x: Tensor, dt: float) -> Tensor:
    k1 = f(x)
    k2 = f(x + dt * k1 / 2)
    k3 = f(x + dt * k2 / 2)
    return dt * (k1 + 2 * k2 + 2 * k3 + f(x + dt * k3)) / 6


def one_step(x, weights, dt, integrator="rk4"):
    if integrator == "rk4":
        return x + rk4(lambda s: moved(s, weights), x, dt)
    if integrator == "split":
        y = x + rk4(field, x, dt)
        y[..., 0] += dt * felt(x[..., 0], weights)
        return y
    assert integrator == "euler"
    return x + dt * moved(x, weights)


def many_steps(x, weights, num_steps, dt, integrator="rk4"):
    seen = [x]
    for _ in range(num_steps):
        seen.append(one_step(seen[-1], weights, dt, integrator))
    return torch.stack(seen)


def network(chance: Random, components: int | None = None, batch: tuple[int, ...] | None = None) -> Arguments:
    nodes = chance.randint(2, 4)
    shape = leading(chance) if batch is None else batch
    x = numbers(chance, *shape, nodes, components or chance.randint(1, 3))
    return {"x": x, "weights": 0.3 * numbers(chance, nodes, nodes)}


def how(chance: Random) -> Arguments:
    return {"dt": chance.choice((0.01, 0.1)), "integrator": chance.choice(("rk4", "split", "euler"))}


def coupling_arguments(chance: Random) -> Arguments:
    given = network(chance)
    return {"x": given["x"][..., 0].contiguous(), "weights": given["weights"]}


def windows_arguments(chance: Random) -> Arguments:
    batch = (chance.randint(1, 3), chance.randint(2, 4))
    given = network(chance, batch=batch)
    return {"windows": given["x"], "weights": given["weights"]} | how(chance)


def window_gradient(windows, weights, dt, integrator):
    weights = weights.clone().requires_grad_()
    found = many_steps(windows[:, 0], weights, windows.shape[1] - 1, dt, integrator)[1:]
    loss = (found - windows[:, 1:].movedim(1, 0)).square().mean()
    grad = torch.autograd.grad(loss, weights)[0]
    return loss, grad.clone().fill_diagonal_(0)


def series_arguments(chance: Random) -> Arguments:
    x = numbers(chance, chance.randint(1, 2), chance.randint(9, 12), *leading(chance, 2))
    return {"x": x, "dt": 0.1, "method": chance.choice(("central5", "savgol", "forward"))}


def differentiated(x, dt, method):
    time = x.shape[1]
    if method == "forward":
        return x[:, : time - 1], torch.stack([(x[:, t + 1] - x[:, t]) / dt for t in range(time - 1)], 1)
    if method == "central5":
        slopes = [
            (x[:, t - 2] - 8 * x[:, t - 1] + 8 * x[:, t + 1] - x[:, t + 2]) / (12 * dt) for t in range(2, time - 2)
        ]
        return x[:, 2 : time - 2], torch.stack(slopes, 1)
    assert method == "savgol"
    # A polynomial of fourth order through nine samples, its value and its slope in the middle.
    t = torch.arange(-4.0, 5.0, dtype=torch.float64)
    fit = torch.linalg.pinv(torch.stack([t**k for k in range(5)], 1))
    parts = [
        torch.stack([torch.einsum("t,bt...->b...", row, x[:, s : s + 9]) for s in range(time - 8)], 1)
        for row in fit[:2]
    ]
    return parts[0], parts[1] / dt


def links_arguments(chance: Random) -> Arguments:
    return {
        "topology": chance.choice(("random", "small_world", "scale_free")),
        "num_nodes": chance.randint(2, 12),
        "density": chance.choice((None, 0.3, 0.9, 1.0)),
        "directed": chance.random() < 0.5,
    }


def links_found(topology, num_nodes, density, directed):
    """What a network must be: no node acts on itself, and undirected ones act both ways alike."""
    links = D.draw_links(topology, num_nodes, torch.Generator().manual_seed(0), density, directed)
    symmetric = True if directed else bool((links == links.T).all())
    return tuple(links.shape), bool(links.diagonal().any()), symmetric


def weights_arguments(chance: Random) -> Arguments:
    nodes = chance.randint(2, 5)
    links = numbers(chance, nodes, nodes) > 0
    return {
        "links": links | links.T,
        "mean": 1.0,
        "std": chance.choice((0.0, 0.1)),
        "negative_fraction": chance.choice((0.0, 1.0)),
        "directed": chance.random() < 0.5,
    }


def weights_found(links, mean, std, negative_fraction, directed):
    """Without spread the weights are known; with it their signs, their places and their symmetry."""
    found = D.draw_weights(links, mean, std, torch.Generator().manual_seed(0), negative_fraction, directed)
    return found if not std else ((found != 0), torch.as_tensor(directed or bool((found == found.T).all())))


def weights_expected(links, mean, std, negative_fraction, directed):
    assert 0 <= negative_fraction <= 1
    assert not directed or directed is True
    assert links.dim() == 2
    assert links.shape[0] == links.shape[1]
    off = links.clone()
    if negative_fraction not in (0, 1):
        raise AssertionError("a mixture is not known")
    values = off * (-mean if negative_fraction else mean)
    if not directed:
        values = values.clone().fill_diagonal_(0)
    return values if not std else (values != 0, torch.tensor(True))


def prediction_arguments(chance: Random) -> Arguments:
    shape = (chance.randint(1, 3), chance.randint(1, 6), chance.randint(1, 3), chance.randint(1, 2))
    true = numbers(chance, *shape)
    return {"predicted": true + 0.4 * numbers(chance, *shape), "true": true, "threshold": 0.4}


def valid_steps(predicted, true, threshold):
    assert predicted.shape == true.shape
    found = []
    for mine, other in zip(predicted, true, strict=True):
        errors = [math.sqrt(float((a - b).square().mean())) for a, b in zip(mine, other, strict=True)]
        first = next((step for step, error in enumerate(errors) if not error <= threshold), len(errors))
        found.append(max(first - 1, 0))
    return torch.tensor(found)


def noisy_arguments(chance: Random) -> Arguments:
    given = network(chance, batch=(chance.randint(1, 3), chance.randint(2, 4)))
    return {"true": given["x"], "weights": given["weights"], "noise": chance.choice((0.0, 0.1))} | how(chance)


def noisy(true, weights, dt, noise, integrator):
    start = true[:, 0]
    error = torch.randn(start.shape, generator=torch.Generator().manual_seed(0), dtype=start.dtype)
    start = start + noise * error * true.reshape(-1, true.shape[-1]).std(0)
    return many_steps(start, weights, true.shape[1] - 1, dt, integrator).movedim(0, 1)


def simulated_arguments(chance: Random) -> Arguments:
    given = network(chance, batch=(chance.randint(1, 2),))
    steps = {"num_steps": chance.randint(1, 4), "transient": chance.randint(0, 3)}
    return {"weights": given["weights"], "start": given["x"], "num_trajectories": len(given["x"])} | steps | how(chance)


def simulated(weights, start, num_trajectories, num_steps, transient, dt, integrator):
    assert num_trajectories == len(start)
    return many_steps(start, weights, transient + num_steps - 1, dt, integrator)[transient:].movedim(0, 1)


def matrix(chance: Random, nodes: int | None = None) -> Tensor:
    nodes = nodes or chance.randint(2, 4)
    return numbers(chance, nodes, nodes)


def refuses(check):
    """Whether a check refuses: a bool to compare."""

    def run(**given):
        try:
            check(**given)
        except ValueError:
            return True
        return False

    return run


CASES_OF_DYNAMICS = {
    "coupling": Case(D.coupling, coupling_arguments, lambda x, weights: felt(x, weights)),
    "velocity": Case(lambda **a: D.velocity(field, **a), network, moved),
    "rk4_increment": Case(
        lambda x, dt: D.rk4_increment(field, x, dt),
        lambda c: {"x": numbers(c, *leading(c)), "dt": 0.1},
        lambda x, dt: rk4(field, x, dt),
    ),
    "step": Case(lambda **a: D.step(field, **a), lambda c: network(c) | how(c), one_step),
    "rollout": Case(
        lambda **a: D.rollout(field, **a),
        lambda c: network(c) | {"num_steps": c.randint(0, 3)} | how(c),
        many_steps,
    ),
    "simulate_network": Case(
        lambda **a: D.simulate_network(field, **a), simulated_arguments, simulated, fixed=("num_steps", "transient")
    ),
    "coupling_adjoint": Case(
        lambda **a: D.coupling_adjoint(D.autograd_vjp(field), **a), windows_arguments, window_gradient
    ),
    "autograd_vjp": Case(
        lambda x: D.autograd_vjp(field)(x)[1](torch.ones_like(x)),
        lambda c: {"x": numbers(c, *leading(c))},
        lambda x: torch.cos(x) - 0.1,
    ),
    "check_weights": Case(
        refuses(D.check_weights),
        lambda c: {"weights": matrix(c)},
        lambda weights: (
            weights.dim() != 2 or len(weights) < 2 or len(set(weights.shape)) > 1 or not weights.isfinite().all()
        ),
    ),
    "differentiate": Case(D.differentiate, series_arguments, differentiated),
    "draw_links": Case(
        links_found,
        links_arguments,
        lambda topology, num_nodes, density, directed: ((num_nodes, num_nodes), False, True),
        fixed=("num_nodes",),
    ),
    "draw_weights": Case(weights_found, weights_arguments, weights_expected, without=("type", "expanded")),
    "valid_steps": Case(D.valid_steps, prediction_arguments, valid_steps),
    "noisy_start": Case(
        lambda true, weights, noise, dt, integrator: D.noisy_start(
            field, weights, true, dt, noise, torch.Generator().manual_seed(0), integrator=integrator
        ),
        noisy_arguments,
        noisy,
    ),
}
