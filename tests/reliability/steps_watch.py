"""A callback that notes how large the process is and how fast it goes."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

EVERY = 1000
"""Steps from one line to the next."""


class StepsWatch(Callback):
    """Writes lines of step, resident MiB and seconds of the processor.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % EVERY == 0:
            with self.path.open("a") as file:
                print(trainer.global_step, resident_mib(), time.process_time(), file=file)


def resident_mib(process: int | str = "self") -> float:
    """Memory that a process takes of the machine's, as the kernel counts it."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
