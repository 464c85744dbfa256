"""What each layer of a network that grows adds."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_nobp.callbacks.figures import log_figure
from lightning_nobp.callbacks.growth import check_growth
from lightning_nobp.callbacks.run_folder import write_csv
from lightning_nobp.rules.residual_compensation import ResidualCompensation
from lightning_nobp.typed import Typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = dict[str, float]
"""``depth``, ``residual``, and where there are any ``train/accuracy``, ``val/accuracy``, ``val/loss``."""


class DepthCurve(Typed, Callback):
    """Accuracy and mean squared residual by depth: a figure ``depth``, and ``depth.csv`` in the run's folder.

    The residual is that of the training data after the layer; the training accuracy is measured on the way to the next
    layer, so the last one has none.

    Args:
        every_n_layers: Layers from one figure to the next; None draws at the end only.

    Raises:
        ValueError: ``every_n_layers`` is not positive.
        MisconfigurationException: The module is no ResidualCompensation.
    """

    def __init__(self, every_n_layers: int | None = None) -> None:
        if every_n_layers is not None and every_n_layers < 1:
            raise ValueError(f"every_n_layers={every_n_layers} must be at least 1, or None")
        self.every_n_layers = every_n_layers
        self.points: list[Point] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a rule whose network does not grow."""
        check_growth(self, pl_module, layer_by_layer=False)

    def state_dict(self) -> dict[str, Any]:
        """The points so far."""
        return {"points": [dict(point) for point in self.points]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind them."""
        self.points = state_dict["points"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the layers of another fit."""
        assert isinstance(pl_module, ResidualCompensation)
        self.points = [p for p in self.points if p["depth"] <= pl_module.stage - 1]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note a layer, once it is solved."""
        assert isinstance(pl_module, ResidualCompensation)
        depth = pl_module.rescnet.num_fitted
        if trainer.is_last_batch and depth > max((p["depth"] for p in self.points), default=0):
            self.points.append({"depth": depth, "residual": pl_module.solution["residual"]})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how well the network does with that layer."""
        if trainer.sanity_checking or not self.points:
            return
        for name in ("val/accuracy", "val/loss"):
            if name in trainer.callback_metrics:
                self.points[-1][name] = float(trainer.callback_metrics[name])
        if self.every_n_layers and len(self.points) % self.every_n_layers == 0:
            log_figure(trainer, "depth", depth_figure(self.points))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the training accuracy of the layers before, which the last pass has measured."""
        assert isinstance(pl_module, ResidualCompensation)
        accuracy = trainer.callback_metrics.get("train/accuracy_epoch")
        for point in self.points:
            if accuracy is not None and point["depth"] == pl_module.measured_depth:
                point["train/accuracy"] = float(accuracy)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve, and write it."""
        self.on_train_epoch_start(trainer, pl_module)
        if not self.points or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        log_figure(trainer, "depth", depth_figure(self.points))
        columns = ["depth", "residual", "train/accuracy", "val/accuracy", "val/loss"]
        write_csv(trainer, "depth.csv", columns, self.points)


def depth_figure(points: list[Point]) -> "Figure":
    """Accuracy and residual by depth.

    Args:
        points: A layer each.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    marker = "o" if len(points) <= 20 else None
    for name, label in (("train/accuracy", "training"), ("val/accuracy", "validation")):
        found = [p for p in points if name in p]
        left.plot([p["depth"] for p in found], [100 * p[name] for p in found], label=label, marker=marker)
    left.set(xlabel="depth", ylabel="accuracy, %")
    for name, label in (("residual", "training"), ("val/loss", "validation")):
        found = [p for p in points if name in p]
        right.plot([p["depth"] for p in found], [p[name] for p in found], label=label, marker=marker)
    right.set(xlabel="depth", ylabel="mean squared residual", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
