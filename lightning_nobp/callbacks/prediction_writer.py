"""Predictions as a table in a file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_nobp.callbacks.run_folder import run_folder
from lightning_nobp.checkpoints import save_whole
from lightning_nobp.datamodules.sampler import EpochBatchSampler
from lightning_nobp.files import whole, write_csv
from lightning_nobp.rules.synchronisation import gather_from_ranks

MOST_OUTPUTS = 1000
"""Of one sample that still make a table."""


class PredictionWriter(BasePredictionWriter):
    """Write what ``trainer.predict`` finds: one row a sample, in the order of the data set.

    Columns: ``index`` (the sample's number in the data set; left out, with a warning, where several processes share
    a loader that does not say it), ``prediction`` (the likeliest class), ``target`` where the data know it, and
    ``probability_0``, ``probability_1``, ... Without classes these are ``output_0``, ... and ``target_0``, ... The file
    appears complete or not at all; several processes write one.

    Args:
        path: A ``.csv`` or ``.parquet`` file (Parquet needs pyarrow: ``pip install 'lightning-nobp[parquet]'``), or,
            for images and other maps, a ``.pt`` file for ``torch.load``: a dictionary of tensors ``index``,
            ``output`` and so on, in their shapes. None for ``predictions.csv`` in the run's folder.

    Raises:
        ValueError: Another suffix; in prediction: outputs of more than 1000 numbers a sample for a table.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("batch_and_epoch")
        if path is not None and Path(path).suffix not in _WRITERS:
            raise ValueError(f"path={path!r} must end in .csv, .parquet or .pt")
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
        if not _classifies(pl_module) and not str(self.path).endswith(".pt"):
            _check_fits_a_table(prediction)
        if not isinstance(batch, Tensor) and len(batch) > 1:
            self._targets.append(_plain(batch[1]))

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Any
    ) -> None:
        """Gather the rows of all processes and write them."""
        outputs = torch.cat([_plain(p) for p in predictions])
        targets = torch.cat(self._targets) if self._targets else None
        indices = _indices(trainer, batch_indices, len(outputs))
        parts = gather_from_ranks((indices, outputs, targets))
        if not trainer.is_global_zero:
            return
        found = _in_order(parts, _classifies(pl_module))
        path = Path(self.path) if self.path is not None else run_folder(trainer) / "predictions.csv"
        _WRITERS[path.suffix](path, found)
        # Below the progress bar, which is still open.
        print(f"\n{sum(len(p[1]) for p in parts)} predictions: {path}")


def _classifies(rule: LightningModule) -> bool:
    return getattr(rule, "classifies", True)


def _check_fits_a_table(outputs: Tensor) -> None:
    if outputs[0].numel() > MOST_OUTPUTS:
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape[1:])} make no table: write a .pt file, which keeps their shape, "
            "PredictionWriter('predictions.pt') or --predictions.path=predictions.pt"
        )


def _plain(tensor: Tensor) -> Tensor:
    """In memory, and in a type that every format knows."""
    return tensor.float().cpu() if tensor.is_floating_point() else tensor.cpu()


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


def _in_order(parts: Sequence[tuple[Tensor | None, Tensor, Tensor | None]], classifies: bool) -> dict[str, Tensor]:
    """What each process found, as one tensor a name, in the order of the data."""
    indices, outputs, targets = (_join(column) for column in zip(*parts, strict=True))
    assert outputs is not None
    found = {"prediction": outputs.argmax(-1)} if classifies else {"output": outputs}
    if targets is not None:
        found["target"] = targets
    if classifies:
        found["probability"] = outputs
    if indices is None:
        warnings.warn(
            "the predictions have no column 'index': their loader does not say which samples it gives to which "
            "process. Predict on one process, or with a DataLoader or a data module of this package",
            stacklevel=2,
        )
        return found
    order = indices.argsort()
    return {name: tensor[order] for name, tensor in ({"index": indices} | found).items()}


def _join(tensors: Sequence[Tensor | None]) -> Tensor | None:
    known = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(known) if len(known) == len(tensors) else None


def _columns(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Columns of a table; what is several numbers a sample makes several, numbered."""
    columns: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if tensor.dim() == 1:
            columns[name] = tensor
        else:
            columns |= {f"{name}_{k}": column for k, column in enumerate(tensor.flatten(1).unbind(1))}
    return columns


def _write_csv(path: Path, found: dict[str, Tensor]) -> None:
    columns = _columns(found)
    write_csv(path, columns, zip(*(column.tolist() for column in columns.values()), strict=True))


def _write_parquet(path: Path, found: dict[str, Tensor]) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {name: column.contiguous().numpy() for name, column in _columns(found).items()}
    with whole(path) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet, ".pt": save_whole}
