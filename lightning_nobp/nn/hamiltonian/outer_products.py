"""Sums of outer products, many kicks at a time."""

from torch import Tensor


class OuterProducts:
    """Adds up ``left.T @ right`` over kicks: a few of them in one product, which keeps a processor busier.

    Args:
        total: What is added to ``(left_features, right_features)``.
        stack: Kicks to a product.
    """

    def __init__(self, total: Tensor, stack: int = 8) -> None:
        self.total, self.stack = total, stack
        self._rows: tuple[Tensor, Tensor] | None = None
        self._filled = 0

    def slots(self, rows: int) -> tuple[Tensor, Tensor]:
        """Where the next ``left`` and ``right``, of so many rows, are to be written."""
        if self._filled == self.stack:
            self._flush()
        if self._rows is None:
            left, right = (self.total.new_empty(self.stack * rows, size) for size in self.total.shape)
            self._rows = left, right
        here = slice(self._filled * rows, (self._filled + 1) * rows)
        self._filled += 1
        return self._rows[0][here], self._rows[1][here]

    def sum(self) -> Tensor:
        """The sum so far."""
        self._flush()
        return self.total

    def _flush(self) -> None:
        if self._rows is None or not self._filled:
            return
        left, right = (part[: len(part) // self.stack * self._filled] for part in self._rows)
        self.total.addmm_(left.t(), right)
        self._filled = 0
