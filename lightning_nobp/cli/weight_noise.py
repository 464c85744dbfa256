"""What is left of a network whose weights are not quite those that were learned."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def weight_noise(module: nn.Module, scale: float, seed: int) -> Iterator[None]:
    """Multiply every parameter by ``1 + scale * n``, n drawn from a normal distribution, as long as this lasts.

    Args:
        module: Whose parameters.
        scale: Relative standard deviation, like the spread of devices that were made alike.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [p.detach().clone() for p in module.parameters()]
    try:
        with torch.no_grad():
            for parameter in module.parameters():
                drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.mul_(1 + scale * drawn)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), kept, strict=True):
                parameter.copy_(value)
