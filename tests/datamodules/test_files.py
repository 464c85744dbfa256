"""Official formats, whole and damaged, and how files get there."""

import errno
import functools
import http.server
import multiprocessing
import threading
import warnings
import zipfile
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from fake_data import (
    make_cifar,
    make_image_folder,
    make_mnist,
    make_tiny_imagenet,
    md5,
    patch_cifar,
    write_idx,
    write_image,
)
from PIL import Image
from test_files import files_of_at_most
from torchvision import datasets

from lightning_nobp.datamodules import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    TinyImageNetDataModule,
    tiny_imagenet,
)
from lightning_nobp.datamodules.images import FileSource, decode


def everything(data):
    """Images and labels of the training set, before any split."""
    source = data.load("train")
    return source.images(torch.arange(len(source.labels))), source.labels


@pytest.mark.parametrize(("kind", "name"), [(MNISTDataModule, "MNIST"), (FashionMNISTDataModule, "FashionMNIST")])
def test_mnist(tmp_path, kind, name):
    make_mnist(tmp_path, name)
    data = kind(root=str(tmp_path), val_size=20)
    data.prepare_data()
    images, labels = everything(data)
    assert images.shape == (60, 1, 28, 28)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(60, dtype=torch.uint8))
    assert torch.equal(labels, torch.arange(60) % 10)
    assert len(data.class_names) == data.num_classes == 10


def test_truncated_idx_file_is_named(tmp_path):
    path = make_mnist(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte holds 47035 bytes where its header says 47040"):
        MNISTDataModule(root=str(tmp_path)).load("train")


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08\x01", b"<html>not found</html>"])
def test_file_that_is_no_idx_file_is_named(tmp_path, content):
    path = make_mnist(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not an IDX file"):
        MNISTDataModule(root=str(tmp_path)).load("train")


def test_labels_that_do_not_fit_the_images_are_named(tmp_path):
    write_idx(make_mnist(tmp_path) / "train-labels-idx1-ubyte", np.zeros(7))
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte has 7 labels for the 60 images"):
        MNISTDataModule(root=str(tmp_path)).load("train")


def test_label_outside_the_classes_is_named(tmp_path):
    write_idx(make_mnist(tmp_path) / "t10k-labels-idx1-ubyte", np.array([0] * 29 + [10]))
    data = MNISTDataModule(root=str(tmp_path))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte has the label 10, not 0 to 9: delete it"):
        data.load("test")
    assert data.load("train").labels.max() == 9


def test_missing_files_say_where_they_belong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"put the unpacked files train-images-idx3-ubyte.*MNIST/raw.*root="):
        MNISTDataModule(root=str(tmp_path), download=False).load("train")


def test_failed_download_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    def broken(root, download):
        (Path(root) / "MNIST" / "raw").mkdir(parents=True)
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets, "MNIST", broken)
    with pytest.raises(OSError, match=r"MNIST could not be downloaded \(File not found.*put the unpacked files"):
        MNISTDataModule(root=str(tmp_path)).prepare_data()
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_killed_download_is_not_taken_as_finished(tmp_path, monkeypatch):
    """A killed process leaves its temporary folder; the next one removes it and installs the whole."""
    leftover = make_mnist(tmp_path / ".MNIST-part-x", train=7)
    # Of another data set, which another process may be fetching at this moment.
    other = make_mnist(tmp_path / ".FashionMNIST-part-x")
    monkeypatch.setattr(datasets, "MNIST", lambda root, download: make_mnist(Path(root)))
    data = MNISTDataModule(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="MNIST is not complete"):
        data.load("train")
    data.prepare_data()
    assert len(everything(data)[1]) == 60
    assert not leftover.exists()
    assert other.exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [".FashionMNIST-part-x", "MNIST"]


def prepare(root, calls):
    """In a process of its own: count downloads."""

    def fetch(part, download):
        with open(calls, "a") as file:
            file.write("x")
        make_mnist(Path(part))

    datasets.MNIST = fetch
    MNISTDataModule(root=root).prepare_data()


def test_several_processes_download_once(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=prepare, args=(str(tmp_path / "root"), str(tmp_path / "calls"))) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize(
    ("kind", "source", "num_classes"),
    [(CIFAR10DataModule, datasets.CIFAR10, 10), (CIFAR100DataModule, datasets.CIFAR100, 100)],
)
def test_cifar(tmp_path, monkeypatch, kind, source, num_classes):
    patch_cifar(monkeypatch, source, make_cifar(tmp_path, num_classes))
    data = kind(root=str(tmp_path), val_size=num_classes)
    data.prepare_data()
    images, labels = everything(data)
    assert images.shape[1:] == (3, 32, 32)
    assert torch.equal(images[:, 0, 0, 0].long(), labels)
    assert labels.max() + 1 == data.num_classes == len(data.class_names) == num_classes


