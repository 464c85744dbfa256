"""The spikes of one sample, from inputs to outputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.figures import log_figure
from lightning_nobp.typed import Typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SpikeRaster(Typed, Callback):
    """Draw when the neurons of each layer spike for a validation sample, as ``val/spikes``.

    It goes with :class:`~lightning_nobp.rules.SpikeTimingBackprop`, which hands on the spikes. The output neuron of the
    right class is drawn in colour.

    Args:
        every_n_epochs: Epochs from one figure to the next.
        sample: Number of the sample in the first validation batch.
        most_neurons: Of a layer with more, so many are drawn: those that spike most, and none that are silent.

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a rule without spikes."""
        if not hasattr(pl_module, "spike_names"):
            raise TypeError(
                f"SpikeRaster needs a rule that hands on spikes, like SpikeTimingBackprop, not a "
                f"{type(pl_module).__name__}"
            )

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the spikes of the sample."""
        if batch_idx:
            return
        if self.sample >= len(batch[0]):
            raise ValueError(f"sample={self.sample}: the first validation batch has {len(batch[0])} samples")
        if trainer.sanity_checking or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        trains = [outputs[name] for name in outputs if name.startswith("spikes/")]
        self._layers = [train[self.sample].detach().cpu().flatten(0, -2) for train in trains]
        self._names = cast(Any, pl_module).spike_names()
        self._label = int(batch[1][self.sample])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        layers, self._layers = self._layers, []
        if layers and trainer.is_global_zero:
            figure = raster_figure(layers, self._label, self.most_neurons, self._names)
            log_figure(trainer, "val/spikes", figure)


def raster_figure(
    layers: list[Tensor], label: int | None = None, most_neurons: int = 200, names: Sequence[str] | None = None
) -> "Figure":
    """Spike times of layers above each other, inputs below and outputs above.

    Args:
        layers: Of each ``(neurons, spikes)``, padded with infinity, from inputs to outputs.
        label: The right class, whose output neuron is drawn in colour; None for none.
        most_neurons: Of a layer with more, so many are drawn: those that spike most, and none that are silent.
        names: Of the layers; None for inputs, hidden ones and outputs.
    """
    # Imported where something is drawn: it takes half a second.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 1.8 * len(layers) + 0.6), layout="constrained")
    figure.suptitle("" if label is None else f"class {label}", fontsize=9)
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    names = names or ["inputs", *(f"hidden {n}" for n in range(1, len(layers) - 1)), "outputs"][: len(layers)]
    for axes, name, spikes in zip(panels[::-1], names, layers, strict=True):
        drawn = _most_active(spikes, most_neurons)
        times = [row[row < torch.inf].tolist() for row in spikes[drawn]]
        colors = ["C3" if name == "outputs" and n == label else "black" for n in drawn.tolist()]
        if times:
            # As thick as they must be to be seen, and no taller than the distance of neighbours.
            axes.eventplot(times, lineoffsets=drawn.tolist(), colors=colors, linelengths=max(0.8, len(spikes) / 80))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(f"{name}\n{len(drawn)} of {len(spikes)}", fontsize=8)
        axes.set_title(f"{sum(map(len, times))} of {int((spikes < torch.inf).sum())} spikes", fontsize=8, loc="right")
    panels[-1].set_xlabel("time")
    return figure


def _most_active(spikes: Tensor, most: int) -> Tensor:
    """Numbers of the neurons to be drawn, in order: all if there are few, else those that spike most."""
    if len(spikes) <= most:
        return torch.arange(len(spikes))
    counts = (spikes < torch.inf).sum(1)
    strongest = counts.argsort(descending=True, stable=True)[:most]
    return strongest[counts[strongest] > 0].sort().values
