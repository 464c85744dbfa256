"""The residual sum of two branches."""

from torch import Tensor, nn

from lightning_nobp.typed import Typed


class Residual(Typed, nn.Module):
    """``body(x) + shortcut(x)``.

    Args:
        body: The branch that learns the residual; its output has the shape of the shortcut's.
        shortcut: The other branch, the identity by default.

    References:
        He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut if shortcut is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Sum of both branches."""
        y: Tensor = self.body(x) + self.shortcut(x)
        return y
