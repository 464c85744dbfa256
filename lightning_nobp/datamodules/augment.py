"""Random changes of a batch of images, every image its own.

torchvision's transforms draw one set of parameters for all the images of a batch tensor; these draw one an image,
still in a few vectorised operations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from lightning_nobp.typed import Typed


class RandomShift(Typed, v2.Transform):  # type: ignore[misc]
    """Move each image by up to ``pixels`` in both directions; what comes in from outside is zero.

    Padding by ``pixels`` and cropping at random is the same.

    Args:
        pixels: Largest shift.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__()
        if pixels < 1:
            raise ValueError(f"pixels={pixels} must be at least 1")
        self.pixels = pixels

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """One shift down and one to the right for each image."""
        return {"corner": torch.randint(2 * self.pixels + 1, (2, len(flat_inputs[0])))}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Shift images ``(batch, channels, height, width)``."""
        batch, _, height, width = inpt.shape
        rows, columns = params["corner"].to(inpt.device)
        # Every window is a view: only the chosen ones are copied.
        windows = F.pad(inpt, (self.pixels,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(batch, device=inpt.device), :, rows, columns]


class RandomHorizontalFlip(Typed, v2.Transform):  # type: ignore[misc]
    """Mirror each image, left to right, with probability one half."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """One coin for each image."""
        return {"flip": torch.rand(len(flat_inputs[0])) < 0.5}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Mirror some of the images ``(batch, channels, height, width)``."""
        return torch.where(params["flip"].to(inpt.device).view(-1, 1, 1, 1), inpt.flip(-1), inpt)