def test_damaged_cifar_file_is_named(tmp_path, monkeypatch):
    patch_cifar(monkeypatch, datasets.CIFAR10, make_cifar(tmp_path))
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged: its md5 sum is not"):
        CIFAR10DataModule(root=str(tmp_path)).load("train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3 is missing.*unpack https://.*cifar-10"):
        CIFAR10DataModule(root=str(tmp_path)).load("train")


@pytest.mark.parametrize(
    ("kind", "source", "num_classes", "name"),
    [
        (CIFAR10DataModule, datasets.CIFAR10, 10, "batches.meta"),
        (CIFAR100DataModule, datasets.CIFAR100, 100, "meta"),
    ],
)
def test_damaged_cifar_class_names_are_named(tmp_path, monkeypatch, kind, source, num_classes, name):
    patch_cifar(monkeypatch, source, make_cifar(tmp_path, num_classes))
    data = kind(root=str(tmp_path))
    path = data.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"/{name} is damaged: its md5 sum is not"):
        data.load("test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"/{name} is missing.*unpack https://.*cifar"):
        data.load("test")


def test_tiny_imagenet(tmp_path):
    make_tiny_imagenet(tmp_path)
    data = TinyImageNetDataModule(root=str(tmp_path), val_size=0.2)
    data.prepare_data()
    images, labels = everything(data)
    assert images.shape == (30, 3, 64, 64)
    torch.testing.assert_close(images.float().mean((1, 2, 3)), 20.0 * labels, atol=2, rtol=0)
    assert data.class_names[2] == "thing 2, stuff"
    assert torch.equal(data.load("test").labels, torch.arange(10) % 5)


def test_images_are_decoded_once_and_again_when_they_change(tmp_path, monkeypatch):
    folder = make_tiny_imagenet(tmp_path)
    data = TinyImageNetDataModule(root=str(tmp_path))
    before, _ = everything(data)
    calls = []
    monkeypatch.setattr(
        "lightning_nobp.datamodules.images.decode_all",
        lambda source: calls.append(1) or torch.full((len(source.files), 3, 64, 64), 9, dtype=torch.uint8),
    )
    assert torch.equal(everything(data)[0], before)
    assert calls == []
    write_image(folder / "train" / "n00000000" / "images" / "another.JPEG", 7)
    assert len(everything(data)[0]) == 31
    assert calls == [1]


def test_damaged_cache_is_noticed(tmp_path):
    folder = make_tiny_imagenet(tmp_path)
    data = TinyImageNetDataModule(root=str(tmp_path))
    before, _ = everything(data)
    cache = folder / "train-images.pt"
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 255
    cache.write_bytes(content)
    with pytest.warns(UserWarning, match=r"train-images\.pt is damaged"):
        again, _ = everything(data)
    assert torch.equal(again, before)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "val" / "val_annotations.txt").unlink(), FileNotFoundError, "val_annotations.txt is missing"),
        (
            lambda f: (f / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn00000000\n"),
            ValueError,
            "val_annotations.txt has no line for val_1.JPEG",
        ),
        (
            lambda f: (f / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn9\n"),
            ValueError,
            "puts val_0.JPEG into n9, not in wnids.txt",
        ),
        (lambda f: write_image(f / "val" / "images" / "val_3.JPEG", 0, (32, 64)), ValueError, "val_3.JPEG has 32x64"),
        (
            lambda f: (f / "val" / "images" / "val_4.JPEG").write_bytes(b"no image"),
            ValueError,
            "val_4.JPEG cannot be read as an image",
        ),
        (lambda f: (f / "wnids.txt").unlink(), FileNotFoundError, r"wnids.txt is missing.*unpack http"),
        (lambda f: (f / "wnids.txt").write_text("\n"), ValueError, r"wnids.txt is empty.*unpack http"),
        (
            lambda f: (f / "words.txt").write_bytes("n00000000\tcafé\n".encode("latin-1")),
            ValueError,
            r"words.txt is damaged: it is not UTF-8 text.*unpack http",
        ),
        (
            lambda f: (f / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn00000000\n\nval_1.JPEG\n"),
            ValueError,
            r"val_annotations.txt is damaged: line 3, 'val_1.JPEG', is not an image and its class.*unpack http",
        ),
        (
            lambda f: [(f / "val" / "images" / f"val_{i}.JPEG").unlink() for i in (4, 7)],
            FileNotFoundError,
            r"val/images/val_4.JPEG is missing, the first of 2 images that .*val_annotations.txt lists.*unpack http",
        ),
    ],
)
def test_damaged_tiny_imagenet_is_named(tmp_path, damage, error, message):
    damage(make_tiny_imagenet(tmp_path))
    with pytest.raises(error, match=message):
        TinyImageNetDataModule(root=str(tmp_path)).load("test")


def test_missing_class_folder_is_named(tmp_path):
    folder = make_tiny_imagenet(tmp_path)
    for image in (folder / "train" / "n00000002" / "images").iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r"train/n00000002/images has no images"):
        TinyImageNetDataModule(root=str(tmp_path)).load("train")


