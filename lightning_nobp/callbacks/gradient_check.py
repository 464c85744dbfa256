"""The base of callbacks that hold a rule's gradient against autograd's, and stop where it is wrong."""

from typing import ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.gradient_alignment import GradientAlignment, log_now
from lightning_nobp.functional.alignment import gradient_alignment
from lightning_nobp.rules.base import LearningRule


class WrongGradientError(RuntimeError):
    """The gradient that a rule wrote is off by more than a check allows."""


class GradientCheck(GradientAlignment):
    """Compare the gradient that a rule wrote with autograd's; training goes on bit for bit as without.

    Args:
        every_n_steps: Optimizer steps from one check to the next.
        tolerance: Relative error above which training stops; None only logs.

    Raises:
        ValueError: An argument that is not positive.
        TypeError: The module is no rule of the kind that is checked.
        WrongGradientError: In training: the error is above the tolerance.
    """

    rule_type: ClassVar[type[LearningRule]]
    """Whose gradients are checked."""
    prefix: ClassVar[str]
    """Of the names of what is logged."""

    def __init__(self, every_n_steps: int, tolerance: float | None) -> None:
        super().__init__(every_n_steps, per_parameter=False)
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance={tolerance} must be positive, or None to log alone")
        self.tolerance = tolerance
        self.errors: list[float] = []

    def scale(self, rule: LearningRule) -> float:
        """What autograd's gradient is to be multiplied with; by default 1."""
        return 1.0

    def suspicion(self, rule: LearningRule) -> str:
        """What a wrong gradient may come from."""
        return "a backward pass is wrong"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        if not isinstance(pl_module, self.rule_type):
            raise TypeError(
                f"{type(self).__name__} checks a {self.rule_type.__name__} rule, not a {type(pl_module).__name__}"
            )
        super().on_fit_start(trainer, pl_module)
        self.errors = []

    def _report(
        self, trainer: Trainer, rule: LearningRule, names: list[str], written: list[Tensor], references: list[Tensor]
    ) -> None:
        expected = [reference * self.scale(rule) for reference in references]
        differences = [torch.linalg.vector_norm(w - e) for w, e in zip(written, expected, strict=True)]
        size = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(e) for e in expected]))
        error = float(torch.linalg.vector_norm(torch.stack(differences)) / size.clamp_min(1e-30))
        self.errors.append(error)
        self.cosines.append(float(gradient_alignment(written, expected).cosine))
        log_now(trainer, {f"{self.prefix}/relative_error": error, f"{self.prefix}/cosine": self.cosines[-1]})
        # NaN is above any tolerance.
        if self.tolerance is not None and not error <= self.tolerance:
            worst = names[int(torch.stack(differences).argmax())]
            raise WrongGradientError(
                f"{type(self).__name__}: the written gradient is off by {error:.1e} of autograd's, more than "
                f"tolerance={self.tolerance}, most of it in {worst}: {self.suspicion(rule)}"
            )
