"""What a fit came to, in one table."""

import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lightning_nobp.callbacks.run_folder import run_folder
from lightning_nobp.rules.closed_form import ClosedFormRule
from lightning_nobp.typed import Typed

_OF_NETWORKS = {"link AUROC": "val/link_auroc", "weight error": "val/weight_error"}


class FitSummary(Typed, Callback):
    """Print a compact table at the end of fit.

    Args:
        hint: A command to try next, in which ``{run}`` stands for the run's folder; None for none.
    """

    def __init__(self, hint: str | None = None) -> None:
        self.hint = hint
        self._start = 0.0
        self._best: tuple[float, int] | None = None
        self._validated = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._best, self._validated = time.perf_counter(), None, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the best validation accuracy."""
        if trainer.sanity_checking:
            return
        self._validated = True
        accuracy = trainer.callback_metrics.get("val/accuracy")
        if accuracy is None:
            return
        if self._best is None or float(accuracy) > self._best[0]:
            self._best = (float(accuracy), trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table."""
        if not trainer.is_global_zero:
            return
        table = Table(show_header=False, title=f"{type(pl_module).__name__}", title_justify="left")
        for name, value in self._rows(trainer, pl_module).items():
            table.add_row(name, value)
        console = Console(soft_wrap=True)
        console.print(table)
        checkpoint = _checkpoint(trainer)
        if checkpoint:
            console.print(f"checkpoint: {checkpoint}", highlight=False)
        if self.hint and checkpoint:
            console.print(f"next: {self.hint.format(run=run_folder(trainer))}", highlight=False)

    def _rows(self, trainer: Trainer, rule: LightningModule) -> dict[str, str]:
        seconds = time.perf_counter() - self._start
        rows = {
            "parameters": f"{sum(p.numel() for p in rule.parameters()):,}",
            "epochs, steps": f"{trainer.current_epoch}, {trainer.global_step:,}",
            "seconds": f"{seconds:.1f}",
        }
        metrics = trainer.callback_metrics
        loss = metrics.get("train/loss_epoch")
        if isinstance(rule, ClosedFormRule):
            rows["stages"] = f"{rule.stage} of {rule.num_stages} solved"
        elif loss is not None:
            rows["train/loss"] = f"{float(loss):.4g} (mean of the last epoch)"
        if self._best is not None:
            rows["val/accuracy"] = f"{self._best[0]:.2%} (best, epoch {self._best[1]})"
        rows |= {row: f"{float(metrics[name]):.4g}" for row, name in _OF_NETWORKS.items() if name in metrics}
        if trainer.enable_validation and not self._validated:
            rows["validation"] = "none was due: the checkpoint is the last epoch's"
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rows["run folder"] = str(run_folder(trainer))
        return rows


def _checkpoint(trainer: Trainer) -> str:
    """Of the first callback that wrote one: without validation there is no best epoch, but a last one."""
    for callback in trainer.checkpoint_callbacks:
        found = getattr(callback, "best_model_path", "") or getattr(callback, "last_model_path", "")
        if found:
            return str(Path(found))
    return ""
