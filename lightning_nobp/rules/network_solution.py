"""The closed form of a network: sums over windows, and what follows from them for couplings and local motion."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lightning_nobp.functional.dynamics import Derivative, differentiate
from lightning_nobp.functional.network_inference import (
    Solution,
    Statistics,
    check_enough,
    check_identifiable,
    check_resolved,
    residual,
    solve_local,
    solve_sparse,
)
from lightning_nobp.metrics.network_statistics import NetworkStatistics
from lightning_nobp.nn.dynamical import DynamicalNetwork, NodeDynamics


def empty_sums(network: DynamicalNetwork, frozen: bool) -> NetworkStatistics:
    """Sums of no windows.

    Args:
        network: To be solved for.
        frozen: Whether its local motion is given: nothing of it is then left to find.
    """
    terms = 0 if frozen else cast(NodeDynamics, network.local).num_terms
    return NetworkStatistics(network.num_nodes, terms, network.components).to(network.weights.device)


@torch.no_grad()
def add_windows(
    sums: NetworkStatistics, network: DynamicalNetwork, windows: Tensor, derivative: Derivative, frozen: bool
) -> None:
    """Add windows to the sums, in float64.

    Args:
        sums: See :func:`empty_sums`.
        network: To be solved for.
        windows: ``(batch, steps + 1, nodes, components)``.
        derivative: See :func:`~lightning_nobp.functional.dynamics.differentiate`.
        frozen: See :func:`empty_sums`.
    """
    x, velocity = differentiate(windows.double(), network.dt, derivative)
    x, velocity = x.flatten(0, 1), velocity.flatten(0, 1)
    if frozen:
        # The couplings are to explain the rest.
        velocity = velocity - network.local(x.to(network.weights)).double()
        features = x.new_zeros(*x.shape[:2], 0)
    else:
        features = cast(NodeDynamics, network.local).features(x)
    sums.update(features, x[..., 0], velocity)


@torch.no_grad()
def solve_network(
    network: DynamicalNetwork,
    sums: Statistics,
    *,
    derivative: Derivative,
    density: float | None,
    ridge: float,
    symmetric: bool,
    non_negative: bool,
    frozen: bool,
    names: Sequence[str] = (),
) -> float:
    """Set couplings and local motion to those that fit best.

    Args:
        network: To be solved for.
        sums: Of all windows.
        derivative: See :func:`add_windows`.
        density: See :func:`~lightning_nobp.functional.network_inference.solve_sparse`.
        ridge: Likewise.
        symmetric: Whether couplings are put to the nearest symmetric ones; the local motion is then solved for again.
        non_negative: Whether negative couplings are put to zero, likewise.
        frozen: See :func:`empty_sums`.
        names: Of the nodes, for messages; none for their numbers.

    Returns:
        The mean square that is left of the velocities.

    Raises:
        ValueError: Too few samples, samples too far apart, or nodes that move together.
    """
    shared = frozen or cast(NodeDynamics, network.local).shared
    check_enough(int(sums.samples), network.num_nodes, sums.local.shape[-1], shared)
    if derivative != "forward" and not frozen:
        # Normalised series have a standard deviation of 1.
        check_resolved((sums.energy.mean(dim=0) / sums.samples).sqrt(), network.dt)
    check_identifiable(sums.couplings, None if frozen else sums.levels, sums.samples, names)
    solution = solve_sparse(sums, density, shared=shared, ridge=ridge)
    network.weights.copy_(solution.weights)
    if symmetric or non_negative:
        network.constrain_(symmetric, non_negative)
        weights = network.weights.double().cpu()
        solution = Solution(weights, solve_local(sums, weights, shared=shared, ridge=ridge))
    if not frozen:
        cast(NodeDynamics, network.local).set_coefficients(solution.coefficients)
    return float(residual(sums, solution))
