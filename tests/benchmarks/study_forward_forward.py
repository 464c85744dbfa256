"""Forward-Forward with its two passes apart: many batches of positives, then as many of negatives.

    python tests/benchmarks/study_forward_forward.py [--epochs 10] [--seeds 3]

Hinton's abstract asks what it would be worth if the passes could be separated in time. Digits, as in
``digits/forward_forward``; every update sees one kind of samples only.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.functional.forward_forward import loss_coefficients
from lightning_nobp.rules import ForwardForward


class Phases(ForwardForward):
    """Forward-Forward that learns from positives alone for ``length`` batches, then from negatives alone."""

    def __init__(self, *, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length, self.batches = length, 0

    def compute_gradients(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        positive = self.batches // self.length % 2 == 0
        self.batches += 1
        losses = []
        with torch.no_grad():
            for layer in self.contrast(batch, self.generators["negatives"]):
                (q_pos, q_neg), loss = loss_coefficients("ff", *layer.goodness(), alpha=16.0)
                layer.add_gradients(torch.stack([q_pos * positive, q_neg * (not positive)]))
                losses.append(loss)
        return {"loss": torch.stack(losses).sum()}


def train(length: int, epochs: int, seed: int) -> float:
    """Test accuracy in per cent at the end; with length 0 both passes learn from every batch."""
    L.seed_everything(seed, verbose=False)
    options: dict[str, Any] = {
        "hidden_dims": (200, 200),
        "optimizer": partial(torch.optim.Adam, lr=5e-3, fused=True),
        "lr_scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        "seed": seed,
    }
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rule = Phases(length=length, **options) if length else ForwardForward(**options)
    data = DigitsDataModule(batch_size=32, val_size=0.15)
    trainer.fit(rule, data)
    return 100 * trainer.test(rule, data, verbose=False)[0]["test/accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = Table("batches of one kind", "test %", title=f"Digits, {options.epochs} epochs, {options.seeds} seeds")
    for length in (0, 1, 5, 25):
        found = torch.tensor([train(length, options.epochs, seed) for seed in range(options.seeds)])
        table.add_row(str(length) if length else "both in each", f"{found.mean():.2f} ± {found.std():.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
