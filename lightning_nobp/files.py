"""Files that appear complete or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is complete and on the disk; until then another of that name stays.

    A process that is killed, or a machine that fails, leaves the old file or the new one, never a part. What it had
    written lies beside it under a name with a dot.

    Args:
        path: The file; its folder is made.

    Raises:
        OSError: It cannot be written; names the file.
    """
    try:
        with _renamed(path) as file:
            yield file
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        # A full disk does not say which file it was.
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file that appears complete or not at all; text as UTF-8.

    Args:
        path: The file; its folder is made.
        content: All of it.

    Raises:
        OSError: It cannot be written; names the file.
    """
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def _renamed(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its destination, so that the last step is a rename on one file system.
    part = path.with_name(f".{path.name}-{token_hex(4)}")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Let the rename reach the disk, where folders can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
