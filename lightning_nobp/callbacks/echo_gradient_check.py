"""Whether echoes tell the right gradient, while training runs."""

from typing import ClassVar

from lightning_nobp.callbacks.gradient_check import GradientCheck
from lightning_nobp.nn.hamiltonian.echo_layer import default_eta
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.hamiltonian_echo import HamiltonianEcho


class EchoGradientCheck(GradientCheck):
    """Compare the gradient of a :class:`~lightning_nobp.rules.HamiltonianEcho` with autograd's through all time steps.

    Logged are ``heb/relative_error``, ``|g - a| / |a|`` with the echo's gradient g and autograd's a, and
    ``heb/cosine``. A check takes the memory of a graph through time, which training itself does not. Training goes on
    as if nothing had happened, bit for bit.

    Args:
        every_n_steps: Optimizer steps from one check to the next.
        tolerance: Relative error above which training stops; None only logs.

    Raises:
        ValueError: An argument that is not positive.
        TypeError: The module is no HamiltonianEcho.
        WrongGradientError: In training: the error is above the tolerance.
    """

    rule_type: ClassVar[type[LearningRule]] = HamiltonianEcho
    prefix: ClassVar[str] = "heb"

    def __init__(self, every_n_steps: int = 100, tolerance: float | None = 0.05) -> None:
        super().__init__(every_n_steps, tolerance)

    def suspicion(self, rule: LearningRule) -> str:
        """A nudge of the wrong size, chaos, or an apparatus that is not right."""
        assert isinstance(rule, HamiltonianEcho)
        if rule.gradient_engine != "echo":
            return "the simulation is not reversed exactly: take fewer or shorter time steps"
        eta = default_eta(next(rule.parameters()).dtype) if rule.eta is None else rule.eta
        return (
            f"eta={eta} is too large for the curvature, or too small for rounding or noise, the simulation is chaotic, "
            "or the apparatus is imperfect on purpose (then tolerance=None only logs): take another eta, "
            "nudge='richardson', or fewer time steps"
        )
