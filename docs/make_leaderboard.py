"""Write docs/leaderboard.md, its pictures and README.md's table from the results files that ``nobp compare`` wrote.

Run ``python docs/make_leaderboard.py`` after the ``results.json`` of comparisons have been put into
``docs/leaderboard``: as ``<budget>/<data set>.json``, or ``<budget>/<data set>-<part>.json`` if a table needs several
commands.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from make_results import DATA_SETS, ROOT, accuracy, between, table

from lightning_nobp.cli import recipes
from lightning_nobp.cli.report import means

FILES = ROOT / "docs" / "leaderboard"
START = "<!-- leaderboard: written by docs/make_leaderboard.py -->\n"
TITLES = DATA_SETS | {"cifar10": "CIFAR-10 (JPEG)", "tiny_imagenet": "TinyImageNet-100/class"}
RULES = (
    *("backprop", "backprop_cnn", "forward_forward", "symba", "mgd", "sparseprop"),
    *("quaternion", "spiking", "hamiltonian_echo", "residual_compensation", "residual_compensation_fast"),
)
"""In the order of their colours."""
HEAD = (
    *("recipe", "network", "test accuracy, %", "with weight noise, %", "alignment", "weights", "epochs", "samples"),
    *("CPU s", "wall s", "peak MiB"),
)
INTRODUCTION = """\
# Leaderboard

What the rules reach with equal means: first with equal **seconds of the processor**, then, on the digits, with equal
**epochs**, and with equal numbers of **weights**. Each row is a recipe that ships in the package, on one thread, with
three seeds: the mean of the test accuracy ± its standard deviation, at the epoch that was best in validation.

With a budget of seconds, a short rehearsal finds how many epochs fit, and learning rates fall over these; the last of
them is cut where the budget ends. Validation, tests and the measurement of the alignment are not counted.
`ResidualCompensation` solves for its weights, layer by layer: it ends when all layers are solved, or with the layers
that the budget allowed.

- *weight noise*: the test once more, with every weight multiplied by 1 + 0.1 n, n drawn from a normal distribution;
  the mean of three draws for each seed. It is what is left on hardware whose weights are off by 10 %.
- *alignment*: mean cosine between the gradient that the rule wrote and backpropagation's of the rule's own loss, every
  50 steps. Rules without a gradient have none.
- *peak MiB*: memory that training added to the process.
- *wall s*: with validation. The machine had other work at the same time, so these are upper bounds.

This page and its pictures are written by `python docs/make_leaderboard.py` from the files in `docs/leaderboard`, which
are the `results.json` of the commands below.
"""
SHARES = (0.5, 1, 2, 5, 10, 20, 30, 50, 70, 80, 90, 95, 98, 99)
"""Per cent that are marked in the pictures."""
PARTS = {
    "cpu_seconds": ("Equal seconds of the processor", ("mnist", "fashion_mnist", "cifar10", "tiny_imagenet")),
    "epochs": ("Equal epochs", ("digits",)),
    "parameters": ("Equal numbers of weights", ("digits",)),
}
REMARKS = {
    "cpu_seconds": "30 seconds for each training. On Tiny ImageNet the test with weight noise was left out.",
    "epochs": "20 epochs for every rule; `ResidualCompensation` has an epoch for each of its layers.",
    "parameters": "Networks of about 12,000 weights, whose sizes the commands set, and 5 seconds for each training.",
}


def pages() -> dict[Path, str]:
    """What each file must hold."""
    readme = ROOT / "README.md"
    return {ROOT / "docs" / "leaderboard.md": page(), readme: between(readme, overview(), START)}


def overview() -> list[str]:
    """Test accuracy with equal seconds, a row for each rule, a column for each data set, and the commands."""
    data_sets = PARTS["cpu_seconds"][1]
    comparisons = {data_set: read("cpu_seconds", data_set) for data_set in data_sets}
    found = {row["recipe"]: row for c in comparisons.values() for one in c for row in means(one["results"])}
    rows = [["recipe", *(TITLES[data_set] for data_set in data_sets)]]
    rows += [[f"`…/{rule}`", *(accuracy(found.get(f"{d}/{rule}")) for d in data_sets)] for rule in RULES]
    commands = [one["command"] for c in comparisons.values() for one in c]
    return [*table(rows), "", "```sh", *commands, "```"]


def page() -> str:
    """What docs/leaderboard.md must hold."""
    lines = [INTRODUCTION]
    for part, (title, data_sets) in PARTS.items():
        lines += [f"## {title}", ""]
        if part in REMARKS:
            lines += [REMARKS[part], ""]
        for data_set in data_sets:
            lines += section(part, data_set)
    return "\n".join(lines)


def section(part: str, data_set: str) -> list[str]:
    """A data set's table, its commands and its picture."""
    comparisons = read(part, data_set)
    rows = [row for comparison in comparisons for row in means(comparison["results"])]
    rows.sort(key=lambda row: -(row["test_accuracy"] or 0))
    conditions = dict.fromkeys(
        f"{c['date']}, {c['processor']}, {c['threads']} thread, torch {c['torch']}." for c in comparisons
    )
    picture = f"leaderboard/{part}/{data_set}.png"
    return [
        f"### {TITLES[data_set]}",
        "",
        *table([list(HEAD), *map(cells, rows)]),
        "",
        *failures(comparisons),
        f"![Validation accuracy on {TITLES[data_set]} against CPU seconds of training, a line a rule]({picture})",
        "",
        "```sh",
        *(c["command"] for c in comparisons),
        "```",
        "",
        *conditions,
        "",
    ]


