"""Image files: decoding, and a cache of the decoded pixels."""

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_nobp.checkpoints import save_whole
from lightning_nobp.datamodules.download import exclusive, forbids_writing
from lightning_nobp.files import write_whole


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
        with Image.open(path) as image:
            colour = image.convert("RGB")
    except Exception as error:  # Pillow's readers fail with SyntaxError, ValueError and more on a broken file
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if colour.size != (width, height):
        if not resize:
            raise ValueError(f"{path} has {colour.size[0]}x{colour.size[1]} pixels, not {width}x{height}")
        colour = colour.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(colour)).permute(2, 0, 1)


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
    fingerprint = _fingerprint(source)
    try:
        with exclusive(cache):
            found = _read(cache, fingerprint)
            return found if found is not None else _keep(decode_all(source), cache, fingerprint)
    except OSError as error:
        if not forbids_writing(error):
            raise
    # Without the lock: nobody can write here, but a cache that came with the images can be read.
    found = _read(cache, fingerprint)
    if found is not None:
        return found
    warnings.warn(f"{cache.parent} is read-only or full: images are decoded anew in every run", stacklevel=2)
    return decode_all(source)


def _fingerprint(source: FileSource) -> str:
    digest = hashlib.sha256(repr(source.size).encode())
    for file in source.files:
        digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _note(cache: Path) -> Path:
    return cache.with_name(cache.name + ".sha256")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(cache: Path, fingerprint: str) -> Tensor | None:
    if not (cache.is_file() and _note(cache).is_file()):
        return None
    noted = _note(cache).read_text().split()
    if len(noted) != 2 or noted[1] != fingerprint:
        return None
    if noted[0] != _checksum(cache):
        warnings.warn(f"{cache} is damaged: the images are decoded anew", stacklevel=3)
        return None
    images: Tensor = torch.load(cache, weights_only=True)
    return images


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
