"""Run every benchmark, one after another in processes of their own, and keep what they measured.

    python tests/benchmarks/run_all.py [--rounds N] [--threads 1] [--only backprop spiking]

Writes ``docs/performance/<script>.json`` for each and at the end the pages that show them. A script that fails is noted
there too, and the rest goes on; the exit status says so.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import machine, write

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "performance"


def run(script: Path, arguments: list[str], threads: int) -> str | None:
    """What went wrong, if anything did."""
    file = FOLDER / f"{script.stem}.json"
    file.unlink(missing_ok=True)
    command = [f"tests/benchmarks/{script.name}", *arguments]
    print("\npython " + " ".join(command), flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command, f"--json={file}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    print(done.stdout, flush=True)
    found: dict[str, Any] = {
        "command": "python " + " ".join(command),
        "machine": machine(threads),
        "seconds": round(time.perf_counter() - start),
        "peers": {},
        "tables": [],
    }
    if file.exists():
        found |= json.loads(file.read_text()) | {"seconds": found["seconds"]}
    if done.returncode:
        print(done.stderr, file=sys.stderr, flush=True)
        found["failed"] = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    write(file, found)
    return found.get("failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="for every script; without it each takes its own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="scripts, by what follows bench_")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    arguments = [f"--threads={options.threads}"] if options.threads != 1 else []
    arguments += [f"--rounds={options.rounds}"] if options.rounds else []
    scripts = sorted(Path(__file__).parent.glob("bench_*.py"))
    chosen = [s for s in scripts if options.only is None or s.stem.removeprefix("bench_") in options.only]
    failed = [script.name for script in chosen if run(script, arguments, options.threads)]
    # The second shows rows of the first.
    for page in ("make_performance.py", "make_reproduction.py"):
        subprocess.run([sys.executable, ROOT / "docs" / page], check=True)
    if failed:
        sys.exit("failed: " + ", ".join(failed))


if __name__ == "__main__":
    main()
