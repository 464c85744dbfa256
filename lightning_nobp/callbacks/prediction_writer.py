"""Predictions as a table in a file."""

import csv
import os
import tempfile
import warnings
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

    Columns: ``index`` (the sample's number in the data set; left out, with a warning, where several processes share
    a loader that does not say it), ``prediction`` (the likeliest class), ``target`` where the data know it, and
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
        indices = _indices(trainer, batch_indices, len(probabilities))
        parts = gather_from_ranks((indices, probabilities, targets))
        if not trainer.is_global_zero:
            return
        columns = _columns(parts)
        path = Path(self.path) if self.path is not None else run_folder(trainer) / "predictions.csv"
        _write(path, columns)
        # Below the progress bar, which is still open.
        print(f"\n{len(columns['prediction'])} predictions: {path}")


def _indices(trainer: Trainer, batch_indices: Any, count: int) -> Tensor | None:
    """Numbers of this process's samples in the data set; None if nobody knows them."""
    # Lightning notes them by loader and batch, for those loaders whose sampler it could wrap.
    noted = [sample for batches in batch_indices for batch in batches for sample in batch]
    if len(noted) == count:
        return torch.tensor(noted)
    sampler = getattr(trainer.predict_dataloaders, "batch_sampler", None)
    if isinstance(sampler, EpochBatchSampler):
        return torch.tensor(sampler.indices()[:count])
    return torch.arange(count) if trainer.world_size == 1 else None


def _columns(parts: Sequence[tuple[Tensor | None, Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """The table, of what each process found: indices, probabilities and targets."""
    indices, probabilities, targets = (_join(column) for column in zip(*parts, strict=True))
    assert probabilities is not None
    columns: dict[str, Tensor] = {}
    order = torch.arange(len(probabilities))
    if indices is None:
        warnings.warn(
            "the predictions have no column 'index': their loader does not say which samples it gives to which "
            "process. Predict on one process, or with a DataLoader or a data module of this package",
            stacklevel=2,
        )
    else:
        order = indices.argsort()
        columns["index"] = indices[order]
    probabilities = probabilities[order]
    columns["prediction"] = probabilities.argmax(-1)
    if targets is not None:
        columns["target"] = targets[order]
    return columns | {f"probability_{k}": probabilities[:, k] for k in range(probabilities.shape[1])}


def _join(tensors: Sequence[Tensor | None]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known) if len(known) == len(tensors) else None


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
