"""Checkpoints are written whole, and refused where they are damaged or hold code."""

import os
import pickle
import zipfile

import hostile_files as hostile
import pytest
import torch
from lightning.pytorch import Trainer
from toys import trainer

from lightning_nobp.callbacks import load_layers
from lightning_nobp.checkpoints import DamagedCheckpointError, DurableCheckpointIO, load_checkpoint, load_whole
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import ResCNet
from lightning_nobp.rules import Backprop, SparseProp


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.ckpt"
    DurableCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.arange(1000.0)}, "epoch": 3}, path)
    return path


def test_what_was_saved_is_loaded(saved):
    content = DurableCheckpointIO().load_checkpoint(saved)
    assert torch.equal(content["state_dict"]["weight"], torch.arange(1000.0))
    assert content["epoch"] == 3


def test_a_checkpoint_cut_short_anywhere_is_refused(saved):
    content = saved.read_bytes()
    for length in range(0, len(content), 97):
        saved.write_bytes(content[:length])
        with pytest.raises(DamagedCheckpointError, match=r"saved.ckpt is damaged or no checkpoint.*last-good"):
            load_checkpoint(saved)


def test_one_wrong_bit_in_the_weights_is_found(saved):
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        [data] = [entry for entry in archive.infolist() if entry.filename.endswith("data/0")]
    content[data.header_offset + 2000] ^= 1
    saved.write_bytes(content)
    # torch itself loads wrong weights without a word.
    assert not torch.equal(torch.load(saved)["state_dict"]["weight"], torch.arange(1000.0))
    with pytest.raises(DamagedCheckpointError, match=r"checksum of .*data/0 is wrong"):
        load_checkpoint(saved)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("place", ["state_dict", "callbacks"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}} | {place: {"x": Evil()}}, "evil.ckpt")
    with pytest.raises(DamagedCheckpointError, match=r"evil.ckpt holds more than tensors.*system.*weights_only"):
        load_checkpoint("evil.ckpt")
    assert os.listdir() == ["evil.ckpt"]
    load_checkpoint("evil.ckpt", weights_only=False)
    assert "pwned" in os.listdir()


def test_a_plain_pickle_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DamagedCheckpointError, match=r"damaged or no checkpoint"):
        load_checkpoint("evil.ckpt", weights_only=False)
    assert os.listdir() == ["evil.ckpt"]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: hostile.zip_of(path, "file/data/0", hostile.zeros(3 * hostile.GIB), 3 * hostile.GIB),
        lambda path: hostile.compressed({"state_dict": {}}, path),
        lambda path: hostile.zip_of(path, "file/data/", bytes(1000), 1000, copies=99),
    ],
    ids=["3 GiB of zeros", "as torch saves, but compressed", "names that share their bytes"],
)
def test_a_file_that_would_take_more_memory_than_it_has_bytes_is_refused_unread(tmp_path, make):
    make(tmp_path / "bomb.ckpt")
    with pytest.raises(DamagedCheckpointError, match=r"bomb.ckpt is compressed, as torch's files never are"):
        load_whole(tmp_path / "bomb.ckpt")


def test_a_call_in_a_checkpoint_that_asks_for_a_terabyte_is_refused(tmp_path):
    torch.save({"state_dict": {"w": hostile.Large()}}, tmp_path / "large.ckpt")
    with pytest.raises(DamagedCheckpointError, match=r"large.ckpt"):
        load_checkpoint(tmp_path / "large.ckpt")


@pytest.mark.parametrize("save", hostile.SAVED_WITH_CODE.values(), ids=hostile.SAVED_WITH_CODE)
@pytest.mark.parametrize("content", [hostile.Code(), {"weight": hostile.Code()}], ids=["alone", "as a weight"])
def test_code_in_files_of_layers_and_of_pretrained_weights_is_refused_and_not_run(tmp_path, monkeypatch, save, content):
    monkeypatch.chdir(tmp_path)
    save(content, tmp_path / "layer_0001.pt")
    with pytest.raises(DamagedCheckpointError, match=r"layer_0001.pt"):
        load_layers(ResCNet((1, 8, 8), 10, depth=2, channels=6, first_kernel_size=3), tmp_path)
    rule = SparseProp(network="mlp", num_classes=10, input_shape=(1, 8, 8))
    with pytest.raises(DamagedCheckpointError, match=r"layer_0001.pt"):
        rule.load_pretrained(tmp_path / "layer_0001.pt")
    assert not (tmp_path / hostile.TOUCHED).exists()


@pytest.mark.parametrize("content", [[1, 2], {"weight": 3}, {"state_dict": 5}])
def test_pretrained_weights_that_are_none_are_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    rule = SparseProp(network="mlp", num_classes=10, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"pretrained: .*other.pt holds no weights"):
        rule.load_pretrained(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [torch.zeros(3), {"weight": torch.zeros(3)}, [1, 2], {"state_dict": None}])
def test_what_is_no_checkpoint_of_a_training_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(DamagedCheckpointError, match="no 'state_dict'"):
        load_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("name", ["hyper_parameters", "callbacks"])
def test_a_checkpoint_with_parts_of_another_kind_is_refused(tmp_path, name):
    torch.save({"state_dict": {}, name: [1]}, tmp_path / "other.ckpt")
    with pytest.raises(DamagedCheckpointError, match=f"'{name}' are no dictionary"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DamagedCheckpointError, match=r"no checkpoint that torch can read"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.ckpt: there is no such file"):
        load_checkpoint(tmp_path / "gone.ckpt")


def test_a_trainer_with_the_plugin_refuses_a_damaged_checkpoint(tmp_path):
    rule = Backprop(network="mlp", num_classes=10, input_shape=(1, 8, 8))
    first = trainer(tmp_path, max_epochs=1, plugins=[DurableCheckpointIO()])
    first.fit(rule, datamodule=DigitsDataModule(batch_size=64, subset=300, val_size=100))
    first.save_checkpoint(tmp_path / "whole.ckpt")
    (tmp_path / "part.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:-1000])
    again = Trainer(max_epochs=2, logger=False, plugins=[DurableCheckpointIO()], enable_progress_bar=False)
    with pytest.raises(DamagedCheckpointError, match=r"part.ckpt"):
        again.fit(rule, datamodule=DigitsDataModule(batch_size=64), ckpt_path=tmp_path / "part.ckpt")
