"""Stop a network's growth where it no longer helps."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lightning_nobp.callbacks.growth import check_growth
from lightning_nobp.rules.residual_compensation import ResidualCompensation
from lightning_nobp.typed import Typed


class StopWhenNoGain(Typed, EarlyStopping):
    """Stop adding layers when they no longer help on the validation set, and keep those up to the best.

    Args:
        monitor: Logged value to watch; ``'val/accuracy'`` with ``mode='max'`` stops earlier, since small validation
            sets have many ties.
        mode: Whether it is to become as large (``'max'``) or as small (``'min'``) as possible.
        min_delta: Least change that counts as gain.
        patience: Layers without gain after which to stop.

    Raises:
        MisconfigurationException: The module is no ResidualCompensation, or its layers are solved together.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", min_delta: float = 0.0, patience: int = 3
    ) -> None:
        # Checked after validation: a network without layers is nothing to compare with.
        options = {"min_delta": min_delta, "patience": patience, "check_on_train_epoch_end": False}
        super().__init__(monitor, mode=mode, **options)  # type: ignore[arg-type]
        self.best_depth = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a rule whose network does not grow."""
        super().setup(trainer, pl_module, stage)
        check_growth(self, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget another fit."""
        assert isinstance(pl_module, ResidualCompensation)
        if pl_module.stage == 0:
            self.best_depth, self.wait_count = 0, 0
            self.best_score = torch.tensor(-math.inf if self.mode == "max" else math.inf)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, once there is a layer."""
        assert isinstance(pl_module, ResidualCompensation)
        if trainer.sanity_checking or not pl_module.rescnet.num_fitted:
            return
        super().on_validation_end(trainer, pl_module)
        if self.wait_count == 0:
            self.best_depth = pl_module.rescnet.num_fitted
        if trainer.should_stop:
            # Before any checkpoint of this validation is written.
            pl_module.rescnet.num_fitted = self.best_depth

    def state_dict(self) -> dict[str, Any]:
        """Of early stopping, and the best depth."""
        return super().state_dict() | {"best_depth": self.best_depth}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best_depth = state_dict["best_depth"]
        super().load_state_dict(state_dict)
