"""``nobp list``, ``nobp show`` and ``nobp copy``."""

import argparse
import fnmatch
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lightning_nobp.cli import recipes
from lightning_nobp.cli.index import RULES
from lightning_nobp.files import write_whole


def main(arguments: list[str]) -> int:
    """Carry out ``list``, ``show`` or ``copy``."""
    parser = argparse.ArgumentParser(prog=f"nobp {arguments[0]}")
    if arguments[0] == "list":
        parser.add_argument("pattern", nargs="?", default="*", help="part of a name, or a pattern like 'mnist/*'")
        return show_all(parser.parse_args(arguments[1:]).pattern)
    parser.add_argument("name", help="a recipe, like digits/backprop")
    if arguments[0] == "show":
        print(recipes.find(parser.parse_args(arguments[1:]).name).read_text(), end="")
        return 0
    parser.add_argument("destination", type=Path, help="a file or a folder")
    options = parser.parse_args(arguments[1:])
    return copy(options.name, options.destination)


def show_all(pattern: str) -> int:
    """Print the rules, and the recipes whose name matches."""
    # In a pipe there is no width to keep to.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    rules = Table("rule", "what it is", "paper", title="Rules", title_justify="left", box=box.SIMPLE)
    for rule in RULES:
        rules.add_row(rule.name, rule.summary, rule.paper)
    wild = pattern
    if not any(c in pattern for c in "*?["):
        wild = f"{pattern}*" if "/" in pattern else f"*{pattern}*"
    found = fnmatch.filter(recipes.recipe_names(), wild)
    if not found:
        raise recipes.UsageError(f"no recipe matches {pattern!r}{recipes.nearest(pattern, recipes.recipe_names())}")
    results = measured()
    notes = _notes([results.get(name, {}) for name in found])
    console.print(rules)
    console.print(_recipe_table(found, results, notes))
    for number, note in enumerate(notes, 1):
        console.print(f"  [{number}] {note}", markup=False)
    return 0


def _notes(results: list[dict[str, Any]]) -> list[str]:
    """What a reader of the results must know, each once."""
    return list(dict.fromkeys(result["note"] for result in results if result.get("note")))


def _recipe_table(found: list[str], results: dict[str, Any], notes: list[str]) -> Table:
    table = Table(title="Recipes (nobp fit --config RECIPE)", title_justify="left", box=box.SIMPLE)
    table.add_column("recipe", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for column in ("test", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in found:
        result = results.get(name, {})
        accuracy = f"{result['test_accuracy']:.2%}" if "test_accuracy" in result else _first_other(result)
        if result.get("note"):
            accuracy = f"\\[{notes.index(result['note']) + 1}] {accuracy}"
        seconds = f"{result['seconds']:.1f}" if "seconds" in result else ""
        table.add_row(name, _rule(name), recipes.summary(name), accuracy, seconds)
    return table


def _first_other(result: dict[str, Any]) -> str:
    """Of a test without classes the first figure: its name in a few letters and its mean."""
    for name, value in result.get("test_others", {}).items():
        return f"{name.partition('_')[0]} {value['mean']:.4g}"
    return ""


def measured() -> dict[str, Any]:
    """What the recipes reached, as ``nobp compare --record`` wrote it down."""
    path = recipes.folder() / "measured.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _rule(name: str) -> str:
    """Class of the rule; read by a pattern, since a YAML parser takes longer than all the rest."""
    match = re.search(r"^model:\s*\n\s+class_path:\s*(\S+)", recipes.find(name).read_text(), re.MULTILINE)
    return match.group(1).rpartition(".")[2] if match else ""


def copy(name: str, destination: Path) -> int:
    """Write a recipe to a file of the user's own; an existing file stays as it is."""
    source = recipes.find(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise recipes.UsageError(f"{target} exists: give another destination, or remove it first")
    write_whole(target, source.read_text())
    print(target)
    if name in recipes.recipe_names():
        print(f"next: nobp fit --config {target}")
    return 0
