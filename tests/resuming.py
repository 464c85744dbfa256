"""Trainings that go on from the middle of an epoch."""

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import trainer

from lightning_nobp.datamodules import DigitsDataModule


def digits():
    return DigitsDataModule(batch_size=64, subset=300, val_size=100)


def assert_resumed_equals_whole(folder, make_rule, make_data=digits, steps=(2, 5), max_epochs=2, make_callbacks=list):
    """Weights, buffers and the optimizer's state are those of a run that was not stopped, bit for bit."""

    def run(folder, ckpt_path=None):
        rule = make_rule()
        saved = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        callbacks = [saved, *make_callbacks()]
        run = trainer(folder, max_epochs=max_epochs, callbacks=callbacks, enable_checkpointing=True)
        run.fit(rule, datamodule=make_data(), ckpt_path=ckpt_path)
        [optimizer] = run.optimizers
        moments = [t for entry in optimizer.state.values() for t in entry.values()]
        return [*rule.state_dict().values(), *moments]

    torch.manual_seed(0)
    whole = run(folder)
    for step in steps:
        # The new network starts from other weights, and the generators from another state.
        resumed = run(folder / "resumed", folder / f"step={step}.ckpt")
        assert all(map(torch.equal, resumed, whole))
