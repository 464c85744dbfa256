"""What series cannot tell a network from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nobp.typed import explained

_WORST_CONDITION = 1e12
# Correlation from which two nodes are said to move together.
_ALIKE = 0.9999
_MOST_NAMED = 8
_COARSEST = 0.3


@explained
def check_series(x: Sequence[Tensor], names: Sequence[str] = ()) -> None:
    """Refuse what is no series of several nodes.

    Args:
        x: Trajectories, each ``(time, nodes, components)``.
        names: Of the nodes; none for their numbers.

    Raises:
        ValueError: Names the place.
    """
    for trajectory, part in enumerate(x):
        if part.dim() != 3 or 0 in part.shape or part.shape[1:] != x[0].shape[1:]:
            raise ValueError(
                f"x[{trajectory}] of shape {tuple(part.shape)}: give trajectories (time, nodes, components), of the "
                "same nodes and components, none of them 0"
            )
    if x[0].shape[1] < 2:
        raise ValueError("x holds one node: a network has at least two")
    for trajectory, part in enumerate(x):
        bad = (~part.isfinite()).nonzero()
        if len(bad):
            time, node, component = bad[0].tolist()
            raise ValueError(
                f"x[{trajectory}, {time}, {node}, {component}]={float(part[time, node, component])} is not "
                f"finite: trajectory {trajectory}, time {time}, node {names[node] if names else node}. Cut the series "
                "there, and give the parts as trajectories"
            )
    constant = torch.stack([(part == x[0][:1]).all(dim=0) for part in x]).all(dim=0)
    if bool(constant.any()):
        node, component = constant.nonzero()[0].tolist()
        name = names[node] if names else node
        raise ValueError(f"component {component} of node {name} never changes: leave it out, it tells nothing")


@explained
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


@explained
def check_resolved(speed: Tensor, dt: float) -> None:
    """Refuse series that move too far between samples.

    Args:
        speed: Root mean square velocity of each component, over its standard deviation.
        dt: Time from one sample to the next.

    Raises:
        ValueError: Most of what happens, happens between samples.
    """
    coarsest = float(speed.max()) * dt
    if not coarsest <= _COARSEST:
        raise ValueError(
            f"dt={dt}: from one sample to the next a node goes {coarsest:.0%} of the series' standard deviation, too "
            "far for derivatives. Sample more often, or take derivative='forward' and a degree for the map"
        )


@explained
def check_identifiable(
    couplings: Tensor, levels: Tensor | None = None, samples: Tensor | float = 1.0, names: Sequence[str] = ()
) -> None:
    """Refuse nodes that move together: whose weight is whose cannot be said.

    A local motion that is sought as well takes up what is constant, or proportional to a node's own state. So first
    components must then not depend on each other linearly, ``sum_j a_j h_j = const``; beside a given one they may,
    unless ``sum_j a_j = 0`` and the constant is 0.

    Args:
        couplings: ``(nodes, nodes)``, sums of the products of first components.
        levels: Sums of first components ``(nodes,)``, if the local motion is sought too; None if it is given.
        samples: What was summed over.
        names: Of the nodes; none for their numbers.

    Raises:
        ValueError: Names the nodes.
    """
    nodes = len(couplings)
    if levels is not None:
        couplings = couplings - torch.outer(levels, levels) / samples
    size = couplings.diagonal().clamp_min(torch.finfo(couplings.dtype).tiny).sqrt()
    alike = couplings / torch.outer(size, size)
    left = every = torch.eye(nodes, dtype=couplings.dtype, device=couplings.device)
    if levels is None:
        # Of combinations of scaled components those whose coefficients, unscaled, sum to zero.
        away = torch.nn.functional.normalize(1 / size, dim=0)
        left = every - torch.outer(away, away)
    # Directions that are not left count as well determined.
    values, vectors = torch.linalg.eigh(left @ alike @ left + nodes * (every - left))
    if values[0] > nodes / _WORST_CONDITION:
        return
    names = names or [str(node) for node in range(nodes)]
    pairs = alike.abs().fill_diagonal_(-1.0)
    i, j = divmod(int(pairs.argmax()), nodes)
    if float(pairs[i, j]) > _ALIKE:
        raise ValueError(
            f"nodes {names[i]} and {names[j]} move together (correlation {float(alike[i, j]):.6f}): their weights "
            "cannot be told apart. Leave one out, or take series from before they synchronised"
        )
    share = vectors[:, 0].abs()
    members = [names[node] for node in (share > 0.1 * share.max()).nonzero().flatten().tolist()]
    which = ", ".join(members[:_MOST_NAMED]) + (", ..." if len(members) > _MOST_NAMED else "")
    raise ValueError(
        f"in this series the first components of nodes {which} depend on each other linearly: their weights cannot be "
        "told apart. Take a longer series, or leave one of them out"
    )
