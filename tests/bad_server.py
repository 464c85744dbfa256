"""A server of data sets on this machine that misbehaves as it is told."""

import gzip
import http.server
import random
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fake_data import make_cifar, make_mnist, make_tiny_imagenet, md5, patch_cifar
from torchvision import datasets

from lightning_nobp.datamodules import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    ImageDataModule,
    MNISTDataModule,
    TinyImageNetDataModule,
    download,
    tiny_imagenet,
)

KINDS = (MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule, CIFAR100DataModule, TinyImageNetDataModule)
SAMPLES = dict(zip(KINDS, (60, 60, 100, 200, 30), strict=True))
"""Training samples of the served data sets."""


class Server(http.server.ThreadingHTTPServer):
    """Serves the files of a folder; ``fault`` names what it does instead."""

    daemon_threads = True

    def __init__(self, folder: Path, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.fault, self.random = folder, "", random.Random(seed)
        self.asked = 0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, *_: Any) -> None:
        """Whoever hangs up is expected to."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked += 1
        content = (self.server.folder / self.path.strip("/")).read_bytes()
        with suppress(OSError):
            FAULTS.get(self.server.fault, _whole)(self, content)

    def begin(self, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def part(self, content: bytes) -> bytes:
        return content[: self.server.random.randrange(1, len(content))]


def _whole(handler: _Handler, content: bytes) -> None:
    handler.begin(len(content))
    handler.wfile.write(content)


def _cut(handler: _Handler, content: bytes) -> None:
    handler.begin(len(content))
    handler.wfile.write(handler.part(content))


def _cut_without_length(handler: _Handler, content: bytes) -> None:
    handler.begin(None)
    handler.wfile.write(handler.part(content))


def _wrong(handler: _Handler, content: bytes) -> None:
    spoilt = bytearray(content)
    spoilt[handler.server.random.randrange(len(content))] ^= 255
    _whole(handler, bytes(spoilt))


def _silent(handler: _Handler, content: bytes) -> None:
    handler.server.over.wait()


def _stalls(handler: _Handler, content: bytes) -> None:
    _cut(handler, content)
    handler.wfile.flush()
    handler.server.over.wait()


def _redirects(handler: _Handler, content: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.end_headers()


def _error(number: int) -> Callable[[_Handler, bytes], None]:
    return lambda handler, content: handler.send_error(number)


FAULTS: dict[str, Callable[[_Handler, bytes], None]] = {
    "cut short": _cut,
    "cut short, no length said": _cut_without_length,
    "a wrong byte": _wrong,
    "silent": _silent,
    "stops in the middle": _stalls,
    "404": _error(404),
    "500": _error(500),
    "no HTTP": lambda handler, content: handler.wfile.write(b"\0\xff garbage \r\n" * 20),
    "a page instead": lambda handler, content: _whole(handler, b"<html>log in</html>"),
    "redirects to itself": _redirects,
    "empty": lambda handler, content: _whole(handler, b""),
    "hangs up": lambda handler, content: None,
}


def trickle(handler: _Handler, content: bytes) -> None:
    """All of it, slowly: no fault."""
    handler.begin(len(content))
    for start in range(0, len(content), len(content) // 4 + 1):
        handler.wfile.write(content[start : start + len(content) // 4 + 1])
        handler.wfile.flush()
        time.sleep(0.05)


@contextmanager
def serving(kind: type[ImageDataModule], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A small version of a data set on a server, where it is looked for."""
    (folder / "served").mkdir()
    server = Server(folder / "served")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    _publish(kind, folder / "source", server, monkeypatch)
    # Nobody waits for a server that says nothing, least of all here.
    monkeypatch.setattr(download, "SILENCE", 1.0)
    monkeypatch.setattr("pooch.downloaders.DEFAULT_TIMEOUT", 1.0)
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def _publish(kind: type[ImageDataModule], source: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is TinyImageNetDataModule:
        make_tiny_imagenet(source)
        archive = server.folder / "tiny-imagenet-200.zip"
        with zipfile.ZipFile(archive, "w") as content:
            for path in sorted(source.rglob("*")):
                content.write(path, path.relative_to(source))
        monkeypatch.setattr(tiny_imagenet, "URL", server.url + archive.name)
        monkeypatch.setattr(tiny_imagenet, "MD5", md5(archive))
        return
    known = getattr(datasets, kind.dataset)  # type: ignore[attr-defined]
    if issubclass(kind, MNISTDataModule):
        for path in make_mnist(source, kind.dataset).iterdir():
            (server.folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        monkeypatch.setattr(known, "mirrors", [server.url])
        files = sorted(server.folder.iterdir())
        monkeypatch.setattr(known, "resources", [(path.name, md5(path)) for path in files])
        return
    patch_cifar(monkeypatch, known, make_cifar(source, 100 if kind is CIFAR100DataModule else 10))
    archive = server.folder / known.filename
    with tarfile.open(archive, "w:gz") as content:
        content.add(source / known.base_folder, known.base_folder)
    monkeypatch.setattr(known, "url", server.url + archive.name)
    monkeypatch.setattr(known, "tgz_md5", md5(archive))
