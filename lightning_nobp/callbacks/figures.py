"""Figures and histograms, to whichever logger is there."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.rank_zero import WarningCache
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lightning_nobp.callbacks.run_folder import run_folder
from lightning_nobp.files import whole
from lightning_nobp.rules.synchronisation import sum_over_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BINS = 512
"""Of a histogram that W&B takes."""

_SAID = WarningCache()
"""Warnings that are not said again for every figure."""


def log_figure(trainer: Trainer, name: str, figure: "Figure") -> None:
    """Hand a figure to every logger that takes figures; if there is none, write ``<run folder>/figures/*.png``.

    Args:
        trainer: The running trainer.
        name: What it shows, like ``val/confusion``.
        figure: A matplotlib figure.
    """
    if not trainer.is_global_zero or _leaves_nothing(trainer):
        return
    taken = [_give_figure(logger, trainer, name, figure) for logger in trainer.loggers]
    if not any(taken):
        _save(trainer, name, figure)


def log_histograms(trainer: Trainer, histograms: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Hand histograms to every logger that takes them; if there is none, draw them into one PNG.

    Args:
        trainer: The running trainer.
        histograms: By name, counts ``(bins,)`` and edges ``(bins + 1,)``.
    """
    if not trainer.is_global_zero or not histograms or _leaves_nothing(trainer):
        return
    taken = [_give_histograms(logger, trainer, histograms) for logger in trainer.loggers]
    if not any(taken):
        _save(trainer, "histograms", histogram_figure(histograms))


class LogFigures(Callback):
    """Confusion matrix of the validation set, and histograms of weights and gradients.

    Gradients are those that the rule wrote, before clipping. ``wandb.watch`` sees only gradients that autograd made.

    Args:
        every_n_epochs: Epochs from one set of figures to the next.
        confusion: Whether to draw the confusion matrix.
        histograms: Whether to draw histograms.
        bins: Of each histogram, at most 512.

    Raises:
        ValueError: ``every_n_epochs`` or ``bins`` is not positive, or there are too many bins.
    """

    def __init__(
        self, every_n_epochs: int = 1, confusion: bool = True, histograms: bool = True, bins: int = 50
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("bins", bins)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if bins > MOST_BINS:
            raise ValueError(f"bins={bins} must be at most {MOST_BINS}: W&B takes no histogram with more")
        self.every_n_epochs, self.bins = every_n_epochs, bins
        self.confusion, self.histograms = confusion, histograms
        self._counts: Tensor | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Histograms, at the last step of an epoch."""
        if not (self.histograms and trainer.is_last_batch and self._due(trainer)):
            return
        found = {}
        for name, parameter in pl_module.named_parameters():
            for kind, values in (("weights", parameter.detach()), ("gradients", parameter.grad)):
                if values is not None and values.isfinite().all():
                    found[f"{kind}/{name}"] = torch.histogram(values.float().cpu().flatten(), self.bins)
        log_histograms(trainer, {name: (h.hist, h.bin_edges) for name, h in found.items()})

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._counts = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count which class is taken for which."""
        scores = outputs.get("scores") if isinstance(outputs, Mapping) else None
        if not self.confusion or trainer.sanity_checking or scores is None or not self._due(trainer):
            return
        counts = multiclass_confusion_matrix(scores, batch[1], scores.shape[-1])
        self._counts = counts if self._counts is None else self._counts + counts

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the confusion matrix."""
        if self._counts is None:
            return
        counts = sum_over_ranks(self._counts).cpu()
        names = getattr(getattr(trainer, "datamodule", None), "class_names", ())
        log_figure(trainer, "val/confusion", confusion_figure(counts, names))

    def _due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0


def confusion_figure(counts: Tensor, class_names: tuple[str, ...] = ()) -> "Figure":
    """A confusion matrix, rows (true classes) in per cent.

    Args:
        counts: ``(num_classes, num_classes)``, true class by predicted class.
        class_names: Written at the axes of up to 20 classes.
    """
    from matplotlib.figure import Figure

    shares = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    num_classes = len(counts)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), vmin=0, vmax=100, cmap="Blues")
    figure.colorbar(image, label="% of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    if num_classes <= 20:
        labels = class_names if len(class_names) == num_classes else tuple(map(str, range(num_classes)))
        turn = 90 if max(map(len, labels)) > 2 else 0
        axes.set_xticks(range(num_classes), labels, rotation=turn)
        axes.set_yticks(range(num_classes), labels)
        for i in range(num_classes):
            for j in range(num_classes):
                colour = "white" if shares[i, j] > 60 else "black"
                axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def histogram_figure(histograms: Mapping[str, tuple[Tensor, Tensor]]) -> "Figure":
    """Histograms side by side.

    Args:
        histograms: By name, counts ``(bins,)`` and edges ``(bins + 1,)``.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(histograms))
    rows = -(-len(histograms) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, (counts, edges)) in zip(panels, histograms.items(), strict=False):
        axes.stairs(counts.numpy(), edges.numpy(), fill=True)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.ticklabel_format(axis="x", scilimits=(-2, 3))
    for axes in panels[len(histograms) :]:
        axes.set_visible(False)
    return figure


def _give_figure(logger: Logger, trainer: Trainer, name: str, figure: "Figure") -> bool:
    if isinstance(logger, WandbLogger):
        from wandb import Image

        logger.log_metrics({name: Image(figure)}, step=_step(trainer))  # type: ignore[dict-item]
        return True
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, _step(trainer))
        return True
    return False


def _give_histograms(logger: Logger, trainer: Trainer, histograms: Mapping[str, tuple[Tensor, Tensor]]) -> bool:
    if isinstance(logger, WandbLogger):
        from wandb import Histogram

        media = {n: Histogram(np_histogram=(c.numpy(), e.numpy())) for n, (c, e) in histograms.items()}
        logger.log_metrics(media, step=_step(trainer))  # type: ignore[arg-type]
        return True
    if isinstance(logger, TensorBoardLogger):
        for name, (counts, edges) in histograms.items():
            _add_histogram(logger.experiment, name, counts, edges, _step(trainer))
        return True
    return False


def _add_histogram(writer: Any, name: str, counts: Tensor, edges: Tensor, step: int) -> None:
    middles = (edges[1:] + edges[:-1]) / 2
    writer.add_histogram_raw(
        name,
        min=float(edges[0]),
        max=float(edges[-1]),
        num=int(counts.sum()),
        sum=float((counts * middles).sum()),
        sum_squares=float((counts * middles.square()).sum()),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )


def _step(trainer: Trainer) -> int:
    """Where metrics are logged at this moment: the batch, of which several may make one step of the optimizer."""
    return max(0, trainer.fit_loop.total_batch_idx)


def _leaves_nothing(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _save(trainer: Trainer, name: str, figure: "Figure") -> None:
    folder = run_folder(trainer) / "figures"
    try:
        with whole(folder / f"{name.replace('/', '_')}-step={_step(trainer)}.png") as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        _SAID.warn(f"figures are left out, {folder} cannot be written: {error.strerror}")
