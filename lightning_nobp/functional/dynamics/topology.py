"""Who is linked to whom in networks that are drawn at random, and how strongly.

References:
    Erdos and Renyi, "On random graphs", Publ. Math. Debrecen 6, 290 (1959); Watts and Strogatz, "Collective dynamics of
    'small-world' networks", Nature 393, 440 (1998); Barabasi and Albert, "Emergence of scaling in random networks",
    Science 286, 509 (1999).
"""

import math

import torch
from torch import Tensor

from lightning_nobp.typed import explained

TOPOLOGIES = ("random", "small_world", "scale_free")
_REWIRED = 0.1


@explained
def draw_links(
    topology: str,
    num_nodes: int,
    generator: torch.Generator,
    density: float | None = None,
    directed: bool = False,
) -> Tensor:
    """Which links there are, ``(nodes, nodes)``, bool; row ``i`` holds what acts on node ``i``.

    Args:
        topology: ``'random'``, each link by itself; ``'small_world'``, a ring with a tenth of its links put elsewhere;
            ``'scale_free'``, nodes join one by one and prefer those with many links.
        num_nodes: At least 2.
        generator: Of the links.
        density: Fraction of possible links that there are, about: the other two kinds have whole numbers of links a
            node. None for ``ln(nodes) / nodes``, above which random networks hang together.
        directed: Whether ``j`` may act on ``i`` without ``i`` on ``j``. Links of the other two kinds then go one way or
            the other by chance.

    Raises:
        ValueError: An argument out of its range.
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology={topology!r} is not one of {', '.join(map(repr, TOPOLOGIES))}, nor a matrix")
    if num_nodes < 2:
        raise ValueError(f"num_nodes={num_nodes}: a network has at least two")
    density = math.log(num_nodes) / num_nodes if density is None else density
    if not 0 < density <= 1:
        raise ValueError(f"density={density} must be above 0 and at most 1")
    if topology == "random":
        links = torch.rand(num_nodes, num_nodes, generator=generator) < density
        return links.fill_diagonal_(False) if directed else _mirrored(links)
    neighbours = min(num_nodes - 1, max(1, round(density * (num_nodes - 1) * (1 if directed else 0.5))))
    make = _small_world if topology == "small_world" else _scale_free
    links = make(num_nodes, neighbours, generator)
    if not directed:
        return links | links.T
    turned = torch.rand(num_nodes, num_nodes, generator=generator).triu(1) > 0.5
    return torch.where(turned | turned.T, links.T, links)


@explained
def draw_weights(
    links: Tensor,
    mean: float,
    std: float,
    generator: torch.Generator,
    negative_fraction: float = 0.0,
    directed: bool = False,
) -> Tensor:
    """Normally distributed weights ``(nodes, nodes)``, float64, zero where there is no link.

    Args:
        links: ``(nodes, nodes)``, bool.
        mean: Of the weights.
        std: Their standard deviation.
        generator: Of the weights.
        negative_fraction: Of links whose weight has the other sign.
        directed: Whether both directions of a link have weights of their own.

    Raises:
        ValueError: An argument out of its range.
    """
    if not 0 <= std < math.inf:
        raise ValueError(f"coupling_std={std} is a standard deviation: it must be at least 0, and finite")
    if not math.isfinite(mean):
        raise ValueError(f"coupling_mean={mean} must be finite")
    if not 0 <= negative_fraction <= 1:
        raise ValueError(f"negative_fraction={negative_fraction} must lie between 0 and 1")
    weights = mean + std * torch.randn(links.shape, generator=generator, dtype=torch.float64)
    turned = torch.rand(links.shape, generator=generator) < negative_fraction
    weights = torch.where(turned, -weights, weights)
    if not directed:
        weights = weights.triu(1) + weights.triu(1).T
    return weights * links


def _mirrored(links: Tensor) -> Tensor:
    upper = links.triu(1)
    return upper | upper.T


def _small_world(num_nodes: int, neighbours: int, generator: torch.Generator) -> Tensor:
    """Each node feels the next ``neighbours`` on a ring, or others in their place."""
    links = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    for i in range(num_nodes):
        for k in range(1, neighbours + 1):
            j = (i + k) % num_nodes
            if float(torch.rand((), generator=generator)) < _REWIRED:
                free = ~(links[i] | links[:, i])
                free[i] = False
                if bool(free.any()):
                    j = int(torch.multinomial(free.double(), 1, generator=generator))
            links[i, j] = True
    return links


def _scale_free(num_nodes: int, neighbours: int, generator: torch.Generator) -> Tensor:
    """Nodes that join one after another feel ``neighbours`` of those before, chosen by how many links they have."""
    links = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    for i in range(1, num_nodes):
        degree = (links | links.T)[:i].sum(dim=1).double() + (i <= neighbours)
        links[i, torch.multinomial(degree, min(i, neighbours), generator=generator)] = True
    return links
