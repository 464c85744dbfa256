"""What importing the package takes beside importing Lightning.

    python tests/benchmarks/bench_import.py [--rounds 11]

Every import runs in an interpreter of its own, one after another, round after round, the first round not counted:
seconds on the wall and of the processor, and the ratios of both to Lightning's.
"""

import statistics
import subprocess
import sys

from report import Report, options

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
    chosen = options(__doc__, rounds=11)
    found: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in IMPORTS}
    for _ in range(chosen.rounds + 1):
        for name in IMPORTS:
            found[name].append(measure(name))
    medians = {n: [statistics.median(values) for values in zip(*rows[1:], strict=True)] for n, rows in found.items()}
    rows = [
        {
            "import": f"`{name}`",
            "s": seconds,
            "CPU s": cpu_seconds,
            "to `lightning`": seconds / medians["lightning"][0],
            "CPU, to `lightning`": cpu_seconds / medians["lightning"][1],
            "W&B": "imported too" if wandb else "not imported",
        }
        for name, (seconds, cpu_seconds, wandb) in medians.items()
    ]
    Report(chosen).table("Imports, each in a new interpreter", rows)


if __name__ == "__main__":
    main()
