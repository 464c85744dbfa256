"""What ``nobp compare`` writes and prints."""

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lightning_nobp.files import whole, write_csv, write_whole

FIELDS = (
    *("recipe", "seed", "test_accuracy", "noisy_test_accuracy", "test_loss"),
    *("seconds", "cpu_seconds", "training_cpu_seconds", "epochs", "steps", "samples"),
    *("parameters", "peak_memory_mib", "alignment", "cost_evaluations", "samples_seen", "test_others", "error"),
)
COUNTS = ("cost_evaluations", "samples_seen")
"""What rules count that learn from costs alone; others have none."""
COLUMNS = ("recipe", "test accuracy", "seconds", "parameters", "peak MiB", "alignment")


def write(out: Path, results: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write ``results.csv``, ``results.json``, ``curves.png`` and ``report.md`` into a folder.

    Args:
        out: The folder.
        results: One entry a run.
        about: See :func:`write_results`.
    """
    write_results(out, results, about)
    write_csv(out / "results.csv", FIELDS, ([result.get(field) for field in FIELDS] for result in results))
    with whole(out / "curves.png") as file:
        draw(results).savefig(file, format="png", dpi=130)
    write_whole(out / "report.md", markdown(results, about))


def write_results(out: Path, results: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write ``results.json`` alone, of as many runs as are finished.

    Args:
        out: The folder.
        results: One entry a run.
        about: :func:`conditions`, and ``command``; ``planned``, how many runs it was to be; ``budget`` and
            ``weight_noise`` as they were asked for, or None.
    """
    write_whole(out / "results.json", json.dumps(about | {"results": results}, indent=2) + "\n")


def show(results: list[dict[str, Any]], out: Path) -> None:
    """Print the table, what failed and why, and where the files are."""
    console = Console()
    # Short names: all of it fits into a terminal of 80 columns.
    table = Table(title="Comparison", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for number, column in enumerate(("recipe", "test", "seconds", "weights", "MiB", "align")):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows(results):
        table.add_row(*row)
    console.print(table)
    console.print(
        "test: accuracy; seconds: training and validation; MiB: peak that training added;\n"
        "align: mean cosine with the gradient of backpropagation",
        style="dim",
    )
    for line in others(results):
        console.print(line, markup=False)
    for result in results:
        if "error" in result:
            console.print(f"failed: {result['recipe']}, seed {result['seed']}: {result['error']}", markup=False)
    console.print(f"picture: {out / 'curves.png'}\nreport:  {out / 'report.md'}", soft_wrap=True, highlight=False)


def means(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a recipe: means over its seeds, and standard deviations of what its test found."""
    found = []
    for recipe in dict.fromkeys(r["recipe"] for r in results):
        runs = [r for r in results if r["recipe"] == recipe and "error" not in r]
        row: dict[str, Any] = {"recipe": recipe, "seeds": [r["seed"] for r in runs], "test_accuracy_std": None}
        measured = (
            *("test_accuracy", "noisy_test_accuracy", "seconds", "cpu_seconds", "training_cpu_seconds"),
            *("parameters", "peak_memory_mib", "alignment", "epochs", "steps", "samples"),
        )
        for key in (*measured, *COUNTS):
            values = [r[key] for r in runs if r.get(key) is not None]
            row[key] = statistics.fmean(values) if values else None
            if key == "test_accuracy" and len(values) > 1:
                row["test_accuracy_std"] = statistics.stdev(values)
        row["test_others"] = _mean_others(runs)
        found.append(row)
    return found


def _mean_others(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of what tests logged beside accuracy and loss, mean and, over several seeds, standard deviation."""
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.get("test_others", {})):
        values = [run["test_others"][name] for run in runs if name in run["test_others"]]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "std": spread}
    return found


def others(results: list[dict[str, Any]]) -> list[str]:
    """A line a recipe whose tests found more than accuracy and loss."""
    lines = []
    for row in means(results):
        found = [f"{name} {figure(value)}" for name, value in row["test_others"].items()]
        if row["noisy_test_accuracy"] is not None:
            found.insert(0, f"accuracy with noisy weights {row['noisy_test_accuracy']:.2%}")
        lines += [f"{row['recipe']}: {', '.join(found)}"] if found else []
    return lines


def figure(value: dict[str, Any]) -> str:
    """A mean with its standard deviation, if there is one."""
    return f"{value['mean']:.4g}" + ("" if value["std"] is None else f" ± {value['std']:.2g}")


def rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of the table, best test accuracy first."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    found: list[tuple[str, ...]] = []
    for row in sorted(means(results), key=lambda r: -(r["test_accuracy"] or -1.0)):
        accuracy = cell(row["test_accuracy"], ".2%") if row["seeds"] else "failed"
        if row["test_accuracy_std"] is not None:
            accuracy += f" ± {100 * row['test_accuracy_std']:.2f}"
        found.append(
            (
                *(row["recipe"], accuracy, cell(row["seconds"], ".1f"), cell(row["parameters"], ",.0f")),
                *(cell(row["peak_memory_mib"], ".0f"), cell(row["alignment"], ".3f")),
            )
        )
    return found


def markdown(results: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The report: command, conditions, table, picture."""
    lines = ["# Comparison", "", "```", about["command"], "```", ""]
    lines += [f"{about['date']}, {about['processor']}, {about['threads']} threads, torch {about['torch']}.", ""]
    if len(results) < about["planned"]:
        lines += [f"Interrupted: {len(results)} of {about['planned']} runs are finished.", ""]
    if about["budget"] is not None:
        lines += [f"Each training had {about['budget']:g} seconds of the processor.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
    more = [f"- {line}" for line in others(results)]
    lines += ["", "What the tests found beside accuracy and loss:", "", *more] if more else []
    failures = [f"- failed: {r['recipe']}, seed {r['seed']}: {r['error']}" for r in results if "error" in r]
    lines += ["", *failures, ""] if failures else [""]
    lines += [
        "Seconds are those of training and validation, in the picture summed over the cores. Peak memory is what",
        "training added to the process. Alignment is the mean cosine between the rule's gradient and",
        "backpropagation's.",
        "",
        "![learning curves](curves.png)",
        "",
    ]
    return "\n".join(lines)


def draw(results: list[dict[str, Any]]) -> Any:
    """Validation accuracy by epoch and by CPU seconds, a line a run, a colour a recipe; a matplotlib figure.

    Where no run has an accuracy, it is the validation loss.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(r["recipe"] for r in results if "error" not in r))
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"]
    styles = ("-", "--", "-.", ":")
    measure = _measure(results)
    for result in results:
        points = [p for p in result.get("curve", []) if measure in p]
        if not points:
            continue
        number = names.index(result["recipe"])
        label = result["recipe"] if result is next(r for r in results if r["recipe"] == result["recipe"]) else None
        for axes, key in zip(panels, ("epoch", "cpu_seconds"), strict=True):
            axes.plot(
                [p[key] for p in points],
                [_height(p, measure) for p in points],
                color=colours(number % colours.N),
                # Lines that lie on each other stay visible.
                linestyle=styles[number % len(styles)],
                # A line of one point is none.
                marker="o" if len(points) == 1 else None,
                label=label,
            )
    _scale(panels, results, measure)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _measure(results: list[dict[str, Any]]) -> str:
    """What the picture shows: rules without classes have no accuracy."""
    has_accuracy = any("val/accuracy" in p for r in results for p in r.get("curve", []))
    has_loss = any("val/loss" in p for r in results for p in r.get("curve", []))
    return "val/loss" if has_loss and not has_accuracy else "val/accuracy"


def _height(point: dict[str, float], measure: str) -> float:
    return point[measure] * (100 if measure == "val/accuracy" else 1)


def _scale(panels: Any, results: list[dict[str, Any]], measure: str) -> None:
    """Limits, scales and names of the axes."""
    values = [_height(p, measure) for r in results for p in r.get("curve", []) if measure in p]
    if measure == "val/loss":
        panels[0].set(ylabel="validation loss", yscale="log" if min(values) > 0 else "linear")
    else:
        panels[0].set_ylabel("validation accuracy, %")
    if values and measure == "val/accuracy":
        # The first epochs of a slow starter would flatten all that matters.
        low = max(0.0, min(sorted(values)[len(values) // 4], 100 - 1.5 * (100 - max(values)) - 5))
        panels[0].set_ylim(low, max(values) + 0.05 * (max(values) - low) + 0.1)
    lengths = [run["curve"][-1]["epoch"] for run in results if run.get("curve")]
    # Beside a run of hundreds of epochs the others would be a line at the border.
    scale = "log" if lengths and max(lengths) > 20 * min(lengths) else "linear"
    for axes, label in zip(panels, ("epoch", "CPU seconds of training"), strict=True):
        axes.set(xlabel=label, xscale=scale)
        axes.grid(alpha=0.3)


def conditions() -> dict[str, Any]:
    """Where and with what the runs were made."""
    from importlib.metadata import version

    import lightning_nobp

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "threads": _threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        "lightning_nobp": lightning_nobp.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _threads() -> int | None:
    """As many as torch takes: what the environment says, or one for each core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit():
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
