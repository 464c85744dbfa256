"""CSV files of a run, in a folder of its own."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_nobp.files import naming, write_csv


class RunLogger(CSVLogger):
    """A CSVLogger that names the file that it cannot write, in which what it wrote before stays as it was."""

    @property
    def experiment(self) -> Any:
        """What writes the files, on the main process."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            self._experiment = _Writer(self.log_dir)
        return super().experiment


class _Writer(ExperimentWriter):
    """Lightning's own empties a file before it writes it anew, and leaves a part of a row."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._columns: list[str] = []

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the configuration.

        Raises:
            OSError: It cannot be written; names the file.
        """
        self.hparams.update(params)
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        part = path.with_name(f".{path.name}-part")
        with naming(path):
            try:
                save_hparams_to_yaml(part, self.hparams)
                os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def save(self) -> None:
        """Add what was logged since to the file.

        Raises:
            OSError: It cannot be written; names the file.
        """
        if not self.metrics:
            return
        self._record_new_keys()
        path = Path(self.metrics_file_path)
        if self._columns != self.metrics_keys:
            with naming(path):
                rows = _read(path)
            write_csv(path, self.metrics_keys, ([row.get(key) for key in self.metrics_keys] for row in rows))
            self._columns = list(self.metrics_keys)
        _append(path, self._columns, self.metrics)
        self.metrics = []


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(path: Path, columns: list[str], rows: list[dict[str, float]]) -> None:
    """Add all rows or none."""
    text = io.StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    with naming(path), path.open("ab", buffering=0) as file:
        before, content = file.tell(), memoryview(text.getvalue().encode())
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(before)
            raise


@rank_zero_only
def reserve(logger: CSVLogger | TensorBoardLogger) -> None:
    """Make the folder of a logger that numbers its runs, so that no other run takes the same number.

    To be called on every process; only the main one makes it.

    Args:
        logger: Whose number, if it was not given, is the first that is free.

    Raises:
        OSError: The folder cannot be made.
    """
    if logger._version is not None:
        return
    while True:
        try:
            os.makedirs(logger.log_dir)
        except FileExistsError:
            # Another run was faster: look again.
            logger._version = None
        else:
            return
