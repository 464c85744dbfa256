"""Two processes equal one with the joined batch, uneven last batches included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ddp_training import load, train

HERE = Path(__file__).parent


def assert_ranks_equal_single_process(folder):
    single = load(folder, 0, 1)
    ranks = [load(folder, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-6, atol=1e-6)
    assert ranks[0]["steps"] == single["steps"]
    for name in ("train/loss_epoch", "train/accuracy_epoch", "val/loss", "val/accuracy"):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-5)


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_spawned_processes(tmp_path, engine):
    train(tmp_path, "auto", engine=engine)
    train(tmp_path, "ddp_spawn", engine=engine)
    assert_ranks_equal_single_process(tmp_path)


def test_torchrun_with_accumulation(tmp_path):
    train(tmp_path, "auto", accumulate_grad_batches=3)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(HERE / "ddp_script.py"), str(tmp_path), "explicit", "3"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=200)
    assert_ranks_equal_single_process(tmp_path)
