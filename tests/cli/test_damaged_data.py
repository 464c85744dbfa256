"""Data that are damaged, also under a running training: one line that names the file, and checkpoints stay."""

import numpy as np
import pytest
from fake_data import make_image_folder

from lightning_nobp.checkpoints import load_checkpoint
from lightning_nobp.datamodules.series_files import read_series

IMAGES = (
    *("fit", "--model=Backprop", "--model.network=MLP", "--model.optimizer=torch.optim.SGD"),
    *("--model.optimizer.lr=0.01", "--data=ImageFolderDataModule", "--data.root=images", "--data.image_size=8"),
    *("--data.in_memory=false", "--data.val_size=6", "--data.batch_size=6", "--trainer.max_epochs=3"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
)


@pytest.mark.parametrize("how", ["truncate", "delete"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_spoilt_in_the_second_epoch_is_named(nobp, tmp_path, how, workers):
    make_image_folder(tmp_path / "images")
    image = tmp_path / "images" / "train" / "class_0" / "0.jpg"
    spoil = (
        "--trainer.callbacks+=spoiling.Spoil",
        f"--trainer.callbacks.path={image}",
        f"--trainer.callbacks.how={how}",
    )
    found = nobp(*IMAGES, f"--data.num_workers={workers}", *spoil)
    assert found.status == 2
    [line] = [line for line in found.err.splitlines() if line.startswith("nobp: ")]
    assert line.startswith("nobp: images/train/class_0/0.jpg cannot be read as an image: ")
    assert "Traceback" not in found.err
    [last, *_] = tmp_path.rglob("last.ckpt")
    assert load_checkpoint(last)["epoch"] == 0


@pytest.mark.parametrize("name", ["series.npz", "series.npy", "series.parquet"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_series_is_named(tmp_path, name, share):
    path, x = tmp_path / name, np.random.default_rng(0).normal(size=(50, 3, 2))
    if name == "series.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"a": x[:, 0, 0]}), path)
    else:
        np.savez(path, x=x) if name == "series.npz" else np.save(path, x)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=str(path)):
        read_series(path)
