"""Images and tables from strangers: read rightly, or refused in one line that names the file."""

import hostile_files as hostile
import numpy as np
import pytest
import torch
from fake_data import make_image_folder
from hostile_data import IMAGE_FOLDERS, TABLES, make_hostile_cache, read_table
from PIL import Image

from lightning_nobp.datamodules import ImageFolderDataModule
from lightning_nobp.datamodules.images import decode

LARGE = {"CSV with a field of 10 MB", "Parquet of 2^30 rows of a constant", "IDX of 30 GB of nothing"}


@pytest.mark.parametrize("name", hostile.REFUSED_IMAGES)
def test_images_that_mean_harm_are_refused(tmp_path, name):
    suffix, make = hostile.REFUSED_IMAGES[name]
    path = tmp_path / f"image{suffix}"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=f"{path} cannot be read as an image: "):
        decode(path, (16, 20), resize=True)


@pytest.mark.parametrize("name", list(hostile.READ_IMAGES)[1:])
def test_unusual_images_are_read(tmp_path, name):
    suffix, make = hostile.READ_IMAGES[name]
    path = tmp_path / f"image{suffix}"
    path.write_bytes(make())
    assert decode(path, (16, 20), resize=False).shape == (3, 16, 20)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_of_16_bits_keep_their_shades(tmp_path, suffix):
    shades = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(shades).save(tmp_path / f"image.{suffix}")
    found = decode(tmp_path / f"image.{suffix}", (64, 64), resize=False)
    assert torch.equal(found, torch.from_numpy((shades >> 8).astype(np.uint8)).expand(3, 64, 64))


@pytest.mark.parametrize("name", [name for name in IMAGE_FOLDERS if not name.startswith("10,000 classes")])
def test_folders_that_are_odd_are_read_or_refused_by_name(tmp_path, name):
    change, words = IMAGE_FOLDERS[name]
    change(make_image_folder(tmp_path))
    data = ImageFolderDataModule
    if words is None:
        assert len(data(root=str(tmp_path), image_size=8).load("train").labels) >= 24
        return
    with pytest.raises((ValueError, OSError)) as caught:
        data(root=str(tmp_path), image_size=8).load("train")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_many_differing_classes_some_are_named(tmp_path):
    make_image_folder(tmp_path)
    for number in range(12):
        (tmp_path / "test" / f"more_{number:02}").mkdir()
    with pytest.raises(ValueError, match=r"differ in classes: more_00, .*, more_04 and 7 more$"):
        ImageFolderDataModule(root=str(tmp_path), image_size=8).load("test")


@pytest.mark.parametrize(
    "content",
    [hostile.Code(), torch.zeros(1, dtype=torch.uint8).expand(24, 3, 8, 8), torch.zeros(24, 3, 8, 8), [1]],
    ids=["code", "one byte", "floating point", "a list"],
)
def test_a_cache_of_something_else_is_not_used_whatever_its_checksums_say(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    make_hostile_cache(tmp_path, content)
    data = ImageFolderDataModule(root=str(tmp_path), image_size=8)
    with pytest.warns(UserWarning, match=r"train-8x8\.pt is damaged"):
        images = data.load("train").images(torch.arange(24))
    assert [int(images[k].float().mean()) // 50 for k in (0, 12, 23)] == [0, 1, 2]
    assert not (tmp_path / hostile.TOUCHED).exists()


@pytest.mark.parametrize("name", [name for name in TABLES if name not in LARGE])
def test_tables_that_mean_harm_are_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    suffix, make = TABLES[name]
    path = tmp_path / f"table.{suffix}"
    make(path)
    with pytest.raises(ValueError, match=str(path)) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / hostile.TOUCHED).exists()
