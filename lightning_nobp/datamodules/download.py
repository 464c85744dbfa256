"""Getting files from elsewhere: one process at a time, all or nothing."""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

SILENCE = 30.0
"""Seconds after which a server that says nothing is given up."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare ``folder``; others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        yield


def forbids_writing(error: OSError) -> bool:
    """Whether it says that files cannot be written: a read-only file system, no permission, or no room."""
    return isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def provide(folder: Path, complete: Callable[[], bool], fetch: Callable[[Path], Path], by_hand: str) -> None:
    """Install ``folder`` unless it is complete; one process does, others wait.

    Args:
        folder: What to make.
        complete: Whether there is nothing to do.
        fetch: See :func:`install`.
        by_hand: Likewise.

    Raises:
        OSError: The download failed, or nothing can be written there; says what to do by hand.
    """
    # Asked before the lock too: a complete data set may lie where no lock can be made.
    if complete():
        return
    try:
        with exclusive(folder):
            if not complete():
                install(folder, fetch, by_hand)
    except OSError as error:
        if forbids_writing(error):
            raise _failed(folder, error, by_hand) from error
        raise


def install(folder: Path, fetch: Callable[[Path], Path], by_hand: str) -> None:
    """Make ``folder`` appear complete or not at all; only to be called by the process that has it :func:`exclusive`.

    Args:
        folder: What to make.
        fetch: Fills a temporary folder, checks it, and returns the part that becomes ``folder``.
        by_hand: Which files to put where, for whoever has no network.

    Raises:
        OSError: The download failed; says what to do by hand.
    """
    prefix = f".{folder.name}-part-"
    for leftover in folder.parent.iterdir():
        # Of a killed process: a living one would hold the lock.
        if leftover.name.startswith(prefix):
            shutil.rmtree(leftover, ignore_errors=True)
    # Beside its destination, so that the last step is a rename on one file system.
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        with _time_out(SILENCE):
            made = fetch(part)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    except Exception as error:  # of HTTP, of archives, of checksums: each library has its own
        raise _failed(folder, error, by_hand) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _time_out(seconds: float) -> Iterator[None]:
    """Of connections that say nothing of it themselves, as torchvision's do: they would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _failed(folder: Path, error: Exception, by_hand: str) -> OSError:
    # torchvision says it in several lines.
    said = " ".join(str(error).split()) or type(error).__name__
    return OSError(f"{folder.name} could not be downloaded ({said}). {by_hand}")
