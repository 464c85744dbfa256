"""Arguments of data modules in checkpoints that load safely."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_data import make_image_folder
from toys import backprop, trainer

from lightning_nobp.datamodules import DigitsDataModule, ImageFolderDataModule
from lightning_nobp.datamodules.plain import plain


def saved(folder, data, **rule):
    """The checkpoint of a short run."""
    run = trainer(folder, limit_train_batches=1, limit_val_batches=1)
    run.fit(backprop(num_classes=data.num_classes, input_shape=data.input_shape, **rule), datamodule=data)
    run.save_checkpoint(folder / "run.ckpt")
    return torch.load(folder / "run.ckpt", weights_only=True)


def test_paths_and_numpy_numbers_load_safely(tmp_path):
    data = DigitsDataModule(
        root=Path("data"), subset=np.int64(200), val_size=np.float64(0.1), seed=np.int32(3), drop_last=np.bool_(True)
    )
    arguments = saved(tmp_path, data)[DigitsDataModule.CHECKPOINT_HYPER_PARAMS_KEY]
    assert arguments["root"] == "data"
    chosen = [arguments[name] for name in ("subset", "val_size", "seed", "drop_last")]
    assert chosen == [200, 0.1, 3, True]
    assert [type(value) for value in chosen] == [int, float, int, bool]
    again = DigitsDataModule.load_from_checkpoint(tmp_path / "run.ckpt")
    assert (again.root, again.subset, again.val_size, again.seed) == (Path("data"), 200, 0.1, 3)


def test_arguments_of_a_subclass_load_safely(tmp_path):
    """Its constructor takes ``root`` and more by itself, and its mean and standard deviation are saved twice."""
    make_image_folder(tmp_path)
    data = ImageFolderDataModule(
        root=tmp_path, image_size=np.int64(8), mean=np.full(3, 0.5), std=[np.float32(0.25)] * 3, val_size=6
    )
    checkpoint = saved(tmp_path, data)
    arguments = checkpoint[ImageFolderDataModule.CHECKPOINT_HYPER_PARAMS_KEY]
    assert (arguments["root"], arguments["image_size"], arguments["mean"]) == (str(tmp_path), 8, [0.5] * 3)
    assert checkpoint["ImageFolderDataModule"]["std"] == [0.25] * 3


def test_numpy_numbers_choose_the_same_batches():
    """The seed of a batch is made with numbers beyond 64 bits, and float32 is no float."""
    batches = []
    for settings in ({"val_size": 0.25, "seed": 3}, {"val_size": np.float32(0.25), "seed": np.int64(3)}):
        data = DigitsDataModule(**settings, augment=True)
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0][0], batches[1][0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("a") / "b", "a/b"),
        (np.float64(0.5), 0.5),
        ((np.int64(1), [Path("a")]), (1, ["a"])),
        ({"sizes": np.arange(2)}, {"sizes": [0, 1]}),
        (None, None),
    ],
)
def test_plain_values(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
