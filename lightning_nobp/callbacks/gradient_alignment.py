"""The angle between a rule's gradient and backpropagation's."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_nobp.functional.alignment import gradient_alignment
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.random_state import collect_random_state, restore_random_state
from lightning_nobp.rules.synchronisation import average_gradients
from lightning_nobp.typed import Typed

_Pending = tuple[Any, dict[str, Any], list[Tensor]]
"""A batch, the random state and the buffers from which its gradient was computed."""


class GradientAlignment(Typed, Callback):
    """Log cosine and norm ratio between the gradient that the rule wrote and backpropagation's.

    Backpropagation's gradient is that of ``rule.global_loss`` on the same batches, from the same random state: a
    dropped unit is dropped in both. Training goes on as if nothing had happened, bit for bit. Logged are
    ``alignment/cosine`` and ``alignment/norm_ratio`` over all parameters, and ``alignment/cosine/<parameter>``,
    ``alignment/norm_ratio/<parameter>``. A step that moves nothing (``on_nonfinite='skip'``) is not measured.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; each costs about one step of
            backpropagation.
        per_parameter: Whether each parameter is logged too.

    Raises:
        ValueError: ``every_n_steps`` is not positive.
        TypeError: The module is no LearningRule.
    """

    def __init__(self, every_n_steps: int = 100, per_parameter: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps, self.per_parameter = every_n_steps, per_parameter
        self.cosines: list[float] = []
        self._pending: list[_Pending] = []
        self._comparable = True

    @property
    def mean_cosine(self) -> float | None:
        """Mean of the overall cosine over all measurements; None before the first."""
        return sum(self.cosines) / len(self.cosines) if self.cosines else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        if not isinstance(pl_module, LearningRule):
            raise TypeError(f"GradientAlignment compares a LearningRule's gradient, not a {type(pl_module).__name__}'s")
        self.cosines, self._pending, self._comparable = [], [], True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember what the gradient of this batch depends on."""
        if self._comparable and trainer.global_step % self.every_n_steps == 0:
            buffers = [b.detach().clone() for b in pl_module.buffers()]
            self._pending.append((batch, collect_random_state(), buffers))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compare, once the gradient is complete."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        assert isinstance(pl_module, LearningRule)
        named = {n: p for n, p in pl_module.named_parameters() if p.requires_grad}
        if all(p.grad is None for p in named.values()):
            return  # A step that was skipped.
        written = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in named.values()]
        references = self._backprop(pl_module, list(named.values()), pending)
        if references is None:
            warnings.warn(
                f"{type(pl_module).__name__} has no global loss: there is no gradient to align with", stacklevel=2
            )
            self._comparable = False
            return
        self._report(trainer, pl_module, list(named), written, references)

    def _report(
        self, trainer: Trainer, rule: LearningRule, names: list[str], written: list[Tensor], references: list[Tensor]
    ) -> None:
        """Log how the gradient that was written compares with backpropagation's."""
        result = gradient_alignment(written, references)
        self.cosines.append(float(result.cosine))
        values = {"alignment/cosine": result.cosine, "alignment/norm_ratio": result.norm_ratio}
        if self.per_parameter:
            for name, cosine, ratio in zip(names, result.cosines, result.norm_ratios, strict=True):
                values |= {f"alignment/cosine/{name}": cosine, f"alignment/norm_ratio/{name}": ratio}
        log_now(trainer, values)

    def _backprop(self, rule: LearningRule, parameters: list[Tensor], pending: list[_Pending]) -> list[Tensor] | None:
        """Backpropagation's gradient of the joined batches, averaged over ranks."""
        before, after = collect_random_state(), [b.detach().clone() for b in rule.buffers()]
        sums, samples = [torch.zeros_like(p) for p in parameters], 0
        try:
            for batch, random_state, buffers in pending:
                _put(rule, buffers)
                restore_random_state(random_state)
                with torch.enable_grad(), rule.trainer.precision_plugin.forward_context():
                    loss = rule.global_loss(batch)
                if loss is None:
                    return None
                count = rule.num_samples(batch)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                sums = [s if g is None else s + g * count for s, g in zip(sums, found, strict=True)]
                samples += count
        finally:
            _put(rule, after)
            restore_random_state(before)
        return average_gradients([s / samples for s in sums], samples)


def log_now(trainer: Trainer, values: Mapping[str, Tensor | float]) -> None:
    """Hand values straight to the loggers: ``pl_module.log`` keeps those of a step alone that is one of the logged."""
    for logger in trainer.loggers:
        step = trainer.fit_loop.total_batch_idx
        logger.log_metrics({name: float(value) for name, value in values.items()}, step=step)


@torch.no_grad()
def _put(rule: LearningRule, values: list[Tensor]) -> None:
    for buffer, value in zip(rule.buffers(), values, strict=True):
        buffer.copy_(value)
