"""Arguments of ``nobp`` before Lightning's command line sees them."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from lightning_nobp.cli import recipes
from lightning_nobp.cli.checkpoints import WORDS, resolve, resolve_in, run_of
from lightning_nobp.cli.index import DATA_MODULES, NETWORKS, RULES
from lightning_nobp.cli.readable import check_readable

RUNS = "runs"
"""Folder of all runs, unless ``--trainer.default_root_dir`` says otherwise."""

_SAVE_DIR = ("--trainer.logger.save_dir", "--trainer.logger.init_args.save_dir")

_WITH_VALUE = (
    *("-c", "--config", "--ckpt_path", "--model", "--model.network", "--model.local", "--data"),
    *("--trainer.default_root_dir", "--trainer.logger"),
    *_SAVE_DIR,
)
"""Options that are looked at here, and so must be told from their values."""


class Prepared(NamedTuple):
    """Arguments with names replaced by files."""

    arguments: list[str]
    recipe: str
    """Name of the run: the first recipe, or the rule's class."""


def prepare(arguments: list[str]) -> Prepared:
    """Replace recipe names and words for checkpoints by files, and check short class names.

    Args:
        arguments: Subcommand and options.

    Raises:
        UsageError: A recipe, class or checkpoint that does not exist.
    """
    split = _split(arguments)
    configs = [value for option, value in split if option in ("-c", "--config")]
    for config in configs:
        check_readable(recipes.find(config))
    mains = [c for c in configs if c.split("/")[0] not in recipes.EXTRAS or Path(c).is_file()]
    model = next((value for option, value in split if option == "--model"), "")
    recipe = _run_name(mains[0]) if mains else model.rpartition(".")[2] or "run"
    prepared: list[str] = []
    for option, value in split:
        if option in ("-c", "--config"):
            value = str(recipes.find(value))
        elif option == "--ckpt_path" and value in WORDS:
            found = _checkpoint(value, mains, recipe, split)
            if found is None:
                continue
            value = str(found)
        elif option == "--model":
            _check_class(option, value, [rule.name for rule in RULES])
        elif option in ("--model.network", "--model.local") and value in NETWORKS:
            value = f"lightning_nobp.nn.{value}"
        elif option == "--data":
            _check_class(option, value, DATA_MODULES)
        prepared += [f"{option}={value}"] if option else [value]
    return Prepared(prepared, recipe)


def _checkpoint(which: str, mains: list[str], recipe: str, split: list[tuple[str, str]]) -> Path | None:
    """The file that a word means; None if training is to start from the beginning."""
    try:
        # The configuration of a run stands for that run.
        if mains and run_of(Path(mains[0])):
            return resolve_in(which, Path(mains[0]).parent)
        return resolve(which, recipe, _roots(split))
    except recipes.UsageError as error:
        # One command starts a training and goes on with it, for whoever restarts what was killed.
        if which != "last-good" or ("", "fit") not in split:
            raise
        print(f"nobp: {error.args[0].partition('. ')[0]}: training starts from the beginning", file=sys.stderr)
        return None


def _split(arguments: list[str]) -> list[tuple[str, str]]:
    """Pairs of option and value; what is neither stands alone, with an empty option."""
    pairs: list[tuple[str, str]] = []
    waiting = iter(arguments)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        if equals and option.startswith("-"):
            pairs.append((option, value))
        elif argument in _WITH_VALUE:
            pairs.append((argument, next(waiting, "")))
        else:
            pairs.append(("", argument))
    return pairs


def _roots(split: list[tuple[str, str]]) -> list[Path]:
    """Where the runs lie: in the Trainer's folder, or in that of its loggers."""
    root: Any = RUNS
    loggers: list[Any] = []
    for option, value in split:
        if option in ("-c", "--config"):
            trainer = _trainer_of(recipes.find(value))
            root = trainer.get("default_root_dir") or root
            loggers = _save_dirs(trainer["logger"], loggers) if "logger" in trainer else loggers
        elif option == "--trainer.default_root_dir":
            root = value
        elif option in _SAVE_DIR:
            loggers = [value]
        elif option == "--trainer.logger" and value.lower() in ("false", "null"):
            loggers = []
    return [Path(folder) for folder in (root, *loggers)]


def _trainer_of(config: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(config.read_text())
    except yaml.YAMLError:
        return {}  # What is wrong with it, the parser will say.
    trainer = content.get("trainer") if isinstance(content, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def _save_dirs(logger: Any, before: list[Any]) -> list[Any]:
    """Folders of one logger or several; one that does not say it keeps what it was told before."""
    if isinstance(logger, list):
        return [folder for one in logger for folder in _save_dirs(one, [])]
    if not isinstance(logger, dict):
        return []
    folder = (logger.get("init_args") or {}).get("save_dir")
    return [folder] if folder else before


def _run_name(config: str) -> str:
    """``digits/backprop`` for that recipe and a run's configuration, the stem for a user's own file."""
    path = Path(config)
    if path.is_file():
        return str(run_of(path).get("recipe", path.stem))
    return config.removesuffix(".yaml")


def _check_class(option: str, value: str, known: list[str] | tuple[str, ...]) -> None:
    if value.isidentifier() and value not in known:
        raise recipes.UsageError(
            f"{option}={value}: no such class{recipes.nearest(value, known)}; one of your own is written with its "
            f"module, {option}=my_module.{value}"
        )
