"""Small parts that tests of rules and callbacks share."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_nobp.nn import MLP
from lightning_nobp.rules import Backprop

ADAM = partial(torch.optim.Adam, lr=1e-3)


def blobs(num_samples: int = 96, seed: int = 0) -> TensorDataset:
    """Three noisy classes of 1x2x3 'images'."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(num_samples) % 3
    centres = torch.randn(3, 1, 2, 3, generator=generator)
    return TensorDataset(centres[target] + 0.3 * torch.randn(num_samples, 1, 2, 3, generator=generator), target)


def loader(num_samples: int = 96, batch_size: int = 16, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(blobs(num_samples), batch_size=batch_size, **kwargs)


def backprop(**kwargs: Any) -> Backprop:
    """A small backprop rule for the blobs, the same weights at every call."""
    torch.manual_seed(0)
    defaults = {"network": partial(MLP, hidden_dims=(8,)), "num_classes": 3, "input_shape": (1, 2, 3)}
    return Backprop(**defaults | {"loss": "cross_entropy"} | kwargs)


def trainer(folder: Path, **kwargs: Any) -> L.Trainer:
    """A quiet trainer on the CPU."""
    defaults = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**defaults | kwargs)


def plain_loop(rule: Backprop) -> dict[str, torch.Tensor]:
    """Sixty steps on all samples without a Trainer; what the last one returned."""
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        values = rule.compute_gradients(blobs().tensors)
        optimizer.step()
    return values


def weights(rule: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(rule.parameters()).detach().clone()
