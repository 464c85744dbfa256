"""Who is coupled to whom: from time series to weights and local motion, in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_nobp.functional.dynamics import Derivative, differentiate
from lightning_nobp.functional.network_inference.bootstrap import standard_error
from lightning_nobp.functional.network_inference.checks import (
    check_enough,
    check_identifiable,
    check_resolved,
    check_series,
)
from lightning_nobp.functional.network_inference.library import polynomial_exponents, polynomial_features
from lightning_nobp.functional.network_inference.solve import Solution, solve
from lightning_nobp.functional.network_inference.statistics import Statistics, statistics
from lightning_nobp.typed import explained

_CHUNK = 4096
# Of the links that are left, so many stay when the weakest are left out.
_KEPT = 0.8


@dataclass(frozen=True)
class Normalisation:
    """One mean and one scale for each component, the same for all nodes: couplings do not feel it.

    Args:
        mean: ``(components,)``.
        scale: ``(components,)``.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Normalisation":
        """Of series ``(..., components)``."""
        flat = x.reshape(-1, x.shape[-1])
        return cls(flat.mean(dim=0), flat.std(dim=0))

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised states."""
        return (x - self.mean) / self.scale


@dataclass(frozen=True)
class InferredNetwork:
    """A network as its series tell it.

    Args:
        weights: ``(nodes, nodes)``, one over the data's unit of time; row ``i`` holds what acts on node ``i``.
        coefficients: ``(1 or nodes, terms, components)``, of the normalised local motion.
        exponents: ``(terms, components)``.
        normalisation: Of the states.
        standard_error: Of the weights, of the same shape, from a bootstrap over windows; None without.
    """

    weights: Tensor
    coefficients: Tensor
    exponents: Tensor
    normalisation: Normalisation
    standard_error: Tensor | None = None

    def field(self, x: Tensor) -> Tensor:
        """Time derivatives of uncoupled nodes, as :func:`~lightning_nobp.functional.dynamics.rollout` takes them.

        What was found with ``derivative='forward'`` is a map: roll it out with ``integrator='euler'``.

        Args:
            x: States ``(..., nodes, components)``.
        """
        features = polynomial_features(self.normalisation(x), self.exponents)
        return torch.einsum("...nk,nkc->...nc", features, self.coefficients.expand(x.shape[-2], -1, -1)) * (
            self.normalisation.scale
        )


@explained
def infer_coupling(
    x: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    dt: float,
    degree: int = 2,
    shared: bool = True,
    ridge: float = 1e-10,
    derivative: Derivative = "central5",
    *,
    density: float | None = None,
    num_bootstrap: int = 0,
    num_windows: int = 20,
    seed: int = 0,
) -> InferredNetwork:
    """The couplings of a network and the motion of its nodes, from time series alone.

    Every node is taken to move by a polynomial of its own state, and by the differences of its first component to
    those of others, times the weights that are sought. Both are found in one pass over the data and one
    factorisation, jointly and in closed form.

    Args:
        x: ``(trajectories, time, nodes, components)``, or a list of trajectories ``(time, nodes, components)`` of any
            lengths; nodes feel each other through component 0.
        dt: Time from one sample to the next, in any unit: the weights are in one over that unit.
        degree: Of the polynomials: 2 for Lorenz's and Roessler's equations, 3 for Chua's and FitzHugh's.
        shared: Whether all nodes move alike alone; otherwise each has a polynomial of its own.
        ridge: Regularisation, relative to the mean of what it is added to.
        derivative: ``'central5'`` for clean series, ``'savgol'`` for noisy ones, ``'forward'`` for maps: see
            :func:`~lightning_nobp.functional.dynamics.differentiate`.
        density: Fraction of possible links that there are: the weakest are left out, a fifth at a time, and the rest
            is fitted again. Helps where data are short. None for all links.
        num_bootstrap: Resamplings of the windows, for standard errors; 0 for none.
        num_windows: Parts of equal length into which the series is cut for the bootstrap.
        seed: Of the resamplings.

    Returns:
        Weights and local motion.

    Raises:
        ValueError: Series that are not finite, too short or too coarse, a constant node, nodes that move together, or
            an argument out of its range.

    References:
        Tan, Correa, Stemler and Small, "Backpropagation on Dynamical Networks", arXiv 2207.03093, for the task; Golub
        and Pereyra, "Separable nonlinear least squares: the variable projection method and its applications", Inverse
        Problems 19, R1 (2003), for the method.
    """
    trajectories = _trajectories(x)
    check_series(trajectories)
    _check_arguments(dt, degree, ridge, density, num_bootstrap, num_windows)
    found = [differentiate(part.unsqueeze(0), dt, derivative) for part in trajectories]
    states, velocity = (torch.cat(parts, dim=1).squeeze(0) for parts in zip(*found, strict=True))
    normalisation = Normalisation.of(torch.cat(trajectories))
    if derivative != "forward":
        check_resolved(velocity.flatten(0, 1).square().mean(dim=0).sqrt() / normalisation.scale, dt)
    exponents = polynomial_exponents(states.shape[-1], int(degree))
    check_enough(len(states), states.shape[1], len(exponents), shared)
    parts = min(num_windows, len(states)) if num_bootstrap else 1
    cut = zip(states.tensor_split(parts), velocity.tensor_split(parts), strict=True)
    windows = [_sums(part, moved, normalisation, exponents) for part, moved in cut]
    total = sum(windows[1:], start=windows[0])
    check_identifiable(total.couplings, total.levels, total.samples)

    def solved(sums: Statistics) -> Solution:
        return solve_sparse(sums, density, shared=shared, ridge=ridge)

    solution = solved(total)
    error = standard_error(windows, lambda s: solved(s).weights, num_bootstrap, seed) if num_bootstrap else None
    return InferredNetwork(solution.weights, solution.coefficients, exponents, normalisation, error)


@explained
def solve_sparse(sums: Statistics, density: float | None, *, shared: bool, ridge: float) -> Solution:
    """:func:`solve` with the strongest links alone, found by leaving out the weakest step by step.

    Args:
        sums: Of a series.
        density: Fraction of possible links that stay; None for all.
        shared: See :func:`solve`.
        ridge: Likewise.
    """
    solution = solve(sums, shared=shared, ridge=ridge)
    if density is None:
        return solution
    nodes = len(solution.weights)
    left, wanted = nodes * (nodes - 1), max(1, round(density * nodes * (nodes - 1)))
    while left > wanted:
        left = max(wanted, int(left * _KEPT))
        strongest = solution.weights.abs().flatten().topk(left).indices
        links = (
            torch.zeros(nodes * nodes, dtype=torch.bool, device=strongest.device)
            .index_fill(0, strongest, True)
            .view(nodes, nodes)
        )
        solution = solve(sums, shared=shared, ridge=ridge, links=links)
    return solution


def _trajectories(x: Tensor | np.ndarray | Sequence[Tensor | np.ndarray]) -> list[Tensor]:
    """Each ``(time, nodes, components)``, float64."""
    if isinstance(x, list | tuple) and x:
        return [torch.as_tensor(part).to(torch.float64) for part in x]
    found = torch.as_tensor(x).to(torch.float64)
    if found.dim() != 4 or 0 in found.shape:
        raise ValueError(
            f"x of shape {tuple(found.shape)}: give (trajectories, time, nodes, components), none of them 0"
        )
    return list(found)


def _sums(states: Tensor, velocity: Tensor, normalisation: Normalisation, exponents: Tensor) -> Statistics:
    """Statistics of a series, a chunk at a time."""
    parts = []
    for part, moved in zip(torch.split(states, _CHUNK), torch.split(velocity, _CHUNK), strict=True):
        normal = normalisation(part)
        parts.append(statistics(polynomial_features(normal, exponents), normal[..., 0], moved / normalisation.scale))
    return sum(parts[1:], start=parts[0])


def _check_arguments(
    dt: float, degree: int, ridge: float, density: float | None, num_bootstrap: int, num_windows: int
) -> None:
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt={dt} must be positive, and finite")
    if degree < 1 or degree != int(degree):
        raise ValueError(f"degree={degree} must be at least 1, and whole")
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge={ridge} must be at least 0, and finite")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density={density} must be above 0 and at most 1, or None for all links")
    if num_bootstrap and (num_bootstrap < 2 or num_windows < 2):
        raise ValueError(f"num_bootstrap={num_bootstrap}, num_windows={num_windows}: both must be at least 2")
