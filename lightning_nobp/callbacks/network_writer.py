"""Inferred networks in files that other programs read."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.run_folder import run_folder, write_csv
from lightning_nobp.datamodules.series import SeriesDataModule
from lightning_nobp.files import whole
from lightning_nobp.functional.network_inference import (
    Link,
    Statistics,
    constrained,
    links,
    network_graph,
    solve_sparse,
    standard_error,
)
from lightning_nobp.rules.dynamical import DynamicalNetworkBackprop
from lightning_nobp.rules.network_rule import NetworkRule
from lightning_nobp.rules.network_solution import add_windows, empty_sums


class NetworkWriter(Callback):
    """Write the couplings that were found into the run's folder, once training is over.

    ``links.csv`` has a row a coupling, ``source, target, weight, standard_error``, the strongest first;
    ``network.graphml`` is the same graph for networkx, Gephi, igraph or Cytoscape. Nodes have the names of the data
    module's ``node_names``, or their numbers.

    Args:
        least: Couplings of a smaller size are left out.
        num_bootstrap: Resamplings of the training series for standard errors, at the local motion that was found if
            that is not part of the closed form; 0 for none.
        num_windows: Parts into which the series is cut for that.
        seed: Of the resamplings.

    Raises:
        ValueError: An argument out of its range.
        TypeError: A rule that finds no network; with a bootstrap, no data module of series.
    """

    def __init__(self, least: float = 0.0, num_bootstrap: int = 0, num_windows: int = 20, seed: int = 0) -> None:
        if not 0 <= least < float("inf"):
            raise ValueError(f"least={least} must be at least 0, and finite")
        if num_bootstrap and min(num_bootstrap, num_windows) < 2:
            raise ValueError(f"num_bootstrap={num_bootstrap}, num_windows={num_windows}: both must be at least 2")
        self.least, self.num_bootstrap, self.num_windows, self.seed = least, num_bootstrap, num_windows, seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a rule that finds no network."""
        kind = DynamicalNetworkBackprop if self.num_bootstrap else NetworkRule
        if not isinstance(pl_module, kind):
            raise TypeError(f"NetworkWriter goes with a {kind.__name__}, not with a {type(pl_module).__name__}")
        if self.num_bootstrap and not isinstance(getattr(trainer, "datamodule", None), SeriesDataModule):
            raise TypeError(
                f"num_bootstrap={self.num_bootstrap} draws windows of a SeriesDataModule again and again: train with "
                "one, or leave it out"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both files."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, NetworkRule)
        weights = pl_module.built_network().weights.detach().cpu()
        error = self._error(trainer, pl_module) if self.num_bootstrap else None
        names = getattr(getattr(trainer, "datamodule", None), "node_names", ())
        rows = links(weights, error, names, self.least)
        write_csv(trainer, "links.csv", Link._fields, (row._asdict() for row in rows))
        import networkx as nx

        with whole(run_folder(trainer) / "network.graphml") as file:
            nx.write_graphml(network_graph(weights, error, names, self.least), file)

    def _error(self, trainer: Trainer, rule: LightningModule) -> Tensor:
        assert isinstance(rule, DynamicalNetworkBackprop)
        network, frozen = rule.built_network(), rule.freeze_local or rule.method == "alternation"
        shared = frozen or bool(getattr(network.local, "shared", True))

        def solved(sums: Statistics) -> Tensor:
            weights = solve_sparse(sums, rule.density, shared=shared, ridge=rule.ridge).weights
            return constrained(weights, rule.symmetric, rule.non_negative)

        return standard_error(self._windows(trainer, rule, frozen), solved, self.num_bootstrap, self.seed)

    def _windows(self, trainer: Trainer, rule: DynamicalNetworkBackprop, frozen: bool) -> list[Statistics]:
        """Sums of the parts of the training series."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.batches("train")
        found = []
        for numbers in torch.arange(len(batches)).tensor_split(min(self.num_windows, len(batches))):
            sums = empty_sums(rule.built_network(), frozen)
            add_windows(sums, rule.built_network(), batches.__getitems__(numbers.tolist())[0], rule.derivative, frozen)
            found.append(sums.statistics())
        return found
