"""The spikes of one sample, from inputs to outputs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.figures import log_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SpikeRaster(Callback):
    """Draw when the neurons of each layer spike for a validation sample, as ``val/spikes``.

    It goes with :class:`~lightning_nobp.rules.SpikeTimingBackprop`, which hands on the spikes.

    Args:
        every_n_epochs: Epochs from one figure to the next.
        sample: Number of the sample in the first validation batch.
        most_neurons: Of each layer so many are drawn, those that spike most.

    Raises:
        ValueError: An argument out of range, or a sample that the batch does not have.
        TypeError: A rule that hands on no spikes.
    """

    def __init__(self, every_n_epochs: int = 1, sample: int = 0, most_neurons: int = 200) -> None:
        for name, value, least in (("every_n_epochs", every_n_epochs, 1), ("sample", sample, 0)):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if most_neurons < 1:
            raise ValueError(f"most_neurons={most_neurons} must be at least 1")
        self.every_n_epochs, self.sample, self.most_neurons = every_n_epochs, sample, most_neurons
        self._layers: list[Tensor] = []
        self._names: list[str] = []
        self._label = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the spikes of the sample."""
        if batch_idx or trainer.sanity_checking or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        if not (isinstance(outputs, Mapping) and "spikes/0" in outputs):
            raise TypeError("SpikeRaster needs a rule that hands on spikes, like SpikeTimingBackprop")
        if self.sample >= len(batch[0]):
            raise ValueError(f"sample={self.sample}: the first validation batch has {len(batch[0])} samples")
        trains = [outputs[name] for name in outputs if name.startswith("spikes/")]
        self._layers = [train[self.sample].detach().cpu().flatten(0, -2) for train in trains]
        self._names = cast(Any, pl_module).spike_names()
        self._label = int(batch[1][self.sample])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        layers, self._layers = self._layers, []
        if layers and trainer.is_global_zero:
            log_figure(
                trainer, "val/spikes", raster_figure(layers, f"class {self._label}", self.most_neurons, self._names)
            )


def raster_figure(
    layers: list[Tensor], title: str = "", most_neurons: int = 200, names: Sequence[str] | None = None
) -> "Figure":
    """Spike times of layers above each other, inputs below and outputs above.

    Args:
        layers: Of each ``(neurons, spikes)``, padded with infinity, from inputs to outputs.
        title: Of the figure.
        most_neurons: Of each layer so many are drawn, those that spike most.
        names: Of the layers; None for inputs, hidden ones and outputs.
    """
    # Imported where something is drawn: it takes half a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.8 * len(layers) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    names = names or ["inputs", *(f"hidden {n}" for n in range(1, len(layers) - 1)), "outputs"][: len(layers)]
    for axes, name, spikes in zip(panels[::-1], names, layers, strict=True):
        drawn = spikes[_most_active(spikes, most_neurons)]
        axes.eventplot([row[row < torch.inf].tolist() for row in drawn], colors="black", linelengths=0.8)
        total = int((spikes < torch.inf).sum())
        axes.set_ylabel(f"{name}\n{len(drawn)} of {len(spikes)}", fontsize=8)
        axes.set_title(f"{total} spikes", fontsize=8, loc="right")
    panels[-1].set_xlabel("time")
    return figure


def _most_active(spikes: Tensor, most: int) -> Tensor:
    """Numbers of the neurons that spike most, in order."""
    counts = (spikes < torch.inf).sum(1)
    return counts.argsort(descending=True, stable=True)[:most].sort().values
