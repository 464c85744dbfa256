"""Ctrl+C that loses nothing."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopOnInterrupt(Callback):
    """Let the first Ctrl+C (SIGINT) stop a training after its batch, as SIGTERM does; the second stops it at once.

    Lightning's own answer strikes in the middle of a step, from where nothing can be resumed. With several processes
    it is left as it is.
    """

    def __init__(self) -> None:
        self.interrupted = False
        """Whether it was Ctrl+C that stopped the training."""
        self._before: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew."""
        self.interrupted = False

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over."""
        self._take(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over, if there was no sanity check."""
        self._take(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give it back: after an error Lightning calls no teardown."""
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give it back."""
        self._give_back()

    def _take(self, trainer: Trainer) -> None:
        alone = trainer.world_size == 1 and threading.current_thread() is threading.main_thread()
        if alone and self._before is None and not self.interrupted:
            self._before = signal.signal(signal.SIGINT, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        print("\nStopping after this batch; Ctrl+C again stops at once.", file=sys.stderr)
        self.interrupted = True
        self._give_back()
        os.kill(os.getpid(), signal.SIGTERM)

    def _give_back(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
