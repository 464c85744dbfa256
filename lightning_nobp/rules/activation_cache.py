"""What the layers fitted so far make of each sample, kept between passes over the data."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_nobp.files import naming


class CachedRows(NamedTuple):
    """What the cache holds of some samples."""

    maps: Tensor
    """Input of the next layer, ``(batch, channels, height, width)``, channels last in memory."""
    scores: Tensor
    """``(batch, num_classes)``."""
    features: Tensor | None
    """Of the last layer, ``(batch, features)``, if they are kept."""


class ActivationCache:
    """Rows by sample number, each with the layer it has reached.

    Args:
        rows: Number of samples.
        map_size: Most values in the maps of a sample.
        num_features: Most features of a sample, 0 to keep none.
        num_classes: Scores of a sample.
        dtype: Of maps and features.
        folder: Where files are kept (they vanish with the cache); None keeps everything in memory.

    Raises:
        OSError: There is no room on the disk; names the file.
    """

    def __init__(
        self,
        rows: int,
        map_size: int,
        num_features: int,
        num_classes: int,
        dtype: torch.dtype,
        folder: Path | None = None,
    ) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = None if folder is None else tempfile.TemporaryDirectory(prefix="nobp-cache-", dir=folder)
        make = _Rows if self._folder is None else _Files(Path(self._folder.name))
        self._maps = make(rows, map_size, dtype)
        self._features = make(rows, num_features, dtype) if num_features else None
        self._scores = make(rows, num_classes, torch.float64 if dtype is torch.float64 else torch.float32)
        self._reached = torch.zeros(rows, dtype=torch.int32)

    def reached(self, index: Tensor) -> int:
        """The layer that all of these samples have reached; 0 if they differ or are not there.

        Raises:
            ValueError: A number outside the cache.
        """
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self._reached):
            raise ValueError(
                f"sample numbers from {int(index.min())} to {int(index.max())} do not fit {len(self._reached)} rows: "
                "number the samples of the data set from 0"
            )
        found = self._reached[index]
        return int(found[0]) if len(found) and bool((found == found[0]).all()) else 0

    def refuse_second_visit(self, index: Tensor, layer: int) -> None:
        """Refuse samples that this layer has kept already: no two may have the same number.

        Raises:
            ValueError: Names one.
        """
        numbers, counts = index.unique(return_counts=True)  # type: ignore[no-untyped-call]
        twice = (counts > 1) | (self._reached[numbers] == layer)
        if twice.any():
            raise ValueError(
                f"row {int(numbers[twice][0])} of the cache is asked for twice in a pass: two samples have the same "
                "number. Number the samples of the data set from 0"
            )

    def read(self, index: Tensor, shape: tuple[int, ...], num_features: int) -> CachedRows:
        """Rows of samples that have all been written.

        Args:
            index: Numbers of the samples ``(batch,)``, on the CPU.
            shape: ``(channels, height, width)`` of their maps.
            num_features: Features of their layer.
        """
        channels, height, width = shape
        flat = self._maps.read(index, channels * height * width)
        maps = flat.view(-1, height, width, channels).permute(0, 3, 1, 2)
        features = None if self._features is None else self._features.read(index, num_features)
        return CachedRows(maps, self._scores.read(index, self._scores.width), features)

    def write(self, index: Tensor, layer: int, rows: CachedRows) -> None:
        """Keep what samples have reached.

        Args:
            index: Numbers of the samples ``(batch,)``, on the CPU.
            layer: That gave the maps.
            rows: To keep.
        """
        self._reached[index] = 0
        self._maps.write(index, rows.maps.permute(0, 2, 3, 1).flatten(1))
        self._scores.write(index, rows.scores)
        if self._features is not None and rows.features is not None:
            self._features.write(index, rows.features)
        self._reached[index] = layer

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()


class _Rows:
    """Rows of numbers in memory."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        self.width = width
        self._values = torch.empty(rows, width, dtype=dtype)

    def read(self, index: Tensor, width: int) -> Tensor:
        return self._values[index, :width]

    def write(self, index: Tensor, values: Tensor) -> None:
        self._values[index, : values.shape[1]] = values.to(self._values)


class _Files:
    """Makes rows of numbers in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, rows: int, width: int, dtype: torch.dtype) -> "_FileRows":
        return _FileRows(self._folder / f"{len(list(self._folder.iterdir()))}.rows", rows, width, dtype)


class _FileRows(_Rows):
    """Rows of numbers in a file, which is mapped into memory only while it is read or written."""

    def __init__(self, path: Path, rows: int, width: int, dtype: torch.dtype) -> None:
        self.width = width
        self._path, self._dtype, self._shape = path, dtype, (rows, width * dtype.itemsize)
        with naming(path), path.open("wb") as file:
            size = rows * width * dtype.itemsize
            # Writing through a mapping to a full disk would kill the process: the room is taken now.
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)

    def _mapped(self) -> "np.memmap[tuple[int, int], np.dtype[np.uint8]]":
        return np.memmap(self._path, dtype=np.uint8, mode="r+", shape=self._shape)

    def read(self, index: Tensor, width: int) -> Tensor:
        found = self._mapped()[index.numpy(), : width * self._dtype.itemsize]
        return torch.from_numpy(np.ascontiguousarray(found)).view(self._dtype)

    def write(self, index: Tensor, values: Tensor) -> None:
        raw = values.to("cpu", self._dtype).contiguous().view(torch.uint8).numpy()
        self._mapped()[index.numpy(), : raw.shape[1]] = raw
