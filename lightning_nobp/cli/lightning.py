"""``nobp fit``, ``validate``, ``test`` and ``predict``: Lightning's command line with the rules in it."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_nobp.callbacks import (
    BestInSummary,
    FitSummary,
    LastCheckpoint,
    PredictionWriter,
    StopOnInterrupt,
    WrongGradientError,
)
from lightning_nobp.checkpoints import DurableCheckpointIO, load_checkpoint
from lightning_nobp.cli.arguments import RUNS, prepare
from lightning_nobp.cli.parser import NobpParser, bad_value
from lightning_nobp.cli.recipes import UsageError
from lightning_nobp.cli.rule_figures import figures, spacing
from lightning_nobp.cli.run_config import RunConfig
from lightning_nobp.cli.run_logger import RunLogger, reserve
from lightning_nobp.cli.wandb_run import describe, finish
from lightning_nobp.rules import ClassificationRule, LearningRule
from lightning_nobp.typed import is_refusal

_NOISE = (
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*LeafSpec.*is deprecated.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*anonymous setting has no effect.*",
    ".*recommended to use `self.log.*sync_dist=True.*",
    ".*`torch.jit.script` is deprecated.*",
    ".*The dirpath has changed from.*",
    ".*Couldn't infer the batch indices.*",
    ".*You have overridden `on_before_batch_transfer`.*",
    # Whoever tests writes no checkpoints: the one that is missing is ours.
    ".*callbacks used to create the checkpoint need to be provided.*LastCheckpoint.*",
)
"""Warnings that a reader cannot act on, or that a recipe has answered."""


_SAY_ENOUGH = (MisconfigurationException, FloatingPointError, OSError, WrongGradientError)
"""Errors of settings, numbers and files: where in the code they arose tells a user nothing."""

_OF_WORKER = "Original Traceback (most recent call last)"

_TAKES_PICTURES = (WandbLogger, TensorBoardLogger)
"""Loggers that keep figures beside the values."""


class NobpCLI(LightningCLI):
    """Lightning's command line for learning rules.

    Args:
        recipe: Name of the run.
        callbacks: More callbacks for the Trainer.
        run: Whether the first argument is a subcommand to run.
    """

    def __init__(self, recipe: str, callbacks: list[Callback] | None = None, run: bool = True) -> None:
        self.recipe, self.callbacks, self.is_command = recipe, callbacks or [], run
        super().__init__(
            LearningRule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            # A run of `nobp compare` belongs to the comparison: it is no recipe's newest.
            save_config_kwargs={"recipe": recipe if run else None},
            trainer_defaults={"default_root_dir": RUNS},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=NobpParser,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpoints and predictions as options; the data's shape goes into the rule."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": "val/accuracy", "checkpoint.mode": "max"})
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_argument(
            "--figures",
            type=NonNegativeInt,
            default=10,
            help="the most sets of figures of a training, for loggers that take pictures; 0 for none",
        )
        if not self.is_command:
            # The configuration of a run has these too. A comparison starts each anew.
            parser.add_argument("--ckpt_path")
            parser.add_argument("--weights_only")
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=self._given_or_of_data(name), apply_on="instantiate"
            )

    def _given_or_of_data(self, name: str) -> Callable[[Any], Any]:
        def read(data: Any) -> Any:
            given = getattr(self._get(self.config, "model"), "init_args", {}).get(name)
            return getattr(data, name, None) if given is None else given

        return read

    def _parse_ckpt_path(self) -> None:
        """Take the rule's arguments from the checkpoint, once that is known to be whole and to hold no code."""
        command = self.config.get("subcommand")
        given = self.config[command] if command else {}
        path = given.get("ckpt_path")
        if not (path and Path(path).is_file()):
            return
        content = load_checkpoint(path, weights_only=given.get("weights_only") is not False)
        arguments = dict(content.get("hyper_parameters", {}))
        arguments.pop("_instantiator", None)
        if "_class_path" in arguments:
            arguments = {"class_path": arguments.pop("_class_path"), "dict_kwargs": arguments}
        if arguments:
            self.config = self.parser.parse_object({command: {"model": arguments}}, self.config)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UsageError(f"--seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        """Say where predictions go, and what weights there are to start with."""
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            if config.ckpt_path:
                print(f"nobp: goes on from {config.ckpt_path}", file=sys.stderr)
            return
        if not config.ckpt_path:
            print("nobp: no --ckpt_path: these are the weights that the rule starts with", file=sys.stderr)
            return
        print(f"nobp: weights of {config.ckpt_path}", file=sys.stderr)
        if self.subcommand == "predict" and config.predictions.path is None:
            config.predictions.path = str(_run_of(Path(config.ckpt_path)) / "predictions.csv")

    def instantiate_classes(self) -> None:
        """Build everything.

        Raises:
            UsageError: A class refuses its arguments.
        """
        self._given, self.config = self.config, self.config.clone()
        describe(self.config.get(self.subcommand, self.config), self.recipe, self.subcommand or "compare")
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            raise UsageError(bad_value(str(error))) from error

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except (TypeError, ValueError) as error:
            if isinstance(self.model, ClassificationRule) and None in (self.model.network, self.model.num_classes):
                # Nothing has begun: not even the data's setup has told the shape that the rule waits for.
                raise UsageError(str(error)) from error
            raise
        except SIGTERMException as stop:
            raise SIGTERMException(self._say_stopped()) from stop
        except SystemExit as end:
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            # Lightning's own answer to Ctrl+C, whose exit status is that of any error.
            raise KeyboardInterrupt from end

    def _say_stopped(self) -> int:
        """Tell where a run that a signal stopped was saved; returns the exit status that says so."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        saved = next((c.last_model_path for c in callbacks if isinstance(c, LastCheckpoint)), "")
        step = f"nobp: stopped after step {self.trainer.global_step}"
        print(f"{step}, saved as {saved}; --ckpt_path last goes on" if saved else step, file=sys.stderr)
        interrupted = any(c.interrupted for c in callbacks if isinstance(c, StopOnInterrupt))
        return 128 + (signal.SIGINT if interrupted else signal.SIGTERM)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what a run has unless its configuration says otherwise; the configuration stays as it was given."""
        self.config = self._given
        asked = self._get(self.config_init, "trainer")
        if not asked.logger and not asked.fast_dev_run:
            kwargs |= self._own_folder(asked)
        callbacks = [*_as_list(asked.callbacks), *self.callbacks]
        callbacks += self._for_reports(asked, callbacks)
        if asked.enable_checkpointing is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        if asked.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            # At every batch the bar would cost more than a small network's step.
            callbacks.append(TQDMProgressBar(refresh_rate=10))
        plugins = _as_list(asked.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, DurableCheckpointIO()]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _for_reports(self, asked: Namespace, callbacks: list[Callback]) -> list[Callback]:
        """What a report shows and no one has asked for yet, if a logger takes it."""
        loggers = _as_list(asked.logger) if asked.logger is not True else []
        if self.subcommand not in (None, "fit") or not any(isinstance(logger, _TAKES_PICTURES) for logger in loggers):
            return []
        sets = self._get(self.config, "figures")
        found = figures(self.model, spacing(asked.max_epochs, sets)) if sets else ()
        have = {type(callback) for callback in callbacks}
        return [BestInSummary(), *(figure for figure in found if type(figure) not in have)]

    def _own_folder(self, asked: Namespace) -> dict[str, Any]:
        """CSV files, which need no account, or their folder alone; what is not training leaves no run behind."""
        if self.subcommand not in (None, "fit"):
            return {"logger": False}
        logger = RunLogger(asked.default_root_dir, name=self.recipe)
        if asked.logger is None:
            return {"logger": logger}
        reserve(logger)
        return {"default_root_dir": logger.log_dir}

    def before_fit(self) -> None:
        """Keep the last epoch beside the best, and show at the end what came out and what to do next."""
        for logger in self.trainer.loggers:
            if isinstance(logger, CSVLogger | TensorBoardLogger):
                reserve(logger)
        more: list[Callback] = [FitSummary("nobp test --config {run}/config.yaml --ckpt_path best")]
        if self.trainer.checkpoint_callback is not None:
            # Behind the one that keeps the best, which is the Trainer's own.
            more += [LastCheckpoint(), StopOnInterrupt()]
        self.trainer.callbacks += more  # type: ignore[attr-defined]


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given] if given else []


def _run_of(checkpoint: Path) -> Path:
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


@contextmanager
def command_line(arguments: list[str]) -> Iterator[None]:
    """Let Lightning see ``arguments`` as those of the process, as its launchers of further processes do."""
    before, path = sys.argv, list(sys.path)
    sys.argv = [before[0], *arguments]
    # A console script does not look for a user's modules in the current folder. Its name, not "": jsonargparse
    # reads a configuration from within the folder of the file.
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before, path


def main(arguments: list[str]) -> int:
    """Carry out a subcommand of Lightning's command line; 1 if the run refuses to go on."""
    prepared = prepare(arguments)
    quieten()
    try:
        with command_line(prepared.arguments):
            NobpCLI(prepared.recipe)
    except SIGTERMException as stop:
        status = int(stop.code or 0)
        finish(exit_code=status)
        return status
    except KeyboardInterrupt:
        finish(exit_code=130)
        raise
    except _SAY_ENOUGH as error:
        print(f"nobp: {_said(error)}", file=sys.stderr)
        finish(exit_code=1)
        return 1
    except (TypeError, ValueError) as error:
        if not _is_refusal(error):
            raise
        print(f"nobp: {_said(error)}", file=sys.stderr)
        finish(exit_code=2)
        return 2
    finish()
    return 0


def _is_refusal(error: Exception) -> bool:
    """Whether this package raised it itself, on purpose, here or in a worker of a DataLoader."""
    if _OF_WORKER in str(error):
        last = str(error).rpartition('  File "')[2]
        return "/lightning_nobp/" in last.partition('"')[0] and "\n    raise " in last
    return is_refusal(error)


def _said(error: Exception) -> str:
    """Its message; what a worker of a DataLoader raised comes with the worker's traceback around it."""
    text = str(error)
    return text.rstrip().splitlines()[-1].partition(": ")[2] if _OF_WORKER in text else text


def quieten() -> None:
    """Keep back what nobody can act on."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


__all__ = ["NobpCLI", "command_line", "main", "quieten"]
