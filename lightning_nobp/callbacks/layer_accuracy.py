"""How well each Forward-Forward layer knows the class."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.layer_goodness import is_due
from lightning_nobp.nn.forward_forward_network import ForwardForwardNetwork
from lightning_nobp.rules.forward_forward import ForwardForward
from lightning_nobp.rules.synchronisation import sum_over_ranks
from lightning_nobp.typed import Typed


class LayerAccuracy(Typed, Callback):
    """Log the validation accuracy of each layer's goodness alone, and of sums over the first layers.

    Logged are, for the layer of number n from 0, ``layer_accuracy/n``, and ``prefix_accuracy/n`` of the layers 0 to n.

    Args:
        every_n_epochs: Epochs from one measurement to the next.

    Raises:
        ValueError: ``every_n_epochs`` is not positive, or the network learns without labels.
        TypeError: The module is no ForwardForward.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs={every_n_epochs} must be at least 1")
        self.every_n_epochs = every_n_epochs
        self._right: Tensor | None = None
        self._samples = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a rule without goodness."""
        if not isinstance(pl_module, ForwardForward):
            raise TypeError(f"LayerAccuracy watches a ForwardForward rule, not a {type(pl_module).__name__}")
        if pl_module.negatives == "hybrid":
            raise ValueError("LayerAccuracy compares labels: with negatives='hybrid' the layers know none")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._right, self._samples = None, 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count what each layer gets right."""
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ForwardForward)
        x, target = batch[:2]
        goodness = outputs.get("layer_goodness") if isinstance(outputs, Mapping) else None
        if goodness is None or pl_module.predict_top_k is not None:
            network = pl_module.network
            assert isinstance(network, ForwardForwardNetwork)
            with pl_module.autocast():
                goodness = network.candidate_goodness(x)
        right = torch.stack([_right(goodness, target), _right(goodness.cumsum(-1), target)])
        self._right = right if self._right is None else self._right + right
        self._samples += len(target)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracies, over all ranks."""
        if self._right is None:
            return
        shares = sum_over_ranks(self._right) / sum_over_ranks(torch.tensor(self._samples, device=self._right.device))
        for name, layers in zip(("layer_accuracy", "prefix_accuracy"), shares.float(), strict=True):
            for number, value in enumerate(layers):
                pl_module.log(f"{name}/{number}", value)


def _right(goodness: Tensor, target: Tensor) -> Tensor:
    """How many samples each layer gets right, from ``(batch, num_classes, layers)``."""
    return (goodness.argmax(1) == target.unsqueeze(1)).sum(0)
