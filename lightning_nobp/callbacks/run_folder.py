"""Where a run keeps its files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_nobp import files


def write_csv(trainer: Trainer, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table into the folder of this run.

    Args:
        trainer: The running trainer, on the main process.
        name: Of the file.
        columns: In order; a row may lack some.
        rows: By column.
    """
    files.write_csv(run_folder(trainer) / name, columns, ([row.get(column) for column in columns] for row in rows))


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
