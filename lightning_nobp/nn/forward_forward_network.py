"""Networks of Forward-Forward layers: training passes and candidate labels."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_nobp.functional import forward_forward as ff
from lightning_nobp.nn.forward_forward import GROUP, Drive, FFConv2d, FFLayer, LayerPass
from lightning_nobp.nn.labelled_input import LabelledInput
from lightning_nobp.typed import Typed

LARGEST_CHUNK = 64 * 2**20
"""Bytes of activity while many labels of many samples are tried."""


class _LayerSize(NamedTuple):
    unit: float
    of_data: int
    """Bytes of a sample that all candidates share."""
    of_activity: int
    """Bytes of a candidate's activity."""


class ForwardForwardNetwork(Typed, nn.Module):
    """Layers that learn by Forward-Forward, and the label that enters them.

    Args:
        layers: In order. The first has as many ``label_features`` as the label, the others too if ``label_layers`` is
            ``'all'``, otherwise none.
        labelled_input: How the label enters.
        label_layers: Whether the label enters the ``'first'`` layer only or ``'all'``. Beside the data of later layers
            it has the same proportion as in the first.
        stream: What goes from layer to layer: the activity on the ``'labelled'`` input, or that on the input with the
            ``'neutral'`` label, so that all labels share one product with the data in every layer.

    Raises:
        ValueError: An unknown choice, or layers that do not fit the label.
    """

    def __init__(
        self,
        layers: Sequence[FFLayer],
        labelled_input: LabelledInput,
        *,
        label_layers: Literal["first", "all"] = "first",
        stream: Literal["labelled", "neutral"] = "labelled",
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers is empty: a network needs at least one")
        for name, value, choices in (
            ("label_layers", label_layers, ("first", "all")),
            ("stream", stream, ("labelled", "neutral")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        if label_layers == "all" and labelled_input.mode in ("add", "none"):
            raise ValueError(f"label_layers='all': label={labelled_input.mode!r} enters no layer behind the first")
        if stream == "neutral" and label_layers == "first" and len(layers) > 1:
            raise ValueError("stream='neutral' takes the label away between layers: it needs label_layers='all'")
        for number, layer in enumerate(layers):
            expected = labelled_input.features if number == 0 or label_layers == "all" else 0
            if layer.label_features != expected:
                raise ValueError(f"layers[{number}] has label_features={layer.label_features}: give it {expected}")
        self.layers, self.labelled_input = nn.ModuleList(layers), labelled_input
        self.label_layers, self.stream, self.num_classes = label_layers, stream, labelled_input.num_classes
        if isinstance(layers[0], FFConv2d) != labelled_input.planes:
            raise ValueError(f"planes={labelled_input.planes} with a first layer of type {type(layers[0]).__name__}")
        try:
            _ = self._sizes
        except RuntimeError as error:
            raise ValueError(f"layers do not fit each other, or the input: {error}") from error

    # Readable

    def activities(self, x: Tensor, y: Tensor | None = None) -> Iterator[Tensor]:
        """The activity of each layer on labelled samples, one label a sample; no gradient flows from layer to layer.

        Args:
            x: Samples, ``(batch, *input_shape)``.
            y: Labels, ``(batch,)``; None for the neutral label.
        """
        neutral = torch.full((len(x),), self.num_classes, device=x.device)
        y = neutral if y is None else y
        u, label = self._labelled(x, y)
        v, no_label = self._labelled(x, neutral)
        for layer, following in self._with_following():
            h = layer(u, label)
            yield h
            if following is not None:
                carried = layer(v, no_label) if self.stream == "neutral" else h
                u = v = layer.normalised(carried.detach())
                patterns = self._patterns(following, u)
                label, no_label = (None, None) if patterns is None else (patterns[y], patterns[neutral])

    def _labelled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised samples, and their labels where these are no part of them."""
        first, labelled = self._layers()[0], self.labelled_input
        data = labelled.data(x)
        patterns = self._patterns(first, data)
        if patterns is None or labelled.planes:
            return ff.normalise_activity(data, first.normalise), None if patterns is None else patterns[y]
        if labelled.mode == "add":
            return ff.normalise_activity(data + patterns[y], first.normalise), None
        scale = labelled.scale(data, patterns, first.normalise).gather(1, y.unsqueeze(1))
        return data * scale, patterns[y] * scale

    # Fast

    def passes(
        self, x: Tensor, choose: Callable[[Drive], Tensor], *, top_k: int | None = None, detach: bool = True
    ) -> Iterator[LayerPass]:
        """The activity of each layer on several labels for each sample.

        Args:
            x: Samples, ``(batch, *input_shape)``.
            choose: Called with what drives the first layer; gives the labels to try, ``(candidates, batch)``. The
                neutral label, ``num_classes``, does not mix with others. With the neutral stream it is called for each
                layer.
            top_k: Let so many labels through to layers behind the first, those of highest goodness there. With the
                neutral stream, where more labels cost little, all.
            detach: Whether gradients stop between layers.
        """
        if self.stream == "neutral":
            yield from (drive.run(choose(drive)) for drive in self._neutral_drives(x, detach))
            return
        drive = self._first_drive(x)
        labels = choose(drive)
        for layer, following in self._with_following():
            current = drive.run(labels)
            yield current
            if following is None:
                return
            if top_k is not None and top_k < len(labels):
                labels = labels.gather(0, current.goodness().topk(top_k, dim=0).indices)
                current = drive.run(labels)
            u = layer.normalised(current.h.detach() if detach else current.h)
            del current, drive  # What is not needed any more makes room for the next layer.
            drive = Drive(following, u, self._patterns(following, u))  # noqa: F841 (used in the next round)

    def _neutral_drives(self, x: Tensor, detach: bool) -> Iterator[Drive]:
        """What drives each layer of the neutral stream, whatever the labels."""
        drive = self._first_drive(x)
        for layer, following in self._with_following():
            yield drive
            if following is not None:
                h = drive.run(self.neutral_label(drive)).h
                u = layer.normalised(h.detach() if detach else h)
                drive = Drive(following, u, self._patterns(following, u))

    def all_labels(self, drive: Drive) -> Tensor:
        """Every label for every sample, ``(num_classes, batch)``: for :meth:`passes`."""
        labels = torch.arange(self.num_classes, device=drive.data.device)
        return labels.unsqueeze(1).expand(-1, drive.data.shape[0])

    def neutral_label(self, drive: Drive) -> Tensor:
        """The neutral label for every sample, ``(1, batch)``: for :meth:`passes`."""
        return torch.full((1, 1), self.num_classes, device=drive.data.device).expand(-1, drive.data.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Goodness of each label, summed over the layers, ``(batch, num_classes)``, of samples ``(batch, ...)``."""
        return self.candidate_goodness(x).sum(-1)

    def candidate_goodness(self, x: Tensor, top_k: int | None = None) -> Tensor:
        """Goodness of each label in each layer.

        Args:
            x: Samples, ``(batch, *input_shape)``.
            top_k: Try so many labels behind the first layer only, those of highest goodness there; the others get
                less than the lowest of them. None for all, which is exact.

        Returns:
            ``(batch, num_classes, layers)``.
        """
        if torch.compiler.is_exporting() or torch.is_grad_enabled():
            return self._candidates(x, top_k)
        parts = torch.split(x, self._samples_in_chunk())
        return torch.cat([self._candidates(part, top_k) for part in parts])

    def goodness_units(self) -> list[float]:
        """Of each layer, the size of its goodness where every unit has the activity one."""
        return [layer.unit for layer in self._sizes]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Batch normalisation by running statistics, which stay as they are, for a while."""
        training = {module: module.training for module in self.modules()}
        self.eval()
        try:
            yield
        finally:
            for module, flag in training.items():
                module.training = flag

    def neutral_features(self, x: Tensor) -> list[Tensor]:
        """Normalised activity of each layer under the neutral label, ``(batch, features)`` each.

        Args:
            x: Samples, ``(batch, *input_shape)``.
        """
        return [p.layer.normalised(p.h).flatten(1) for p in self.passes(x, self.neutral_label, detach=False)]

    def _candidates(self, x: Tensor, top_k: int | None) -> Tensor:
        (_, first), *others = self._tried(x, top_k)
        columns = [first]
        for labels, goodness in others:
            if len(labels) < len(first):
                # As far below the lowest of those that were tried as in the first layer.
                kept = first.gather(0, labels).amin(0)
                goodness = (first - kept + goodness.amin(0)).scatter(0, labels, goodness)
            columns.append(goodness)
        return torch.stack(columns).permute(2, 1, 0)

    def _tried(self, x: Tensor, top_k: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        if self.stream == "neutral":
            for drive in self._neutral_drives(x, detach=False):
                labels = self.all_labels(drive)
                yield labels, drive.goodness(labels)
            return
        for current in self.passes(x, self.all_labels, top_k=top_k, detach=False):
            found = current.labels, current.goodness()
            del current  # One layer's activity is alive at a time.
            yield found

    def _samples_in_chunk(self) -> int:
        # Of each candidate: its pre-activation, activity, the data for the next layer, and their product.
        candidates = 1 if self.stream == "neutral" else self.num_classes
        each = max(size.of_data + 5 * candidates * size.of_activity for size in self._sizes)
        return max(1, (LARGEST_CHUNK - 4 * GROUP) // each)

    @cached_property
    def _sizes(self) -> list[_LayerSize]:
        """Of each layer, found by a black sample."""
        example = self._layers()[0].weight.new_zeros(1, *self.labelled_input.input_shape)
        with torch.no_grad(), self.evaluating():
            drives = [current.drive for current in self.passes(example, self.neutral_label)]
        return [_LayerSize(d.unit, d.bytes(), d.product.numel() * d.product.element_size()) for d in drives]

    def _first_drive(self, x: Tensor) -> Drive:
        first, label = self._layers()[0], self.labelled_input
        data = label.data(x)
        patterns = self._patterns(first, data)
        if patterns is None or label.planes:
            return Drive(first, ff.normalise_activity(data, first.normalise), patterns)
        return Drive(first, data, patterns, label.scale(data, patterns, first.normalise))

    def _patterns(self, layer: FFLayer, data: Tensor) -> Tensor | None:
        """What of each label, and the neutral one, a layer gets."""
        first, label = self._layers()[0], self.labelled_input
        if label.mode == "none" or (layer is not first and self.label_layers == "first"):
            return None
        # Half as long as the data that a unit sees, or in the same proportion to them as in the first layer.
        share = 0.5 if label.amplitude is None else label.amplitude / math.sqrt(first.fan_in)
        length = share * math.sqrt(layer.fan_in)
        if layer.normalise == "l2" and (layer is not first or label.planes):
            # All together, the data have the length one.
            length /= math.sqrt(data[0].numel())
        return length * label.with_neutral().to(layer.weight.dtype)

    def _layers(self) -> list[FFLayer]:
        return cast(list[FFLayer], list(self.layers))

    def _with_following(self) -> list[tuple[FFLayer, FFLayer | None]]:
        layers = self._layers()
        return list(zip(layers, [*layers[1:], None], strict=True))
