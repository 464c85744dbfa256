"""``--ckpt_path best`` and ``last`` in a new process."""

import json
from pathlib import Path
from typing import Any

from lightning_nobp.cli.recipes import UsageError

RUN_FILE = "run.json"
"""In the folder of every run: what it is a run of."""


def resolve(which: str, recipe: str, root: Path) -> Path:
    """The checkpoint of the newest run of a recipe that has one; the run may have been killed.

    Args:
        which: ``'best'`` or ``'last'``.
        recipe: Name of the runs.
        root: Folder of all runs.

    Raises:
        UsageError: No run of that recipe has a checkpoint.
    """
    for run in _runs(recipe, root):
        checkpoints = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda p: (p.stat().st_mtime, p.name))
        if checkpoints:
            return (_best(checkpoints[-1]) if which == "best" else None) or checkpoints[-1]
    raise UsageError(
        f"--ckpt_path={which}: no run of {recipe!r} under {root} has a checkpoint. Train first, or give a file"
    )


def run_of(config: Path) -> dict[str, Any]:
    """What is noted of the run whose configuration this is; empty if it is no run's."""
    note = config.with_name(RUN_FILE)
    return dict(json.loads(note.read_text())) if note.is_file() else {}


def _runs(recipe: str, root: Path) -> list[Path]:
    """Folders of the recipe's runs, newest first."""
    found = []
    for note in root.rglob(RUN_FILE):
        run = json.loads(note.read_text())
        if run["recipe"] == recipe:
            found.append((run["started"], note.parent))
    return [run for _, run in sorted(found, reverse=True)]


def _best(newest: Path) -> Path | None:
    """The best checkpoint so far, as the newest one remembers it."""
    import torch

    content = torch.load(newest, weights_only=True, map_location="cpu", mmap=True)
    for name, state in content.get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint") and state.get("monitor") and state["best_model_path"]:
            best = Path(state["best_model_path"])
            # The folder may have moved since.
            return next((path for path in (newest.with_name(best.name), best) if path.is_file()), None)
    return None
