"""The best value of a run, where W&B's tables and reports look for it."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_nobp.typed import Typed


class BestInSummary(Typed, Callback):
    """Keep what the best checkpoint reached in the summary of a W&B run, as ``best/val/accuracy``.

    The summary of a run has the last value of everything else. The name is that of the value that the first
    ``ModelCheckpoint`` monitors; without one there is no best.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it."""
        self._note(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was saved after the last epoch."""
        self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        if monitor is None or best is None or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary[f"best/{monitor}"] = float(best)
