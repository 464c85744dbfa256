"""What importing the package takes beside importing Lightning.

    python tests/benchmarks/bench_import.py [--rounds 11]

Every import runs in an interpreter of its own, one after another, round after round, the first round not counted. The
table gives the median seconds, on the wall and of the processor, and the ratios of both to Lightning's.
"""

import argparse
import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

IMPORTS = ("lightning", "lightning_nobp", "lightning_nobp.rules", "lightning_nobp.cli.lightning")
TIMED = """
import sys, time
start, cpu_start = time.perf_counter(), time.process_time()
import {name}
print(time.perf_counter() - start, time.process_time() - cpu_start, "wandb" in sys.modules)
"""


def measure(name: str) -> tuple[float, float, bool]:
    """Seconds, seconds of the processor, and whether W&B was imported too."""
    run = subprocess.run([sys.executable, "-c", TIMED.format(name=name)], capture_output=True, text=True, check=True)
    seconds, cpu_seconds, wandb = run.stdout.split()
    return float(seconds), float(cpu_seconds), wandb == "True"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in IMPORTS}
    for _ in range(rounds + 1):
        for name in IMPORTS:
            found[name].append(measure(name))
    table = Table(title="Imports, each in a new interpreter")
    table.add_column("import")
    for column in ("seconds", "CPU seconds", "to lightning", "CPU", "W&B too"):
        table.add_column(column, justify="right")
    medians = {n: [statistics.median(values) for values in zip(*rows[1:], strict=True)] for n, rows in found.items()}
    for name, (seconds, cpu_seconds, wandb) in medians.items():
        ratios = (seconds / medians["lightning"][0], cpu_seconds / medians["lightning"][1])
        row = (seconds, cpu_seconds, *ratios)
        table.add_row(name, *(f"{value:.3f}" for value in row), "yes" if wandb else "no")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
