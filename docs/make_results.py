"""Write docs/results.md, and tables of rule pages, from what ``nobp compare --record`` noted.

Run ``python docs/make_results.py`` after recording.
"""

import json
from pathlib import Path
from typing import Any

from lightning_nobp.callbacks.hardware_clock import PLATFORMS
from lightning_nobp.cli import recipes
from lightning_nobp.cli.report import figure

ROOT = Path(__file__).parents[1]
START, END = "<!-- results: written by docs/make_results.py -->\n", "<!-- end of results -->\n"
DATA_SETS = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny ImageNet",
    "nist7x7": "NIST7x7",
    "parity": "parity of three bits",
    "xor": "XOR",
    "yin_yang": "Yin-Yang",
    "wave_field": "wave fields",
    "attitude": "attitude of a free body",
    "lorenz16": "16 coupled Lorenz systems",
    "lorenz64": "64 coupled Lorenz systems",
    "chua16": "16 coupled circuits of Chua",
    "fhn16": "16 coupled neurons of FitzHugh and Nagumo",
}
TOYS = ("nist7x7", "parity", "xor", "yin_yang", "wave_field", "attitude", "lorenz16", "lorenz64", "chua16", "fhn16")
"""Few rules have recipes for these: they have no column in the overview."""

Measured = dict[str, dict[str, Any]]


def pages() -> dict[Path, str]:
    """What each file must hold."""
    measured: Measured = json.loads((ROOT / "recipes" / "measured.json").read_text())
    docs = ROOT / "docs"
    sections = [line for data_set in DATA_SETS for line in section(data_set, measured)]
    found = {
        docs / "results.md": [*overview(measured), "", *sections],
        docs / "rules" / "mgd.md": hardware(measured),
        docs / "rules" / "sparseprop.md": sparsity(measured),
    }
    return {path: between(path, lines) for path, lines in found.items()}


def between(path: Path, lines: list[str], start: str = START) -> str:
    """The file's text with these lines between its markers."""
    before, _, rest = path.read_text().partition(start)
    return before + start + "\n" + "\n".join(lines) + "\n\n" + END + rest.partition(END)[2]


def overview(measured: Measured) -> list[str]:
    """Test accuracy, a row for each kind of recipe, a column for each data set."""
    data_sets = [d for d in DATA_SETS if d not in TOYS and any(name.startswith(f"{d}/") for name in measured)]
    kinds = dict.fromkeys(name.partition("/")[2] for name, r in sorted(measured.items()) if "test_accuracy" in r)
    rows = [["recipe", *(title(d, measured) for d in data_sets)]]
    for kind in kinds:
        found = [accuracy(measured.get(f"{d}/{kind}")) for d in data_sets]
        rows.append([f"`…/{kind}`", *found])
    head = (
        "Test accuracy in per cent, ± over several seeds, otherwise of seed 0; the commands are in the sections below."
    )
    return [head, "", *table(rows)]


def commands(measured: Measured) -> list[str]:
    """The commands behind the figures."""
    found = dict.fromkeys(result["command"] for result in measured.values())
    return ["```sh", *found, "```"]


def hardware(measured: Measured) -> list[str]:
    """What rules that learn from costs took, here and on hypothetical hardware."""
    rows = [["recipe", "test accuracy, %", "cost evaluations", "samples", "updates", "CPU seconds here", *PLATFORMS]]
    rows[0][-len(PLATFORMS) :] = [f"s, {name.replace('_', ' ')}" for name in PLATFORMS]
    for name, r in sorted(measured.items()):
        if "cost_evaluations" not in r:
            continue
        counts = (r["cost_evaluations"], r["samples_seen"], r["steps"])
        seconds = [f"{platform.seconds(*counts, r['parameters']):.3g}" for platform in PLATFORMS.values()]
        rows.append([f"`{name}`", accuracy(r), *(f"{n:,}" for n in counts), f"{r['cpu_seconds']:.0f}", *seconds])
    return table(rows)


def sparsity(measured: Measured) -> list[str]:
    """Sparse networks beside the dense ones of the same sizes."""
    dense = {"digits": "backprop", "cifar10": "backprop_resnet"}
    rows = [["data set", "network", "test accuracy, %", "weights", "CPU seconds"]]
    for data_set in ("digits", "mnist", "fashion_mnist", "cifar10"):
        sparse = sorted(name for name in measured if name.startswith(f"{data_set}/sparseprop"))
        for name in [f"{data_set}/{dense.get(data_set, 'backprop_300_100')}", *sparse]:
            if name in measured:
                r = measured[name]
                rows.append(
                    [
                        title(data_set, measured),
                        f"`{name}`",
                        accuracy(r),
                        f"{r['parameters']:,}",
                        f"{r['cpu_seconds']:.0f}",
                    ]
                )
    return table(rows)


def section(data_set: str, measured: Measured) -> list[str]:
    """The table of a data set, with its commands."""
    results = {name: r for name, r in measured.items() if name.startswith(f"{data_set}/")}
    if not results:
        return []
    rows = [["recipe", "what it is", "test accuracy, %", "seeds", "weights", "seconds", "CPU seconds"]]
    for name, r in sorted(results.items(), key=lambda item: -item[1].get("test_accuracy", 0)):
        seeds = ", ".join(map(str, r["seeds"]))
        weights = f"{r['parameters']:,}"
        seconds = f"{r['seconds']:.1f}", f"{r['cpu_seconds']:.1f}" if "cpu_seconds" in r else ""
        rows.append([f"`{name}`", recipes.summary(name), accuracy(r), seeds, weights, *seconds])
    notes = dict.fromkeys(r["note"] for r in results.values() if r["note"])
    conditions = dict.fromkeys(
        f"{r['date']}, {r['processor']}, {r['threads']} threads, torch {r['torch']}." for r in results.values()
    )
    head = [f"## {title(data_set, measured)}", "", *notes, *([""] if notes else [])]
    others = [
        f"- `{name}`: " + ", ".join(f"{key} {figure(value)}" for key, value in r["test_others"].items())
        for name, r in results.items()
        if "test_others" in r
    ]
    found = ["What the tests found beside accuracy:", "", *others, ""] if others else []
    return [*head, *table(rows), "", *found, *commands(results), "", *conditions, ""]


def title(data_set: str, measured: Measured) -> str:
    """Name of a data set; where the figures come from a variant, that of the variant."""
    notes = [r["note"] for name, r in measured.items() if name.startswith(f"{data_set}/") and r["note"]]
    return notes[0].partition(":")[0] if notes else DATA_SETS[data_set]


def accuracy(result: dict[str, Any] | None) -> str:
    """Mean, and with several seeds the standard deviation, in per cent."""
    if result is None or result.get("test_accuracy") is None:
        return ""
    spread = result["test_accuracy_std"]
    return f"{100 * result['test_accuracy']:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def table(rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
