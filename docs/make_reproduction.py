"""Write docs/reproduction.md: the claims of docs/reproduction.yaml, with figures from where they were measured.

Accuracies and commands of recipes are those that ``nobp compare --record`` noted, rows of studies those of other pages.
Run ``python docs/make_reproduction.py`` after ``python docs/make_results.py``.
"""

import json
import re
from collections import Counter
from itertools import groupby
from typing import Any

import yaml
from make_performance import markdown
from make_results import ROOT, Measured, accuracy, table

from lightning_nobp.cli.report import figure

DOCS = ROOT / "docs"
PAGE = DOCS / "reproduction.md"
START = "<!-- claims: written by docs/make_reproduction.py -->\n"
VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be tested here")

Claim = dict[str, Any]


def page() -> str:
    """What docs/reproduction.md must hold."""
    measured: Measured = json.loads((ROOT / "recipes" / "measured.json").read_text())
    sections = [line for paper in papers() for line in section(paper, measured)]
    introduction = PAGE.read_text().partition(START)[0]
    return introduction + START + "\n" + "\n".join([*summary(papers()), *sections]).rstrip() + "\n"


def papers() -> list[dict[str, Any]]:
    """The papers with their claims."""
    found: list[dict[str, Any]] = yaml.safe_load((DOCS / "reproduction.yaml").read_text())
    return found


def summary(papers: list[dict[str, Any]]) -> list[str]:
    """How many claims of each paper got which verdict."""
    counts = [Counter(claim["verdict"] for claim in paper["claims"]) for paper in papers]
    names = [f"[{paper['name']}](#{re.sub(r'[^a-z0-9]+', '-', paper['name'].lower())})" for paper in papers]
    names, counts = [*names, "all"], [*counts, sum(counts, Counter())]
    rows = [[name, *(str(count[v] or "") for v in VERDICTS)] for name, count in zip(names, counts, strict=True)]
    return [*table([["paper", *VERDICTS], *rows]), ""]


def section(paper: dict[str, Any], measured: Measured) -> list[str]:
    """One paper."""
    source = f"{paper['authors']}, [{paper['title']}](https://arxiv.org/abs/{paper['arxiv']}), {paper['year']}."
    lines = [f"## {paper['name']}", "", source, f"{paper['about']} [How it works]({paper['page']}).", ""]
    return [*lines, *(line for claim in paper["claims"] for line in block(claim, measured))]


def block(claim: Claim, measured: Measured) -> list[str]:
    """One claim: what the abstract says, what was found, and the figures with their commands."""
    if claim["verdict"] not in VERDICTS:
        raise ValueError(f"verdict={claim['verdict']!r} of {claim['claim']!r} is not one of {', '.join(VERDICTS)}")
    found = re.sub(r"\{([\w/]+)\}", lambda match: accuracy(measured[match[1]]), claim["found"])
    lines = [f"### {claim['verdict'].capitalize()}: {claim['claim']}", "", f"The abstract: {claim['says']}", "", found]
    if "python" in claim:
        lines += ["", "```python", claim["python"].rstrip(), "```"]
    if "recipes" in claim:
        lines += ["", *recorded(claim["recipes"], claim.get("metrics"), measured)]
    for study in claim.get("studies", []):
        lines += ["", *quoted(**study)]
    for benchmark in claim.get("benchmarks", []):
        lines += ["", *benchmarked(**benchmark)]
    for run in claim.get("runs", []):
        lines += ["", *shell([run["command"]]), "", "```text", run["printed"].rstrip(), "```"]
    return [*lines, ""]


def recorded(names: list[str], metrics: list[str] | None, measured: Measured) -> list[str]:
    """Figures of recipes, and the commands that recorded them."""
    rows = [["recipe", *(metrics or ["test accuracy, %"]), "seeds", "weights", "CPU seconds"]]
    for name in names:
        r = measured[name]
        values = [figure(r["test_others"][m]) for m in metrics] if metrics else [accuracy(r)]
        seconds = f"{r['cpu_seconds']:.1f}" if "cpu_seconds" in r else f"({r['seconds']:.1f} elapsed)"
        rows.append([f"`{name}`", *values, str(len(r["seeds"])), f"{r['parameters']:,}", seconds])
    notes = [f"{note}." for note in dict.fromkeys(measured[name]["note"] for name in names) if note]
    lines = [*table(rows), "", *notes, *([""] if notes else [])]
    return lines + shell(list(dict.fromkeys(measured[name]["command"] for name in names)))


def quoted(source: str, command: str, starts: list[str], title: str = "") -> list[str]:
    """Rows of a table that another page shows below a command, and the command.

    Args:
        source: The page, from docs.
        command: The line of that page above the tables.
        starts: How each row begins, its cells between bars.
        title: Of the table, or how it begins; without one the first table with such a row is taken.

    Raises:
        ValueError: No row begins like that.
    """
    below = (DOCS / source).read_text().partition(f"\n{command}\n")[2]
    printed = below.partition("```text\n")[2].partition("```")[0]
    rows = box_rows(printed.partition(title)[2] if title else printed)
    chosen = []
    for start in starts:
        found = [row for row in rows if " | ".join([*row[1], ""]).startswith(f"{start} | ")]
        if not found:
            raise ValueError(f"no row of {command!r} in {source} begins with {start!r}")
        chosen.append(found[0])
    lines = [f"{title}:", ""] if title else []
    for head, group in groupby(chosen, key=lambda row: row[0]):
        lines += [*table([head, *(cells for _, cells in group)]), ""]
    return lines + shell([command])


def benchmarked(script: str, title: str, rows: list[str]) -> list[str]:
    """Rows of a table that ``make bench`` measured, and the command.

    Args:
        script: The benchmark, without its ending.
        title: How the title of the table begins.
        rows: What stands in the first cells.

    Raises:
        ValueError: There is no such table, or no such row.
    """
    measured = json.loads((DOCS / "performance" / f"{script}.json").read_text())
    found = next((t for t in measured["tables"] if t["title"].startswith(title)), {"title": title, "rows": []})
    chosen = [row for row in found["rows"] if row[0] in rows]
    if len(chosen) != len(rows):
        raise ValueError(f"rows={rows!r} are not all in a table {title!r} of docs/performance/{script}.json")
    return [f"{found['title']}:", "", *markdown(found["columns"], chosen), "", *shell([measured["command"]])]


def box_rows(printed: str) -> list[tuple[list[str], list[str]]]:
    """Head and cells of each row of tables drawn with boxes."""
    head: list[str] = []
    rows = []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line[1:-1].split(line[0])] if line[:1] in ("┃", "│") else []
        if line[:1] == "┃":
            head = cells
        elif cells:
            rows.append((head, cells))
    return rows


def shell(commands: list[str]) -> list[str]:
    """Commands as a block."""
    return ["```sh", *commands, "```"]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))
