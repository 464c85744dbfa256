"""Two processes equal one with the joined batch, uneven last batches included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_training import load, train

from lightning_nobp.rules import synchronisation
from lightning_nobp.rules.synchronisation import check_ranks_agree

HERE = Path(__file__).parent


def assert_ranks_equal_single_process(folder):
    single = load(folder, 0, 1)
    ranks = [load(folder, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-6, atol=1e-6)
    assert ranks[0]["steps"] == single["steps"]
    for name in ("train/loss", "train/loss_epoch", "train/accuracy_epoch", "val/loss", "val/accuracy"):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-5)


def test_spawned_processes_with_autograd(tmp_path):
    train(tmp_path, "auto", engine="autograd")
    train(tmp_path, "ddp_spawn", engine="autograd")
    assert_ranks_equal_single_process(tmp_path)


def test_spawned_processes_with_the_data_modules_own_sampler(tmp_path):
    train(tmp_path, "auto", on_digits=True)
    train(tmp_path, "ddp_spawn", on_digits=True)
    assert_ranks_equal_single_process(tmp_path)


def test_torchrun_with_accumulation_and_resume(tmp_path):
    train(tmp_path, "auto", accumulate_grad_batches=3)
    # By address: a machine's own name need not resolve.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += ["--nproc-per-node=2", str(HERE / "ddp_script.py"), str(tmp_path), "explicit", "3"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-5000:]
    assert_ranks_equal_single_process(tmp_path)
    for rank in (0, 1):
        whole, resumed = (load(tmp_path / part, rank, 2) for part in ("whole", "resumed"))
        assert torch.equal(resumed["weights"], whole["weights"])
        assert resumed["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)


def test_ranks_that_differ_are_noticed(monkeypatch):
    parameters = {"first": torch.nn.Parameter(torch.ones(3)), "second": torch.nn.Parameter(torch.ones(2))}
    check_ranks_agree(parameters)

    def other_rank_has_moved(sums):
        return [sums, sums + torch.tensor([0, 1])]

    monkeypatch.setattr(synchronisation, "gather_from_ranks", other_rank_has_moved)
    with pytest.raises(RuntimeError, match="parameter 'second' differs between ranks"):
        check_ranks_agree(parameters)
