"""Small networks to start from, and what a rule accepts as a network.

The presets are plain ``nn.Sequential``, so every rule that walks through layers can take them. They keep their
constructor's arguments as attributes, which lets a checkpoint say how to build them again.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.typed import Typed

NetworkFactory = Callable[[Sequence[int], int], nn.Module]
"""Called with the input shape ``(channels, height, width)`` and the number of classes."""

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}


def activation_layer(name: str) -> nn.Module:
    """One of :data:`ACTIVATIONS`.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Preset(Typed, nn.Sequential):
    """A sequence whose constructor takes something else than its layers."""

    def __getitem__(self, index: slice | int) -> Any:
        """A layer; of a slice, a plain ``nn.Sequential`` of the same layers."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


class MLP(Preset):
    """A multilayer perceptron on flattened inputs.

    Args:
        input_shape: Shape of one sample, for images ``(channels, height, width)``.
        num_classes: Number of scores.
        hidden_dims: Width of each hidden layer; empty for a linear classifier.
        activation: ``'relu'``, ``'sigmoid'``, ``'tanh'`` or ``'gelu'``.
        batch_norm: Whether each hidden layer is batch-normalised before its activation.
        dropout: Probability with which a hidden unit is dropped in training.

    Raises:
        ValueError: An unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_dims: Sequence[int] = (500, 500),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for hidden in hidden_dims:
            layers.append(nn.Linear(width, hidden))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(activation_layer(activation))
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = hidden
        layers.append(nn.Linear(width, num_classes))
        super().__init__(*layers)
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.hidden_dims, self.activation = tuple(hidden_dims), activation
        self.batch_norm, self.dropout = batch_norm, dropout


class CNN(Preset):
    """A small convolutional network: 3x3 convolutions, each halved by a 2x2 maximum, then a hidden layer.

    Args:
        input_shape: ``(channels, height, width)``; height and width at least ``2 ** len(channels)``.
        num_classes: Number of scores.
        channels: Output channels of each convolution.
        hidden_dim: Width of the fully connected layer.
        activation: ``'relu'``, ``'sigmoid'``, ``'tanh'`` or ``'gelu'``.
        batch_norm: Whether each convolution and the hidden layer are batch-normalised before their activation.
        dropout: Probability with which a unit of the hidden layer is dropped in training.

    Raises:
        ValueError: The image is too small for that many halvings, or an unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (32, 64),
        hidden_dim: int = 128,
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if len(input_shape) != 3:
            raise ValueError(f"input_shape={tuple(input_shape)}: a CNN takes images (channels, height, width)")
        width, height, breadth = input_shape
        shrink = 2 ** len(channels)
        if min(height, breadth) < shrink:
            raise ValueError(
                f"input_shape={tuple(input_shape)} is too small to be halved {len(channels)} times: give fewer channels"
            )
        layers: list[nn.Module] = []
        for out in channels:
            layers.append(nn.Conv2d(width, out, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out))
            layers += [activation_layer(activation), nn.MaxPool2d(2)]
            width = out
        flat = width * (height // shrink) * (breadth // shrink)
        layers += [nn.Flatten(), nn.Linear(flat, hidden_dim)]
        if batch_norm:
            layers.append(nn.BatchNorm1d(hidden_dim))
        layers.append(activation_layer(activation))
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(hidden_dim, num_classes))
        super().__init__(*layers)
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.channels, self.hidden_dim, self.activation = tuple(channels), hidden_dim, activation
        self.batch_norm, self.dropout = batch_norm, dropout


class TwoClasses(Typed, nn.Module):
    """Scores of two classes from one output ``y`` between 0 and 1: ``(1 - y, y)``.

    The mean squared error of the scores against one-hot targets is that of the output against the class number.
    """

    def forward(self, y: Tensor) -> Tensor:
        """Scores ``(batch, 2)`` of outputs ``(batch, 1)``."""
        return torch.cat([1 - y, y], dim=-1)


class SigmoidMLP(Preset):
    """A perceptron of sigmoid units throughout, its outputs too, as small hardware has; one output for two classes.

    Args:
        input_shape: Shape of one sample.
        num_classes: Number of scores.
        hidden_dims: Width of each hidden layer.
        init_range: Weights and biases start uniform between minus this and this; None for torch's own start.

    Raises:
        ValueError: ``init_range`` is not positive.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_dims: Sequence[int] = (4,),
        init_range: float | None = None,
    ) -> None:
        if init_range is not None and not init_range > 0:
            raise ValueError(f"init_range={init_range} must be positive, or None for torch's own start")
        widths = [math.prod(input_shape), *hidden_dims, 1 if num_classes == 2 else num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Sigmoid()]
        super().__init__(*layers, *([TwoClasses()] if num_classes == 2 else []))
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.hidden_dims, self.init_range = tuple(hidden_dims), init_range
        if init_range is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -init_range, init_range)


PRESETS: dict[str, NetworkFactory] = {"mlp": MLP, "cnn": CNN}


class sequential(Preset):  # noqa: N801 - the name in recipes and checkpoints
    """An ``nn.Sequential`` from a list, the form that a YAML configuration can write.

    A class, since options of a function cannot be overridden on the command line.

    Args:
        layers: The layers in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(*layers)

    def _get_name(self) -> str:
        return "Sequential"
