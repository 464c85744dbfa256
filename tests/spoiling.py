"""What happens to files while they are used."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Spoil(Callback):
    """Truncates or deletes a file when an epoch begins.

    Args:
        path: The file.
        how: ``truncate`` or ``delete``.
        epoch: Which.
    """

    def __init__(self, path: str, how: str, epoch: int = 1) -> None:
        self.path, self.how, self.epoch = Path(path), how, epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            if self.how == "delete":
                self.path.unlink()
            else:
                self.path.write_bytes(self.path.read_bytes()[:100])
