"""Run by torchrun: train on the blobs and save what each rank ends with."""

import sys
from pathlib import Path

import torch
from ddp_training import train

if __name__ == "__main__":
    folder, engine, accumulate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    train(folder, "ddp", engine=engine, accumulate_grad_batches=accumulate)
