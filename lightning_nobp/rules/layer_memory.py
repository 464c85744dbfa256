"""What the layers of a growing network make of images, remembered from one pass over the data to the next."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_nobp.functional.ridge import LinearReadout
from lightning_nobp.nn.residual_compensation import ResCNet
from lightning_nobp.rules.activation_cache import ActivationCache, CachedRows


class LayerMemory:
    """Takes images through the layers that have been fitted, starting where the cache left off.

    Args:
        network: The network.
        count_rows: How many rows the cache of ``'train'`` or ``'val'`` needs; None keeps nothing.
        dtype: Of what is kept.
        folder: Of files; None keeps everything in memory.
    """

    def __init__(
        self,
        network: ResCNet,
        count_rows: Callable[[str], int] | None,
        dtype: torch.dtype,
        folder: Path | None = None,
    ) -> None:
        self.network, self.dtype, self.folder = network, dtype, folder
        self.fold_readouts: list[list[LinearReadout]] = []
        """By layer and fold, the read-outs that have not seen the fold."""
        self._count_rows = count_rows
        self._caches: dict[str, ActivationCache] = {}

    def reach(
        self, images: Tensor, layer: int, split: str, rows: Tensor | None = None, folds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps and scores of images behind a layer.

        Args:
            images: ``(batch, channels, height, width)``.
            layer: Its number, from 1; 0 for the images themselves.
            split: ``'train'`` or ``'val'``.
            rows: Of the images in the cache ``(batch,)``, on the CPU; None starts from the images.
            folds: Of the images ``(batch,)``, on the CPU; None reads with the read-outs of all images.
        """
        start, maps, scores = self._recall(images, layer, split, rows, folds)
        for number, (h, features) in enumerate(self.network.run(maps, start, layer), start + 1):
            scores = scores + self._read(number, features, folds)
            maps = h
        return maps, scores

    def keep(self, split: str, rows: Tensor | None, layer: int, reached: CachedRows) -> None:
        """Remember what a layer made of images, if anything is remembered.

        Raises:
            ValueError: Sample numbers outside the data set, or one twice in a pass.
        """
        if self._count_rows is None or rows is None:
            return
        if split not in self._caches:
            self._caches[split] = self._make_cache(split, self._count_rows(split))
        if split == "train":
            self._caches[split].refuse_second_visit(rows, layer)
        self._caches[split].write(rows, layer, reached)

    def without_cache(self) -> "LayerMemory":
        """The same layers and folds, without a memory of images."""
        other = LayerMemory(self.network, None, self.dtype)
        other.fold_readouts = self.fold_readouts
        return other

    def close(self) -> None:
        """Let go of what is kept of images, and remove the files."""
        for cache in self._caches.values():
            cache.close()
        self._caches = {}

    def _recall(
        self, images: Tensor, layer: int, split: str, rows: Tensor | None, folds: Tensor | None
    ) -> tuple[int, Tensor, Tensor]:
        """The last layer up to ``layer`` of which the cache knows, with its maps and scores; 0 if there is none."""
        cache = self._caches.get(split)
        known = 0 if cache is None or rows is None else cache.reached(rows)
        if cache is None or rows is None or not 0 < known <= layer:
            return 0, images, images.new_zeros(len(images), self.network.num_classes)
        num_features = self.network.compensation(known).readout.num_features
        held = cache.read(rows, self.network.map_shapes[known], num_features)
        maps, scores = held.maps.to(images), held.scores.to(images)
        if held.features is not None:
            # They were kept before their read-out was solved.
            scores = scores + self._read(known, held.features.to(images), folds)
        return known, maps, scores

    def _read(self, number: int, features: Tensor, folds: Tensor | None) -> Tensor:
        """A layer's read-out; of training images that of the fold, which has not seen them."""
        if folds is None or number > len(self.fold_readouts):
            scores: Tensor = self.network.compensation(number).readout(features)
            return scores
        scores = features.new_empty(len(features), self.network.num_classes)
        for fold, readout in enumerate(self.fold_readouts[number - 1]):
            chosen = folds == fold
            scores[chosen] = torch.addmm(readout.bias.to(scores), features[chosen], readout.weight.to(scores))
        return scores

    def _make_cache(self, split: str, rows: int) -> ActivationCache:
        network = self.network
        widths = [network.compensation(number).readout.num_features for number in range(1, network.depth + 1)]
        return ActivationCache(
            rows=rows,
            map_size=max(math.prod(shape) for shape in network.map_shapes[1:]),
            # Training images are kept before their layer's read-out is solved, others after.
            num_features=max(widths) if split == "train" else 0,
            num_classes=network.num_classes,
            dtype=self.dtype,
            folder=self.folder,
        )


def stretches(batch: int, map_shapes: Sequence[Sequence[int]]) -> list[slice]:
    """Parts of a batch whose maps, of at most the largest of these shapes, stay in the processor's cache."""
    largest = max(math.prod(shape) for shape in map_shapes)
    rows = min(max(2**18 // largest, 16), 1024)
    return [slice(start, min(start + rows, batch)) for start in range(0, batch, rows)]
