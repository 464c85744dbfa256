"""The newest state of a run, also of one that is stopped."""

import os
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

PREVIOUS = "previous.ckpt"
"""The checkpoint before the last."""


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt`` up to date: after each validation, at the end, and when a signal stops the run.

    ``save_last`` of the checkpoint that keeps the best epoch writes it only when that epoch is beaten. The file before
    it stays as ``previous.ckpt``, so that a file which the disk spoils costs no more than one validation's worth of
    training.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        # The newest need not be the best: loggers that keep checkpoints call them by these names.
        self.last_model_path, self.best_model_path = filepath, ""
        kept = _keep(Path(filepath)) if trainer.is_global_zero else None
        try:
            super()._save_checkpoint(trainer, filepath)
        except BaseException:
            if kept is not None:
                kept.unlink()
            raise
        if kept is not None:
            os.replace(kept, kept.with_name(PREVIOUS))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was trained since the last validation, which the run may never have reached."""
        self._save_now(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what was trained when SIGTERM came; other errors strike within a step, from where nothing resumes."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        if not (isinstance(exception, SIGTERMException) and batches):
            return
        if trainer.validating:
            _stand_before_validation(trainer)
        self._save_now(trainer)

    def _save_now(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def _keep(path: Path) -> Path | None:
    """A second name of a file that is about to be replaced, for when it is; None if there is no such file."""
    if not path.is_file():
        return None
    # No *.ckpt, which it becomes when the new one is written.
    kept = path.with_name(f".{PREVIOUS}-kept")
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:
        # A file system without second names.
        os.replace(path, path.with_name(PREVIOUS))
        return None
    return kept


def _stand_before_validation(trainer: Trainer) -> None:
    """Let the loops stand where the batch before the validation ended: metrics of half a validation are not kept."""
    batch, evaluated = trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop.epoch_loop.val_loop.batch_progress
    for count in (batch.total, batch.current):
        # The last thing that Lightning does after a batch.
        count.completed -= 1
    for name in ("ready", "started", "processed", "completed"):
        setattr(evaluated.total, name, getattr(evaluated.total, name) - getattr(evaluated.current, name))
    evaluated.reset_on_run()
