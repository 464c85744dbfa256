"""What a run was: its configuration, kept with it."""

import json
import sys
import time
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lightning_nobp.callbacks.run_folder import run_folder
from lightning_nobp.cli.checkpoints import RUN_FILE
from lightning_nobp.files import write_whole


class RunConfig(SaveConfigCallback):
    """Write the configuration into the run's own folder, and hand it, nested, to every logger.

    Lightning's own callback writes beside the runs, so that a second run destroys the first one's file or stops.

    Args:
        parser: Which writes the configuration.
        config: The configuration.
        recipe: Name of the run, under which ``--ckpt_path best`` finds it; None for a run that is not to be found.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, recipe: str | None) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.recipe = recipe
        self._wandb_id: str | None = None

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, on the main process."""
        if stage != "fit":
            return
        text = self.parser.dump(self.config, skip_none=False)
        nested = yaml.safe_load(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(nested)
            if isinstance(logger, WandbLogger):
                self._wandb_id = str(logger.version)
        folder = run_folder(trainer)
        write_whole(folder / "config.yaml", text)
        if self.recipe is not None:
            run = {"recipe": self.recipe, "command": sys.argv[1:], "started": time.time()}
            write_whole(folder / RUN_FILE, json.dumps(run, indent=2))

    def state_dict(self) -> dict[str, Any]:
        """The W&B run's id, with which a resumed run can go on in the same one."""
        return {"wandb_id": self._wandb_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take back: a logger needs the id before (:func:`~lightning_nobp.cli.wandb_run.describe`)."""
