"""Archives from strangers: refused with nothing outside of the folder, and no more inside than was agreed."""

import tarfile

import hostile_files as hostile
import pytest

from lightning_nobp.datamodules.archives import Limits, unpack

FEW = Limits(files=100, size=2**20)
SLOW = {"300,000 files", "50,000 names for the same 100 MiB"}


def refused(tmp_path, archive, limits=FEW):
    """What unpacking says; afterwards nothing may lie outside of the folder, and little in it."""
    folder = tmp_path / "in" / "to"
    folder.mkdir(parents=True)
    with pytest.raises((ValueError, OSError, hostile.zipfile.BadZipFile)) as caught:
        unpack(archive, folder, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "in"]
    assert list((tmp_path / "in").iterdir()) == [folder]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= limits.size
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(hostile.ZIPS.keys() - SLOW))
def test_zip_files_that_mean_harm_are_refused(tmp_path, name):
    hostile.ZIPS[name](tmp_path / "a.zip")
    refused(tmp_path, tmp_path / "a.zip")


@pytest.mark.parametrize("name", hostile.TARS)
def test_tar_files_that_mean_harm_are_refused(tmp_path, name):
    hostile.TARS[name](tmp_path / "a.tar.gz")
    refused(tmp_path, tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("suffix", "make"), [(".zip", hostile.zip_with), (".tar.gz", hostile.tar_of)], ids=["zip", "tar"]
)
def test_what_is_wrong_is_named(tmp_path, suffix, make):
    archive = tmp_path / f"a{suffix}"
    make(archive, ("data/../../evil", b"x"))
    assert f"a{suffix} is refused: the name 'data/../../evil' leads out of the folder" in refused(tmp_path, archive)


def test_limits_are_named(tmp_path):
    hostile.zip_with(tmp_path / "a.zip", *((f"{k}", b"xx") for k in range(3)))
    assert "a.zip is refused: it holds more than 2 files" in refused(tmp_path, tmp_path / "a.zip", Limits(2, 100))
    (tmp_path / "in" / "to").rmdir()
    (tmp_path / "in").rmdir()
    assert "it unpacks to more than 5 bytes" in refused(tmp_path, tmp_path / "a.zip", Limits(3, 5))


def test_honest_archives_are_unpacked(tmp_path):
    folder = tarfile.TarInfo("data")
    folder.type = tarfile.DIRTYPE
    hostile.tar_of(tmp_path / "a.tar.gz", folder, ("data/a", b"one"), ("./data/deep/b", b"two"), ("data/empty", b""))
    hostile.zip_with(
        tmp_path / "a.zip", ("data/", b""), ("data/a", b"one"), ("data/deep/b", b"two"), ("data/empty", b"")
    )
    for archive in ("a.tar.gz", "a.zip"):
        into = tmp_path / f"of {archive}"
        unpack(tmp_path / archive, into, FEW)
        found = {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
        assert found == {"data/a": b"one", "data/deep/b": b"two", "data/empty": b""}
