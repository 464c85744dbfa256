"""Long, many, and at once.

A training of a million steps may neither grow nor slow down: its resident memory and the processor time of a step are
compared between the second twentieth of the steps, the middle one and the last, with a validation and two checkpoints
every 4000 steps and a line in ``metrics.csv`` every 50; so are those of a shorter one with a line every step. The heap
may grow once by a few MiB, but by less than any object a step or a line would take.

Two hundred runs of one comparison may leave nothing behind in the process that starts them, neither memory nor open
files.

Eight commands that start at the same instant in the same folder, all of them with everything imported, must not mix:
each has a folder of its own with all its files, and finds what one alone finds, to the last bit of the weights.
Comparisons that are told to write into the same folder are refused, but for the first.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from killing import live
from steps_watch import EVERY, resident_mib

from lightning_nobp.checkpoints import load_checkpoint

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


@pytest.mark.parametrize(("epochs", "every"), [(250, 50), (50, 1)])
def test_a_million_steps_neither_grow_nor_slow_down(tmp_path, count, repetitions, epochs, every):
    steps = 4000 * max(10, repetitions(epochs))
    watch = ("--trainer.callbacks+=steps_watch.StepsWatch", f"--trainer.callbacks.path={tmp_path / 'steps.txt'}")
    command = (
        "fit",
        *SMALLEST,
        f"--trainer.max_epochs={steps // 4000}",
        f"--trainer.log_every_n_steps={every}",
        *watch,
    )
    run = subprocess.run([*NOBP, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = [tuple(map(float, line.split())) for line in (tmp_path / "steps.txt").read_text().splitlines()]
    assert len(found) == steps // EVERY
    part = len(found) // 20
    windows = [found[start : start + part + 1] for start in (part, 10 * part, len(found) - part - 1)]
    memory = [statistics.median(mib for _, mib, _ in window) for window in windows]
    pace = [1000 * (window[-1][2] - window[0][2]) / (window[-1][0] - window[0][0]) for window in windows]
    with (tmp_path / "runs/Backprop/version_0/metrics.csv").open(newline="") as file:
        logged = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert logged == list(range(every - 1, steps, every))
    count(
        "A long training",
        steps=steps,
        lines_in_metrics_csv=len(logged),
        first_MiB=round(memory[0], 2),
        middle_MiB=round(memory[1], 2),
        last_MiB=round(memory[2], 2),
        first_ms_a_step=round(pace[0], 3),
        middle_ms_a_step=round(pace[1], 3),
        last_ms_a_step=round(pace[2], 3),
    )
    # Python's smallest objects take 16 bytes.
    assert memory[2] - memory[0] < max(4, 8 * steps / 2**20)


def open_files(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def test_many_runs_in_one_comparison_leave_nothing_behind(tmp_path, count, repetitions):
    seeds = max(4, repetitions(50))
    amplitudes = (0.005, 0.01, 0.02, 0.04)
    command = [
        *("compare", "xor/mgd", f"--seeds={seeds}", f"--vary=model.amplitude={','.join(map(str, amplitudes))}"),
        *(
            "--set=trainer.max_epochs=1",
            "--set=data.repeats=5",
            "--set=trainer.enable_checkpointing=false",
            "--out=out",
        ),
    ]
    run = subprocess.Popen([*NOBP, *command], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    results, states = tmp_path / "out" / "results.json", {}
    while run.poll() is None:
        time.sleep(0.05)
        if not results.is_file():
            continue
        done = len(json.loads(results.read_text())["results"])
        if done not in states:
            with suppress(OSError, StopIteration):  # It has just ended.
                states[done] = (resident_mib(run.pid), open_files(run.pid))
    assert run.returncode == 0
    found = json.loads(results.read_text())["results"]
    planned = [(f"xor/mgd, amplitude={amplitude}", seed) for amplitude in amplitudes for seed in range(seeds)]
    assert [(result["recipe"], result["seed"]) for result in found] == planned
    assert not any("error" in result for result in found)
    # The last belongs to the report, which draws.
    states.pop(len(planned), None)
    early, late = min(n for n in states if n > len(planned) // 20), max(states)
    count(
        "Many runs in one comparison",
        runs=len(found),
        parent_MiB_after_a_twentieth=round(states[early][0], 1),
        parent_MiB_before_the_last=round(states[late][0], 1),
        open_files_after_a_twentieth=states[early][1],
        open_files_before_the_last=states[late][1],
    )
    assert states[late][0] - states[early][0] < 4
    assert states[late][1] - states[early][1] <= 2


def at_once(folder: Path, number: int, *arguments: str) -> list[int]:
    """Statuses of a command that starts so often at the same instant, in processes that have imported everything."""
    folder.mkdir(exist_ok=True)
    read, write = os.pipe()
    children = []
    for k in range(number):
        children.append(os.fork())
        if not children[-1]:
            status = 70
            try:
                os.chdir(folder)
                os.close(write)
                os.read(read, 1)  # until the last has closed the other end
                status = live(arguments, folder / f"log-{k}.txt").status
            finally:
                os._exit(status)
    os.close(read)
    os.close(write)
    found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for log in folder.glob("log-*.txt"):
        assert "Traceback" not in log.read_text(), log.read_text()
    return found


def test_trainings_that_start_at_the_same_instant_do_not_mix(tmp_path, count):
    quick = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=20", "--trainer.log_every_n_steps=1")
    command = ("fit", "--config=digits/backprop", *quick, "--trainer.enable_progress_bar=false")
    assert at_once(tmp_path / "alone", 1, *command) == [0]
    assert at_once(tmp_path / "together", 8, *command) == [0] * 8
    [alone] = (tmp_path / "alone/runs/digits/backprop").iterdir()
    runs = sorted((tmp_path / "together/runs/digits/backprop").iterdir())
    assert [run.name for run in runs] == [f"version_{number}" for number in range(8)]
    expected = load_checkpoint(alone / "checkpoints" / "last.ckpt")["state_dict"]
    for run in runs:
        assert sorted(p.relative_to(run) for p in run.rglob("*")) == sorted(
            p.relative_to(alone) for p in alone.rglob("*")
        )
        assert (run / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()
        weights = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    count(
        "At the same instant",
        command="nobp fit",
        started=8,
        folders=len(runs),
        equal_to_a_run_alone=len(runs),
        refused=0,
    )


def test_comparisons_that_start_at_the_same_instant_do_not_mix(tmp_path, count):
    quick = ("--set=trainer.max_epochs=1", "--set=data.repeats=100")
    assert at_once(tmp_path / "alone", 1, "compare", "xor/mgd", *quick, "--out=out") == [0]
    expected = outcome(tmp_path / "alone" / "out")
    assert at_once(tmp_path, 8, "compare", "xor/mgd", *quick) == [0] * 8
    folders = list((tmp_path / "runs" / "compare").iterdir())
    assert len(folders) == 8
    assert all(outcome(folder) == expected for folder in folders)
    count("At the same instant", command="nobp compare", started=8, folders=8, equal_to_a_run_alone=8, refused=0)
    found = at_once(tmp_path, 8, "compare", "xor/mgd", *quick, "--out=same")
    # Whoever comes when the first is done may use the folder again.
    assert set(found) == {0, 2}
    assert outcome(tmp_path / "same") == expected
    done, refused = found.count(0), found.count(2)
    count(
        "At the same instant",
        command="nobp compare --out=same",
        started=8,
        folders=1,
        equal_to_a_run_alone=done,
        refused=refused,
    )


def outcome(folder: Path) -> tuple[object, ...]:
    """What a comparison found that does not depend on the clock."""
    [result] = json.loads((folder / "results.json").read_text())["results"]
    curve = [(point["step"], point["val/accuracy"], point["val/loss"]) for point in result["curve"]]
    return (result["test_accuracy"], result["test_loss"], result["steps"], curve)
