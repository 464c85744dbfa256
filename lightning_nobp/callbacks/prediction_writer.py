"""Predictions as a table in a file."""

import csv
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_nobp.callbacks.run_folder import run_folder
from lightning_nobp.datamodules.sampler import EpochBatchSampler
from lightning_nobp.rules.synchronisation import gather_from_ranks


class PredictionWriter(BasePredictionWriter):
    """Write what ``trainer.predict`` finds: one row a sample, in the order of the data set.

    Columns: ``index``, ``prediction`` (the likeliest class), ``target`` where the data know it, and
    ``probability_0``, ``probability_1``, ... The file appears complete or not at all; several processes write one.

    Args:
        path: A ``.csv`` or ``.parquet`` file (Parquet needs pyarrow: ``pip install 'lightning-nobp[parquet]'``);
            None for ``predictions.csv`` in the run's folder.

    Raises:
        ValueError: Another suffix.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("batch_and_epoch")
        if path is not None and Path(path).suffix not in (".csv", ".parquet"):
            raise ValueError(f"path={path!r} must end in .csv or .parquet")
        self.path = path
        self._targets: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out now whether Parquet can be written."""
        if stage == "predict" and self.path is not None and self.path.endswith(".parquet"):
            try:
                import pyarrow  # noqa: F401
            except ImportError as error:
                raise ImportError(f"{self.path} needs pyarrow: pip install 'lightning-nobp[parquet]'") from error

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._targets = []

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, batch_indices: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the targets, which the predictions do not hold."""
        if not isinstance(batch, Tensor) and len(batch) > 1:
            self._targets.append(batch[1].cpu())

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Any
    ) -> None:
        """Gather the rows of all processes and write them."""
        probabilities = torch.cat([p.float().cpu() for p in predictions])
        targets = torch.cat(self._targets) if self._targets else None
        parts = gather_from_ranks((_indices(trainer, len(probabilities)), probabilities, targets))
        if not trainer.is_global_zero:
            return
        order = torch.cat([p[0] for p in parts]).argsort()
        columns: dict[str, Tensor] = {"index": torch.cat([p[0] for p in parts])[order]}
        probabilities = torch.cat([p[1] for p in parts])[order]
        columns["prediction"] = probabilities.argmax(-1)
        if targets is not None:
            columns["target"] = torch.cat([p[2] for p in parts])[order]
        columns |= {f"probability_{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
        path = Path(self.path) if self.path is not None else run_folder(trainer) / "predictions.csv"
        _write(path, columns)
        print(f"{len(order)} predictions: {path}")


def _indices(trainer: Trainer, count: int) -> Tensor:
    """Numbers of this process's samples in the data set."""
    sampler = getattr(trainer.predict_dataloaders, "batch_sampler", None)
    if not isinstance(sampler, EpochBatchSampler):
        return torch.arange(count)
    return torch.tensor(sampler.indices()[:count])


def _write(path: Path, columns: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        _WRITERS[path.suffix](Path(part), columns)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _write_csv(path: Path, columns: dict[str, Tensor]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def _write_parquet(path: Path, columns: dict[str, Tensor]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({name: column.numpy() for name, column in columns.items()}), path)


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet}
