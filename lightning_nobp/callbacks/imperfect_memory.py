"""Weights in a memory that is written imperfectly, whatever the learning rule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_nobp.functional.counter_random import random_normal, random_uniform
from lightning_nobp.functional.device import device_update, grid_step, part_seed, quantise

Rounding = Literal["nearest", "stochastic"]
_CHOICES = {
    "update_rounding": ("nearest", "stochastic"),
    "weight_rounding": ("nearest", "stochastic"),
    "saturation": ("hard", "soft"),
}
_Draw = Callable[[int, Tensor, int, int], Tensor]


@dataclass
class ImperfectMemory:
    """What stands between an optimizer and its parameters, as long as this is attached.

    What the optimizer has changed is taken back and written as the memory can: rounded to pulses, answered by the
    device (dead zone, gains, soft bound), with noise, within the range. Then the weights drift, are stored on their
    grid, and the stuck ones are as before. See :class:`~lightning_nobp.callbacks.HardwareNoise` for the arguments.

    Raises:
        ValueError: An argument outside its range, or one that needs ``weight_range``.
    """

    update_noise: float = 0.0
    update_step: float = 0.0
    update_rounding: Rounding = "nearest"
    dead_zone: float = 0.0
    up_gain: float = 1.0
    down_gain: float = 1.0
    weight_range: float | None = None
    saturation: Literal["hard", "soft"] = "hard"
    weight_bits: int | None = None
    weight_rounding: Rounding = "nearest"
    drift: float = 0.0
    stuck_fraction: float = 0.0
    seed: int = field(default=0, init=False)
    updates: int = field(default=0, init=False)
    """Steps of all optimizers so far."""
    _handles: list[RemovableHandle] = field(default_factory=list, init=False)
    _before: list[Tensor] = field(default_factory=list, init=False)
    _stuck: dict[Tensor, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Refuse what no memory can be."""
        for name in ("update_noise", "update_step", "dead_zone", "up_gain", "down_gain"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("drift", "stuck_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a fraction: give a number from 0 to 1")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
        if self.weight_range is not None and not self.weight_range > 0:
            raise ValueError(f"weight_range={self.weight_range} must be positive, or None for no bound")
        if self.weight_bits is not None and self.weight_bits < 2:
            raise ValueError(f"weight_bits={self.weight_bits} has no level but zero: give at least 2, or None")
        for name, ideal in (("saturation", "hard"), ("weight_bits", None)):
            if self.weight_range is None and getattr(self, name) != ideal:
                raise ValueError(f"{name}={getattr(self, name)!r} needs a bound: give weight_range too")

    @property
    def is_ideal(self) -> bool:
        """Whether nothing is changed."""
        stores_exactly = self.weight_range is None and not self.drift and not self.stuck_fraction
        return self._writes_exactly and not self.update_noise and stores_exactly

    @property
    def _writes_exactly(self) -> bool:
        is_soft = self.weight_range is not None and self.saturation == "soft"
        return not (self.update_step or self.dead_zone or is_soft) and self.up_gain == self.down_gain == 1

    def reset(self) -> None:
        """Start anew."""
        self.updates = 0

    def attach(self, optimizers: Sequence[Optimizer], seed: int) -> None:
        """Take the parameters in, as well as they can be stored, and stand behind every step."""
        self.seed = seed
        for number, optimizer in enumerate(optimizers):
            self._program(optimizer)
            self._handles += [
                optimizer.register_step_pre_hook(self._remember),
                optimizer.register_step_post_hook(partial(self._rewrite, number)),
            ]

    def detach(self) -> None:
        """Let the optimizers write exactly again."""
        while self._handles:
            self._handles.pop().remove()
        self._before, self._stuck = [], {}

    @torch.no_grad()
    def _program(self, optimizer: Optimizer) -> None:
        # To the nearest: what a checkpoint brings back lies on the grid, and stays where it is.
        for parameter in _parameters(optimizer):
            self._bound(parameter)
            if self.weight_bits is not None:
                parameter.copy_(quantise(parameter, self._grid))

    @torch.no_grad()
    def _remember(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._before = [p.detach().clone() for p in _parameters(optimizer)]

    @torch.no_grad()
    def _rewrite(self, number: int, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        start, before = 0, self._before
        self._before = []
        for parameter, old in zip(_parameters(optimizer), before, strict=True):
            if parameter.grad is not None:
                self._write(parameter, old, start)
            self._store(parameter, start)
            if self.stuck_fraction:
                parameter.copy_(torch.where(self._is_stuck(parameter, number, start), old, parameter))
            start += parameter.numel()
        self.updates += 1

    def _write(self, parameter: Tensor, old: Tensor, start: int) -> None:
        if not self._writes_exactly:
            change = parameter - old
            if self.update_step:
                uniform = self._uniform("update", self.update_rounding, parameter, start)
                change = quantise(change, self.update_step, uniform)
            gains = {"dead_zone": self.dead_zone, "up_gain": self.up_gain, "down_gain": self.down_gain}
            bound = self.weight_range if self.saturation == "soft" else None
            parameter.copy_(old + device_update(change, old, soft_bound=bound, **gains))
        if self.update_noise:
            noise = self._draw(random_normal, "noise", self.updates, parameter, start)
            parameter.add_(noise, alpha=self.update_noise)
        self._bound(parameter)

    def _store(self, parameter: Tensor, start: int) -> None:
        if self.drift:
            parameter.mul_(1 - self.drift)
        if self.weight_bits is not None:
            uniform = self._uniform("weight", self.weight_rounding, parameter, start)
            parameter.copy_(quantise(parameter, self._grid, uniform))

    def _bound(self, parameter: Tensor) -> None:
        if self.weight_range is not None:
            parameter.clamp_(-self.weight_range, self.weight_range)

    @property
    def _grid(self) -> float:
        assert self.weight_range is not None
        assert self.weight_bits is not None
        return grid_step(self.weight_range, self.weight_bits)

    def _is_stuck(self, parameter: Tensor, number: int, start: int) -> Tensor:
        if parameter not in self._stuck:
            uniform = self._draw(random_uniform, "stuck", number, parameter, start)
            self._stuck[parameter] = uniform < self.stuck_fraction
        return self._stuck[parameter]

    def _uniform(self, what: str, rounding: Rounding, like: Tensor, start: int) -> Tensor | None:
        """Random numbers for this update's rounding, if it is stochastic."""
        return self._draw(random_uniform, what, self.updates, like, start) if rounding == "stochastic" else None

    def _draw(self, draw: _Draw, what: str, row: int, like: Tensor, start: int) -> Tensor:
        # A function of the update's number: the same on every process, and after a restart.
        rows = torch.full((1,), row, device=like.device)
        return draw(part_seed(self.seed, what), rows, start, start + like.numel()).view_as(like)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
