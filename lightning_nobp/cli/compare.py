"""``nobp compare``: several recipes one after another, under the same conditions."""

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning_nobp.cli import compare_options, compare_runs, recipes
from lightning_nobp.cli.arguments import RUNS


def main(arguments: list[str]) -> int:
    """Carry out ``nobp compare``; 1 if a recipe failed, 130 if it was interrupted."""
    options = compare_options.parse(arguments[1:])
    chosen = recipes.expand(options.recipes)
    out = options.out or Path(RUNS) / "compare" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    out.mkdir(parents=True, exist_ok=True)
    runs = compare_runs.planned(chosen, options, out)
    results: list[dict[str, Any]] = []
    try:
        compare_runs.run_all(runs, options, results)
    except KeyboardInterrupt:
        # What is finished took its time: it is kept.
        print(f"nobp: interrupted, {len(results)} of {len(runs)} runs are finished", file=sys.stderr)
    from lightning_nobp.cli import report

    command = "nobp " + shlex.join(arguments)
    report.write(out, results, command, len(runs), budget=options.budget, weight_noise=options.weight_noise)
    report.show(results, out)
    if len(results) < len(runs):
        return 130
    if options.record:
        record(results, command, options.note)
    return 1 if any("error" in r for r in results) else 0


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
