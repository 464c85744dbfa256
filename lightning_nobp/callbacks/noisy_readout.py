"""Costs as an imperfect instrument reads them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_nobp.functional.counter_random import random_normal
from lightning_nobp.functional.device import part_seed, quantise
from lightning_nobp.rules.synchronisation import gather_from_ranks, rank

Hook = Callable[[Tensor], Tensor]


class CostReader(Protocol):
    """A rule that learns from the costs it reads."""

    cost_hooks: list[Hook]
    """Applied to every tensor of costs, each entry a read-out of its own; return what was read."""
    difference_hooks: list[Hook]
    """Applied to cost differences in the order of time, ``(time_steps,)``, before they meet their perturbations."""

    @property
    def reads_in_time_order(self) -> bool:
        """Whether one cost is read after another."""


@dataclass
class NoisyReadout:
    """What stands between a rule and its cost, as long as this is attached.

    Args:
        cost_noise: See :class:`~lightning_nobp.callbacks.HardwareNoise`, and so for the others.
        cost_noise_relative: As there.
        cost_quantisation: As there.
        readout_delay: As there.

    Raises:
        ValueError: A negative argument.
    """

    cost_noise: float = 0.0
    cost_noise_relative: float = 0.0
    cost_quantisation: float = 0.0
    readout_delay: int = 0
    seed: int = field(default=0, init=False)
    read_outs: int = field(default=0, init=False)
    """Of this process, so far."""
    _late: Tensor | None = field(default=None, init=False)
    _rule: CostReader | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuse negative arguments."""
        for name in ("cost_noise", "cost_noise_relative", "cost_quantisation", "readout_delay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    @property
    def is_ideal(self) -> bool:
        """Whether nothing is changed."""
        return not (self._is_noisy or self.cost_quantisation or self.readout_delay)

    @property
    def _is_noisy(self) -> bool:
        return bool(self.cost_noise or self.cost_noise_relative)

    def reset(self) -> None:
        """Start anew."""
        self.read_outs, self._late = 0, None

    def attach(self, rule: CostReader, seed: int) -> None:
        """Read the costs of ``rule``."""
        self.seed, self._rule = seed, rule
        if self._is_noisy or self.cost_quantisation:
            rule.cost_hooks.append(self.read)
        if self.readout_delay:
            rule.difference_hooks.append(self.hold_back)

    def detach(self) -> None:
        """Let the rule read exactly again."""
        rule, self._rule = self._rule, None
        for hooks, own in ((rule.cost_hooks, self.read), (rule.difference_hooks, self.hold_back)) if rule else ():
            if own in hooks:
                hooks.remove(own)

    def read(self, cost: Tensor) -> Tensor:
        """What is read of ``cost``, of any shape."""
        if self._is_noisy:
            spread = (self.cost_noise**2 + (self.cost_noise_relative * cost).square()).sqrt()
            cost = cost + spread * self._normal(cost).to(cost.dtype)
        return quantise(cost, self.cost_quantisation) if self.cost_quantisation else cost

    def hold_back(self, differences: Tensor) -> Tensor:
        """The differences of ``readout_delay`` time steps ago, ``(time_steps,)``; zeros before the first."""
        late = differences.new_zeros(self.readout_delay) if self._late is None else self._late.to(differences)
        waiting = torch.cat([late, differences])
        self._late = waiting[len(differences) :].clone()
        return waiting[: len(differences)]

    def _normal(self, cost: Tensor) -> Tensor:
        start, self.read_outs = self.read_outs, self.read_outs + cost.numel()
        # Every process has its own instrument.
        row = torch.full((1,), rank(), device=cost.device)
        return random_normal(part_seed(self.seed, "cost"), row, start, self.read_outs).view_as(cost)

    def state_dict(self) -> list[dict[str, Any]]:
        """How far each process has read, and what it has not passed on yet."""
        late = None if self._late is None else self._late.cpu()
        return gather_from_ranks({"read_outs": self.read_outs, "late": late})

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on behind it."""
        state = states[min(rank(), len(states) - 1)]
        self.read_outs, self._late = state["read_outs"], state["late"]
