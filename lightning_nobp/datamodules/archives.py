"""Archives from elsewhere: unpacked into one folder and up to a size, or refused."""

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple


class Limits(NamedTuple):
    """The most that an archive may hold."""

    files: int
    size: int
    """Bytes when unpacked."""


def unpack(archive: Path, folder: Path, most: Limits) -> None:
    """Unpack a ``.zip`` or ``.tar.gz`` file of plain files and folders.

    Args:
        archive: The file.
        folder: Where to; what it holds may be there in part after an error.
        most: What no honest archive exceeds.

    Raises:
        ValueError: It holds a file that would lie elsewhere, that is no plain file or that comes twice, or more than
            ``most``; names it.
    """
    target = _Target(archive, folder, most)
    if archive.suffix == ".zip":
        _unpack_zip(archive, target)
    else:
        _unpack_tar(archive, target)


class _Target:
    """A folder that takes each file once, below itself and within the limits."""

    def __init__(self, archive: Path, folder: Path, most: Limits) -> None:
        self.archive, self.folder, self.most = archive, folder, most
        self.names: set[PurePosixPath] = set()

    def refuse(self, why: str) -> ValueError:
        return ValueError(f"{self.archive.name} is refused: {why}")

    def too_large(self) -> ValueError:
        return self.refuse(f"it unpacks to more than {self.most.size} bytes")

    def check_number(self, files: int) -> None:
        if files > self.most.files:
            raise self.refuse(f"it holds more than {self.most.files} files")

    def place(self, name: str) -> Path:
        """Where a member belongs."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name.isprintable() or any(mark in name for mark in "\\:"):
            raise self.refuse(f"the name {name!r} leads out of the folder, or is no plain text")
        if path in self.names:
            raise self.refuse(f"it holds {name!r} twice")
        self.names.add(path)
        self.check_number(len(self.names))
        return self.folder / path

    def take(self, name: str, source: IO[bytes] | None) -> None:
        """Write a file, or make a folder if there is no source."""
        place = self.place(name)
        if source is None:
            place.mkdir(parents=True, exist_ok=True)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            shutil.copyfileobj(source, file)


def _unpack_zip(archive: Path, target: _Target) -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        target.check_number(len(members))
        # No member gives more than it says here: what follows would not fit its checksum.
        if sum(member.file_size for member in members) > target.most.size:
            raise target.too_large()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise target.refuse(f"its member {member.filename!r} is no plain file")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise target.refuse(f"its member {member.filename!r} is compressed in a way that knows no limits")
            if member.is_dir():
                target.take(member.filename, None)
                continue
            with content.open(member) as source:
                target.take(member.filename, source)


def _unpack_tar(archive: Path, target: _Target) -> None:
    with gzip.open(archive) as stream, tarfile.open(fileobj=_UpTo(stream, target), mode="r|") as content:
        for member in content:
            if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
                raise target.refuse(f"its member {member.name!r} is no plain file")
            target.take(member.name, content.extractfile(member))


class _UpTo(io.BufferedIOBase):
    """A file that is read so far and no further."""

    def __init__(self, file: io.BufferedIOBase, target: _Target) -> None:
        self.file, self.target, self.left = file, target, target.most.size

    def read(self, size: int | None = -1, /) -> bytes:
        found = self.file.read(size)
        self.left -= len(found)
        if self.left < 0:
            raise self.target.too_large()
        return found
