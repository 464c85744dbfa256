"""What a run is called in Weights & Biases, so that a report can group it, and which run goes on."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger

from lightning_nobp.checkpoints import load_checkpoint

_ELSEWHERE = {
    "name": ("WANDB_NAME", "WANDB_SWEEP_ID"),  # W&B numbers the runs of a sweep
    "group": ("WANDB_RUN_GROUP",),
    "tags": ("WANDB_TAGS",),
    "job_type": ("WANDB_JOB_TYPE",),
    "id": ("WANDB_RUN_ID",),
    "resume": ("WANDB_RESUME",),
}
"""Variables of the environment that say it too; what they say holds."""


def describe(config: Namespace, recipe: str, job_type: str) -> None:
    """Give each W&B logger of a configuration what a report groups by, and the run that its checkpoint is of.

    ``name`` is the recipe with the seed, ``group`` the data set, ``tags`` are the rule and the recipe. What the
    configuration or the environment says stays.

    Args:
        config: Of one subcommand; it is changed.
        recipe: Name of the recipe.
        job_type: What is done.
    """
    loggers = list(_wandb_loggers(config.trainer.logger))
    if not loggers:
        return
    # A comparison starts anew, also with the configuration of a run that went on.
    checkpoint = None if job_type == "compare" else config.ckpt_path
    run_id = _run_of(checkpoint, config.get("weights_only") is not False)
    seed = config.seed_everything
    rule, data = (config[key].class_path.rpartition(".")[2] for key in ("model", "data"))
    said = {
        "name": recipe if seed is None or isinstance(seed, bool) else f"{recipe}, seed {seed}",
        "group": recipe.rpartition("/")[0] or data.removesuffix("DataModule"),
        "tags": [rule, recipe],
        # Whatever is done with a run later, it is a training.
        "job_type": "fit" if run_id else job_type,
    }
    for logger in loggers:
        given = logger.init_args
        goes_on = {"id": run_id, "resume": "allow"} if run_id and not given.get("version") else {}
        for key, value in (said | goes_on).items():
            # A logger class of the user's own need not take all of them.
            if key in given and given[key] is None and not any(name in os.environ for name in _ELSEWHERE[key]):
                given[key] = value


def finish(exit_code: int = 0) -> None:
    """End the run that is open: the next in this process is one of its own.

    Args:
        exit_code: 0 if the run went well.
    """
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)


def _wandb_loggers(logger: Any) -> Iterator[Namespace]:
    for one in logger if isinstance(logger, list) else [logger]:
        kind = locate(one.class_path) if isinstance(one, Namespace) else None
        if isinstance(kind, type) and issubclass(kind, WandbLogger):
            yield one


def _run_of(checkpoint: str | None, weights_only: bool) -> str | None:
    """The id of the W&B run that a checkpoint is of."""
    if checkpoint is None or not Path(checkpoint).is_file():
        return None
    content = load_checkpoint(checkpoint, weights_only=weights_only)
    ids = (state.get("wandb_id") for state in content.get("callbacks", {}).values() if isinstance(state, dict))
    return next((run_id for run_id in ids if run_id), None)
