"""Getting files from elsewhere: one process at a time, all or nothing."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare ``folder``; others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        yield


def install(folder: Path, fetch: Callable[[Path], Path], by_hand: str) -> None:
    """Make ``folder`` appear complete or not at all.

    Args:
        folder: What to make.
        fetch: Fills a temporary folder, checks it, and returns the part that becomes ``folder``.
        by_hand: Which files to put where, for whoever has no network.

    Raises:
        OSError: The download failed; says what to do by hand.
    """
    # Beside its destination, so that the last step is a rename on one file system.
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-part-", dir=folder.parent))
    try:
        made = fetch(part)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(made, folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(f"{folder.name} could not be downloaded ({error}). {by_hand}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
