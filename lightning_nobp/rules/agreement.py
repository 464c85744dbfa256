"""What all ranks of a run must have in common: looked at before one waits for another in vain."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

import lightning_nobp
from lightning_nobp.rules.hyperparameters import import_path, plain_arguments
from lightning_nobp.rules.synchronisation import gather_from_ranks, in_words, sum_over_ranks, world_size

_OF_TRAINER = (
    *("max_epochs", "max_steps", "min_epochs", "min_steps", "limit_train_batches", "limit_val_batches"),
    *("overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps"),
    *("reload_dataloaders_every_n_epochs", "precision"),
)
"""What decides how many steps a rank makes, and when it exchanges something."""

_MOST_NAMED = 5
"""So many differences are told: more have one cause."""


def check_configurations_agree(rule: LightningModule, trainer: Trainer) -> None:
    """Compare the rule, its parameters and the Trainer over ranks.

    Raises:
        MisconfigurationException: On every rank; names what differs, and where.
    """
    if world_size() == 1:
        return
    own: dict[str, Any] = {"lightning_nobp": lightning_nobp.__version__, "rule": import_path(type(rule))}
    arguments = {k: v for k, v in plain_arguments(type(rule), rule.hparams).items() if not k.startswith("_")}
    own |= _flat(arguments, "rule")
    own |= {f"parameter {name}": f"{tuple(p.shape)} {p.dtype}" for name, p in rule.named_parameters()}
    own |= {f"Trainer({name})": getattr(trainer, name) for name in _OF_TRAINER}
    own["checkpoint callbacks"] = [callback.state_key for callback in trainer.checkpoint_callbacks]
    check_agreement(own, "Start all of them from the same script, configuration and version.")


def check_lengths_agree(trainer: Trainer) -> None:
    """Compare the batches of an epoch over ranks.

    Raises:
        MisconfigurationException: On every rank; names the numbers.
    """
    check_agreement(
        {"batches of an epoch": trainer.num_training_batches},
        "A step takes a batch of every rank: give their loaders equally many, cut all to the fewest by "
        "Trainer(limit_train_batches=...), or let Lightning share one data set (use_distributed_sampler=True).",
    )


def check_epochs_end_together(trainer: Trainer) -> None:
    """See whether this batch is the last of every rank or of none; for loaders that do not know their length.

    Raises:
        MisconfigurationException: On every rank; names the ranks.
    """
    ending = int(sum_over_ranks(torch.tensor(int(trainer.is_last_batch))))
    if 0 < ending < world_size():
        check_agreement(
            {f"whether batch {trainer.fit_loop.batch_idx} is the last": trainer.is_last_batch},
            "A step takes a batch of every rank: let their loaders give equally many.",
        )


def refuse_together(check: Callable[[Any], None], batch: Any) -> None:
    """Let every rank refuse a batch that one refuses.

    Raises:
        Exception: What ``check`` raises.
        ValueError: What it raises on another rank.
    """
    refusal: Exception | None = None
    try:
        check(batch)
    except Exception as error:  # raised below, when all know of it
        refusal = error
    everywhere = gather_from_ranks(refusal and str(refusal))
    if refusal is not None:
        raise refusal
    for number, other in enumerate(everywhere):
        if other is not None:
            raise ValueError(f"rank {number}: {other}")


def check_agreement(own: Mapping[str, Any], remedy: str) -> None:
    """Compare values over ranks.

    Args:
        own: This rank's, by name.
        remedy: What to do about a difference.

    Raises:
        MisconfigurationException: On every rank; names what differs, and where.
    """
    everywhere = gather_from_ranks({name: str(value) for name, value in own.items()})
    names = dict.fromkeys(name for values in everywhere for name in values)
    found = {name: [values.get(name, "not given") for values in everywhere] for name in names}
    differing = [f"{name}: {_by_ranks(values)}" for name, values in found.items() if len(set(values)) > 1]
    if differing:
        more = len(differing) - _MOST_NAMED
        told = "; ".join(differing[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise MisconfigurationException(f"the processes of this run differ in {told}. {remedy}")


def _by_ranks(values: Sequence[str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {in_words(numbers)}" for value, numbers in ranks.items())


def _flat(plain: Any, name: str) -> dict[str, Any]:
    """Plain data by dotted names; a tensor by a digest of what it holds."""
    if isinstance(plain, Mapping) and plain:
        return {k: v for key, value in plain.items() for k, v in _flat(value, f"{name}.{key}").items()}
    if isinstance(plain, Tensor):
        content = hashlib.sha256(plain.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return {name: f"{plain.dtype} {tuple(plain.shape)} {content.hexdigest()[:8]}"}
    return {name: plain}
