"""Whether written quaternion derivatives are right, while training runs."""

from typing import ClassVar

from lightning_nobp.callbacks.gradient_check import GradientCheck
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.quaternion import QuaternionBackprop


class GHRGradientCheck(GradientCheck):
    """Compare the gradient that a :class:`~lightning_nobp.rules.QuaternionBackprop` wrote with autograd's.

    Logged are ``ghr/relative_error``, ``|g - s a| / |s a|`` with the written gradient g, autograd's a and
    ``s = grad_scale / 4``, and ``ghr/cosine``. A subclass with derivatives of its own, or layers with a backward pass
    of their own, are found out at the first check. Training goes on as if nothing had happened, bit for bit.

    Args:
        every_n_steps: Optimizer steps from one check to the next.
        tolerance: Relative error above which training stops; None only logs.

    Raises:
        ValueError: An argument that is not positive.
        TypeError: The module is no QuaternionBackprop.
        WrongGradientError: In training: the error is above the tolerance.
    """

    rule_type: ClassVar[type[LearningRule]] = QuaternionBackprop
    prefix: ClassVar[str] = "ghr"

    def __init__(self, every_n_steps: int = 100, tolerance: float | None = 1e-3) -> None:
        super().__init__(every_n_steps, tolerance)

    def scale(self, rule: LearningRule) -> float:
        """What the rule multiplies its gradient with."""
        assert isinstance(rule, QuaternionBackprop)
        return rule.grad_scale / 4

    def suspicion(self, rule: LearningRule) -> str:
        """A wrong formula, or a rule that is wrong on purpose."""
        assert isinstance(rule, QuaternionBackprop)
        if rule.backward_mode in ("ghr", "autograd"):
            return super().suspicion(rule)
        return (
            f"{super().suspicion(rule)}, or backward_mode is {rule.backward_mode!r} on purpose (then tolerance=None "
            "only logs)"
        )
