"""Networks as graphs that other libraries read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from lightning_nobp.typed import explained

if TYPE_CHECKING:
    import networkx as nx


class Link(NamedTuple):
    """One coupling: how strongly ``source`` acts on ``target``, and how certain that is."""

    source: str
    target: str
    weight: float
    standard_error: float | None


@explained
def links(
    weights: Tensor, standard_error: Tensor | None = None, names: Sequence[str] = (), least: float = 0.0
) -> list[Link]:
    """The couplings of a network, the strongest first.

    Args:
        weights: ``(nodes, nodes)``; row ``i`` holds what acts on node ``i``.
        standard_error: Of the weights, of the same shape.
        names: Of the nodes; none for their numbers.
        least: Weights of a smaller size are left out, and those of 0.

    Raises:
        ValueError: Not as many names as nodes, or shapes that do not fit.
    """
    nodes = len(weights)
    if tuple(weights.shape) != (nodes, nodes) or (standard_error is not None and standard_error.shape != weights.shape):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)}"
            + ("" if standard_error is None else f", standard_error of {tuple(standard_error.shape)}")
            + ": give (nodes, nodes)"
        )
    if names and len(names) != nodes:
        raise ValueError(f"{len(names)} names of {nodes} nodes: give one each, or none")
    names = names or [str(node) for node in range(nodes)]
    rows, errors = weights.tolist(), None if standard_error is None else standard_error.tolist()
    found = [
        Link(names[j], names[i], rows[i][j], None if errors is None else errors[i][j])
        for i in range(nodes)
        for j in range(nodes)
        if i != j and rows[i][j] != 0 and abs(rows[i][j]) >= least
    ]
    return sorted(found, key=lambda link: -abs(link.weight))


@explained
def network_graph(
    weights: Tensor, standard_error: Tensor | None = None, names: Sequence[str] = (), least: float = 0.0
) -> "nx.DiGraph[str]":
    """A directed graph with all nodes, and an edge from ``j`` to ``i`` for each coupling that acts from ``j`` on ``i``.

    Edges have the attributes ``weight`` and, if known, ``standard_error``.

    Args:
        weights: See :func:`links`, and so for the others.
        standard_error: Of the weights.
        names: Of the nodes.
        least: Of the weights' sizes.
    """
    # Torch brings it.
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names or [str(node) for node in range(len(weights))])
    for link in links(weights, standard_error, names, least):
        error = {} if link.standard_error is None else {"standard_error": link.standard_error}
        graph.add_edge(link.source, link.target, weight=link.weight, **error)
    return graph
