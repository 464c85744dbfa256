"""Networks from the time series of their nodes."""

from lightning_nobp.functional.network_inference.bootstrap import standard_error
from lightning_nobp.functional.network_inference.checks import (
    check_enough,
    check_identifiable,
    check_resolved,
    check_series,
)
from lightning_nobp.functional.network_inference.graph import Link, links, network_graph
from lightning_nobp.functional.network_inference.infer import (
    InferredNetwork,
    Normalisation,
    infer_coupling,
    solve_sparse,
)
from lightning_nobp.functional.network_inference.library import polynomial_exponents, polynomial_features
from lightning_nobp.functional.network_inference.solve import Solution, constrained, residual, solve, solve_local
from lightning_nobp.functional.network_inference.statistics import Statistics, statistics

__all__ = [
    "InferredNetwork",
    "Link",
    "Normalisation",
    "Solution",
    "Statistics",
    "check_enough",
    "check_identifiable",
    "check_resolved",
    "check_series",
    "constrained",
    "infer_coupling",
    "links",
    "network_graph",
    "polynomial_exponents",
    "polynomial_features",
    "residual",
    "solve",
    "solve_local",
    "solve_sparse",
    "standard_error",
    "statistics",
]
