"""What a benchmark tells: tables, printed as they come, and written as JSON where a file is named."""

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tables import Cell, markdown, rounded

from lightning_nobp import csrc
from lightning_nobp.cli.report import conditions


@dataclass
class Plot:
    """Lines over a table's first column, for the documentation; both axes are logarithmic.

    Args:
        lines: The columns to draw.
        x: What the first column counts.
        y: What the lines measure.
    """

    lines: Sequence[str]
    x: str
    y: str


def options(description: str | None, rounds: int, **others: Mapping[str, Any]) -> argparse.Namespace:
    """The command line of a benchmark; sets the number of threads, and the seed.

    Args:
        description: The script's docstring.
        rounds: How often everything is timed, unless the command line says otherwise.
        others: Further options, and what ``add_argument`` is told about each.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often everything is timed")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="also write the tables into this file")
    for name, told in others.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **told)
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    torch.manual_seed(0)
    return found


def machine(threads: int) -> dict[str, Any]:
    """Where and with what something was measured, and how busy the machine was: 1 is one program."""
    libraries = sorted(Path(csrc.__file__).parent.glob("*.so"))
    compiler = (
        re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", libraries[0].read_bytes()) if libraries else None
    )
    return {
        **conditions(),
        "threads": threads,
        "cores": os.cpu_count(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "compiler": compiler.group().decode() if compiler else None,
        "load": round(os.getloadavg()[0], 1),
    }


def write(file: Path, found: dict[str, Any]) -> None:
    """As JSON with a line for each row, so that changes can be read."""
    lists = re.compile(r"\[\n\s+([^][{}]*?)\n\s+\]")
    lines = lists.sub(lambda match: "[" + re.sub(r",\n\s+", ", ", match[1]) + "]", json.dumps(found, indent=1))
    file.write_text(lines + "\n")


class Report:
    """The tables of a script.

    Args:
        options: Its command line, from :func:`options`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.start = options, time.perf_counter()
        self.tables: list[dict[str, Any]] = []
        self.peers: dict[str, str | None] = {}

    def peer(self, name: str) -> ModuleType | None:
        """Another library to compare with, or none where it is not installed; the report names it either way."""
        library = name.partition(".")[0]
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if library not in self.peers:
                print(f"{library} is left out: {error}")
            self.peers[library] = None
            return None
        self.peers[library] = importlib.metadata.version(library)
        return module

    def table(self, title: str, rows: Sequence[Mapping[str, Cell]], plot: Plot | None = None) -> None:
        """Print a table, and keep it.

        Args:
            title: What it shows, and in what unit.
            rows: By the names of the columns.
            plot: How the documentation draws it.
        """
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[rounded(row.get(column)) for column in columns] for row in rows]
        print(f"\n{title}\n\n" + "\n".join(markdown(columns, cells)), flush=True)
        table = {"title": title, "columns": columns, "rows": cells}
        self.tables.append(table | ({"plot": asdict(plot)} if plot else {}))
        if self.options.json is not None:
            write(self.options.json, self.told())

    def told(self) -> dict[str, Any]:
        """Everything so far, and how it came about."""
        arguments = [a for a in sys.argv[1:] if not a.startswith("--json") and a != str(self.options.json)]
        return {
            "command": " ".join(["python", f"tests/benchmarks/{Path(sys.argv[0]).name}", *arguments]),
            "machine": machine(self.options.threads),
            "seconds": round(time.perf_counter() - self.start),
            "peers": self.peers,
            "tables": self.tables,
        }
