"""``nobp compare``: several recipes one after another, under the same conditions."""

import argparse
import itertools
import json
import multiprocessing
import re
import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_nobp.cli import recipes
from lightning_nobp.cli.arguments import RUNS


class Run(NamedTuple):
    """One recipe with one seed."""

    recipe: str
    seed: int
    folder: Path
    changes: tuple[str, ...] = ()
    """``KEY=VALUE``, of those that are tried."""

    @property
    def label(self) -> str:
        """Name of the recipe, and what is changed in it."""
        return ", ".join([self.recipe, *map(_short, self.changes)])


def main(arguments: list[str]) -> int:
    """Carry out ``nobp compare``; 1 if a recipe failed, 130 if it was interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments[1:])
    if options.record and options.vary:
        parser.error("--record notes what recipes reach as they are: leave it out with --vary")
    chosen = recipes.expand(options.recipes)
    out = options.out or Path(RUNS) / "compare" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    out.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = [
        Run(recipe, seed, out / _folder(recipe) / _folder(",".join(map(_short, changes))) / f"seed-{seed}", changes)
        for recipe in chosen
        for changes in itertools.product(*options.vary)
        for seed in seeds
    ]
    results: list[dict[str, Any]] = []
    try:
        _run_all(runs, _overrides(options), options.max_time, results)
    except KeyboardInterrupt:
        # What is finished took its time: it is kept.
        print(f"nobp: interrupted, {len(results)} of {len(runs)} runs are finished", file=sys.stderr)
    from lightning_nobp.cli import report

    command = "nobp " + shlex.join(arguments)
    report.write(out, results, command, len(runs))
    report.show(results, out)
    if len(results) < len(runs):
        return 130
    if options.record:
        record(results, command, options.note)
    return 1 if any("error" in r for r in results) else 0


def _short(change: str) -> str:
    """``KEY=VALUE`` with the last part of the key only."""
    key, equals, value = change.partition("=")
    return key.rpartition(".")[2] + equals + value


def _folder(recipe: str) -> Path:
    """Where a recipe's runs go below the results: a file may lie anywhere, its runs may not."""
    path = Path(recipe)
    path = path.with_suffix("") if path.suffix == ".yaml" else path
    return Path(*(part for part in path.parts if part not in (path.anchor, "..")))


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


def _overrides(options: argparse.Namespace) -> list[str]:
    found = [f"--config={recipes.find(name)}" for name in options.config]
    found += [f"--{setting}" for setting in options.set]
    if options.max_time:
        found.append(f"--trainer.max_time={options.max_time}")
    return found


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
        return int(text)

    return number


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


def _run_all(runs: list[Run], overrides: list[str], max_time: str | None, results: list[dict[str, Any]]) -> None:
    """Add to ``results`` as each run ends, in the order of the runs; one that failed has ``error`` among them."""
    context = multiprocessing.get_context(_start_method())
    if context.get_start_method() == "forkserver":
        # Imports are paid once, and every run starts from the same process image.
        context.set_forkserver_preload(
            ["lightning_nobp.cli.measured_run", "sklearn.datasets", "sklearn.model_selection", "torchvision"]
        )
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        total = progress.add_task("all", total=len(runs), state="")
        for run in runs:
            task = progress.add_task(f"{run.label}, seed {run.seed}", total=None, state="starting")
            result = _run_one(context, run, overrides, _limit(max_time), progress, task)
            results.append({"recipe": run.label, "seed": run.seed} | result)
            state = f"failed: {result['error']}" if "error" in result else _reached(result)
            progress.update(task, state=state, total=1, completed=1)
            progress.advance(total)
            if not console.is_terminal:
                console.print(f"{run.label}, seed {run.seed}: {state}", markup=False)


def _run_one(
    context: Any, run: Run, overrides: list[str], limit: float | None, progress: Progress, task: Any
) -> dict[str, Any]:
    ours, theirs = context.Pipe(duplex=False)
    # All runs use the same split of the data: its seed is data.seed, not this one.
    options = [f"--seed_everything={run.seed}", *overrides, *(f"--{change}" for change in run.changes)]
    child = context.Process(target=_run_in_child, args=(run.recipe, options, run.folder, theirs))
    child.start()
    theirs.close()
    try:
        return _follow(ours, time.monotonic() + limit if limit else None, progress, task)
    except EOFError:
        child.join()
        return {"error": f"ended with exit code {child.exitcode}; see {run.folder / 'log.txt'}"}
    except KeyboardInterrupt:
        child.kill()
        raise
    finally:
        # A run that is done may still be cleaning up; one that hangs never is.
        child.join(10)
        child.kill()
        child.join()


def _run_in_child(*args: Any) -> None:
    # Imported here: this process needs no torch, which takes seconds.
    from lightning_nobp.cli.measured_run import run_in_child

    run_in_child(*args)


def _follow(pipe: Connection, deadline: float | None, progress: Progress, task: Any) -> dict[str, Any]:
    """Show what a run sends until it is done."""
    while True:
        if deadline is not None and not pipe.poll(max(0.0, deadline - time.monotonic())):
            return {"error": "took too long and was stopped"}
        kind, content = pipe.recv()
        if kind == "done":
            return dict(content)
        if kind == "failed":
            return {"error": content}
        total = content["epochs"] if content["epochs"] and content["epochs"] > 0 else None
        progress.update(task, total=total, completed=content["epoch"], state=_reached(content))


def _reached(result: dict[str, Any]) -> str:
    accuracy = result.get("test_accuracy", result.get("val/accuracy"))
    name = "test" if "test_accuracy" in result else "val"
    return f"{result['seconds']:.1f} s" + ("" if accuracy is None else f", {name} {accuracy:.2%}")


def _limit(max_time: str | None) -> float | None:
    """Seconds after which a run counts as hanging: well above what the Trainer stops at."""
    if max_time is None:
        return None
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    return 3 * (86400 * days + 3600 * hours + 60 * minutes + seconds) + 120


def _start_method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def record(results: list[dict[str, Any]], command: str, note: str | None) -> None:
    """Note mean results of each recipe in ``measured.json`` beside the recipes."""
    from lightning_nobp.cli.report import COUNTS, conditions, means
    from lightning_nobp.cli.run_config import write_whole

    path = recipes.folder() / "measured.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    about = {key: value for key, value in conditions().items() if key in ("date", "processor", "threads", "torch")}
    for row in means(results):
        if (row["test_accuracy"] is not None or row["test_others"]) and row["recipe"] in recipes.recipe_names():
            known[row["recipe"]] = about | {
                **_accuracy(row),
                "seconds": round(row["seconds"], 1),
                "cpu_seconds": round(row["cpu_seconds"], 1),
                "parameters": int(row["parameters"]),
                "seeds": row["seeds"],
                **{name: int(row[name]) for name in ("steps", *COUNTS) if row["cost_evaluations"] is not None},
                "command": command,
                "note": note,
            }
    write_whole(path, json.dumps(known, indent=2, sort_keys=True) + "\n")


def _accuracy(row: dict[str, Any]) -> dict[str, Any]:
    """What the test found, to four digits: the accuracy where there are classes, and what else was logged."""
    found: dict[str, Any] = {}
    if row["test_accuracy"] is not None:
        spread = row["test_accuracy_std"]
        found["test_accuracy"] = round(row["test_accuracy"], 4)
        found["test_accuracy_std"] = None if spread is None else round(spread, 4)
    if row["test_others"]:
        found["test_others"] = {
            name: {key: None if v is None else float(f"{v:.4g}") for key, v in value.items()}
            for name, value in row["test_others"].items()
        }
    return found
