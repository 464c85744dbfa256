"""How far predicted orientations are off, in the frames of training and in others."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_nobp.functional.quaternion import rotation_angle, unpack
from lightning_nobp.rules.synchronisation import sum_over_ranks
from lightning_nobp.typed import Typed


class AttitudeError(Typed, Callback):
    """Log the mean angle in degrees between predicted and true orientations.

    Logged are ``val/angle``, and of the test set ``test/angle_known_frames`` and ``test/angle_any_frame``: samples
    from the frames of training, and from all. What no sample was of is not logged. It goes with
    :class:`~lightning_nobp.datamodules.AttitudeDataModule`, whose batches tell which a sample is.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(2, 2, dtype=torch.float64)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._sums = torch.zeros(2, 2, dtype=torch.float64)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        self._sums = torch.zeros(2, 2, dtype=torch.float64)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch."""
        self._count(outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch."""
        self._count(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean angle, over all ranks."""
        self._log(pl_module, (None, "val/angle"))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the mean angles, over all ranks."""
        self._log(pl_module, ("test/angle_any_frame", "test/angle_known_frames"))

    def _count(self, outputs: Any, batch: Any) -> None:
        scores = outputs.get("scores") if isinstance(outputs, Mapping) else None
        if scores is None or len(batch) < 3 or batch[2].dtype is not torch.bool:
            raise TypeError(
                "AttitudeError needs batches (inputs, orientations, from a known frame or not) and a rule that hands "
                "its outputs on, like QuaternionBackprop with AttitudeDataModule"
            )
        angle = rotation_angle(unpack(scores), unpack(batch[1])).double().mean(-1)
        for frame in (0, 1):
            chosen = angle[batch[2] == bool(frame)]
            self._sums[frame] += torch.stack([chosen.sum(), chosen.new_tensor(len(chosen))]).cpu()

    def _log(self, pl_module: LightningModule, names: tuple[str | None, str]) -> None:
        """Log the mean angle in degrees of the samples from other frames, and of those from known ones."""
        for name, (total, count) in zip(names, sum_over_ranks(self._sums), strict=True):
            if name is not None and count:
                pl_module.log(name, (total / count * (180 / math.pi)).float())
