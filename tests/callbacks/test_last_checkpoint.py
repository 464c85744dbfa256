"""The last checkpoint, and the one before it."""

import os

import pytest
import torch
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import LastCheckpoint
from lightning_nobp.checkpoints import DurableCheckpointIO


class FullDisk(DurableCheckpointIO):
    """Has room for so many checkpoints."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def save_checkpoint(self, *args, **kwargs):
        if not self.room:
            raise OSError("no room")
        self.room -= 1
        super().save_checkpoint(*args, **kwargs)


def steps(folder):
    return {path.name: torch.load(path)["global_step"] for path in (folder / "checkpoints").iterdir()}


def fit(folder, plugin):
    made = trainer(folder, max_epochs=4, callbacks=[LastCheckpoint()], plugins=[plugin], enable_checkpointing=True)
    made.fit(backprop(), loader(), loader())


def test_the_one_before_it_is_kept(tmp_path):
    fit(tmp_path, DurableCheckpointIO())
    assert steps(tmp_path) == {"last.ckpt": 24, "previous.ckpt": 18}


def test_one_that_cannot_be_written_costs_neither(tmp_path):
    with pytest.raises(OSError, match="no room"):
        fit(tmp_path, FullDisk(room=2))
    assert steps(tmp_path) == {"last.ckpt": 12, "previous.ckpt": 6}


def test_where_files_have_one_name_only_the_last_becomes_the_one_before_it(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    fit(tmp_path, DurableCheckpointIO())
    assert steps(tmp_path) == {"last.ckpt": 24, "previous.ckpt": 18}
