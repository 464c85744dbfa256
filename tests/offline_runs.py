"""What offline runs of W&B hold, read back from their files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import wandb


class OfflineRun(NamedTuple):
    folder: Path
    run: dict[str, Any]
    """Its name, group, tags and kind."""
    configs: list[dict[str, Any]]
    """Configurations, as often as they were sent."""
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: list[dict[str, Any]]
    exit_code: int | None

    @property
    def config(self) -> dict[str, Any]:
        """All that was sent, and what a sweep chose."""
        merged = dict(self.run["config"]["update"])
        for config in self.configs:
            merged |= config
        return {key: value for key, value in merged.items() if key != "_wandb"}


def offline_runs(root: Path) -> list[OfflineRun]:
    """All runs under ``root``, oldest first; the one that is open ends."""
    wandb.finish()
    found = [_read(folder) for folder in (root / "wandb").glob("offline-run-*")]
    return sorted(found, key=lambda run: run.run["start_time"])


def _read(folder: Path) -> OfflineRun:
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records: dict[str, list[dict[str, Any]]] = {}
    for record in map(json.loads, lines):
        records.setdefault(record["type"], []).append(record[record["type"]])
    summary: dict[str, Any] = {}
    for record in records.get("summary", []):
        summary |= record["update"]
    return OfflineRun(
        folder,
        records["run"][0],
        [_with_infinity(record["update"]) for record in records.get("config", [])],
        [record["item"] for record in records.get("history", [])],
        summary,
        records.get("artifact", []),
        records["exit"][0].get("exit_code") if "exit" in records else None,
    )


def _with_infinity(value: Any) -> Any:
    """The same, with infinity as a number: W&B writes the word."""
    if isinstance(value, dict):
        return {key: _with_infinity(entry) for key, entry in value.items()}
    return float("inf") if value == "Infinity" else value
