"""Write docs/performance.md and its pictures from what the benchmarks measured.

Run ``python docs/make_performance.py``; ``make bench`` measures again and runs it too. Figures come from
``docs/performance/*.json``, explanations from the docstrings of the scripts in ``tests/benchmarks``.
"""

import ast
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPTS, MEASURED, PAGE = ROOT / "tests" / "benchmarks", ROOT / "docs" / "performance", ROOT / "docs" / "performance.md"
sys.path.insert(0, str(SCRIPTS))
from tables import markdown, text  # noqa: E402

INTRODUCTION = """# Performance

`make bench` measures everything on this page and writes it: every script of `tests/benchmarks/bench_*.py` runs in a
process of its own, one after another, beside the plain way to do the same in torch, and beside other libraries where
they are installed (`pip install -e '.[peers]'`). What is compared runs in turns, round after round, and figures are
medians of the CPU time of one thread, over as many rounds as `--rounds` says or the script takes by itself. Absolute
times differ from machine to machine, ratios less.

Pictures have logarithmic axes: parallel lines differ by a factor.
"""
STUDIES = """## Studies

These scripts train, and print accuracy and other figures that the pages of the rules show:
"""

Found = dict[str, Any]


def page() -> str:
    """What docs/performance.md must hold."""
    measured = {file.stem: json.loads(file.read_text()) for file in sorted(MEASURED.glob("*.json"))}
    lines = [INTRODUCTION, *machines(measured), *overview(measured)]
    for name, found in measured.items():
        lines += section(name, found)
    scripts = [*sorted(SCRIPTS.glob("ablation_*.py")), *sorted(SCRIPTS.glob("study_*.py"))]
    studies = [f"- `{usage}`: {title}" for title, usage, _ in map(docstring, scripts)]
    return "\n".join([*lines, STUDIES, *studies]) + "\n"


def machines(measured: dict[str, Found]) -> list[str]:
    """Where it was measured: once, if it was the same for all."""
    kinds: dict[str, list[str]] = {}
    for name, found in measured.items():
        kinds.setdefault(machine(found["machine"]), []).append(name)
    if len(kinds) == 1:
        return ["Measured on " + next(iter(kinds)) + ".", ""]
    return ["Measured on", "", *(f"- {kind}: " + ", ".join(names) for kind, names in kinds.items()), ""]


def machine(about: Found) -> str:
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    compiler = "kernels by " + about["compiler"].replace(":", "") if about["compiler"] else "without compiled kernels"
    hardware = f"{about['processor']} with {about['instruction_set']}, {about['cores']} cores"
    return f"{hardware}, {threads}; {compiler}, torch {about['torch']}, Python {about['python']}"


def overview(measured: dict[str, Found]) -> list[str]:
    """What ran when, how busy the machine was, and what is missing."""
    rows = []
    for name, found in measured.items():
        peers = [f"{peer} {version}" for peer, version in found["peers"].items() if version]
        missing = [f"{peer} (not installed: left out)" for peer, version in found["peers"].items() if not version]
        told = ", ".join(peers + missing) + (f" **failed**: {found['failed']}" if "failed" in found else "")
        about = found["machine"]
        rows.append([f"`{name}.py`", about["date"], found["seconds"], f"{about['load']}", told])
    head = (
        "*Load* is how many programs wanted the processor when a script ended. Where it is above 1, others shared the"
        "\nmachine: times are off by more, ratios by less."
    )
    return [head, "", *markdown(["script", "date", "seconds", "load", "other libraries"], rows), ""]


def section(name: str, found: Found) -> list[str]:
    """A script's tables and picture."""
    title, _, prose = docstring(SCRIPTS / f"{name}.py")
    lines = [f"## {title}", "", prose, "", "```sh", found["command"], "```", ""]
    if "failed" in found:
        lines += [f"The last run failed: `{found['failed']}`.", ""]
    for table in found["tables"]:
        lines += [f"{table['title']}:", "", *markdown(table["columns"], table["rows"]), ""]
    if plots(found):
        lines += [f"![{'; '.join(t['title'] for t in plots(found))}]({picture(name).name})", ""]
    return lines


def docstring(script: Path) -> tuple[str, str, str]:
    """First line without its full stop, usage, and the rest."""
    blocks = (ast.get_docstring(ast.parse(script.read_text())) or script.stem).split("\n\n")
    usage = [block for block in blocks if block.startswith("    ")]
    rest = [block for block in blocks[1:] if not block.startswith("    ")]
    return blocks[0].rstrip("."), " ".join(" ".join(usage).split()), "\n\n".join(rest)


def plots(found: Found) -> list[Found]:
    return [table for table in found["tables"] if "plot" in table]


def picture(name: str) -> Path:
    return PAGE.with_name(f"performance_{name.removeprefix('bench_')}.png")


def draw(name: str, found: Found) -> None:
    """A panel for each table that has a plot."""
    from matplotlib.figure import Figure

    tables = plots(found)
    columns = min(2, len(tables))
    rows = math.ceil(len(tables) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    # What appears in several panels looks the same in all.
    lines = list(dict.fromkeys(line for table in tables for line in table["plot"]["lines"]))
    for panel, table in zip(panels, tables, strict=False):
        draw_lines(panel, table, lines)
    for panel in panels[len(tables) :]:
        panel.set_visible(False)
    figure.savefig(picture(name), dpi=110, metadata={"Software": None})


def draw_lines(panel: Any, table: Found, lines: list[str]) -> None:
    plot = table["plot"]
    for line in plot["lines"]:
        k, style = table["columns"].index(line), lines.index(line)
        points = [(row[0], row[k]) for row in table["rows"] if row[k] is not None]
        # Zero has no place on a logarithmic axis.
        x, y = zip(*((a, max(b, 1.0) if "MiB" in plot["y"] else b) for a, b in points), strict=True)
        panel.plot(x, y, f"C{style}", marker="os^Dvx"[style % 6], markersize=4, linewidth=1.2, label=line)
    panel.set(xscale="log", yscale="log", xlabel=plot["x"], ylabel=plot["y"])
    ticks = [row[0] for row in table["rows"]]
    panel.set_xticks(ticks, [text(tick) for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")


if __name__ == "__main__":
    for file in sorted(MEASURED.glob("*.json")):
        if plots(told := json.loads(file.read_text())):
            draw(file.stem, told)
            print(picture(file.stem).relative_to(ROOT))
    PAGE.write_text(page())
    print(PAGE.relative_to(ROOT))
