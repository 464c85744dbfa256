"""``nobp fit``, ``validate``, ``test`` and ``predict``: Lightning's command line with the rules in it."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lightning_nobp.datamodules  # noqa: F401  (short class names work for what is imported)
from lightning_nobp.callbacks import FitSummary, PredictionWriter
from lightning_nobp.cli.arguments import RUNS, prepare
from lightning_nobp.cli.recipes import nearest
from lightning_nobp.cli.run_config import RunConfig
from lightning_nobp.rules import LearningRule

_NOISE = (
    ".*does not have many workers.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*exists and is not empty.*",
    ".*LeafSpec.*is deprecated.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*anonymous setting has no effect.*",
    ".*The dirpath has changed from.*",
    ".*Couldn't infer the batch indices.*",
)
"""Warnings that a reader cannot act on, or that a recipe has answered."""


class NobpParser(LightningArgumentParser):
    """Says what is wrong in a line or two, with the nearest names."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print and exit with status 2."""
        if not self.exit_on_error:
            # One alternative of several: the caller tries the others.
            super().error(message, ex)
        print(f"nobp: {self._short(message)}", file=sys.stderr)
        sys.exit(2)

    def _short(self, message: str) -> str:
        unknown = re.search(r"(?:Option|Key) '([\w.]+)' is not|nrecognized arguments: --([\w.]+)", message)
        if not unknown:
            return "\n".join([line for line in message.splitlines() if line.strip()][:12])
        name = unknown.group(1) or unknown.group(2)
        # Classes are named from the outside in; after "Given value" the arguments are only repeated.
        owners = re.findall(r"class_path[ =]'([\w.]+)'", message.partition("Given value")[0])
        known = _parameters(owners[-1]) if owners else {a.dest.rpartition(".")[2] for a in self._actions}
        of = f" of {owners[-1]}" if owners else ""
        # In a.b.c any part may be the wrong one; the first that no one knows is.
        part = next((p for p in name.split(".") if p not in known), name)
        return f"there is no option {name!r}{of}{nearest(part, known)}"


def _parameters(class_path: str) -> set[str]:
    """Names that the constructors of a class and its bases take."""
    bases = getattr(locate(class_path), "__mro__", ())
    return {name for base in bases for name in signature(base.__init__).parameters}


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt`` up to date.

    ``save_last`` of the checkpoint that keeps the best epoch writes it only when that epoch is beaten.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)


class NobpCLI(LightningCLI):
    """Lightning's command line for learning rules.

    Args:
        recipe: Name of the run.
        callbacks: More callbacks for the Trainer.
        run: Whether the first argument is a subcommand to run.
    """

    def __init__(self, recipe: str, callbacks: list[Callback] | None = None, run: bool = True) -> None:
        self.recipe = recipe
        last = [LastCheckpoint()] if run else []
        super().__init__(
            LearningRule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            save_config_kwargs={"recipe": recipe},
            trainer_defaults={"default_root_dir": RUNS, "callbacks": [*(callbacks or []), *last]},
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
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(
                "data", f"model.init_args.{name}", compute_fn=_attribute(name), apply_on="instantiate"
            )

    def before_instantiate_classes(self) -> None:
        """Fill in what depends on other options."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        trainer = config.trainer
        if trainer.logger is None and not trainer.fast_dev_run:
            trainer.logger = self._default_logger(trainer.default_root_dir)
        if trainer.enable_checkpointing is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
            ours = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [c for c in ours if not isinstance(c, ModelCheckpoint)]
        if trainer.enable_progress_bar is not False and "ProgressBar" not in str(trainer.callbacks):
            # At every batch the bar would cost more than a small network's step.
            bar = _namespace(
                class_path="lightning.pytorch.callbacks.TQDMProgressBar", init_args=_namespace(refresh_rate=10)
            )
            trainer.callbacks = [*(trainer.callbacks or []), bar]
        if self.subcommand == "predict" and config.predictions.path is None and config.ckpt_path:
            config.predictions.path = str(_run_of(Path(config.ckpt_path)) / "predictions.csv")

    def _default_logger(self, root: str) -> Namespace | bool:
        """CSV files, which need no account; what is not training leaves no run behind."""
        if self.subcommand not in (None, "fit"):
            return False
        return _namespace(
            class_path="lightning.pytorch.loggers.CSVLogger",
            init_args=_namespace(save_dir=root, name=self.recipe),
        )

    def before_fit(self) -> None:
        """Show at the end of fit what came out, and what to do next."""
        hint = f"nobp test --config {self.recipe} --ckpt_path {{ckpt}}"
        self.trainer.callbacks.append(  # type: ignore[attr-defined]
            FitSummary(hint if "/" in self.recipe else None)
        )


def _namespace(**values: Any) -> Namespace:
    return Namespace(**values)  # type: ignore[no-untyped-call]


def _attribute(name: str) -> Any:
    def read(data: Any) -> Any:
        return getattr(data, name, None)

    return read


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
    """Carry out a subcommand of Lightning's command line."""
    prepared = prepare(arguments)
    quieten()
    with command_line(prepared.arguments):
        NobpCLI(prepared.recipe)
    return 0


def quieten() -> None:
    """Keep back what nobody can act on."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)


__all__ = ["NobpCLI", "Trainer", "command_line", "main", "quieten"]
