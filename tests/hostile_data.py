"""Folders of images and tables as somebody makes them who means harm, or does not know better."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from fake_data import make_image_folder, write_image
from hostile_files import GIB, MIB, Code, zeros, zip_of

from lightning_nobp.datamodules import ImageFolderDataModule
from lightning_nobp.datamodules.idx import read_idx
from lightning_nobp.datamodules.images import _checksum, _fingerprint, _note
from lightning_nobp.datamodules.series_files import read_series

# Folders of images


def _first(root: Path) -> Path:
    return root / "train" / "class_0" / "0.jpg"


def _loop(root: Path) -> None:
    _first(root).unlink()
    _first(root).symlink_to("0.jpg")


def _pipe(root: Path) -> None:
    _first(root).unlink()
    os.mkfifo(_first(root))


def _endless(root: Path) -> None:
    _first(root).unlink()
    _first(root).symlink_to("/dev/zero")


def _folder(root: Path) -> None:
    _first(root).unlink()
    _first(root).mkdir()


def _other_classes(root: Path) -> None:
    for number in range(10_000):
        (root / "test" / f"more_{number}").mkdir()


def _class(name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for split in ("train", "test"):
            write_image(root / split / name / "0.jpg", 3)

    return make


def _image(name: str) -> Callable[[Path], None]:
    return lambda root: write_image(root / "train" / "class_0" / name, 3)


def _parent(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "class_0" / "again").symlink_to("..")


def _ten_thousand(root: Path) -> None:
    content = _first(root).read_bytes()
    for number in range(10_000):
        for split in ("train", "test"):
            (root / split / f"class_{number}").mkdir(exist_ok=True)
            (root / split / f"class_{number}" / "0.jpg").write_bytes(content)


IMAGE_FOLDERS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "an image that is a link to itself": (_loop, "0.jpg"),
    "an image that is a pipe": (_pipe, "0.jpg"),
    "an image that is /dev/zero": (_endless, "0.jpg"),
    "an image that is a folder": (_folder, "0.jpg"),
    "a class folder that leads back to all of them": (_parent, None),
    "10,000 classes of which the test has three": (_other_classes, "and 9995 more"),
    "10,000 classes": (_ten_thousand, None),
    "a class with a line end in its name": (_class("a\nb"), r"a\nb"),
    "a class whose name is no UTF-8": (_class("a\udcffb"), r"a\udcffb"),
    "an image with a line end in its name": (_image("a\nb.jpg"), None),
    "an image whose name is no UTF-8": (_image("a\udcffb.jpg"), None),
}
"""How to make them, and which words name what is wrong; None if all can be read."""


def make_hostile_cache(root: Path, content: Any) -> Path:
    """Images with a cache beside them that has the right checksums."""
    make_image_folder(root)
    cache = root / "train-8x8.pt"
    torch.save(content, cache)
    data = ImageFolderDataModule(root=str(root), image_size=8, in_memory=False)
    _note(cache).write_text(f"{_checksum(cache)} {_fingerprint(data.load('train'))}\n")
    return cache


# Tables


def _idx(*shape: int, data: bytes = b"", magic: bytes = b"\0\0\x08") -> Callable[[Path], None]:
    header = magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return lambda path: path.write_bytes(header + data)


def _sparse_idx(path: Path) -> None:
    """The disk holds next to nothing of its 30 GB."""
    number = 40_000_000
    _idx(number, 28, 28)(path)
    os.truncate(path, 16 + number * 784)


def _text(text: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


def _npy(shape: str, data: bytes = bytes(64)) -> Callable[[Path], None]:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return lambda path: path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data)


def _npz_bomb(path: Path) -> None:
    zip_of(path, "x.npy", zeros(8 * GIB - MIB), 4 * GIB - MIB)


def _npz_header(path: Path) -> None:
    """A small member whose own header tells of a terabyte."""
    _npy("(1000000, 400, 400)")(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)


def _npz_other(path: Path) -> None:
    """A bomb beside the array that is asked for."""
    zip_of(path, "other.npy", zeros(3 * GIB), 3 * GIB)


def _npz(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def _parquet_bomb(path: Path) -> None:
    """Of a constant, a thousand million rows cost nothing."""
    block = pyarrow.table({"a.x": np.zeros(2**24)})
    with pyarrow.parquet.ParquetWriter(path, block.schema) as writer:
        for _ in range(64):
            writer.write_table(block, row_group_size=2**24)


def _parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _wide_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({f"n{k}": ["0" * 100] for k in range(3000)}), path)


CSV = "a.x,a.y\n1,2\n3,4\n"

TABLES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "IDX of 2^31 x 2^31 x 4, whose product is 0 in 64 bits": ("idx", _idx(2**31, 2**31, 4)),
    "IDX of 2^32 - 1 each way": ("idx", _idx(2**32 - 1, 2**32 - 1, 2**32 - 1)),
    "IDX of no images": ("idx", _idx(0, 28, 28)),
    "IDX of other images": ("idx", _idx(2, 32, 32, data=bytes(2048))),
    "IDX of floating point": ("idx", _idx(1, 28, 28, data=bytes(784), magic=b"\0\0\x0d")),
    "IDX with more behind it": ("idx", _idx(1, 28, 28, data=bytes(785))),
    "IDX of 30 GB of nothing": ("idx", _sparse_idx),
    "CSV with a field of 300,000 characters in its header": ("csv", _text("a" * 300_000 + "\n1\n")),
    "CSV with a field of 10 MB": ("csv", _text(CSV + "1," + "9" * 10**7 + "\n")),
    "CSV with zero bytes": ("csv", _text(CSV + "\0,\0\n")),
    "CSV with zero bytes in its header": ("csv", _text("a\0,b\n1,2\n")),
    "CSV with a formula": ("csv", _text(CSV + '=HYPERLINK("http://x"),5\n')),
    "CSV with 1e400": ("csv", _text(CSV + "1e400,5\n")),
    "CSV that is no UTF-8": ("csv", _text(b"a\xff,b\n1,2\n")),
    "CSV with lines that lack a column": ("csv", _text(CSV + "5\n" * 100_000)),
    "CSV with 100,000 columns called the same": ("csv", _text(",".join(["a"] * 100_000) + "\n")),
    "CSV of 100,000 nodes with a component each": (
        "csv",
        _text("\n".join([",".join(f"n{k}.c{k}" for k in range(100_000)), ",".join(["1"] * 100_000)])),
    ),
    "CSV that is empty": ("csv", _text("")),
    "npy of objects": ("npy", lambda path: np.save(path, np.array([Code()], dtype=object), allow_pickle=True)),
    "npy of a terabyte": ("npy", _npy("(1000000, 400, 400)")),
    "npy of a negative shape": ("npy", _npy("(-1, 2, 2)")),
    "npy whose header is code": ("npy", _npy("__import__('os').system('touch it-ran')")),
    "npy that is an npz": ("npy", lambda path: np.savez(path.open("wb"), x=np.zeros((9, 2, 2)))),
    "npz of objects": ("npz", _npz(x=np.array([Code()], dtype=object))),
    "npz of texts": ("npz", _npz(x=np.array([[["a"]]]))),
    "npz of 4 GiB of zeros": ("npz", _npz_bomb),
    "npz with 3 GiB beside x": ("npz", _npz_other),
    "npz whose array says a terabyte": ("npz", _npz_header),
    "npz without x": ("npz", _npz(y=np.zeros(3))),
    "Parquet of 2^30 rows of a constant": ("parquet", _parquet_bomb),
    "Parquet of texts": ("parquet", _parquet(a=["x", "y"])),
    "Parquet of lists": ("parquet", _parquet(a=[[1.0], [2.0]])),
    "Parquet of 3,000 columns of texts": ("parquet", _wide_parquet),
    "Parquet that is JSON": ("parquet", _text(json.dumps({"a": [1, 2]}))),
}
"""Suffix, and how to write it; each must be refused."""


def read_table(path: Path) -> None:
    """As the data modules do; what is left to them of a series' values is checked too."""
    if path.suffix == ".idx":
        read_idx(path, (28, 28))
        return
    from lightning_nobp.datamodules import TimeSeriesDataModule

    read_series(path)
    TimeSeriesDataModule(path=path, dt=1.0).load()
