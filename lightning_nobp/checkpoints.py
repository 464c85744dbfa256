"""Checkpoints on the disk: written whole, and refused where they are damaged or hold code."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_nobp.files import whole, write_whole

_INSTEAD = "--ckpt_path last-good takes the newest checkpoint that can be read"
_GOES_ON = "what was saved before is whole; with room to write, --ckpt_path last-good goes on from there"


class DamagedCheckpointError(ValueError):
    """A file is no complete checkpoint; the message says which, and what is wrong with it."""


class UnsafeCheckpointError(DamagedCheckpointError):
    """A file holds more than tensors and plain values: loading it could run any code."""


class DurableCheckpointIO(TorchCheckpointIO):
    """A plugin of the Trainer by which a checkpoint is on the disk as a whole, or not at all.

    A file is written beside its name, flushed to the disk and renamed; Lightning's own writer does not flush, and
    copies from the temporary folder. A file is read only if all its checksums hold, which torch does not look at. The
    command line uses it; elsewhere write ``Trainer(plugins=[DurableCheckpointIO()])``.

    Checkpoints at addresses (``s3://...``) are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: It cannot be written: the one that had that name is still there.
        """
        if _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_whole(Path(path), buffer.getbuffer())
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {_GOES_ON}", str(path)) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: There is no such file.
            DamagedCheckpointError: It is damaged, no checkpoint, or holds code and ``weights_only`` is not False.
        """
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return load_checkpoint(path, map_location, weights_only is not False)


def save_whole(path: Path, content: Any) -> None:
    """:func:`torch.save` into a file that appears complete or not at all.

    Args:
        path: The file; its folder is made.
        content: See :func:`torch.save`.

    Raises:
        OSError: It cannot be written; names the file.
    """
    with whole(path) as file:
        noting = _Noting(file)
        try:
            torch.save(content, noting)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise noting.failure or error from error


class _Noting:
    """A file that knows why it could not be written: torch says only at which position."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load_checkpoint(path: str | Path, map_location: Any = "cpu", weights_only: bool = True) -> dict[str, Any]:
    """The content of a checkpoint that is whole.

    Args:
        path: The file.
        map_location: See :func:`torch.load`.
        weights_only: Whether to refuse a file that holds more than tensors and plain values. Whoever loads such a file
            runs the code in it.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: It is damaged, no checkpoint, or holds what ``weights_only`` refuses.
    """
    content = load_whole(path, map_location, weights_only)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise DamagedCheckpointError(f"{path} is no checkpoint of a training: it has no 'state_dict'")
    for name in ("hyper_parameters", "callbacks"):
        if not isinstance(content.get(name, {}), dict):
            raise DamagedCheckpointError(f"{path} is no checkpoint of a training: its {name!r} are no dictionary")
    return content


def load_whole(path: str | Path, map_location: Any = "cpu", weights_only: bool = True) -> Any:
    """What :func:`torch.save` wrote into a file that is whole: any content, of a file that may come from a stranger.

    Args:
        path: The file, of torch 1.6 or newer.
        map_location: See :func:`torch.load`.
        weights_only: See :func:`load_checkpoint`.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: It is damaged, would need more memory than it has bytes, or holds what ``weights_only``
            refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    _check_archive(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(_refusal(path, error)) from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a damaged pickle makes of itself
        raise DamagedCheckpointError(f"{path} is no checkpoint that torch can read: {_first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Its size, and every checksum in it, which torch itself does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Torch compresses nothing, and would take the memory that a file of a few bytes asks for.
            inflates = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            inflates |= sum(entry.file_size for entry in entries) > path.stat().st_size
            wrong = None if inflates else archive.testzip()
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged directory makes zipfile do, or the disk say
        raise DamagedCheckpointError(f"{path} is damaged or no checkpoint ({error}). {_INSTEAD}") from error
    if inflates:
        raise DamagedCheckpointError(f"{path} is compressed, as torch's files never are: it is refused unread")
    if wrong is not None:
        raise DamagedCheckpointError(f"{path} is damaged: the checksum of {wrong} is wrong. {_INSTEAD}")


def _refusal(path: Path, error: Exception) -> str:
    """Why safe loading refuses a file: torch says it in a page."""
    found = [line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line]
    what = found[0].removeprefix("WeightsUnpickler error: ") if found else _first_line(error)
    return (
        f"{path} holds more than tensors and plain values ({what}). It is refused: loading it could run any code. "
        "If you trust its author: weights_only=False, on the command line --weights_only=false"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)


__all__ = [
    "DamagedCheckpointError",
    "DurableCheckpointIO",
    "UnsafeCheckpointError",
    "load_checkpoint",
    "load_whole",
    "save_whole",
]
