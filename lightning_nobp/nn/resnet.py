"""Residual networks for small images."""

from collections.abc import Sequence

from torch import nn

from lightning_nobp.nn.networks import Preset
from lightning_nobp.nn.residual import Residual


class ResNet(Preset):
    """A residual network with a 3x3 stem: stages of basic blocks, each stage but the first at half the resolution.

    The default is ResNet-18 as it is used for images of 32 x 32 pixels.

    Args:
        input_shape: ``(channels, height, width)``; height and width at least ``2 ** (len(widths) - 1)``.
        num_classes: Number of scores.
        widths: Channels of each stage.
        blocks: Basic blocks, of two convolutions, in each stage.

    Raises:
        ValueError: Other numbers of stages in ``widths`` and ``blocks``, or too small an image.

    References:
        He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        if len(input_shape) != 3:
            raise ValueError(f"input_shape={tuple(input_shape)}: a ResNet takes images (channels, height, width)")
        if len(widths) != len(blocks) or not widths:
            raise ValueError(f"widths={list(widths)} and blocks={list(blocks)}: give one number for every stage")
        channels, height, width = input_shape
        if min(height, width) < 2 ** (len(widths) - 1):
            raise ValueError(
                f"input_shape={tuple(input_shape)} is too small to be halved {len(widths) - 1} times: give fewer stages"
            )
        layers: list[nn.Module] = [_conv(channels, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        before = widths[0]
        for stage, (channels, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                layers += [_basic_block(before, channels, stride), nn.ReLU()]
                height, width = -(-height // stride), -(-width // stride)
                before = channels
        layers += [nn.AvgPool2d((height, width)), nn.Flatten(), nn.Linear(before, num_classes)]
        super().__init__(*layers)
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.widths, self.blocks = tuple(widths), tuple(blocks)


def _basic_block(before: int, channels: int, stride: int) -> Residual:
    body = nn.Sequential(
        _conv(before, channels, stride),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        _conv(channels, channels),
        nn.BatchNorm2d(channels),
    )
    if stride == 1 and before == channels:
        return Residual(body)
    projection = nn.Conv2d(before, channels, kernel_size=1, stride=stride, bias=False)
    return Residual(body, nn.Sequential(projection, nn.BatchNorm2d(channels)))


def _conv(before: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, channels, kernel_size=3, stride=stride, padding=1, bias=False)
