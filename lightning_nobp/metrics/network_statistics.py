"""The sums from which a network is solved for, as a metric."""

from dataclasses import fields

from torch import Tensor

from lightning_nobp.functional.network_inference import Statistics, statistics
from lightning_nobp.metrics.summed import SummedMetric


class NetworkStatistics(SummedMetric):
    """:class:`~lightning_nobp.functional.network_inference.Statistics` of series that come in parts.

    Args:
        num_nodes: Of the network.
        terms: Of each node's local motion.
        components: Numbers in the state of a node.
    """

    def __init__(self, num_nodes: int, terms: int, components: int) -> None:
        super().__init__()
        self.num_nodes, self.terms, self.components = num_nodes, terms, components
        self.add_sum("couplings", num_nodes, num_nodes)
        self.add_sum("cross", num_nodes, num_nodes, terms)
        self.add_sum("driven", num_nodes, num_nodes)
        self.add_sum("local", num_nodes, terms, terms)
        self.add_sum("moved", num_nodes, terms, components)
        self.add_sum("energy", num_nodes, components)
        self.add_sum("levels", num_nodes)
        self.add_sum("samples")

    def update(self, features: Tensor, h: Tensor, velocity: Tensor) -> None:
        """Add samples.

        Args:
            features: ``(samples, nodes, terms)``.
            h: First components ``(samples, nodes)``.
            velocity: ``(samples, nodes, components)``.
        """
        found = statistics(features.double(), h.double(), velocity.double())
        for field in fields(found):
            getattr(self, field.name).add_(getattr(found, field.name))

    def compute(self) -> dict[str, Tensor]:
        """The sums over all processes, by name."""
        return {field.name: getattr(self, field.name).cpu() for field in fields(Statistics)}

    def statistics(self) -> Statistics:
        """The sums over all processes."""
        return Statistics(**self.compute())
