"""Whether written quaternion derivatives are right, while training runs."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.gradient_alignment import GradientAlignment, log_now
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.quaternion import QuaternionBackprop


class GHRGradientCheck(GradientAlignment):
    """Compare the gradient that a :class:`~lightning_nobp.rules.QuaternionBackprop` wrote with autograd's.

    Logged is ``ghr/relative_error``, ``|g - s a| / |s a|`` with the written gradient g, autograd's a and
    ``s = grad_scale / 4``. A subclass with derivatives of its own, or layers with a backward pass of their own, are
    found out at the first check. Training goes on as if nothing had happened, bit for bit.

    Args:
        every_n_steps: Optimizer steps from one check to the next.
        tolerance: Relative error above which training stops; None only logs.

    Raises:
        ValueError: An argument that is not positive.
        TypeError: The module is no QuaternionBackprop.
        RuntimeError: In training: the error is above the tolerance.
    """

    def __init__(self, every_n_steps: int = 100, tolerance: float | None = 1e-3) -> None:
        super().__init__(every_n_steps, per_parameter=False)
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance={tolerance} must be positive, or None to log alone")
        self.tolerance = tolerance
        self.errors: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        if not isinstance(pl_module, QuaternionBackprop):
            raise TypeError(f"GHRGradientCheck checks a QuaternionBackprop rule, not a {type(pl_module).__name__}")
        super().on_fit_start(trainer, pl_module)
        self.errors = []

    def _report(
        self, trainer: Trainer, rule: LearningRule, names: list[str], written: list[Tensor], references: list[Tensor]
    ) -> None:
        assert isinstance(rule, QuaternionBackprop)
        expected = [reference * (rule.grad_scale / 4) for reference in references]
        differences = [torch.linalg.vector_norm(w - e) for w, e in zip(written, expected, strict=True)]
        size = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(e) for e in expected]))
        error = float(torch.linalg.vector_norm(torch.stack(differences)) / size.clamp_min(1e-30))
        self.errors.append(error)
        log_now(trainer, {"ghr/relative_error": error})
        # NaN is above any tolerance.
        if self.tolerance is not None and not error <= self.tolerance:
            worst = names[int(torch.stack(differences).argmax())]
            on_purpose = f", or backward_mode is {rule.backward_mode!r} on purpose (then tolerance=None only logs)"
            raise RuntimeError(
                f"GHRGradientCheck: the written gradient is off by {error:.1e} of autograd's, more than "
                f"tolerance={self.tolerance}, most of it in {worst}: a backward pass is wrong"
                + ("" if rule.backward_mode in ("ghr", "autograd") else on_purpose)
            )
