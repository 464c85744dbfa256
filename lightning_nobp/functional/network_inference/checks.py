"""What series cannot tell a network from."""

import torch
from torch import Tensor

_WORST_CONDITION = 1e12
_COARSEST = 0.3


def check_series(x: Tensor) -> None:
    """Refuse what is no series of several nodes.

    Args:
        x: ``(trajectories, time, nodes, components)``.

    Raises:
        ValueError: Names the place.
    """
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"x of shape {tuple(x.shape)}: give (trajectories, time, nodes, components), none of them 0")
    if x.shape[2] < 2:
        raise ValueError("x holds one node: a network has at least two")
    finite = x.isfinite()
    if not bool(finite.all()):
        trajectory, time, node, component = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"x[{trajectory}, {time}, {node}, {component}]={float(x[trajectory, time, node, component])} is not "
            f"finite: trajectory {trajectory}, time {time}, node {node}. Cut the series there, and give the parts as "
            "trajectories"
        )
    constant = (x == x[:1, :1]).all(dim=1).all(dim=0)
    if bool(constant.any()):
        node, component = constant.nonzero()[0].tolist()
        raise ValueError(f"component {component} of node {node} never changes: leave it out, it tells nothing")


def check_enough(samples: int, nodes: int, terms: int, shared: bool) -> None:
    """Refuse fewer samples than unknowns.

    Raises:
        ValueError: Says how many are needed.
    """
    needed = nodes - 1 + (-(-terms // nodes) if shared else terms)
    if samples < needed:
        raise ValueError(
            f"{samples} samples cannot tell {nodes - 1} weights and a local motion of {terms} terms for each node: "
            f"give at least {needed}, better several times as many, or fewer terms (a lower degree)"
        )


def check_resolved(speed: Tensor, dt: float) -> None:
    """Refuse series that move too far between samples.

    Args:
        speed: Root mean square velocity of each component, over its standard deviation.
        dt: Time from one sample to the next.

    Raises:
        ValueError: Most of what happens, happens between samples.
    """
    coarsest = float(speed.max()) * dt
    if coarsest > _COARSEST:
        raise ValueError(
            f"dt={dt}: from one sample to the next a node goes {coarsest:.0%} of the series' standard deviation, too "
            "far for derivatives. Sample more often, or take derivative='forward' and a degree for the map"
        )


def check_identifiable(couplings: Tensor) -> None:
    """Refuse nodes that move together: whose weight is whose cannot be said.

    Args:
        couplings: ``(nodes, nodes)``, sums of the products of normalised first components.

    Raises:
        ValueError: Names the two nodes that move most alike.
    """
    nodes = len(couplings)
    centred = torch.eye(nodes, dtype=couplings.dtype) - 1 / nodes
    values = torch.linalg.eigvalsh(centred @ couplings @ centred)[1:]
    if values[0] > values[-1] / _WORST_CONDITION:
        return
    size = couplings.diagonal().sqrt()
    alike = (couplings / torch.outer(size, size)).fill_diagonal_(-1.0)
    i, j = divmod(int(alike.argmax()), nodes)
    raise ValueError(
        f"nodes {i} and {j} move together (correlation {float(alike[i, j]):.6f}): their weights cannot be told apart. "
        "Leave one out, or take series from before they synchronised"
    )
