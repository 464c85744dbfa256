"""Callbacks that stop their own process, for the command line in tests."""

import os
import signal
import time

from lightning.pytorch import Callback


class Signal(Callback):
    """Sends this process a signal in a batch, of training or of validation."""

    def __init__(self, signum: int, step: int, validating: bool = False, times: int = 1) -> None:
        self.signum, self.step, self.validating, self.times = signum, step, validating, times

    def on_train_batch_start(self, trainer, *_):
        if not self.validating and trainer.global_step == self.step:
            self._send()

    def on_validation_batch_start(self, trainer, *_):
        if self.validating and trainer.global_step == self.step:
            self._send()

    def _send(self):
        for _ in range(self.times):
            os.kill(os.getpid(), self.signum)
            # Another thread may have taken it: Python answers in this one, a little later.
            time.sleep(0.1)


class SignalIn(Callback):
    """Interrupts this process in a hook of callbacks."""

    def __init__(self, moment: str) -> None:
        setattr(self, moment, self._send)

    def _send(self, *_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
