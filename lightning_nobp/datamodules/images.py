"""Image files: decoding, and a cache of the decoded pixels."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_nobp.checkpoints import DamagedCheckpointError, load_whole, save_whole
from lightning_nobp.datamodules.download import exclusive, forbids_writing
from lightning_nobp.files import shown, write_whole

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may be, whatever its name says: some of Pillow's formats start other programs."""


class FileSource:
    """Images that are decoded when they are asked for.

    Args:
        files: The image files.
        labels: ``(num_samples,)``, int64.
        size: Height and width.
        resize: Whether images of another size are scaled; otherwise they are an error.
    """

    def __init__(self, files: Sequence[Path], labels: Tensor, size: tuple[int, int], resize: bool) -> None:
        self.files, self.labels, self.size, self.resize = files, labels, size, resize

    def images(self, index: Tensor) -> Tensor:
        """Images ``(batch, 3, height, width)``, uint8."""
        return torch.stack([decode(self.files[i], self.size, self.resize) for i in index.tolist()])


def decode(path: Path, size: tuple[int, int], resize: bool) -> Tensor:
    """An image file as ``(3, height, width)``, uint8; grey images become colour.

    Args:
        path: The file.
        size: Height and width.
        resize: Whether to scale an image of another size.

    Raises:
        ValueError: The file is no image, or of another size; names the file.
    """
    height, width = size
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with Image.open(path, formats=_FORMATS) as image:
            colour = _in_colour(image)
    except Exception as error:  # Pillow's readers fail with SyntaxError, ValueError and more on a broken file
        raise ValueError(f"{shown(path)} cannot be read as an image: {error}") from error
    if colour.size != (width, height):
        if not resize:
            raise ValueError(f"{shown(path)} has {colour.size[0]}x{colour.size[1]} pixels, not {width}x{height}")
        colour = colour.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(colour)).permute(2, 0, 1)


def _in_colour(image: Image.Image) -> Image.Image:
    """With three channels of 8 bits."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {most} (PIL.Image.MAX_IMAGE_PIXELS)")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow would cut each number off at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its numbers of 32 bits do not tell what is white: save it with 8 or 16 bits")
    return image.convert("RGB")


def decode_all(source: FileSource) -> Tensor:
    """All images of a source, ``(num_samples, 3, height, width)``, uint8."""
    images = torch.empty(len(source.files), 3, *source.size, dtype=torch.uint8)

    def fill(number: int) -> None:
        images[number] = decode(source.files[number], source.size, source.resize)

    with ThreadPoolExecutor() as pool:
        # Consumed, so that an error of any thread is raised here.
        for _ in pool.map(fill, range(len(images)), chunksize=256):
            pass
    return images


def decode_cached(source: FileSource, cache: Path) -> Tensor:
    """All images of a source, decoded once and kept in a file.

    The file is written beside its name and renamed, so it is whole or absent; its checksum lies in
    ``<cache>.sha256`` together with a fingerprint of the image files, and a cache that fits neither is made anew. In a
    folder that cannot be written to, a cache is read if there is one; on a full disk there is none, with a warning.

    Args:
        source: The image files.
        cache: Where the pixels are kept.

    Returns:
        ``(num_samples, 3, height, width)``, uint8.
    """
    fingerprint, shape = _fingerprint(source), (len(source.files), 3, *source.size)
    try:
        with exclusive(cache):
            found = _read(cache, fingerprint, shape)
            return found if found is not None else _keep(decode_all(source), cache, fingerprint)
    except OSError as error:
        if not forbids_writing(error):
            raise
    # Without the lock: nobody can write here, but a cache that came with the images can be read.
    found = _read(cache, fingerprint, shape)
    if found is not None:
        return found
    warnings.warn(f"{cache.parent} is read-only or full: images are decoded anew in every run", stacklevel=2)
    return decode_all(source)


def _fingerprint(source: FileSource) -> str:
    digest = hashlib.sha256(repr(source.size).encode())
    for file in source.files:
        # Names may hold anything but a zero byte.
        digest.update(os.fsencode(f"{file.parent.name}/{file.name}\0{file.stat().st_size}\n"))
    return digest.hexdigest()


def _note(cache: Path) -> Path:
    return cache.with_name(cache.name + ".sha256")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(cache: Path, fingerprint: str, shape: tuple[int, ...]) -> Tensor | None:
    if not (cache.is_file() and _note(cache).is_file()):
        return None
    with _note(cache).open("rb") as file:
        noted = file.read(1000).split()
    if len(noted) != 2 or noted[1] != fingerprint.encode():
        return None
    # Whoever gave the images may have given the cache and its checksum too.
    images = _pixels(cache, shape) if noted[0] == _checksum(cache).encode() else None
    if images is None:
        warnings.warn(f"{cache} is damaged: the images are decoded anew", stacklevel=3)
    return images


def _pixels(cache: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        images = load_whole(cache)
    except DamagedCheckpointError:
        return None
    fits = isinstance(images, Tensor) and images.dtype is torch.uint8 and images.shape == shape
    return images if fits and images.is_contiguous() else None


def _keep(images: Tensor, cache: Path, fingerprint: str) -> Tensor:
    try:
        # The note goes first: without it a leftover cache of other images could pass for this one.
        _note(cache).unlink(missing_ok=True)
        save_whole(cache, images)
        write_whole(_note(cache), f"{_checksum(cache)} {fingerprint}\n")
    except OSError as error:
        warnings.warn(
            f"{cache} cannot be written ({error.strerror}): images are decoded anew in every run", stacklevel=3
        )
    return images
