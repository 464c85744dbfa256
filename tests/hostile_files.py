"""Files as somebody writes them who means harm: with code in them, or far larger inside than outside."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

MIB, GIB = 2**20, 2**30

TOUCHED = "it-ran"
"""What the code in these files would leave in the current folder."""


class Code:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {TOUCHED}",)


# Checkpoints


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def compressed(content: Any, path: Path) -> None:
    """As torch saves it, then made small as torch never does."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    rewrite(buffer, path, lambda name, data: data, zipfile.ZIP_DEFLATED)


def rewrite(source: Any, path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Another archive of the same names, with other content and right checksums."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(path, "w", method) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, change(entry.filename, before.read(entry)))


SAVED_WITH_CODE: dict[str, Callable[[Any, Path], None]] = {
    "torch's format": lambda content, path: torch.save(content, path),
    "torch's format, compressed": compressed,
    "torch's format before 1.6": legacy,
    "a plain pickle": plain_pickle,
}


class Large:
    """Asks for the memory of a terabyte when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**40,)


# What inflates


def zeros(size: int) -> bytes:
    """A raw deflate stream of so many zero bytes, in whole MiB, made without compressing all of them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // MIB) + packer.flush(zlib.Z_FINISH)


def gzipped(stream: bytes) -> bytes:
    """A gzip file around a deflate stream; nobody comes as far as its checksum."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + stream + bytes(8)


def zip_of(path: Path, name: str, stream: bytes, size: int, said: int | None = None, copies: int = 1) -> None:
    """A zip of a deflate stream of ``size`` bytes that says it has ``said``; several names may share the stream."""
    said, encoded = size if said is None else said, name.encode()
    with path.open("wb") as file:
        file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 8, 0, 0, 0, len(stream), said, len(encoded), 0))
        file.write(encoded + stream)
        start = file.tell()
        for number in range(copies):
            called = encoded if copies == 1 else b"%s%d" % (encoded, number)
            file.write(
                struct.pack(
                    "<4s6H3I5H2I",
                    *(b"PK\1\2", 45, 45, 0, 8, 0, 0, 0, len(stream), said, len(called), 0, 0, 0, 0, 0, 0),
                )
                + called
            )
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, copies, copies, file.tell() - start, start, 0))


# Archives


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                about = tarfile.TarInfo(member[0])
                about.size = len(member[1])
                archive.addfile(about, io.BytesIO(member[1]))


def zip_with(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)


def _zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("data/link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def _tar_bomb(path: Path, kind: bytes = tarfile.REGTYPE) -> None:
    """A member of 8 GiB of zeros."""
    member = tarfile.TarInfo("data/zeros")
    member.type, member.size = kind, 8 * GIB
    head = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = head.compress(member.tobuf(tarfile.GNU_FORMAT)) + head.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(gzipped(start + zeros(8 * GIB)))


ZIPS: dict[str, Callable[[Path], None]] = {
    "a name with ..": lambda p: zip_with(p, ("data/../../evil", b"x")),
    "an absolute name": lambda p: zip_with(p, (str(p.parent / "evil"), b"x")),
    "a name with backslashes": lambda p: zip_with(p, ("..\\..\\evil", b"x")),
    "a name of a drive": lambda p: zip_with(p, ("C:evil", b"x")),
    "a name with a line end": lambda p: zip_with(p, ("data/a\nb", b"x")),
    "a symbolic link": lambda p: zip_with(p, (_zip_link(), b"../.."), ("data/link/evil", b"x")),
    "a name twice": lambda p: zip_with(p, ("data/a", b"x"), ("data/./a", b"y")),
    "a file that is a folder too": lambda p: zip_with(p, ("data/a", b"x"), ("data/a/b", b"y")),
    "3 GiB of zeros": lambda p: zip_of(p, "data/zeros", zeros(3 * GIB), 3 * GIB),
    "3 GiB that say they are 10 bytes": lambda p: zip_of(p, "data/zeros", zeros(3 * GIB), 3 * GIB, said=10),
    "10 bytes that say they are 3 GiB": lambda p: zip_of(
        p, "data/few", zlib.compress(b"0123456789")[2:-4], 10, 3 * GIB
    ),
    "50,000 names for the same 100 MiB": lambda p: zip_of(p, "data/z", zeros(100 * MIB), 100 * MIB, copies=50_000),
    "300,000 files": lambda p: zip_with(p, *((f"data/{number}", b"") for number in range(300_000))),
    "no archive": lambda p: p.write_bytes(b"<html>not found</html>"),
}

TARS: dict[str, Callable[[Path], None]] = {
    "a name with ..": lambda p: tar_of(p, ("data/../../evil", b"x")),
    "an absolute name": lambda p: tar_of(p, (str(p.parent / "evil"), b"x")),
    "a symbolic link, and a file behind it": lambda p: tar_of(p, link("data/l", "../.."), ("data/l/evil", b"x")),
    "a hard link": lambda p: tar_of(p, link("data/l", "/etc/passwd", tarfile.LNKTYPE)),
    "a device": lambda p: tar_of(p, link("data/null", "", tarfile.CHRTYPE)),
    "a pipe": lambda p: tar_of(p, link("data/pipe", "", tarfile.FIFOTYPE)),
    "a name twice": lambda p: tar_of(p, ("data/a", b"x"), ("data/a", b"y")),
    "8 GiB of zeros": _tar_bomb,
    "8 GiB of zeros as a long name": lambda p: _tar_bomb(p, tarfile.GNUTYPE_LONGNAME),
    "8 GiB of zeros as a header": lambda p: _tar_bomb(p, tarfile.XHDTYPE),
    "8 GiB of a sparse file": lambda p: _tar_bomb(p, tarfile.GNUTYPE_SPARSE),
    "200 files": lambda p: tar_of(p, *((f"data/{number}", b"") for number in range(200))),
    "no archive": lambda p: p.write_bytes(b"<html>not found</html>"),
}


# Images


def png(width: int, height: int, data: bytes = b"", colour: int = 2) -> bytes:
    """A PNG that says it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, colour, 0, 0, 0)
    data = data or zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    screen = struct.pack("<6s2H3B", b"GIF89a", width, height, 0x80, 0, 0) + bytes(6)
    return screen + struct.pack("<B4HB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"


def tiff(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 1000}
    fields = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + fields + bytes(1004)


def of_pillow(suffix: str, mode: str = "RGB", size: tuple[int, int] = (20, 16), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, suffix, **options)
    return buffer.getvalue()


def _webp(width: int, height: int) -> bytes:
    whole = bytearray(of_pillow("WEBP", lossless=True))
    size = (width - 1) | (height - 1) << 14
    whole[21:25] = struct.pack("<I", size | int.from_bytes(whole[21:25], "little") & 0xF0000000)
    return bytes(whole)


def _many_frames() -> bytes:
    frames = [Image.new("RGB", (20, 16), (number % 256, number // 256, 0)) for number in range(3000)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _exif() -> bytes:
    whole = of_pillow("JPEG")
    rubbish = b"Exif\0\0II*\0" + struct.pack("<I", 0xFFFFFFF0) + bytes(range(256)) * 4
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(rubbish) + 2) + rubbish + whole[2:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 16\n%%EndComments\n(it-ran) (w) file closefile\n%%EOF\n"

REFUSED_IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "PNG of 100,000 x 100,000": (".png", lambda: png(100_000, 100_000)),
    "PNG of 100,000 x 100,000 zeros": (".png", lambda: png(100_000, 100_000, b"\x78\x9c" + zeros(GIB))),
    "PNG of 9,500 x 9,500": (".png", lambda: png(9500, 9500)),
    "GIF of 65,535 x 65,535": (".gif", lambda: gif(65535, 65535)),
    "TIFF of 100,000 x 100,000": (".tiff", lambda: tiff(100_000, 100_000)),
    "TIFF of 2^32 - 1 each way": (".tiff", lambda: tiff(2**32 - 1, 2**32 - 1)),
    "WebP of 16,384 x 16,384": (".webp", lambda: _webp(16384, 16384)),
    "PPM of 10^9 x 10^9": (".ppm", lambda: b"P6 1000000000 1000000000 255 " + bytes(100)),
    "BMP of 2^31 - 1 each way": (
        ".bmp",
        lambda: of_pillow("BMP")[:18] + b"\xff\xff\xff\x7f" * 2 + of_pillow("BMP")[26:],
    ),
    "PNG of 0 x 20": (".png", lambda: png(0, 20)),
    "PNG cut short": (".png", lambda: png(2000, 2000)),
    "JPEG cut short": (".jpg", lambda: of_pillow("JPEG")[:-100]),
    "32-bit numbers": (".tiff", lambda: of_pillow("TIFF", "I")),
    "floating point": (".tiff", lambda: of_pillow("TIFF", "F")),
    "PostScript under another name": (".png", lambda: EPS),
    "empty": (".png", lambda: b""),
}

READ_IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "PNG of 9,000 x 9,000 (81 megapixels)": (".png", lambda: of_pillow("PNG", "L", (9000, 9000))),
    "GIF of 3,000 frames": (".gif", _many_frames),
    "16-bit PNG": (".png", lambda: of_pillow("PNG", "I;16")),
    "CMYK": (".jpg", lambda: of_pillow("JPEG", "CMYK")),
    "palette with transparency": (".png", lambda: of_pillow("PNG", "P", transparency=b"\0\x80")),
    "EXIF that is rubbish": (".jpg", _exif),
    "a PNG called .jpg": (".jpg", lambda: of_pillow("PNG")),
}
