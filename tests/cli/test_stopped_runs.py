"""Runs that were stopped, and checkpoints that a disk has spoiled."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import StopOnInterrupt
from lightning_nobp.cli.checkpoints import resolve

DIGITS = ("--config", "digits/backprop")


def checkpoint(path):
    return torch.load(path, weights_only=True)


def sending(signum, step, **options):
    more = [f"--trainer.callbacks.{name}={value}" for name, value in options.items()]
    return (
        "--trainer.callbacks=signalling.Signal",
        f"--trainer.callbacks.signum={int(signum)}",
        f"--trainer.callbacks.step={step}",
        *more,
    )


@pytest.fixture
def fit(nobp, quick):
    return lambda *arguments: nobp(
        "fit", *DIGITS, *quick, "--trainer.max_epochs=3", "--model.network.dropout=0.3", *arguments
    )


def assert_equal_runs(one, other):
    one, other = checkpoint(one), checkpoint(other)
    assert one["global_step"] == other["global_step"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("step", "validating"), [(0, False), (2, False), (3, False), (4, True), (7, False), (12, True)]
)
def test_a_signal_stops_after_the_batch_and_the_run_goes_on_as_if_never_stopped(fit, signum, status, step, validating):
    assert fit("--trainer.default_root_dir=whole").status == 0
    stopped = fit(*sending(signum, step, validating=validating))
    assert stopped.status == status, stopped.err
    path = resolve("last", "digits/backprop", [Path("runs")])
    assert f"saved as {path}; --ckpt_path last goes on" in stopped.err
    assert checkpoint(path)["global_step"] == step + (not validating)
    assert fit("--ckpt_path=last").status == 0
    assert_equal_runs(
        "whole/digits/backprop/version_0/checkpoints/last.ckpt", resolve("last", "digits/backprop", [Path("runs")])
    )


def validated(*runs):
    """Rows of the validations of one training in several runs."""
    files = [Path(run) / "metrics.csv" for run in runs]
    rows = [row for file in files if file.exists() for row in csv.DictReader(file.open())]
    return [(row["step"], row["val/loss"], row["val/accuracy"]) for row in rows if row.get("val/loss")]


@pytest.mark.parametrize("step", [2, 4, 10, 12])
def test_a_validation_that_a_signal_cuts_short_is_done_anew(fit, step):
    often = ("--data.eval_batch_size=50", "--trainer.val_check_interval=2")
    assert fit(*often, "--trainer.default_root_dir=whole").status == 0
    assert fit(*often, *sending(signal.SIGTERM, step, validating=True)).status == 143
    assert fit(*often, "--ckpt_path=last").status == 0
    runs = [f"runs/digits/backprop/version_{number}" for number in range(2)]
    assert validated(*runs) == validated("whole/digits/backprop/version_0")
    assert_equal_runs(
        "whole/digits/backprop/version_0/checkpoints/last.ckpt", resolve("last", "digits/backprop", [Path("runs")])
    )


def test_a_killed_run_goes_on_from_its_newest_checkpoint_as_if_never_killed(fit, quick):
    assert fit("--trainer.default_root_dir=whole").status == 0
    main = "import sys; from lightning_nobp.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "fit", *DIGITS, *quick, "--trainer.max_epochs=3"]
    killed = subprocess.run(
        [*command, "--model.network.dropout=0.3", *sending(signal.SIGKILL, 9)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert fit("--ckpt_path=last-good").status == 0
    assert_equal_runs(
        "whole/digits/backprop/version_0/checkpoints/last.ckpt", resolve("last", "digits/backprop", [Path("runs")])
    )


def test_a_second_interrupt_stops_at_once(fit):
    # Jobs in the background start with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stopped = fit(*sending(signal.SIGINT, 5, times=2))
    assert stopped.status == 130
    assert stopped.err.endswith("nobp: interrupted\n")
    assert checkpoint(resolve("last", "digits/backprop", [Path("runs")]))["global_step"] == 4


@pytest.mark.parametrize("moment", ["setup", "on_fit_start", "on_sanity_check_start", "on_sanity_check_end"])
def test_an_interrupt_before_the_first_batch_ends_with_its_own_status(fit, moment):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stopped = fit("--trainer.callbacks=signalling.SignalIn", f"--trainer.callbacks.moment={moment}")
    assert stopped.status == 130
    assert re.search(r"^nobp: (interrupted|stopped after step [01]\b.*)$", stopped.err, re.MULTILINE)
    assert fit("--ckpt_path=last-good").status == 0


def test_the_answer_to_interrupts_is_given_back(fit):
    before = signal.getsignal(signal.SIGINT)
    assert fit().status == 0
    assert signal.getsignal(signal.SIGINT) is before
    fit(*sending(signal.SIGINT, 5))
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_gives_interrupts_back_and_the_callback_can_be_used_again(tmp_path):
    class Failing(Callback):
        def on_train_batch_end(self, *_):
            raise ValueError("stop")

    before, stop = signal.getsignal(signal.SIGINT), StopOnInterrupt()
    for _ in range(2):
        with pytest.raises(ValueError, match="stop"):
            trainer(tmp_path, callbacks=[stop, Failing()]).fit(backprop(), loader())
        assert signal.getsignal(signal.SIGINT) is before
        assert stop._before is None


def test_the_checkpoint_before_the_last_is_kept(fit):
    assert fit().status == 0
    folder = Path("runs/digits/backprop/version_0/checkpoints")
    assert checkpoint(folder / "last.ckpt")["global_step"] == 12
    assert checkpoint(folder / "previous.ckpt")["global_step"] == 8


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(fit, nobp):
    assert fit("--trainer.default_root_dir=whole").status == 0
    assert fit("--checkpoint.save_top_k=0").status == 0
    folder = Path("runs/digits/backprop/version_0/checkpoints")
    damage(folder / "last.ckpt")
    refused = fit("--ckpt_path=last")
    assert refused.status == 2
    assert refused.err.strip().splitlines()[-1].startswith(f"nobp: {folder}/last.ckpt is damaged: the checksum of ")
    assert "--ckpt_path last-good" in refused.err
    for command in ("test", "validate", "predict"):
        assert f"nobp: {folder}/last.ckpt is damaged" in nobp(command, *DIGITS, "--ckpt_path=last").err
    resumed = fit("--ckpt_path=last-good")
    assert resumed.status == 0
    assert f"nobp: passed over: {folder}/last.ckpt is damaged" in resumed.err
    assert f"nobp: goes on from {folder}/previous.ckpt" in resumed.err
    assert_equal_runs(
        "whole/digits/backprop/version_0/checkpoints/last.ckpt", resolve("last", "digits/backprop", [Path("runs")])
    )


def test_the_last_good_checkpoint_may_be_of_the_run_before(fit):
    for _ in range(2):
        assert fit().status == 0
    for path in Path("runs/digits/backprop/version_1/checkpoints").iterdir():
        path.write_bytes(b"")
    assert resolve("last-good", "digits/backprop", [Path("runs")]).parts[-3] == "version_0"


def test_a_first_training_with_last_good_starts_from_the_beginning(fit, nobp):
    run = fit("--ckpt_path=last-good")
    assert run.status == 0
    assert "no run of 'digits/backprop' under runs has a checkpoint: training starts from the beginning" in run.err
    assert nobp("test", "--config=digits/symba", "--ckpt_path=last-good").status == 2


def test_the_best_is_found_where_the_newest_is_damaged_and_refused_where_it_is_itself(fit, nobp, capsys):
    assert fit().status == 0
    folder = Path("runs/digits/backprop/version_0/checkpoints")
    best = resolve("best", "digits/backprop", [Path("runs")])
    assert best.name not in ("last.ckpt", "previous.ckpt")
    damage(folder / "last.ckpt")
    assert resolve("best", "digits/backprop", [Path("runs")]) == best
    assert f"nobp: passed over: {folder}/last.ckpt is damaged" in capsys.readouterr().err
    damage(best)
    refused = nobp("test", *DIGITS, f"--ckpt_path={best}")
    assert refused.status == 2
    assert f"nobp: {best} is damaged" in refused.err


def test_a_damaged_note_of_a_run_is_passed_over(fit, capsys):
    assert fit().status == 0
    run = Path("runs/digits/backprop/version_1")
    run.mkdir()
    (run / "run.json").write_text('{"recipe": "digits/')
    assert resolve("last", "digits/backprop", [Path("runs")]).parts[-3] == "version_0"
    assert f"passed over: {run}/run.json is damaged" in capsys.readouterr().err


def test_whole_checkpoints_that_hold_code_are_left_to_whoever_loads_them(fit):
    assert fit().status == 0
    path = Path("runs/digits/backprop/version_0/checkpoints/last.ckpt")
    torch.save(checkpoint(path) | {"more": re.compile("x")}, path)
    assert resolve("last-good", "digits/backprop", [Path("runs")]) == path
