"""Options of ``nobp compare``."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from lightning_nobp.cli import recipes
from lightning_nobp.cli.arguments import RUNS


def parse(arguments: list[str]) -> argparse.Namespace:
    """What was asked for; ends the process with a message where it makes no sense.

    Raises:
        UsageError: There is no such ``--config``.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.record and (options.vary or options.budget):
        parser.error("--record notes what recipes reach as they are: leave it out with --vary and --budget")
    if options.budget and any(setting.startswith("trainer.max_epochs=") for setting in options.set):
        parser.error("--budget decides how many epochs there are: leave out --set trainer.max_epochs")
    options.config = [recipes.find(name) for name in options.config]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nobp compare", description="Train recipes one after another and compare them in a table and a picture."
    )
    parser.add_argument("recipes", nargs="+", help="names, patterns ('mnist/*'), data sets (digits) or files")
    parser.add_argument(
        "--seeds", type=_at_least(1), default=1, help="runs of each, with the seeds 0, 1, ... (default 1)"
    )
    parser.add_argument("--first-seed", type=_at_least(0), default=0, help="the first of them (default 0)")
    parser.add_argument("--max_time", type=_duration, help="longest training of each run, as HH:MM:SS or DD:HH:MM:SS")
    parser.add_argument(
        "--budget",
        type=_positive,
        metavar="SECONDS",
        help="seconds of the processor that each training fills: the epochs that fit, found in a short rehearsal",
    )
    parser.add_argument(
        "--weight-noise",
        type=_positive,
        metavar="SCALE",
        help="test once more with every weight times 1 + SCALE * n, n drawn from a normal distribution",
    )
    parser.add_argument("--out", type=_new_folder, help=f"folder of the results (default {RUNS}/compare/<time>)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="an option for all, like trainer.max_epochs=3",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="NAME",
        help="a configuration that is merged with all, like loggers/wandb",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        type=_values,
        metavar="KEY=A,B,...",
        help="run every recipe with each of these values, like model.amplitude=0.001,0.01; may be repeated",
    )
    parser.add_argument("--record", action="store_true", help="note the results for `nobp list`")
    parser.add_argument("--note", help="what a reader of the noted results must know, like other data")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
        return int(text)

    return number


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _new_folder(text: str) -> Path:
    path = Path(text)
    for part in (path, *path.parents):
        if part.is_file():
            raise argparse.ArgumentTypeError(f"{str(part)!r} is a file, not a folder")
    return path


def _setting(text: str) -> str:
    if not text.partition("=")[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, like trainer.max_epochs=3")
    return text


def _values(text: str) -> list[str]:
    """One ``KEY=VALUE`` for each of the values."""
    key, _, values = _setting(text).partition("=")
    # A comma within brackets belongs to a list.
    found = re.split(r",(?![^\[{]*[\]}])", values)
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty value: it is KEY=A,B,... without spaces")
    return [f"{key}={value}" for value in found]


def _duration(text: str) -> str:
    """DD:HH:MM:SS, as the Trainer takes it."""
    if not re.fullmatch(r"(\d+:)?\d+:\d+:\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HH:MM:SS or DD:HH:MM:SS")
    return f"00:{text}" if text.count(":") == 2 else text
