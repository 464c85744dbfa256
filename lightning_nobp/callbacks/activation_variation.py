"""Units whose activations differ from each other, as those of a real device do."""

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_nobp.functional.device import UnitVariation, part_seed, unit_variation

ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
"""Modules that treat every unit alone, and so can treat each in its own way."""


class ActivationVariation:
    """Give each unit behind an activation module its own curve, as long as this is attached.

    Args:
        sigma: ``activation_variation`` of :class:`~lightning_nobp.callbacks.HardwareNoise`.

    Raises:
        ValueError: It is negative.
    """

    def __init__(self, sigma: float) -> None:
        if not sigma >= 0:
            raise ValueError(f"activation_variation={sigma} must not be negative")
        self.sigma = sigma
        self._handles: list[RemovableHandle] = []

    def attach(self, module: nn.Module, seed: int) -> None:
        """Hook into every activation of ``module``, once.

        Raises:
            MisconfigurationException: There is none.
        """
        if self.sigma == 0 or self._handles:
            return
        for name, layer in module.named_modules():
            if isinstance(layer, ACTIVATIONS):
                curves = _Curves(part_seed(seed, f"activation {name}"), self.sigma)
                self._handles += [
                    layer.register_forward_pre_hook(curves.enter),
                    layer.register_forward_hook(curves.leave),
                ]
        if not self._handles:
            raise MisconfigurationException(
                f"activation_variation={self.sigma}: {type(module).__name__} has no activation that is a module; write "
                f"nn.{', nn.'.join(kind.__name__ for kind in ACTIVATIONS)} into the network instead of calling a "
                "function, or leave the variation out"
            )

    def detach(self) -> None:
        """Make all units equal again."""
        while self._handles:
            self._handles.pop().remove()


class _Curves:
    """The curves of one layer, drawn when its shape is first seen."""

    def __init__(self, seed: int, sigma: float) -> None:
        self.seed, self.sigma = seed, sigma
        self._drawn: dict[tuple[torch.Size, torch.dtype, torch.device], UnitVariation] = {}

    def enter(self, layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        return self._of(args[0]).enter(args[0])

    def leave(self, layer: nn.Module, args: Any, y: Tensor) -> Tensor:
        return self._of(y).leave(y)

    def _of(self, x: Tensor) -> UnitVariation:
        key = (x.shape[1:], x.dtype, x.device)
        if key not in self._drawn:
            # Validation may be what draws first: training could not differentiate through tensors of inference mode.
            with torch.inference_mode(False):
                drawn = unit_variation(self.seed, self.sigma, x.shape[1:], x.device)
                self._drawn[key] = UnitVariation(*(number.to(x.dtype) for number in drawn))
        return self._drawn[key]
