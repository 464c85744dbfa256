"""What ``nobp compare`` watches while a recipe trains: accuracy by epoch and by seconds, samples, a budget."""

import time
from multiprocessing.connection import Connection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.rules import LearningRule


class TimedAlignment(GradientAlignment):
    """An alignment that knows how long it took."""

    seconds = cpu_seconds = 0.0

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Measure, and count the time."""
        start, cpu_start = time.perf_counter(), time.process_time()
        super().on_before_optimizer_step(*args)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu_start


class Curve(Callback):
    """Validation accuracy by epoch and by seconds of training, sent on as it comes.

    ``seconds`` and ``cpu_seconds`` count training and validation, the latter on all cores; ``training_cpu_seconds``
    leaves validation out. Measuring the alignment is taken out of all.

    Args:
        progress: Where to send each point.
        alignment: Whose time is taken out.
        budget: ``training_cpu_seconds`` after which training ends, with a validation; None for no limit.
    """

    def __init__(self, progress: Connection, alignment: TimedAlignment, budget: float | None = None) -> None:
        self.progress, self.alignment, self.budget = progress, alignment, budget
        self.points: list[dict[str, float]] = []
        self.seconds = self.cpu_seconds = self.training_cpu_seconds = 0.0
        self.samples = 0
        self._start = self._cpu_start = self._validation_start = self._validating = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the samples, and end, with a validation, what has used its budget."""
        if isinstance(pl_module, LearningRule):
            self.samples += pl_module.num_samples(batch)
        if self.budget is not None:
            self._read_clocks()
            trainer.should_stop |= self.training_cpu_seconds >= self.budget
            if trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
                # What was learned last, at the lowest learning rate, would not be tested.
                trainer.check_val_every_n_epoch = 1

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count what is not training."""
        self._validation_start = time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a point."""
        if trainer.sanity_checking:
            return
        self._validating += time.process_time() - self._validation_start
        self._read_clocks()
        point = {"epoch": self._epoch(trainer), "seconds": self.seconds, "step": trainer.global_step}
        point |= {"cpu_seconds": self.cpu_seconds, "training_cpu_seconds": self.training_cpu_seconds}
        for name in ("val/accuracy", "val/loss"):
            if name in trainer.callback_metrics:
                point[name] = float(trainer.callback_metrics[name])
        self.points.append(point)
        self.progress.send(("epoch", point | {"epochs": trainer.max_epochs}))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._read_clocks()

    def _epoch(self, trainer: Trainer) -> float:
        """Epochs done, with a fraction where validation comes more often."""
        batches = trainer.num_training_batches
        done = trainer.fit_loop.epoch_loop.batch_idx + 1
        return trainer.current_epoch + (1 if done >= batches else done / batches)

    def _read_clocks(self) -> None:
        self.seconds = time.perf_counter() - self._start - self.alignment.seconds
        self.cpu_seconds = time.process_time() - self._cpu_start - self.alignment.cpu_seconds
        self.training_cpu_seconds = self.cpu_seconds - self._validating


class Pace(Callback):
    """Ends a rehearsal as soon as it has shown how long a step takes.

    Args:
        seconds: Seconds of the processor that the counted steps take, at least.
    """

    WARM_UP, LEAST = 5, 20
    """Steps that are not counted, and the fewest that are."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = self._used = 0.0
        self._steps = -self.WARM_UP

    @property
    def step_seconds(self) -> float:
        """Of the processor, on all cores."""
        return self._used / self._steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the clock."""
        self._steps += 1
        if self._steps == 0:
            self._start = time.process_time()
        self._used = time.process_time() - self._start
        trainer.should_stop |= self._steps >= self.LEAST and self._used >= self.seconds
