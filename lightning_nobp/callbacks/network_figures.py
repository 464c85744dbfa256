"""What a network of oscillators was taken for, in pictures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.figures import log_figure
from lightning_nobp.datamodules.series import SeriesDataModule
from lightning_nobp.rules.network_rule import NetworkRule, free_run
from lightning_nobp.typed import Typed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMES = 24


class NetworkFigures(Typed, Callback):
    """Draw couplings, free runs and errors of a rule that finds networks.

    ``val/couplings``: the couplings that were found, beside the true ones if the data module knows them, and one
    against the other. ``val/free_run``: first components of a few nodes in a free run, and as they were measured.
    The run starts where the first validation trajectory does; without a data module of series it is the first window.
    ``val/errors``: the loss, and the error of the weights, over the epochs.

    Args:
        every_n_epochs: Epochs from one set of figures to the next.
        most_nodes: Of the free run so many are drawn.
        most_steps: So many steps of it.

    Raises:
        ValueError: An argument that is not positive.
        TypeError: A rule that finds no network.
    """

    def __init__(self, every_n_epochs: int = 1, most_nodes: int = 4, most_steps: int = 500) -> None:
        self.every_n_epochs, self.most_nodes, self.most_steps = every_n_epochs, most_nodes, most_steps
        for name in ("every_n_epochs", "most_nodes", "most_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.errors: dict[str, list[tuple[int, float]]] = {}
        self._run: tuple[Tensor, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew; refuse a rule that finds no network."""
        if not isinstance(pl_module, NetworkRule):
            raise TypeError(
                f"NetworkFigures goes with a rule that finds networks, like DynamicalNetworkBackprop, not with a "
                f"{type(pl_module).__name__}"
            )
        self.errors = {}

    def state_dict(self) -> dict[str, Any]:
        """The errors so far."""
        return {"errors": {name: [list(point) for point in points] for name, points in self.errors.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind them."""
        self.errors = {name: [(e, v) for e, v in points] for name, points in state_dict["errors"].items()}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the first free run."""
        if batch_idx == 0 and isinstance(outputs, Mapping):
            self._run = outputs["predicted"][0].detach().cpu(), outputs["true"][0].detach().cpu()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        run, self._run = self._run, None
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, NetworkRule)
        for name in ("val/loss", "val/weight_error"):
            if name in trainer.callback_metrics:
                value = float(trainer.callback_metrics[name])
                self.errors.setdefault(name, []).append((trainer.current_epoch + 1, value))
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        network, data = pl_module.built_network(), getattr(trainer, "datamodule", None)
        names = getattr(data, "node_names", ())
        figure = couplings_figure(network.weights.detach().cpu(), getattr(data, "true_weights", None), names)
        log_figure(trainer, "val/couplings", figure)
        run = self._long_run(pl_module, data) or run
        if run is not None:
            log_figure(trainer, "val/free_run", free_run_figure(*run, network.dt, self.most_nodes, names))
        if self.errors:
            log_figure(trainer, "val/errors", errors_figure(self.errors))

    @torch.no_grad()
    def _long_run(self, rule: NetworkRule, data: Any) -> tuple[Tensor, Tensor] | None:
        """A free run along the first validation trajectory, and that trajectory."""
        if not isinstance(data, SeriesDataModule):
            return None
        true = rule.windows(data.batches("val").beginning(self.most_steps).unsqueeze(0))
        return free_run(rule.built_network(), true)[0].cpu(), true[0].cpu()


def couplings_figure(weights: Tensor, true: Tensor | None = None, names: Sequence[str] = ()) -> "Figure":
    """Couplings as images, the true ones beside them, and one against the other.

    Args:
        weights: ``(nodes, nodes)``.
        true: Likewise, or None.
        names: Of the nodes; none for their numbers.
    """
    from matplotlib.figure import Figure

    known = [("found", weights)] if true is None else [("true", true), ("found", weights)]
    figure = Figure(figsize=(4.2 * (len(known) + (true is not None)), 3.8), layout="constrained")
    panels = figure.subplots(1, len(known) + (true is not None), squeeze=False)[0]
    largest = max(float(matrix.abs().max()) for _, matrix in known) or 1.0
    for axes, (name, matrix) in zip(panels, known, strict=False):
        image = axes.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_title(name)
        axes.set_xlabel("from node")
        axes.set_ylabel("to node")
        _label_nodes(axes, names)
    figure.colorbar(image, ax=panels[: len(known)].tolist())
    if true is not None:
        apart = ~torch.eye(len(weights), dtype=torch.bool)
        ends = [float(true.min()), float(true.max())]
        panels[-1].plot(ends, ends, color="grey", linewidth=0.8)
        panels[-1].plot(true[apart].tolist(), weights[apart].tolist(), ".")
        panels[-1].set_xlabel("true weight")
        panels[-1].set_ylabel("found")
    return figure


def _label_nodes(axes: "Axes", names: Sequence[str]) -> None:
    """Names at the sides of a matrix, or numbers where they would not fit."""
    from matplotlib.ticker import MaxNLocator

    if 0 < len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        return
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(MaxNLocator(integer=True))


def free_run_figure(
    predicted: Tensor, true: Tensor, dt: float, most_nodes: int = 4, names: Sequence[str] = ()
) -> "Figure":
    """First components of nodes over time.

    Args:
        predicted: Normalised states ``(steps + 1, nodes, components)``.
        true: Likewise.
        dt: Time from one to the next.
        most_nodes: So many nodes are drawn.
        names: Of the nodes; none for their numbers.
    """
    from matplotlib.figure import Figure

    drawn = min(most_nodes, true.shape[1])
    figure = Figure(figsize=(7, 1.5 * drawn + 0.5), layout="constrained")
    times = [dt * step for step in range(len(true))]
    for node, axes in enumerate(figure.subplots(drawn, 1, sharex=True, squeeze=False)[:, 0]):
        axes.plot(times, true[:, node, 0].tolist(), color="black", label="true")
        axes.plot(times, predicted[:, node, 0].tolist(), "--", color="C1", label="free run")
        axes.set_ylabel(names[node] if names else f"node {node}")
        # A run that diverges must not squeeze the truth to a line.
        low, high = float(true[:, node, 0].min()), float(true[:, node, 0].max())
        axes.set_ylim(low - 0.5 * (high - low), high + 0.5 * (high - low))
    figure.axes[0].legend(fontsize="small", ncols=2)
    figure.axes[-1].set_xlabel("time")
    # The first layout may change the ticks, and so the room that they need.
    figure.draw_without_rendering()
    return figure


def errors_figure(errors: Mapping[str, Sequence[tuple[int, float]]]) -> "Figure":
    """Errors over epochs.

    Args:
        errors: By name, pairs of an epoch and a value.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, points in errors.items():
        epochs, values = zip(*points, strict=True)
        axes.semilogy(epochs, values, "o-", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("error")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend()
    return figure