@pytest.fixture
def served_zip(tmp_path, monkeypatch):
    """A small Tiny ImageNet archive on a local server."""
    make_tiny_imagenet(tmp_path / "source")
    archive = tmp_path / "served" / "tiny-imagenet-200.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted((tmp_path / "source").rglob("*")):
            content.write(path, path.relative_to(tmp_path / "source"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archive.parent))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(tiny_imagenet, "URL", f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip")
    monkeypatch.setattr(tiny_imagenet, "MD5", md5(archive))
    yield archive
    server.shutdown()
    server.server_close()


def test_tiny_imagenet_is_downloaded_and_unpacked(tmp_path, served_zip):
    data = TinyImageNetDataModule(root=str(tmp_path / "root"))
    data.prepare_data()
    assert len(everything(data)[1]) == 30
    assert sorted(p.name for p in (tmp_path / "root").iterdir() if p.is_dir()) == ["tiny-imagenet-200"]


def test_download_with_another_checksum_is_refused(tmp_path, served_zip, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "MD5", "0" * 32)
    with pytest.raises(OSError, match=r"could not be downloaded \(.*hash.*To do it by hand, unpack http"):
        TinyImageNetDataModule(root=str(tmp_path / "root")).prepare_data()
    assert [p for p in (tmp_path / "root").iterdir() if p.is_dir()] == []


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "URL", "http://127.0.0.1:9/tiny-imagenet-200.zip")
    with pytest.raises(OSError, match=r"tiny-imagenet-200 could not be downloaded.*unpack .* into .*root="):
        TinyImageNetDataModule(root=str(tmp_path)).prepare_data()


def test_image_folder(tmp_path):
    make_image_folder(tmp_path)
    data = ImageFolderDataModule(root=str(tmp_path), image_size=(16, 20), val_size=6)
    assert (data.num_classes, data.input_shape) == (3, (3, 16, 20))
    assert data.class_names == ("class_0", "class_1", "class_2")
    data.prepare_data()
    images, labels = everything(data)
    torch.testing.assert_close(images.float().mean((1, 2, 3)), 60.0 * labels, atol=2, rtol=0)


def test_image_folder_streams_the_same_batches(tmp_path):
    make_image_folder(tmp_path)
    batches = []
    for in_memory, workers in ((True, 0), (False, 0), (False, 2)):
        data = ImageFolderDataModule(
            root=str(tmp_path), image_size=8, in_memory=in_memory, num_workers=workers, val_size=6, augment=True
        )
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
        assert isinstance(data._sets["train"][0], FileSource) is not in_memory
    for x, y in batches[1:]:
        assert torch.equal(x, batches[0][0])
        assert torch.equal(y, batches[0][1])


def test_image_folder_with_its_own_validation_set(tmp_path):
    make_image_folder(tmp_path, splits=("train", "val", "test"))
    data = ImageFolderDataModule(root=str(tmp_path), image_size=8)
    data.setup("fit")
    assert (len(data._sets["train"][1]), len(data._sets["val"][1])) == (24, 24)


def test_image_folder_without_images_says_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train has no folder a class: images belong in .*/train/<class>/"):
        ImageFolderDataModule(root=str(tmp_path))
    make_image_folder(tmp_path)
    (tmp_path / "test" / "class_9").mkdir()
    with pytest.raises(ValueError, match="differ in classes: class_9"):
        ImageFolderDataModule(root=str(tmp_path)).load("test")


def test_hidden_files_and_folders_are_no_classes_and_no_images(tmp_path):
    make_image_folder(tmp_path)
    for hidden in (".ipynb_checkpoints/0.jpg", "class_1/._0.jpg"):
        write_image(tmp_path / "train" / hidden, 200)
    data = ImageFolderDataModule(root=str(tmp_path), image_size=8)
    assert data.class_names == ("class_0", "class_1", "class_2")
    assert len(everything(data)[1]) == 24


