"""Checkpoints with code in them: no command runs it, and each says in one line which file it is."""

import hostile_files as hostile
import pytest
import torch

from lightning_nobp.checkpoints import load_checkpoint

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
SHORT = ("--config=digits/backprop", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", *QUIET)


@pytest.fixture
def saved(nobp, tmp_path):
    assert nobp("fit", *SHORT).status == 0
    return load_checkpoint(next(tmp_path.rglob("last.ckpt")))


def assert_refused(nobp, folder, *arguments):
    found = nobp(*arguments)
    assert found.status == 2
    [line] = [line for line in found.err.splitlines() if line.startswith("nobp: ")]
    assert "file.ckpt" in line
    assert not (folder / hostile.TOUCHED).exists()


def test_code_in_a_checkpoint_is_run_only_where_that_is_asked_for(nobp, tmp_path, saved):
    content = saved | {"hyper_parameters": saved["hyper_parameters"], "note": hostile.Code()}
    for save in hostile.SAVED_WITH_CODE.values():
        save(content, tmp_path / "file.ckpt")
        for name in ("fit", "validate", "test", "predict"):
            assert_refused(nobp, tmp_path, name, *SHORT[:1], *QUIET, "--ckpt_path=file.ckpt")
        assert_refused(nobp, tmp_path, "export", "file.ckpt", "net.pt2")
    torch.save(content, tmp_path / "file.ckpt")
    trusting = ("--ckpt_path=file.ckpt", "--weights_only=false")
    assert nobp("test", *SHORT[:1], *QUIET, *trusting).status == 0
    assert (tmp_path / hostile.TOUCHED).exists()


@pytest.mark.parametrize("name", ["network", "optimizer", "_class_path"])
def test_a_command_named_in_a_checkpoint_is_not_called(nobp, tmp_path, saved, name):
    call = {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {hostile.TOUCHED}", "shell": True}}
    arguments = saved["hyper_parameters"] | {name: "subprocess.Popen" if name == "_class_path" else call}
    torch.save(saved | {"hyper_parameters": arguments}, tmp_path / "file.ckpt")
    assert nobp("test", *SHORT[:1], *QUIET, "--ckpt_path=file.ckpt").status == 2
    assert nobp("export", "file.ckpt", "net.pt2").status == 2
    assert not (tmp_path / hostile.TOUCHED).exists()
