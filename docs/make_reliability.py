"""Write docs/reliability.md from what the long proofs counted.

Run ``python docs/make_reliability.py``; ``make test-reliability`` counts again and runs it too. Counts come from
``docs/reliability/*.json``, explanations from the docstrings of ``tests/reliability/test_*.py``.
"""

import ast
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS, COUNTED, PAGE = ROOT / "tests" / "reliability", ROOT / "docs" / "reliability", ROOT / "docs" / "reliability.md"
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
from tables import markdown  # noqa: E402

ORDER = ("kill_and_resume", "surroundings", "distributed_faults", "numbers", "load", "hostile_files")
"""What a reader asks for first; the others follow by name."""

LONG = 60
"""Rows that nobody reads from the first to the last."""

INTRODUCTION = """# Reliability

A training of days must survive what happens in days: a killed process, a full disk, a file cut short, a peer that
dies, numbers that are none. This page counts what was tried. `make test-reliability` tries everything again and writes
it; each section names the command for it alone. The ordinary tests (`make test`) hold a short form of each.
"""


def page() -> str:
    """What docs/reliability.md must hold."""
    lines = [INTRODUCTION]
    names = [file.stem.removeprefix("test_") for file in sorted(TESTS.glob("test_*.py"))]
    for name in sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        file = TESTS / f"test_{name}.py"
        counts = COUNTED / f"{file.stem}.json"
        if counts.exists():
            lines += section(file, json.loads(counts.read_text()))
    return "\n".join(lines).rstrip() + "\n"


def section(file: Path, found: dict[str, Any]) -> list[str]:
    """One file of proofs: what it tries, and what came of it."""
    title, _, explanation = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")
    lines = [f"## {title.rstrip('.')}", "", explanation.strip().replace("``", "`"), ""]
    machine = f"{found['date']}, {found['processor']}, torch {found['torch']}, lightning {found['lightning']}"
    lines += ["```bash", found["command"], "```", "", f"{found['seconds']} seconds; {machine}.", ""]
    for table in found["tables"]:
        lines += [f"### {table['title']}", "", *shown(table["rows"]), ""]
    return lines


def shown(counted: list[dict[str, Any]]) -> list[str]:
    """A table; of a long one its sums, and the rows for whoever unfolds them."""
    columns = list(dict.fromkeys(column for row in counted for column in row))
    heads = [column.replace("_", " ") for column in columns]
    rows = [[row.get(column, "") for column in columns] for row in counted]
    if len(rows) <= LONG:
        return markdown(heads, rows)
    sums = [f"all {len(rows)}", *(sum(column) for column in list(zip(*rows, strict=True))[1:])]
    folded = ["<details><summary>each of them</summary>", "", *markdown(heads, rows), "", "</details>"]
    return [*markdown(heads, [sums]), "", *folded]


if __name__ == "__main__":
    PAGE.write_text(page())
