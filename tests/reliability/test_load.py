"""Long, many, and at once.

A training of a million steps may neither grow nor slow down: its resident memory and the processor time of a step are
compared between the second twentieth of the steps and the last, with a validation and two checkpoints every 4000 steps
and a line in ``metrics.csv`` every 50.
"""

import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from steps_watch import EVERY

pytestmark = pytest.mark.reliability

NOBP = (sys.executable, "-c", "import sys; from lightning_nobp.cli import main; sys.exit(main())")
SMALLEST = (
    *("--model=Backprop", "--model.network=MLP", "--model.network.hidden_dims=[2]"),
    *("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"),
    *("--data=XORDataModule", "--data.batch_size=4", "--data.shuffle=false", "--data.repeats=4000"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
)
"""A training whose steps cost hardly more than Lightning's own loop."""


def environment() -> dict[str, str]:
    """That of a process with this package and the modules beside this file, on one thread."""
    folders = [str(Path(__file__).parent), *sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}


def test_a_million_steps_neither_grow_nor_slow_down(tmp_path, count, repetitions):
    steps = 4000 * max(10, repetitions(250))
    watch = ("--trainer.callbacks+=steps_watch.StepsWatch", f"--trainer.callbacks.path={tmp_path / 'steps.txt'}")
    command = ("fit", *SMALLEST, f"--trainer.max_epochs={steps // 4000}", "--trainer.log_every_n_steps=50", *watch)
    run = subprocess.run([*NOBP, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = [tuple(map(float, line.split())) for line in (tmp_path / "steps.txt").read_text().splitlines()]
    assert len(found) == steps // EVERY
    part = len(found) // 20
    first, last = found[part : 2 * part + 1], found[-part - 1 :]
    memory = [statistics.median(mib for _, mib, _ in window) for window in (first, last)]
    pace = [1000 * (window[-1][2] - window[0][2]) / (window[-1][0] - window[0][0]) for window in (first, last)]
    with (tmp_path / "runs/Backprop/version_0/metrics.csv").open(newline="") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert logged == list(range(49, steps, 50))
    count(
        "A long training",
        steps=steps,
        first_MiB=round(memory[0], 1),
        last_MiB=round(memory[1], 1),
        growth_MiB=round(memory[1] - memory[0], 2),
        first_ms_a_step=round(pace[0], 3),
        last_ms_a_step=round(pace[1], 3),
        lines_in_metrics_csv=len(logged),
    )
    assert memory[1] - memory[0] < 4
