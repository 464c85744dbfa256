"""Trainings in processes of their own that are killed or stopped at chosen moments."""

import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop

from lightning_nobp.checkpoints import DurableCheckpointIO
from lightning_nobp.cli import main

PHASES = ("elsewhere", "training", "validating", "saving")
_INSIDE = (
    ("training", _FitLoop, "run"),
    ("validating", _EvaluationLoop, "run"),
    ("saving", DurableCheckpointIO, "save_checkpoint"),
)


class Moment(NamedTuple):
    """When a signal strikes: so many seconds after training began, and then in that phase."""

    delay: float
    phase: str
    within: float
    """Seconds into the phase."""


class End(NamedTuple):
    """How a life ended."""

    status: int
    """As of :func:`os.waitstatus_to_exitcode`."""
    phase: str | None
    """Where the signal struck; None if it came too late."""


def live(arguments: Sequence[str], log: Path, moment: Moment | None = None, signum: int = signal.SIGKILL) -> End:
    """Run ``nobp`` in a new process, and send it a signal at a moment."""
    shared = mmap.mmap(-1, 1)
    child = os.fork()
    if not child:
        _be_the_child(arguments, log, shared)
    struck = _strike(child, shared, moment, signum) if moment is not None else None
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # A process that had ended just before is a zombie, and takes any signal.
    return End(status, struck if signum != signal.SIGKILL or status == -signal.SIGKILL else None)


def moments(seed: int, spread: float) -> Iterator[Moment]:
    """Random moments of trainings of about ``spread`` seconds from one checkpoint to the next."""
    source = random.Random(seed)
    while True:
        phase = source.choice(("training", "training", "validating", "saving"))
        yield Moment(source.uniform(0, spread), phase, source.uniform(0, 0.004))


def _be_the_child(arguments: Sequence[str], log: Path, shared: mmap.mmap) -> None:
    """Never returns: what a test would do at its end is for the parent alone."""
    status = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # Not those of pytest, which catches what a test prints.
        sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)
        for phase, owner, name in _INSIDE:
            _mark(shared, PHASES.index(phase), owner, name)
        status = main(list(arguments))
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _mark(shared: mmap.mmap, number: int, owner: type, name: str) -> None:
    """Let the parent see when a method runs."""
    method = getattr(owner, name)

    def marked(*args: Any, **kwargs: Any) -> Any:
        before, shared[0] = shared[0], number
        try:
            return method(*args, **kwargs)
        finally:
            shared[0] = before

    setattr(owner, name, marked)


def _strike(child: int, shared: mmap.mmap, moment: Moment, signum: int) -> str | None:
    # Not before: there is nothing to save in the check of the validation that comes first.
    if not _wait(child, lambda: shared[0] == PHASES.index("training")):
        return None
    time.sleep(moment.delay)
    wanted = PHASES.index(moment.phase)
    if not _wait(child, lambda: shared[0] == wanted):
        return None
    time.sleep(moment.within)
    phase = PHASES[shared[0]]
    if _has_ended(child):
        return None
    os.kill(child, signum)
    return phase


def _wait(child: int, reached: Any) -> bool:
    """Whether it was reached before the process ended."""
    while not reached():
        if _has_ended(child):
            return False
        time.sleep(0.0001)
    return True


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
