"""Small networks of quaternions to start from; widths are counted in real features, four a quaternion."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_nobp.nn.networks import Preset, activation_layer
from lightning_nobp.nn.quaternion.activations import NormGate
from lightning_nobp.nn.quaternion.convolution import QuaternionConv2d, QuaternionConvTranspose2d
from lightning_nobp.nn.quaternion.dropout import QuaternionDropout
from lightning_nobp.nn.quaternion.encoding import ColourToQuaternions, PatchesToQuaternions, QuaternionsToReal
from lightning_nobp.nn.quaternion.linear import QuaternionLinear, check_positive, check_quaternions
from lightning_nobp.nn.quaternion.normalisation import QuaternionBatchNorm


def _encoder(input_shape: Sequence[int]) -> tuple[nn.Module, int, int, int]:
    """What makes quaternions of an image, and how many channels, rows and columns of them there are."""
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={tuple(input_shape)}: quaternions are made of images (channels, height, width)")
    check_positive(input_shape=tuple(input_shape))
    channels, height, width = input_shape
    if channels == 3:
        return ColourToQuaternions(), 1, height, width
    if height % 2 or width % 2:
        raise ValueError(
            f"input_shape={tuple(input_shape)} has no patches of 2x2: height and width must be even, or there must be "
            "three colours"
        )
    return PatchesToQuaternions(), channels, height // 2, width // 2


def _check_widths(name: str, widths: Sequence[int]) -> None:
    """Refuse what is no list of widths, each of whole quaternions, before a layer calls them by another name."""
    for width in widths:
        check_quaternions(**{name: width})


class QuaternionMLP(Preset):
    """A multilayer perceptron of quaternions with a real readout.

    A pixel of a colour image is one quaternion ``(mean, red, green, blue)``, of others each patch of 2x2 pixels.

    Args:
        input_shape: ``(channels, height, width)``.
        num_classes: Number of scores.
        hidden_dims: Real width of each hidden layer, divisible by 4.
        activation: Of the components: ``'relu'``, ``'sigmoid'``, ``'tanh'`` or ``'gelu'``.
        dropout: Probability with which a hidden quaternion is dropped in training.

    Raises:
        TypeError: Sizes that are no whole numbers, or one where a list is due.
        ValueError: A width that is not divisible by 4, an image that makes no quaternions, no class, or an unknown
            activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_dims: Sequence[int] = (512, 512),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        check_positive(num_classes=num_classes)
        _check_widths("hidden_dims", hidden_dims)
        encoder, *size = _encoder(input_shape)
        layers: list[nn.Module] = [encoder, nn.Flatten()]
        widths = [4 * math.prod(size), *hidden_dims]
        for fan_in, fan_out in pairwise(widths):
            layers += [QuaternionLinear(fan_in, fan_out), activation_layer(activation)]
            if dropout:
                layers.append(QuaternionDropout(dropout))
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.hidden_dims, self.activation, self.dropout = tuple(hidden_dims), activation, dropout


class QuaternionCNN(Preset):
    """A convolutional network of quaternions: 3x3, batch normalisation, activation, 2x2 maximum; then a mean of maps.

    Args:
        input_shape: ``(channels, height, width)``; the quaternions are those of :class:`QuaternionMLP`.
        num_classes: Number of scores.
        channels: Real channels of each convolution, divisible by 4.
        activation: Of the components: ``'relu'``, ``'sigmoid'``, ``'tanh'`` or ``'gelu'``.
        norm: Mode of the :class:`QuaternionBatchNorm`.

    Raises:
        TypeError: Sizes that are no whole numbers, or one where a list is due.
        ValueError: No channels or such that are not divisible by 4, an image that makes no quaternions or is too small
            to be halved so often, no class, or an unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[int] = (32, 64, 128, 128),
        activation: str = "relu",
        norm: str = "split",
    ) -> None:
        check_positive(num_classes=num_classes)
        _check_widths("channels", channels)
        if not channels:
            raise ValueError("channels=() makes no convolution: give the channels of at least one, like (32,)")
        encoder, inputs, height, width = _encoder(input_shape)
        shrink = 2 ** len(channels)
        if min(height, width) < shrink:
            raise ValueError(
                f"input_shape={tuple(input_shape)} gives maps of {height}x{width} quaternions, too small to be halved "
                f"{len(channels)} times: give fewer channels"
            )
        layers: list[nn.Module] = [encoder]
        for fan_in, fan_out in pairwise([4 * inputs, *channels]):
            layers += [
                QuaternionConv2d(fan_in, fan_out, kernel_size=3, padding=1),
                QuaternionBatchNorm(fan_out, mode=norm),
                activation_layer(activation),
                nn.MaxPool2d(2),
            ]
        layers += [nn.AvgPool2d((height // shrink, width // shrink)), nn.Flatten()]
        super().__init__(*layers, nn.Linear(channels[-1], num_classes))
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.channels, self.activation, self.norm = tuple(channels), activation, norm


class QuaternionAutoencoder(Preset):
    """A convolutional autoencoder of colour images: a pixel is ``(0, red, green, blue)``, maps shrink and grow by two.

    Args:
        channels: Real channels of each hidden layer, divisible by 4; the first half shrinks the maps, the middle one
            included, the rest and the output grow them.

    Raises:
        TypeError: ``channels`` is no list of whole numbers.
        ValueError: An even number of hidden layers, or channels that are not divisible by 4.

    References:
        Parcollet, Morchid and Linares, "Quaternion Convolutional Neural Networks for Heterogeneous Image Processing",
        arXiv 1811.02656.
    """

    def __init__(self, channels: Sequence[int] = (32, 40, 32)) -> None:
        _check_widths("channels", channels)
        if len(channels) % 2 == 0:
            raise ValueError(f"channels={tuple(channels)}: as many layers grow as shrink, so give an odd number")
        widths = [4, *channels, 4]
        layers: list[nn.Module] = [ColourToQuaternions(real="zero")]
        for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
            if number < len(widths) // 2:
                layers.append(QuaternionConv2d(fan_in, fan_out, 3, stride=2, padding=1, criterion="glorot"))
            else:
                layers.append(
                    QuaternionConvTranspose2d(
                        fan_in, fan_out, 3, stride=2, padding=1, output_padding=1, criterion="glorot"
                    )
                )
            layers.append(nn.Hardtanh())
        super().__init__(*layers, QuaternionsToReal("imaginary"))
        self.channels = tuple(channels)


class EquivariantMLP(Preset):
    """Quaternions to quaternions, such that a rotation of all inputs rotates all outputs: ``f(r x) = r f(x)``.

    Weights multiply from the right and there are no biases, so a factor on the left passes through; the activation
    changes lengths alone.

    Args:
        in_features: Real features of the input, divisible by 4.
        out_features: Real features of the output, divisible by 4.
        hidden_dims: Real width of each hidden layer, divisible by 4.

    Raises:
        TypeError: Sizes that are no whole numbers, or one where a list is due.
        ValueError: A width that is not divisible by 4.
    """

    def __init__(self, in_features: int, out_features: int = 4, hidden_dims: Sequence[int] = (256, 256)) -> None:
        check_quaternions(in_features=in_features)
        _check_widths("hidden_dims", hidden_dims)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([in_features, *hidden_dims]):
            layers += [QuaternionLinear(fan_in, fan_out, bias=False, side="right"), NormGate(fan_out // 4)]
        last = hidden_dims[-1] if hidden_dims else in_features
        super().__init__(*layers, QuaternionLinear(last, out_features, bias=False, side="right"))
        self.in_features, self.out_features, self.hidden_dims = in_features, out_features, tuple(hidden_dims)
