"""Small disks and read-only ones, for whoever may mount them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A disk in memory of that size; the test is left out where nobody may mount."""
    folder.mkdir()
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs"):
        yield folder


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Makes a folder read-only, even for root."""
    with _mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield folder


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    mount = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"mounting takes more rights: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def room(disk: Path, size: int) -> Iterator[None]:
    """Leaves so many bytes, in whole pages, on a disk."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    with ballast.open("wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_bsize - size // PAGE * PAGE)))
    try:
        yield
    finally:
        ballast.unlink()
