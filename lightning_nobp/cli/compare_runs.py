"""The runs of ``nobp compare``: each in a process of its own, one after another."""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


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


def planned(chosen: list[str], options: argparse.Namespace, out: Path) -> list[Run]:
    """Every recipe with every change and every seed, in this order."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    return [
        Run(recipe, seed, out / _folder(recipe) / _folder(",".join(map(_short, changes))) / f"seed-{seed}", changes)
        for recipe in chosen
        for changes in itertools.product(*options.vary)
        for seed in seeds
    ]


class Task(NamedTuple):
    """What a process of its own is to do.

    Args:
        recipe: Name of the recipe.
        options: More options of the command line.
        folder: Where all its files go.
        budget: Seconds of the processor that training may use; None for as many as the recipe takes.
        noise: Relative noise of the weights in one more test; None for none.
    """

    recipe: str
    options: list[str]
    folder: Path
    budget: float | None = None
    noise: float | None = None


class Display(NamedTuple):
    """Where the progress of a run is shown."""

    bars: Progress
    bar: TaskID


Rehearsed = dict[str, dict[str, Any]]
"""By a run's label, the options with which it fills its budget, or the error of its rehearsal."""


def run_all(
    runs: list[Run], asked: argparse.Namespace, results: list[dict[str, Any]], keep: Callable[[], None]
) -> None:
    """Add to ``results`` as each run ends, in the order of the runs; one that failed has ``error`` among them.

    Args:
        runs: To carry out.
        asked: Options of the comparison.
        results: To add to.
        keep: Called when one was added.
    """
    context = multiprocessing.get_context(_start_method())
    if context.get_start_method() == "forkserver":
        # Imports are paid once, and every run starts from the same process image.
        context.set_forkserver_preload(
            ["lightning_nobp.cli.measured_run", "sklearn.datasets", "sklearn.model_selection", "torchvision"]
        )
    rehearsed: Rehearsed = {}
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        total = progress.add_task("all", total=len(runs), state="")
        for run in runs:
            task = progress.add_task(f"{run.label}, seed {run.seed}", total=None, state="starting")
            result = _run_one(context, run, asked, rehearsed, Display(progress, task))
            results.append({"recipe": run.label, "seed": run.seed} | result)
            keep()
            state = f"failed: {result['error']}" if "error" in result else _reached(result)
            progress.update(task, state=state, total=1, completed=1)
            progress.advance(total)
            if not console.is_terminal:
                console.print(f"{run.label}, seed {run.seed}: {state}", markup=False)


def _run_one(
    context: Any, run: Run, asked: argparse.Namespace, rehearsed: Rehearsed, display: Display
) -> dict[str, Any]:
    """Train and test; the first of several seeds rehearses for all of them."""
    # All runs use the same split of the data: its seed is data.seed, not this one.
    options = [*_overrides(asked), f"--seed_everything={run.seed}", *(f"--{change}" for change in run.changes)]
    limit = _limit(asked.max_time)
    if asked.budget is not None:
        if run.label not in rehearsed:
            rehearsal = Task(run.recipe, options, run.folder.parent / "rehearsal", asked.budget)
            rehearsed[run.label] = _in_process(context, _rehearse_in_child, rehearsal, limit, display)
        found = rehearsed[run.label]
        if "error" in found:
            return found
        options += found["options"]
    task = Task(run.recipe, options, run.folder, asked.budget, asked.weight_noise)
    return _in_process(context, _measure_in_child, task, limit, display)


def _in_process(
    context: Any, work: Callable[[Task, Connection], None], task: Task, limit: float | None, display: Display
) -> dict[str, Any]:
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(task, theirs))
    child.start()
    theirs.close()
    try:
        return _follow(ours, time.monotonic() + limit if limit else None, display)
    except EOFError:
        child.join()
        return {"error": f"ended with exit code {child.exitcode}; see {task.folder / 'log.txt'}"}
    except KeyboardInterrupt:
        child.kill()
        raise
    finally:
        # A run that is done may still be cleaning up; one that hangs never is.
        child.join(10)
        child.kill()
        child.join()


def _measure_in_child(task: Task, progress: Connection) -> None:
    # Imported here: this process needs no torch, which takes seconds.
    from lightning_nobp.cli.measured_run import in_child, measure

    in_child(measure, task, progress)


def _rehearse_in_child(task: Task, progress: Connection) -> None:
    from lightning_nobp.cli.measured_run import in_child, rehearse

    in_child(rehearse, task, progress)


def _follow(pipe: Connection, deadline: float | None, display: Display) -> dict[str, Any]:
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
        display.bars.update(display.bar, total=total, completed=content["epoch"], state=_reached(content))


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


def _short(change: str) -> str:
    """``KEY=VALUE`` with the last part of the key only."""
    key, equals, value = change.partition("=")
    return key.rpartition(".")[2] + equals + value


def _overrides(options: argparse.Namespace) -> list[str]:
    found = [f"--config={path}" for path in options.config]
    found += [f"--{setting}" for setting in options.set]
    if options.max_time:
        found.append(f"--trainer.max_time={options.max_time}")
    return found


def _folder(recipe: str) -> Path:
    """Where a recipe's runs go below the results: a file may lie anywhere, its runs may not."""
    path = Path(recipe)
    path = path.with_suffix("") if path.suffix == ".yaml" else path
    return Path(*(part for part in path.parts if part not in (path.anchor, "..")))
