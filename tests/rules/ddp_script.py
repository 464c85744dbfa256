"""Run by torchrun: train on the blobs and save what each rank ends with."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ddp_training import train

if __name__ == "__main__":
    folder, engine, accumulate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    settings = {"engine": engine, "accumulate_grad_batches": accumulate}
    train(folder, "ddp", **settings)
    # Five batches make two steps an epoch: the third of four lies in the middle of the second epoch.
    for part, more in (("whole", {"save_at": 3}), ("resumed", {"ckpt_path": folder / "whole" / "step=3.ckpt"})):
        (folder / part).mkdir(exist_ok=True)
        train(folder / part, "ddp", on_digits=True, **settings, **more)
    # A rank that is gone while the other still talks to it would make that one fail.
    dist.barrier()
    dist.destroy_process_group()
