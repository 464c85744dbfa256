"""When masks change, and how far."""

import math
from typing import Any, Literal

from lightning_nobp.functional.sparsity import cosine_drop_fraction, cubic_sparsity

Kind = Literal["once", "gradual", "exchange"]
Schedule = Literal["cubic", "linear", "cosine", "constant"]


class MaskSchedule:
    """Steps of the optimizer, and what is due after them.

    Args:
        kind: ``'once'``, a single mask; ``'gradual'``, ever sparser masks; ``'exchange'``, other weights.
        schedule: See :class:`~lightning_nobp.callbacks.SparsityMask`.
        begin: Steps before the first mask.
        every: Steps between two changes.
    """

    def __init__(
        self, kind: Literal["once", "gradual", "exchange"], schedule: Schedule, begin: int, every: int
    ) -> None:
        self.kind = kind
        self.schedule = schedule
        self.begin, self.every = begin, every
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.steps = 0
        self.changed: int | None = None
        """After how many steps the last change was; None before the first."""
        self.last = self.begin
        """After how many steps the last change will be."""
        self.initial = 0.0
        """Sparsity at the first change."""

    def is_due(self, steps: int) -> bool:
        """Whether a change is due after so many steps, though they may come several at a time."""
        return steps >= self._next()

    def mark(self) -> None:
        """Note that it was made."""
        self.changed = self.steps

    def sparsity(self, final: float) -> float:
        """That of the present step: from the first change on, and exactly ``final`` from the last."""
        if self.steps >= self.last:
            return final
        if self.schedule == "cubic":
            return cubic_sparsity(self.steps, begin=self.begin, end=self.last, initial=self.initial, final=final)
        done = (self.steps - self.begin) / (self.last - self.begin)
        return self.initial + (final - self.initial) * done

    def drop_fraction(self, initial: float) -> float:
        """Fraction of the weights that is exchanged at the present step."""
        if self.schedule == "constant":
            return initial
        return cosine_drop_fraction(self.steps, begin=self.begin, end=self.last, initial=initial)

    def state_dict(self) -> dict[str, Any]:
        """All that is not an argument."""
        return {name: getattr(self, name) for name in ("steps", "changed", "last", "initial")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state_dict)

    def _next(self) -> float:
        if self.changed is None:
            return self.begin
        if self.kind == "once" or self.changed >= self.last:
            return math.inf
        regular = self.begin + ((self.changed - self.begin) // self.every + 1) * self.every
        if self.kind == "gradual":
            return min(regular, self.last)
        # At the last step nothing would be exchanged any more.
        return regular if regular < self.last else math.inf
