"""What the Trainer adds to a step.

    python tests/benchmarks/bench_trainer.py [--rounds 3] [--batches 200]

A rule under the Trainer beside the bare loop and beside plain manual optimization, as the documentation of Lightning
writes it: 784-500-500-10, batch 128, float32, SGD. Most of what the Trainer adds is its own: plain manual optimization
that logs every 50th step pays it too. Our base adds the check that loss and gradients are finite, which reads every
gradient once, and the epoch's means.
"""

import logging
import statistics
import tempfile
import warnings
from functools import partial

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from report import Report, options
from timing import clock
from torch import nn
from torch.utils.data import DataLoader

from lightning_nobp.nn import MLP
from lightning_nobp.rules import Backprop

SGD = partial(torch.optim.SGD, lr=0.01)


class PlainManual(L.LightningModule):
    """Manual optimization as the documentation of Lightning writes it."""

    def __init__(self, log_every: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.log_every = MLP((784,), 10), log_every

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.manual_backward(loss)
        optimizer.step()
        if batch_idx % self.log_every == 0:
            self.log("train/loss", loss)

    def configure_optimizers(self):
        return SGD(self.parameters())


def bare_loop(batches: list, engine: str) -> float:
    rule = Backprop(network=MLP((784,), 10), num_classes=10, loss="cross_entropy", engine=engine)
    optimizer = SGD(rule.parameters())
    start = clock()
    for batch in batches:
        optimizer.zero_grad()
        rule.compute_gradients(batch)
        optimizer.step()
    return clock() - start


class Clock(L.Callback):
    """Seconds between the first and the last batch."""

    def on_train_epoch_start(self, *_):
        self.start = clock()

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_last_batch:
            self.seconds = clock() - self.start


def under_trainer(batches: list, module: L.LightningModule, progress_bar: bool = False) -> float:
    watch = Clock()
    callbacks = [watch, L.pytorch.callbacks.TQDMProgressBar(refresh_rate=20)] if progress_bar else [watch]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=CSVLogger(folder),
            callbacks=callbacks,
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=50,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))
    return watch.seconds


def rule(engine: str) -> Backprop:
    return Backprop(network=MLP((784,), 10), num_classes=10, loss="cross_entropy", engine=engine, optimizer=SGD)


VARIANTS = {
    "bare loop, explicit": partial(bare_loop, engine="explicit"),
    "bare loop, autograd": partial(bare_loop, engine="autograd"),
    "rule under the Trainer, explicit": lambda batches: under_trainer(batches, rule("explicit")),
    "rule under the Trainer, autograd": lambda batches: under_trainer(batches, rule("autograd")),
    "the same with its progress bar": lambda batches: under_trainer(batches, rule("explicit"), progress_bar=True),
    "plain manual optimization, log every step": lambda batches: under_trainer(batches, PlainManual(1)),
    "plain manual optimization, log every 50th": lambda batches: under_trainer(batches, PlainManual(50)),
}


def main() -> None:
    choices = options(__doc__, rounds=3, batches={"type": int, "default": 200, "help": "in an epoch"})
    report = Report(choices)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    batches = [(torch.randn(128, 784), torch.randint(10, (128,))) for _ in range(choices.batches)]
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(choices.rounds + 1):
        for name, run in VARIANTS.items():
            seconds[name].append(run(batches))
    found = {name: statistics.median(values[1:]) / choices.batches * 1e3 for name, values in seconds.items()}
    rows = []
    for name, milliseconds in found.items():
        bare = found["bare loop, explicit" if "explicit" in name or "progress" in name else "bare loop, autograd"]
        rows.append({"variant": name, "ms a step": milliseconds, "/ bare loop": milliseconds / bare})
    report.table("One step of 784-500-500-10, batch 128", rows)


if __name__ == "__main__":
    main()
