"""Time series of several nodes in files."""

import csv
import math
import zipfile
from array import array
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_LAYOUT = "a column a number, <node>.<component> (a.x,a.y,b.x,b.y), and 'time' and 'trajectory' if there are such"

_INFLATED_BYTES, _INFLATED_TIMES = 2**30, 100


class Series(NamedTuple):
    """What a file holds.

    Attributes:
        trajectories: Each ``(time, nodes, components)``, float64.
        times: Of the samples of each trajectory ``(time,)``; None where the file does not tell.
        nodes: Their names.
        weights: True weights ``(nodes, nodes)``, or None.
    """

    trajectories: list[Tensor]
    times: list[Tensor | None]
    nodes: tuple[str, ...]
    weights: Tensor | None = None


def read_series(path: Path) -> Series:
    """The series of a ``.csv``, ``.parquet``, ``.npz`` or ``.npy`` file.

    Raises:
        ValueError: There is no such file, or it has another layout.
        ImportError: Parquet without pyarrow.
    """
    if not path.is_file():
        raise ValueError(f"path={str(path)!r}: there is no such file")
    if path.suffix == ".csv":
        return _from_table(path, _read_csv(path))
    if path.suffix == ".parquet":
        return _from_table(path, _read_parquet(path))
    if path.suffix in (".npy", ".npz"):
        return _from_array(path, _read_arrays(path))
    raise ValueError(f"path={str(path)!r}: the file must end in .csv, .parquet, .npz or .npy")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {"x": np.lib.format.read_array(file)}
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        _check_size(path, size)
        with np.load(path) as found:
            return {name: found[name] for name in found.files}
    except _TooLargeError:
        raise
    except Exception as error:  # of zip files, of zlib, of numpy: none of them names the file
        raise ValueError(f"{path} is damaged, or no file of arrays: {error}") from error


class _TooLargeError(ValueError):
    pass


def _check_size(path: Path, size: int) -> None:
    """Refuse what a small file would fill the memory with; measured numbers are never so alike."""
    if size > max(_INFLATED_BYTES, _INFLATED_TIMES * path.stat().st_size):
        raise _TooLargeError(
            f"{path} would unpack to {size / 2**30:.0f} GiB, over {_INFLATED_TIMES} times its size: it is refused. If "
            "that is what you measured, save it as .npy"
        )


def _numbers(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {name} holds {array.dtype}, not numbers")
    return array.astype(np.float64)


def _from_array(path: Path, arrays: dict[str, np.ndarray]) -> Series:
    if "x" not in arrays:
        raise ValueError(f"{path} holds {', '.join(arrays)}, but no array x (time, nodes, components)")
    x = torch.from_numpy(_numbers(path, "x", arrays["x"]))
    if x.dim() not in (3, 4) or 0 in x.shape:
        raise ValueError(
            f"{path}: x of shape {tuple(x.shape)}: give (time, nodes, components), or (trajectories, time, nodes, "
            "components)"
        )
    time = torch.from_numpy(_numbers(path, "time", arrays["time"])) if "time" in arrays else None
    trajectories = [x] if x.dim() == 3 else list(x)
    if time is not None and time.shape != trajectories[0].shape[:1]:
        raise ValueError(f"{path}: time of shape {tuple(time.shape)} does not fit {len(trajectories[0])} samples")
    weights = torch.from_numpy(_numbers(path, "weights", arrays["weights"])) if "weights" in arrays else None
    nodes = tuple(str(node) for node in range(x.shape[-2]))
    return Series(trajectories, [time] * len(trajectories), nodes, weights)


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        # Spreadsheets mark UTF-8 at the start of a file.
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            _check_header(path, header)
            values = array("d")
            for row in lines:
                values.extend(_read_row(path, row, lines.line_num, len(header)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table of UTF-8 text: {error}") from error
    if not values:
        raise ValueError(f"{path} has no rows below its header")
    return dict(zip(header, np.array(values).reshape(-1, len(header)).T, strict=True))


def _read_row(path: Path, row: list[str], line: int, columns: int) -> list[float]:
    """Its numbers, and nan for what is none; nothing of an empty line or a comment."""
    comment = next((k for k, cell in enumerate(row) if "#" in cell), None)
    if comment is not None:
        row = [*row[:comment], row[comment].partition("#")[0]]
    if len(row) < 2 and not "".join(row).strip():
        return []
    if len(row) != columns:
        raise ValueError(f"{path}: {columns} names in the header, but {len(row)} columns in line {line}")
    return [_number(cell) for cell in row]


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise ValueError(f"{path} is empty. Give {_LAYOUT}")
    if not any(math.isnan(_number(name)) for name in header):
        raise ValueError(f"{path} has no header: its first row must name the columns. Give {_LAYOUT}")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise ValueError(f"{path}: columns must be separated by commas, not as in {header[0][:40]!r}")
    twice = next((name for name, count in Counter(header).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two columns are called {twice!r}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        from pyarrow import parquet, types
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow: pip install 'lightning-nobp[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            text = next((column for column in file.schema_arrow if not types.is_primitive(column.type)), None)
            if text is not None:
                raise ValueError(f"column {text.name!r} holds {text.type}, not numbers")
            _check_size(path, 8 * file.metadata.num_rows * file.metadata.num_columns)
            table = file.read()
        return {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}
    except _TooLargeError:
        raise
    except Exception as error:  # of pyarrow, which does not name the file
        raise ValueError(f"{path} is no table of numbers: {error}") from error


def _from_table(path: Path, columns: dict[str, np.ndarray]) -> Series:
    time, trajectory = columns.pop("time", None), columns.pop("trajectory", None)
    for name, column in (("time", time), ("trajectory", trajectory)):
        if column is not None and not np.isfinite(column).all():
            row = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"{path}: {column[row]} in column {name!r} (row {row} from 0) is no finite number")
    unreadable = next((name for name in columns if not name.isprintable()), None)
    if unreadable is not None:
        raise ValueError(f"{path}: a column is called {unreadable!r}, which is no plain text")
    parts = {name: name.rpartition(".") if "." in name else (name, "", "") for name in columns}
    nodes = tuple(dict.fromkeys(node for node, _, _ in parts.values()))
    components = tuple(dict.fromkeys(component for _, _, component in parts.values()))
    pairs = ((node, component) for node in nodes for component in components)
    # Looked at one by one: of columns that do not fit each other there may be millions of pairs.
    wanted: list[str] = []
    for name in (f"{node}.{component}" if component else node for node, component in pairs):
        if name not in columns:
            raise ValueError(f"{path}: there is no column {name!r}. Give {_LAYOUT}")
        wanted.append(name)
    if not wanted:
        raise ValueError(f"{path}: no columns. Give {_LAYOUT}")
    x = torch.from_numpy(np.stack([columns[name] for name in wanted], axis=1)).view(-1, len(nodes), len(components))
    times = None if time is None else torch.from_numpy(time.copy())
    if trajectory is None:
        return Series([x], [times], nodes)
    ends = (np.flatnonzero(np.diff(trajectory)) + 1).tolist()
    trajectories = list(x.tensor_split(ends))
    return Series(trajectories, [None] * len(trajectories) if times is None else list(times.tensor_split(ends)), nodes)