def read(part: str, data_set: str) -> list[dict[str, Any]]:
    """The comparisons behind a table."""
    paths = sorted(FILES.glob(f"{part}/{data_set}.json")) + sorted(FILES.glob(f"{part}/{data_set}-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def cells(row: dict[str, Any]) -> list[str]:
    """One row of a table."""

    def number(name: str, form: str, factor: float = 1) -> str:
        return "" if row[name] is None else format(factor * row[name], form)

    recipe = row["recipe"].partition(",")[0]
    return [
        *(f"`{row['recipe']}`", recipes.summary(recipe), accuracy(row) or "failed"),
        *(number("noisy_test_accuracy", ".2f", 100), number("alignment", ".3f"), number("parameters", ",.0f")),
        *(number("epochs", ".0f"), number("samples", ",.0f"), number("training_cpu_seconds", ".1f")),
        *(number("seconds", ".1f"), number("peak_memory_mib", ".0f")),
    ]


def failures(comparisons: list[dict[str, Any]]) -> list[str]:
    """What did not run, and why."""
    failed = [r for c in comparisons for r in c["results"] if "error" in r]
    lines = [f"- `{r['recipe']}`, seed {r['seed']}: {r['error']}" for r in failed]
    return [*lines, ""] if lines else []


def draw(part: str, data_set: str) -> Any:
    """Validation accuracy against CPU seconds of training: the mean of the seeds, and their range as a band.

    The scale of the accuracies is that of odds: 98 and 99 % are as far apart as 1 and 2 %.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, ScalarFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    colours = [*colormaps["tab10"].colors, "black"]
    results = [r for c in read(part, data_set) for r in c["results"]]
    for number, rule in enumerate(RULES):
        curves = [r["curve"] for r in results if kind(r["recipe"]) == rule and r.get("curve")]
        if not curves:
            continue
        seconds, accuracies = mean_curve(curves)
        mean = [statistics.fmean(values) for values in accuracies]
        # A line of one point is none.
        axes.plot(seconds, mean, color=colours[number], marker="o", markersize=3, label=rule)
        axes.fill_between(
            seconds, list(map(min, accuracies)), list(map(max, accuracies)), color=colours[number], alpha=0.2
        )
    axes.set(xlabel="CPU seconds of training", ylabel="validation accuracy, %", title=TITLES[data_set])
    axes.set(xscale="log", yscale="logit")
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_locator(FixedLocator([share / 100 for share in SHARES]))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{share:g}" for share in SHARES]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right center", fontsize=9)
    return figure


def mean_curve(curves: list[list[dict[str, float]]]) -> tuple[list[float], list[list[float]]]:
    """Points that all seeds have: mean seconds, and the accuracy of each seed."""
    together = [points for points in zip(*curves, strict=False) if all("val/accuracy" in point for point in points)]
    seconds = [statistics.fmean(point["training_cpu_seconds"] for point in points) for points in together]
    return seconds, [[point["val/accuracy"] for point in points] for points in together]


def kind(recipe: str) -> str:
    """The rule's part of a recipe's name."""
    return recipe.partition(",")[0].rpartition("/")[2]


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
    for part, (_, data_sets) in PARTS.items():
        for data_set in data_sets:
            draw(part, data_set).savefig(FILES / part / f"{data_set}.png", dpi=110)
