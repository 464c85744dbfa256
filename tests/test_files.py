"""Files are whole or absent."""

import errno
import io
import os
import resource
import signal
from contextlib import contextmanager

import pytest

from lightning_nobp.files import whole, write_whole


@contextmanager
def files_of_at_most(size):
    """What a full disk does, without one: writing beyond ``size`` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_written_with_its_folders(tmp_path):
    write_whole(tmp_path / "a" / "b.txt", "ü")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ü".encode()


def test_permissions_are_those_of_other_new_files(tmp_path):
    write_whole(tmp_path / "whole", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("before")

    def fail():
        with whole(path) as file:
            file.write(b"after")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with files_of_at_most(1000), pytest.raises(OSError, match=f"{path}") as caught:
        write_whole(path, b"0" * 2000)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (done.append(name), real(*a))[1])
    write_whole(tmp_path / "file", b"content")
    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    ("name", "left"), [("open", "before"), ("fsync", "before"), ("replace", "before"), ("", "after")]
)
def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path, name, left):
    path = tmp_path / "file"
    path.write_text("before")
    child = os.fork()
    if not child:
        if name:
            owner = io if name == "open" else os
            setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        write_whole(path, "after")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == left
    write_whole(path, "again")
    assert path.read_text() == "again"
