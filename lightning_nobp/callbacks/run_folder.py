"""Where a run keeps its files."""

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run, in which ModelCheckpoint puts ``checkpoints``.

    ``<save_dir>/<name>/<version>`` of the first logger, without a logger the Trainer's ``default_root_dir``. Ask on
    the main process: others may number their versions otherwise.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name or "") / version