def test_folder_with_hidden_images_only_has_none(tmp_path):
    make_image_folder(tmp_path)
    write_image(tmp_path / "test" / "class_3" / ".0.jpg", 0)
    write_image(tmp_path / "train" / "class_3" / ".0.jpg", 0)
    with pytest.raises(FileNotFoundError, match=r"train/class_3 has no images"):
        ImageFolderDataModule(root=str(tmp_path)).load("train")


@pytest.mark.parametrize("error", [SyntaxError, ValueError, EOFError, OSError, Image.DecompressionBombError])
def test_image_that_cannot_be_decoded_is_named(tmp_path, monkeypatch, error):
    """Whatever the reader of the format fails with."""

    def fail(self, mode):
        raise error("broken chunk")

    write_image(tmp_path / "x.jpg", 0)
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read as an image: broken chunk"):
        decode(tmp_path / "x.jpg", (64, 64), resize=False)


def test_broken_png_is_named(tmp_path):
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(256, size=(200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    # Pillow meets the second piece of pixels while it decodes, and raises SyntaxError.
    head, first, second = path.read_bytes().split(b"IDAT", 2)
    path.write_bytes(b"IDAT".join([head, first]) + b"\0\0\0\0" + second)
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image: broken PNG file"):
        decode(path, (200, 200), resize=False)


@pytest.fixture(params=[errno.EROFS, errno.EACCES, errno.EPERM])
def make_read_only(request, monkeypatch):
    """From its call on no lock can be made, as in a folder that is read-only even for root."""

    def refuse(self, *args, **kwargs):
        raise OSError(request.param, "refused", self.lock_file)

    return lambda: monkeypatch.setattr(filelock.FileLock, "acquire", refuse)


def test_read_only_folder_decodes_in_memory(tmp_path, make_read_only):
    make_tiny_imagenet(tmp_path)
    make_read_only()
    with pytest.warns(UserWarning, match="read-only"):
        assert len(everything(TinyImageNetDataModule(root=str(tmp_path)))[0]) == 30


def test_cache_in_a_read_only_folder_is_used(tmp_path, make_read_only):
    make_image_folder(tmp_path)
    data = ImageFolderDataModule(root=str(tmp_path), image_size=8)
    before, _ = everything(data)
    make_read_only()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(everything(data)[0], before)


def test_a_full_disk_costs_the_cache_and_not_the_run(tmp_path):
    folder = make_tiny_imagenet(tmp_path)
    data = TinyImageNetDataModule(root=str(tmp_path))
    with (
        files_of_at_most(1000),
        pytest.warns(UserWarning, match=r"train-images\.pt cannot be written \(File too large"),
    ):
        full = everything(data)[0]
    assert [p.name for p in folder.glob("*train-images*")] == [".train-images.pt.lock"]
    assert torch.equal(everything(data)[0], full)
    assert (folder / "train-images.pt").is_file()


def test_a_disk_without_room_for_a_lock_costs_the_cache_and_not_the_run(tmp_path, monkeypatch):
    make_tiny_imagenet(tmp_path)

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", self.lock_file)

    monkeypatch.setattr(filelock.FileLock, "acquire", full)
    with pytest.warns(UserWarning, match="is read-only or full"):
        assert len(everything(TinyImageNetDataModule(root=str(tmp_path)))[0]) == 30


def test_other_errors_of_the_disk_are_not_taken_for_a_read_only_folder(tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise OSError(errno.EIO, "Input/output error", self.lock_file)

    make_tiny_imagenet(tmp_path)
    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(OSError, match="Input/output error"):
        TinyImageNetDataModule(root=str(tmp_path)).load("train")


@pytest.mark.filterwarnings("ignore:.*is read-only")
def test_complete_data_in_a_read_only_folder_are_prepared(tmp_path, monkeypatch, make_read_only):
    make_mnist(tmp_path)
    make_tiny_imagenet(tmp_path)
    patch_cifar(monkeypatch, datasets.CIFAR10, make_cifar(tmp_path))
    make_read_only()
    for kind in (MNISTDataModule, CIFAR10DataModule, TinyImageNetDataModule):
        data = kind(root=str(tmp_path))
        data.prepare_data()
        assert len(everything(data)[1]) > 0


def test_missing_data_in_a_read_only_folder_say_what_to_do(tmp_path, make_read_only):
    make_read_only()
    with pytest.raises(OSError, match=r"MNIST could not be downloaded \(.*refused.*put the unpacked files"):
        MNISTDataModule(root=str(tmp_path)).prepare_data()


def test_root_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("NOBP_DATA", "/somewhere")
    assert MNISTDataModule().root == Path("/somewhere")
    monkeypatch.delenv("NOBP_DATA")
    assert MNISTDataModule().root == Path("data")
