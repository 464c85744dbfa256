"""Forward-Forward networks to start from."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from lightning_nobp.functional.forward_forward import GoodnessKind, NormaliseKind, PatternKind
from lightning_nobp.nn.forward_forward import FFConv2d, FFLayer, FFLinear
from lightning_nobp.nn.forward_forward_network import ForwardForwardNetwork
from lightning_nobp.nn.labelled_input import LabelledInput, LabelMode


class _Preset(ForwardForwardNetwork):
    """A network that keeps its constructor's arguments, which lets a checkpoint say how to build it again."""

    def _build(self, arguments: Mapping[str, Any], layers: Sequence[FFLayer], labelled_input: LabelledInput) -> None:
        super().__init__(layers, labelled_input, label_layers=arguments["label_layers"], stream=arguments["stream"])
        for name, value in arguments.items():
            setattr(self, name, tuple(value) if isinstance(value, list | tuple) else value)


class ForwardForwardMLP(_Preset):
    """Dense Forward-Forward layers on flattened samples.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of labels.
        hidden_dims: Units of each layer.
        label: How the label enters, see :class:`LabelledInput`.
        label_layers: Which layers it enters, see :class:`ForwardForwardNetwork`.
        stream: What goes from layer to layer, likewise.
        pattern_dim: Length of a random pattern.
        pattern: Distribution of random patterns.
        pattern_seed: Of random patterns.
        amplitude: Length of a label, see :class:`LabelledInput`.
        activation: See :class:`FFLayer`.
        normalise: See :class:`FFLayer`.
        goodness: See :class:`FFLayer`.
        batch_norm: See :class:`FFLayer`.

    Raises:
        ValueError: An argument outside its range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_dims: Sequence[int] = (500, 500),
        label: LabelMode = "overlay",
        label_layers: Literal["first", "all"] = "first",
        stream: Literal["labelled", "neutral"] = "labelled",
        pattern_dim: int = 100,
        pattern: PatternKind = "normal",
        pattern_seed: int = 0,
        amplitude: float | None = None,
        activation: str = "relu",
        normalise: NormaliseKind = "rms",
        goodness: GoodnessKind = "mean_square",
        batch_norm: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims={tuple(hidden_dims)} must hold at least one width, all positive")
        labelled = LabelledInput(
            input_shape,
            num_classes,
            label,
            pattern_dim=pattern_dim,
            pattern=pattern,
            amplitude=amplitude,
            seed=pattern_seed,
        )
        layers: list[FFLayer] = []
        for width, following in pairwise((labelled.data_features, *hidden_dims)):
            layer = FFLinear(
                width,
                following,
                label_features=labelled.features if not layers or label_layers == "all" else 0,
                activation=activation,
                normalise=normalise,
                goodness=goodness,
                batch_norm=batch_norm,
            )
            layers.append(layer)
        self._build(arguments, layers, labelled)


class ForwardForwardCNN(_Preset):
    """Convolutional Forward-Forward layers on images.

    By default the label enters every layer, with other weights in each of 4x4 cells of the map, and the stream between
    layers is neutral, so that more labels cost no further convolution.

    Args:
        input_shape: ``(channels, height, width)``.
        num_classes: Number of labels.
        channels: Of each layer.
        kernel_sizes: Of each layer; padded so that a stride of 1 keeps the size.
        strides: Of each layer.
        pools: Side of the windows of each layer's maximum; 1 for none.
        label: ``'append'``, ``'icp'`` or ``'none'``, see :class:`LabelledInput`.
        label_layers: Which layers it enters, see :class:`ForwardForwardNetwork`.
        stream: What goes from layer to layer, likewise.
        pattern_dim: Planes of a random pattern.
        label_grid: Cells on a side of each map, which have label weights of their own.
        pattern: Distribution of random patterns.
        pattern_seed: Of random patterns.
        amplitude: Length of a label, see :class:`LabelledInput`.
        activation: See :class:`FFLayer`.
        normalise: See :class:`FFLayer`.
        goodness: See :class:`FFLayer`.
        batch_norm: See :class:`FFLayer`.

    Raises:
        ValueError: An argument outside its range, or an image that is too small.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (32, 64, 128),
        kernel_sizes: Sequence[int] = (5, 3, 3),
        strides: Sequence[int] = (2, 1, 1),
        pools: Sequence[int] = (1, 2, 2),
        label: LabelMode = "append",
        label_layers: Literal["first", "all"] = "all",
        stream: Literal["labelled", "neutral"] = "neutral",
        pattern_dim: int = 16,
        label_grid: int = 4,
        pattern: PatternKind = "normal",
        pattern_seed: int = 0,
        amplitude: float | None = None,
        activation: str = "relu",
        normalise: NormaliseKind = "rms",
        goodness: GoodnessKind = "mean_square",
        batch_norm: bool = True,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_shapes(input_shape, channels, kernel_sizes, strides, pools)
        labelled = LabelledInput(
            input_shape,
            num_classes,
            label,
            planes=True,
            pattern_dim=pattern_dim,
            pattern=pattern,
            amplitude=amplitude,
            seed=pattern_seed,
        )
        widths = pairwise((input_shape[0], *channels))
        layers: list[FFLayer] = []
        for (width, following), kernel, stride, pool in zip(widths, kernel_sizes, strides, pools, strict=True):
            layer = FFConv2d(
                width,
                following,
                kernel,
                stride=stride,
                padding=kernel // 2,
                pool=pool,
                label_grid=label_grid,
                label_features=labelled.features if not layers or label_layers == "all" else 0,
                activation=activation,
                normalise=normalise,
                goodness=goodness,
                batch_norm=batch_norm,
            )
            layers.append(layer)
        self._build(arguments, layers, labelled)


def _check_shapes(
    input_shape: Sequence[int], channels: Sequence[int], kernel_sizes: Sequence[int], *shrinks: Sequence[int]
) -> None:
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={tuple(input_shape)}: a CNN takes images (channels, height, width)")
    if not channels or any(len(each) != len(channels) for each in (kernel_sizes, *shrinks)):
        raise ValueError(
            f"channels={tuple(channels)}, kernel_sizes={tuple(kernel_sizes)}, strides={tuple(shrinks[0])} and "
            f"pools={tuple(shrinks[1])} must have one entry for each layer, and at least one"
        )
    if min(min(each) for each in (channels, kernel_sizes, *shrinks)) < 1:
        raise ValueError("channels, kernel_sizes, strides and pools must be at least 1")
    side = min(input_shape[1:])
    for stride, pool in zip(*shrinks, strict=True):
        side = -(-side // stride)
        if side < 1 or side // pool < 1:
            raise ValueError(f"input_shape={tuple(input_shape)} is too small for these strides and pools: give fewer")
        side //= pool
