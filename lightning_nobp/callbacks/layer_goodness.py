"""What Forward-Forward layers make of right and wrong labels."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_nobp.callbacks.figures import log_figure
from lightning_nobp.nn.forward_forward import LayerPass
from lightning_nobp.rules.forward_forward import ForwardForward
from lightning_nobp.rules.random_state import RankGenerator
from lightning_nobp.rules.synchronisation import gather_from_ranks, sum_over_ranks
from lightning_nobp.typed import Typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LayerGoodness(Typed, Callback):
    """Log each layer's goodness for positives and negatives of the validation set.

    Logged are, for the layer of number n from 0, ``goodness/n/positive`` and ``goodness/n/negative`` (means),
    ``goodness/n/margin`` (their difference), ``goodness/n/pair_accuracy`` (how often a positive's is above its
    negative's) and ``goodness/n/dead_units`` (fraction of units, or channels, whose activity is zero on every sample),
    and a figure with both distributions. Negatives are made as in training; with ``loss='class_softmax'``, a sample's
    negative is its wrong label of highest goodness.

    Args:
        every_n_epochs: Epochs from one measurement to the next.
        figure: Whether to draw the distributions.
        bins: Of each distribution.
        seed: Of the negatives, which are the same at every measurement as far as the network's goodness is.

    Raises:
        ValueError: ``every_n_epochs`` or ``bins`` is not positive.
        TypeError: The module is no ForwardForward.
    """

    def __init__(self, every_n_epochs: int = 1, figure: bool = True, bins: int = 40, seed: int = 0) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("bins", bins)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.every_n_epochs, self.figure, self.bins, self.seed = every_n_epochs, figure, bins, seed
        self._generator = RankGenerator(seed)
        self._layers: list[_LayerRecord] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a rule without goodness."""
        if not isinstance(pl_module, ForwardForward):
            raise TypeError(f"LayerGoodness watches a ForwardForward rule, not a {type(pl_module).__name__}")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._layers = []
        self._generator = RankGenerator(self.seed)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Take in the pairs of a batch."""
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ForwardForward)
        every_label = pl_module.loss == "class_softmax"
        with pl_module.autocast():
            for number, current in enumerate(pl_module.contrast(batch, self._generator)):
                if number == len(self._layers):
                    self._layers.append(_LayerRecord())
                self._layers[number].add(current, batch[1] if every_label else None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log and draw."""
        if not self._layers:
            return
        for number, layer in enumerate(self._layers):
            for name, value in layer.summary().items():
                pl_module.log(f"goodness/{number}/{name}", value)
        if self.figure:
            pairs = [layer.pairs() for layer in self._layers]
            log_figure(trainer, "val/goodness", goodness_figure(pairs, self.bins))


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether a validation is one of those that are measured: every so many epochs of a fit, and any other."""
    if trainer.sanity_checking:
        return False
    return trainer.state.fn != TrainerFn.FITTING or (trainer.current_epoch + 1) % every_n_epochs == 0


class _LayerRecord:
    """Pairs of goodness, and which units were ever active."""

    def __init__(self) -> None:
        self._pairs: list[Tensor] = []
        self._active: Tensor | None = None

    def add(self, current: LayerPass, target: Tensor | None) -> None:
        """Take in a batch of pairs, or of all labels with the right ones, ``target``."""
        goodness = current.goodness()
        if target is not None:
            right = target.long().unsqueeze(0)
            positive = goodness.gather(0, right)[0]
            goodness = torch.stack([positive, goodness.scatter(0, right, -torch.inf).amax(0)])
        self._pairs.append(goodness.cpu())
        active = (current.h != 0).any(0)
        active = active.flatten(1).any(1) if active.dim() > 1 else active
        self._active = active if self._active is None else self._active | active

    def pairs(self) -> Tensor:
        """Positive and negative goodness of all ranks, ``(2, samples)``."""
        return torch.cat(gather_from_ranks(torch.cat(self._pairs, 1)), 1)

    def summary(self) -> dict[str, Tensor]:
        assert self._active is not None
        mine = torch.cat(self._pairs, 1).double()
        sums = torch.stack([*mine.sum(1), (mine[0] > mine[1]).sum(), torch.tensor(mine.shape[1])])
        positive, negative, right, count = sum_over_ranks(sums)
        active = sum_over_ranks(self._active.float()) > 0
        values = {"positive": positive, "negative": negative, "margin": positive - negative, "pair_accuracy": right}
        return {n: (v / count).float() for n, v in values.items()} | {"dead_units": 1 - active.float().mean()}


def goodness_figure(pairs: list[Tensor], bins: int = 40) -> "Figure":
    """Distributions of positive and negative goodness, a panel a layer.

    Args:
        pairs: Of each layer, ``(2, samples)``: positive, negative.
        bins: Of each distribution.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(pairs), 2.8), layout="constrained")
    for number, (axes, (positive, negative)) in enumerate(
        zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True)
    ):
        limits = float(min(positive.min(), negative.min())), float(max(positive.max(), negative.max()))
        for values, name in ((positive, "positive"), (negative, "negative")):
            axes.hist(values.numpy(), bins=bins, range=limits, alpha=0.6, label=name)
        axes.set(title=f"layer {number}", xlabel="goodness", yticks=[])
    figure.axes[0].legend()
    return figure
