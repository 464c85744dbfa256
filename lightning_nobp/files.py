"""Files that appear complete or not at all."""

import codecs
import csv
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO


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
    with naming(path), _renamed(path) as file:
        yield file


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


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table that appears complete or not at all.

    Args:
        path: The file; its folder is made.
        columns: Their names.
        rows: In the order of the columns; None stands for nothing.

    Raises:
        OSError: It cannot be written; names the file.
    """
    with whole(path) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file))
        writer.writerow(columns)
        writer.writerows(rows)


def shown(path: Path) -> str:
    """A path as a line of text holds it: quoted if it has line ends, or bytes that are no text."""
    return str(path) if str(path).isprintable() else repr(str(path))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors name a file, which a full disk does not.

    Raises:
        OSError: As it came, with the file.
    """
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno is None or not (name is None or Path(os.fsdecode(name)).name.startswith(_part_prefix(path))):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def _renamed(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its destination, so that the last step is a rename on one file system.
    part = path.with_name(_part_prefix(path) + token_hex(4))
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


def _part_prefix(path: Path) -> str:
    return f".{path.name}-"


def _sync_folder(folder: Path) -> None:
    """Let the rename reach the disk, where folders can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            # The file stands under its name by now; some file systems of networks cannot flush folders.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)
