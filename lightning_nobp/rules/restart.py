"""Where Lightning's loops stand after a resume, and what they would leave out."""

from typing import cast

from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher


def leave_ended_epoch(trainer: Trainer) -> None:
    """Let the loops begin the next epoch.

    Lightning would go on as if within the one that ended: callbacks would not hear of the start, and the counts in
    the next checkpoints would make another resumed run repeat an epoch.
    """
    fit_loop, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if loop.restarted_on_train_batch_end:
        loop.batch_progress.increment_completed()
    loop.batch_progress.reset_on_run()
    loop.reset_restart_stage()
    fit_loop.reset_restart_stage()


def is_validation_due(trainer: Trainer) -> bool:
    """Whether the run was stopped between a batch within an epoch and the validation after it."""
    fit_loop, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not loop.restarted_on_train_batch_end or loop.batch_progress.is_last_batch:
        return False
    return loop._should_check_val_fx(cast(_DataFetcher, fit_loop._data_fetcher))


def validate(trainer: Trainer) -> None:
    """Run a validation outside of its place in the loop."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
