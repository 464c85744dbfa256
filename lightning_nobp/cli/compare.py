"""``nobp compare``: several recipes one after another, under the same conditions."""

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_nobp.cli import compare_options, compare_runs, recipes
from lightning_nobp.cli.arguments import RUNS


def main(arguments: list[str]) -> int:
    """Carry out ``nobp compare``; 1 if a recipe failed, 130 if it was interrupted."""
    options = compare_options.parse(arguments[1:])
    chosen = recipes.expand(options.recipes)
    command = "nobp " + shlex.join(arguments)
    with _own_folder(options.out) as out:
        runs = compare_runs.planned(chosen, options, out)
        results = _compared(out, runs, options, command)
    if len(results) < len(runs):
        return 130
    if options.record:
        record(results, command, options.note)
    return 1 if any("error" in r for r in results) else 0


def _compared(
    out: Path, runs: list[compare_runs.Run], options: argparse.Namespace, command: str
) -> list[dict[str, Any]]:
    """Carry out the runs, write and show what came out; results of those that are finished."""
    from lightning_nobp.cli import report

    about = report.conditions() | {"command": command, "planned": len(runs)}
    about |= {"budget": options.budget, "weight_noise": options.weight_noise}
    results: list[dict[str, Any]] = []
    try:
        # What is finished took its time: it is kept, whatever comes.
        compare_runs.run_all(runs, options, results, partial(report.write_results, out, results, about))
    except KeyboardInterrupt:
        print(f"nobp: interrupted, {len(results)} of {len(runs)} runs are finished", file=sys.stderr)
    report.write(out, results, about)
    report.show(results, out)
    return results


@contextmanager
def _own_folder(asked: Path | None) -> Iterator[Path]:
    """The folder of the results, which is no other comparison's as long as this one goes on.

    Raises:
        UsageError: Another one is writing there.
    """
    out = asked or _new_folder(Path(RUNS) / "compare" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield out
    except Timeout:
        raise recipes.UsageError(f"--out={out}: another comparison is writing there; give another folder") from None


def _new_folder(wanted: Path) -> Path:
    """Make a folder of that name, or of that name and a number if another comparison was faster."""
    names = itertools.chain([wanted.name], (f"{wanted.name}_{number}" for number in itertools.count(2)))
    for folder in map(wanted.with_name, names):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def record(results: list[dict[str, Any]], command: str, note: str | None) -> None:
    """Note mean results of each recipe in ``measured.json`` beside the recipes."""
    from lightning_nobp.cli.report import COUNTS, conditions, means
    from lightning_nobp.files import write_whole

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
