"""One recipe trained, tested and measured, in a process of its own."""

import io
import os
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.cli.arguments import prepare
from lightning_nobp.cli.lightning import NobpCLI, command_line, quieten
from lightning_nobp.cli.recipes import UsageError
from lightning_nobp.cli.report import COUNTS
from lightning_nobp.cli.wandb_run import finish

ALIGNMENT_EVERY = 50
"""Steps from one measurement of the alignment to the next: about 2 % of the time."""


class Curve(Callback):
    """Validation accuracy by epoch and by seconds of training, sent on as it comes.

    The seconds count training and validation, those of the processor on all its cores; measuring the alignment is taken
    out.

    Args:
        progress: Where to send each point.
        alignment: Whose time is taken out.
    """

    def __init__(self, progress: Connection, alignment: "TimedAlignment") -> None:
        self.progress, self.alignment = progress, alignment
        self.points: list[dict[str, float]] = []
        self.seconds = self.cpu_seconds = 0.0
        self._start = self._cpu_start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a point."""
        if trainer.sanity_checking:
            return
        self._read_clocks()
        point = {"epoch": trainer.current_epoch + 1, "seconds": self.seconds, "step": trainer.global_step}
        point["cpu_seconds"] = self.cpu_seconds
        for name in ("val/accuracy", "val/loss"):
            if name in trainer.callback_metrics:
                point[name] = float(trainer.callback_metrics[name])
        self.points.append(point)
        self.progress.send(("epoch", point | {"epochs": trainer.max_epochs}))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._read_clocks()

    def _read_clocks(self) -> None:
        self.seconds = time.perf_counter() - self._start - self.alignment.seconds
        self.cpu_seconds = time.process_time() - self._cpu_start - self.alignment.cpu_seconds


class TimedAlignment(GradientAlignment):
    """An alignment that knows how long it took."""

    seconds = cpu_seconds = 0.0

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Measure, and count the time."""
        start, cpu_start = time.perf_counter(), time.process_time()
        super().on_before_optimizer_step(*args)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu_start


def run_in_child(recipe: str, options: list[str], folder: Path, progress: Connection) -> None:
    """Train and test a recipe; what it prints goes to ``folder/log.txt``.

    Sends ``("epoch", point)`` while it trains, then ``("done", result)`` or ``("failed", message)``.

    Args:
        recipe: Its name.
        options: More options of the command line.
        folder: Where all its files go.
        progress: One end of a pipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
    try:
        result = measure(recipe, options, folder, progress)
        # A process of multiprocessing ends without W&B's own ending.
        finish()
        progress.send(("done", result))
    except UsageError as error:
        progress.send(("failed", str(error)))
    except BaseException as error:
        finish(exit_code=1)
        traceback.print_exc()
        progress.send(("failed", f"{type(error).__name__}: {error}".strip().splitlines()[0]))


def measure(recipe: str, options: list[str], folder: Path, progress: Connection) -> dict[str, Any]:
    """Train and test a recipe, and return what came out."""
    quieten()
    alignment = TimedAlignment(ALIGNMENT_EVERY, per_parameter=False)
    curve = Curve(progress, alignment)
    arguments = [
        *(f"--config={recipe}", f"--trainer.default_root_dir={folder}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        "--figures=0",  # their time would count
        *options,
    ]
    prepared = prepare(arguments)
    with command_line(prepared.arguments):
        cli = NobpCLI(prepared.recipe, callbacks=[curve, alignment], run=False)
    _forget_peak()
    before = _peak_bytes()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    peak = _peak_bytes() - before
    tested = _test(cli)
    return {
        "test_accuracy": tested.get("test/accuracy"),
        "test_loss": tested.get("test/loss"),
        "test_others": {
            name.removeprefix("test/"): float(value)
            for name, value in tested.items()
            if name not in ("test/accuracy", "test/loss")
        },
        "seconds": curve.seconds,
        "cpu_seconds": curve.cpu_seconds,
        "epochs": cli.trainer.current_epoch,
        "steps": cli.trainer.global_step,
        "parameters": sum(p.numel() for p in cli.model.parameters()),
        "peak_memory_mib": peak / 2**20,
        "alignment": alignment.mean_cosine,
        **{name: getattr(cli.model, name, None) for name in COUNTS},
        "curve": curve.points,
    }


def _test(cli: NobpCLI) -> Mapping[str, float]:
    """What the test finds, with the best weights; nothing if the rule has no test."""
    if not is_overridden("test_step", cli.model):
        return {}
    best = getattr(cli.trainer.checkpoint_callback, "best_model_path", "") or None
    [tested] = cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)
    return tested


def _forget_peak() -> None:
    """Start the kernel's high-water mark of memory anew, where it can be."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak_bytes() -> int:
    """Largest resident memory so far."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
