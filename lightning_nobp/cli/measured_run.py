"""One recipe trained, tested and measured, in a process of its own."""

import io
import math
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_nobp.cli.arguments import prepare
from lightning_nobp.cli.compare_runs import Task
from lightning_nobp.cli.curve import Curve, Pace, TimedAlignment
from lightning_nobp.cli.lightning import NobpCLI, command_line, quieten
from lightning_nobp.cli.recipes import UsageError
from lightning_nobp.cli.report import COUNTS
from lightning_nobp.cli.wandb_run import finish
from lightning_nobp.cli.weight_noise import weight_noise
from lightning_nobp.rules.closed_form import ClosedFormRule

ALIGNMENT_EVERY = 50
"""Steps from one measurement of the alignment to the next: about 2 % of the time."""

NOISE_DRAWS = 3
"""Networks with noisy weights that are tested, each with noise of its own."""

POINTS = 8
"""Validations of a run with a budget, about."""


def in_child(work: Callable[[Task, Connection], dict[str, Any]], task: Task, progress: Connection) -> None:
    """Do a piece of work; what it prints goes to ``folder/log.txt``.

    Sends what the work sends, then ``("done", result)`` or ``("failed", message)``.

    Args:
        work: :func:`measure` or :func:`rehearse`.
        task: Of which recipe.
        progress: One end of a pipe.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(task.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
    try:
        result = work(task, progress)
        # A process of multiprocessing ends without W&B's own ending.
        finish()
        progress.send(("done", result))
    except UsageError as error:
        progress.send(("failed", str(error)))
    except BaseException as error:
        # Before anything else is written: the disk may be full.
        progress.send(("failed", f"{type(error).__name__}: {error}".strip().splitlines()[0]))
        finish(exit_code=1)
        traceback.print_exc()


def rehearse(task: Task, progress: Connection) -> dict[str, Any]:
    """Options with which the recipe fills its budget: the epochs that fit, learning rates that fall over them.

    A rule that solves for its weights has the epochs that it needs.
    """
    assert task.budget is not None
    pace = Pace(task.budget / 20)
    # As long as it takes: the pace ends it.
    long = ("--trainer.max_epochs=1000000", "--trainer.max_steps=-1", "--trainer.max_time=null")
    unseen = ("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0")
    silent = ("--trainer.logger=false", "--trainer.enable_checkpointing=false")
    cli = _build(task._replace(options=[*task.options, *long, *unseen, *silent]), [pace])
    if isinstance(cli.model, ClosedFormRule):
        return {"options": []}
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    epochs = task.budget / (pace.step_seconds * cli.trainer.num_training_batches)
    # The last of them is cut where the budget ends.
    whole = math.ceil(epochs)
    options = [f"--trainer.max_epochs={whole}", f"--trainer.check_val_every_n_epoch={max(1, whole // POINTS)}"]
    if epochs < POINTS / 2:
        options.append(f"--trainer.val_check_interval={epochs / POINTS:.4f}")
    scheduler = getattr(cli.config.model.init_args, "lr_scheduler", None)
    if scheduler is not None and "T_max" in scheduler.init_args:
        options.append(f"--model.lr_scheduler.T_max={whole}")
    return {"options": options}


def measure(task: Task, progress: Connection) -> dict[str, Any]:
    """Train and test a recipe, and return what came out; sends ``("epoch", point)`` while it trains."""
    alignment = TimedAlignment(ALIGNMENT_EVERY, per_parameter=False)
    curve = Curve(progress, alignment, task.budget)
    cli = _build(task, [curve, alignment])
    _forget_peak()
    before = _peak_bytes()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    peak = _peak_bytes() - before
    tested = _test(cli)
    noisy = _test_with_noise(cli, task.noise) if task.noise else None
    return {
        "test_accuracy": tested.get("test/accuracy"),
        "test_loss": tested.get("test/loss"),
        "noisy_test_accuracy": noisy,
        "test_others": {
            name.removeprefix("test/"): float(value)
            for name, value in tested.items()
            if name not in ("test/accuracy", "test/loss")
        },
        "seconds": curve.seconds,
        "cpu_seconds": curve.cpu_seconds,
        "training_cpu_seconds": curve.training_cpu_seconds,
        "epochs": cli.trainer.current_epoch,
        "steps": cli.trainer.global_step,
        "samples": curve.samples,
        "parameters": sum(p.numel() for p in cli.model.parameters()),
        "peak_memory_mib": peak / 2**20,
        "alignment": alignment.mean_cosine,
        **{name: getattr(cli.model, name, None) for name in COUNTS},
        "curve": curve.points,
    }


def _build(task: Task, callbacks: list[Callback]) -> NobpCLI:
    quieten()
    arguments = [
        *(f"--config={task.recipe}", f"--trainer.default_root_dir={task.folder}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        "--figures=0",  # their time would count
        *task.options,
    ]
    prepared = prepare(arguments)
    with command_line(prepared.arguments):
        return NobpCLI(prepared.recipe, callbacks=callbacks, run=False)


def _test(cli: NobpCLI) -> Mapping[str, float]:
    """What the test finds, with the best weights; nothing if the rule has no test."""
    if not is_overridden("test_step", cli.model):
        return {}
    best = getattr(cli.trainer.checkpoint_callback, "best_model_path", "") or None
    [tested] = cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)
    return tested


def _test_with_noise(cli: NobpCLI, scale: float) -> float | None:
    """Mean test accuracy of the tested weights with noise, over some draws; nothing for what has none."""
    if not is_overridden("test_step", cli.model):
        return None
    # These figures belong into no log of the run.
    cli.trainer.loggers = []
    found: list[float] = []
    for seed in range(NOISE_DRAWS):
        with weight_noise(cli.model, scale, seed):
            [tested] = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        if "test/accuracy" in tested:
            found.append(tested["test/accuracy"])
    return statistics.fmean(found) if found else None


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
