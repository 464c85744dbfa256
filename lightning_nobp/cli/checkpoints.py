"""``--ckpt_path best``, ``last`` and ``last-good`` in a new process."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_nobp.cli.recipes import UsageError

WORDS = ("best", "last", "last-good")
"""What ``--ckpt_path`` may say instead of a file: the last of them is the newest that can be read."""

RUN_FILE = "run.json"
"""In the folder of a run that ``best`` and ``last`` may mean: what it is a run of."""


def resolve(which: str, recipe: str, roots: Iterable[Path]) -> Path:
    """The checkpoint of the newest run of a recipe that has one; the run may have been killed.

    Args:
        which: One of :data:`WORDS`.
        recipe: Name of the runs.
        roots: Folders below which runs lie.

    Raises:
        UsageError: No run of that recipe has a checkpoint.
    """
    roots = list(dict.fromkeys(roots))
    for run in _runs(recipe, roots):
        if found := _checkpoint(which, run):
            return found
    raise UsageError(
        f"--ckpt_path={which}: no run of {recipe!r} under {' or '.join(map(str, roots))} has a checkpoint. "
        "Train first, or give a file"
    )


def resolve_in(which: str, run: Path) -> Path:
    """The checkpoint of one run.

    Args:
        which: One of :data:`WORDS`.
        run: The run's folder.

    Raises:
        UsageError: It has none.
    """
    if found := _checkpoint(which, run):
        return found
    raise UsageError(f"--ckpt_path={which}: the run {run} has no checkpoint. Train first, or give a file")


def run_of(config: Path) -> dict[str, Any]:
    """What is noted of the run whose configuration this is; empty if it is no run's."""
    note = config.with_name(RUN_FILE)
    return _read(note) if note.is_file() else {}


def _runs(recipe: str, roots: Iterable[Path]) -> list[Path]:
    """Folders of the recipe's runs, newest first."""
    found = set()
    for note in (note for root in roots for note in root.rglob(RUN_FILE)):
        run = _read(note)
        if run.get("recipe") == recipe:
            found.add((run["started"], note.parent))
    return [run for _, run in sorted(found, reverse=True)]


def _read(note: Path) -> dict[str, Any]:
    """What is noted of a run; nothing if the file is damaged."""
    try:
        return dict(json.loads(note.read_text()))
    except (ValueError, TypeError):
        print(f"nobp: passed over: {note} is damaged", file=sys.stderr)
        return {}


def _checkpoint(which: str, run: Path) -> Path | None:
    checkpoints = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda p: (p.stat().st_mtime, p.name), reverse=True)
    if which == "last":
        return checkpoints[0] if checkpoints else None
    newest, content = next(_readable(checkpoints), (None, {}))
    return (_best(newest, content) if which == "best" and newest else None) or newest


def _readable(checkpoints: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Those that are whole, with their content; says which are not."""
    from lightning_nobp.checkpoints import DamagedCheckpointError, UnsafeCheckpointError, load_checkpoint

    for checkpoint in checkpoints:
        try:
            yield checkpoint, load_checkpoint(checkpoint)
        except UnsafeCheckpointError:
            # It is whole: whether to trust it is asked where it is loaded.
            yield checkpoint, {}
        except DamagedCheckpointError as error:
            print(f"nobp: passed over: {error}", file=sys.stderr)


def _best(newest: Path, content: dict[str, Any]) -> Path | None:
    """The best checkpoint so far, as the newest one remembers it."""
    for name, state in content.get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint") and state.get("monitor") and state["best_model_path"]:
            best = Path(state["best_model_path"])
            # The folder may have moved since.
            return next((path for path in (newest.with_name(best.name), best) if path.is_file()), None)
    return None
