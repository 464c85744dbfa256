"""Gray images for training, coloured ones for the test: pairs, choices, order and the command line."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from fake_data import make_cifar, make_image_folder, make_tiny_imagenet, patch_cifar
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2
from toys import trainer

from lightning_nobp.cli import main
from lightning_nobp.datamodules import (
    CIFAR10DataModule,
    GrayToColourDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    TinyImageNetDataModule,
)
from lightning_nobp.datamodules.gray_to_colour import luminance
from lightning_nobp.rules import LearningRule

SIZES = {"num_train": 24, "num_val": 6, "num_test": 12, "batch_size": 5, "eval_batch_size": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder a class of coloured noise of 6x4 pixels, without loss: 40 images for training, 20 for the test."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, per_class in (("train", 20), ("test", 10)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = noise.integers(0, 256, (6, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.png")
    return root


def folder(root, **kwargs):
    return ImageFolderDataModule(**{"root": root, "image_size": (6, 4), "val_size": 10} | kwargs)


def set_up(images, **kwargs):
    data = GrayToColourDataModule(images, **SIZES | kwargs)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def samples(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def rows(images):
    """Each image as one tuple of bytes."""
    return {tuple(image.flatten().tolist()) for image in images.mul(255).round().to(torch.uint8)}


def everything(images, split):
    source = images.load(split)
    return source.images(torch.arange(len(source.labels)))


def test_training_and_validation_are_gray_and_the_test_is_coloured(photos):
    data = set_up(folder(photos))
    assert data.input_shape == (3, 6, 4)
    assert not hasattr(data, "num_classes")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    for loader, count, is_gray in zip(loaders, (24, 6, 12, 12), (True, True, False, False), strict=True):
        x, target = samples(loader)
        assert (x.shape, x.dtype, target.dtype) == ((count, 3, 6, 4), torch.float32, torch.float32)
        assert torch.equal(x, target)
        assert x.data_ptr() != target.data_ptr()
        assert x.min() >= 0
        assert x.max() <= 1
        assert torch.equal(x[:, 0], x[:, 1]) == torch.equal(x[:, 1], x[:, 2]) == is_gray


def test_gray_is_the_luminance_of_the_image(photos):
    """Pillow's luminance is the same, rounded down to a byte from weights in 65536ths."""
    data = folder(photos)
    gray, colours = luminance(everything(data, "train")), everything(data, "train")
    exact = torch.einsum("nchw,c->nhw", colours.double() / 255, torch.tensor([0.299, 0.587, 0.114]).double())
    torch.testing.assert_close(gray[:, 0].double(), exact, rtol=0, atol=1e-6)
    for image, found in zip(colours, gray, strict=True):
        pillow = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(found[0].numpy() * 255 - pillow).max() <= 1


def test_what_is_gray_already_stays_as_it_is():
    every = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 3, 1, 1)
    assert torch.equal(luminance(every), every.float() / 255)


def test_training_images_are_those_that_the_wrapped_data_trains_with(photos):
    """As many as there are: all of each split, and none of another."""
    images = folder(photos)
    data = set_up(images, num_train=30, num_val=1.0, num_test=20)
    found = {split: rows(samples(data._loader(split))[0]) for split in ("train", "val", "test")}
    assert {split: len(images) for split, images in found.items()} == {"train": 30, "val": 10, "test": 20}
    assert found["train"] | found["val"] == rows(luminance(everything(images, "train")))
    assert found["test"] == rows(everything(images, "test").float() / 255)


def test_the_seed_chooses_the_images_and_no_split_decides_for_another(photos):
    first, again, other = (set_up(folder(photos), seed=seed) for seed in (1, 1, 2))
    only_tested = GrayToColourDataModule(folder(photos), **SIZES, seed=1)
    only_tested.setup("test")
    for split in ("train", "val", "test"):
        found = [rows(samples(data._loader(split))[0]) for data in (first, again, other)]
        assert found[0] == found[1] != found[2]
    pair = zip(samples(first.test_dataloader()), samples(only_tested.test_dataloader()), strict=True)
    assert all(torch.equal(a, b) for a, b in pair)


def test_transforms_of_the_wrapped_data_change_training_images_alone(photos):
    inverted = v2.RandomInvert(p=1.0)
    plain, changed = set_up(folder(photos)), set_up(folder(photos, transforms=inverted))
    pairs = {split: (samples(plain._loader(split)), samples(changed._loader(split))) for split in ("train", "val")}
    (x, _), (other, target) = pairs["train"]
    torch.testing.assert_close(other, 1 - x, rtol=0, atol=1e-6)
    assert torch.equal(other, target)
    assert torch.equal(pairs["val"][0][0], pairs["val"][1][0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_goes_on_in_the_middle_of_an_epoch(photos, num_workers):
    loaders = [set_up(folder(photos, augment=True), num_workers=num_workers).train_dataloader() for _ in range(3)]
    whole, stopped, fresh = loaders
    for loader in (whole, stopped):
        loader.batch_sampler.set_epoch(2)
    expected = [x for x, _ in whole]
    batches = iter(stopped)
    got = [next(batches)[0] for _ in range(2)]
    fresh.load_state_dict(stopped.state_dict())
    rest = iter(fresh)
    fresh.batch_sampler.set_epoch(2)
    got += [x for x, _ in rest]
    assert len(got) == len(expected) == 5
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_two_ranks_see_disjoint_halves(photos):
    parts = []
    for rank in (0, 1):
        data = set_up(folder(photos))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0)
        parts.append(rows(samples(data.train_dataloader())[0]))
    assert [len(part) for part in parts] == [12, 12]
    assert parts[0] | parts[1] == rows(samples(set_up(folder(photos)).train_dataloader())[0])


def cifar10(root, monkeypatch):
    patch_cifar(monkeypatch, datasets.CIFAR10, make_cifar(root))
    return CIFAR10DataModule(root=root, val_size=20, download=False)


def tiny_imagenet(root, monkeypatch):
    make_tiny_imagenet(root)
    return TinyImageNetDataModule(root=root, val_size=5, download=False)


@pytest.mark.parametrize(("make", "size"), [(cifar10, 32), (tiny_imagenet, 64)])
def test_official_data_sets_fit(tmp_path, monkeypatch, make, size):
    data = set_up(make(tmp_path, monkeypatch), num_val=5, num_test=10)
    assert data.input_shape == (3, size, size)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, _ = next(iter(loader))
        assert x.shape[1:] == data.input_shape


def test_no_validation_set(photos):
    assert set_up(folder(photos), num_val=0).val_dataloader() == []
    assert set_up(folder(photos, val_size=0), num_val=0).val_dataloader() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train=0 must be positive"),
        ({"num_test": 0.0}, "num_test=0.0 must be positive"),
        ({"num_train": -3}, "num_train=-3 must be a number of samples, or a fraction"),
        ({"num_val": 1.5}, "num_val=1.5 must be a number of samples, or a fraction"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_named_at_the_door(photos, arguments, message):
    with pytest.raises(ValueError, match=message):
        GrayToColourDataModule(folder(photos), **arguments)


def test_images_without_colours_are_named():
    with pytest.raises(ValueError, match=r"images=MNISTDataModule has images of shape \(1, 28, 28\)"):
        GrayToColourDataModule(MNISTDataModule())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 31}, "num_train=31 must be a number of samples from 0 to 30"),
        ({"num_val": 11}, "num_val=11 must be a number of samples from 0 to 10"),
        ({"num_test": 0.01}, "num_test=0.01 chooses none of 20 images"),
    ],
)
def test_more_images_than_there_are_and_none_are_named(photos, arguments, message):
    with pytest.raises(ValueError, match=message):
        set_up(folder(photos), **arguments)


class Reproduce(LearningRule):
    """A linear map of the channels of each pixel."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def compute_gradients(self, batch):
        with torch.enable_grad():
            loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
            loss.backward()
        return {"loss": loss.detach()}


def test_is_rebuilt_from_its_checkpoint_with_the_images_in_it(photos, tmp_path):
    data = GrayToColourDataModule(folder(photos, seed=np.int64(4)), **SIZES | {"num_train": np.int64(20)})
    run = trainer(tmp_path)
    run.fit(Reproduce(), datamodule=data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = GrayToColourDataModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert type(again.images) is ImageFolderDataModule
    assert (again.images.root, again.images.val_size, again.images.seed) == (photos, 10, 4)
    again.setup("fit")
    x, expected = samples(again.train_dataloader())[0], samples(data.train_dataloader())[0]
    assert len(x) == 20
    assert torch.equal(x, expected)


def config(root):
    init_args = {"root": str(root), "image_size": 8, "val_size": 6}
    data = {"images": {"class_path": "ImageFolderDataModule", "init_args": init_args}, **SIZES}
    network = {"class_path": "torch.nn.Conv2d", "init_args": {"in_channels": 3, "out_channels": 3, "kernel_size": 1}}
    rule = {"network": network, "loss": "mse", "task": "regression"}
    return {
        "model": {"class_path": "MultiplexedGradientDescent", "init_args": rule},
        "data": {"class_path": "GrayToColourDataModule", "init_args": data},
        "checkpoint": {"monitor": "val/loss", "mode": "min"},
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
    }


def test_the_command_line_configures_the_images_within(tmp_path, monkeypatch):
    """In a file and by options; a run's own configuration and checkpoint hold all of it."""
    monkeypatch.chdir(tmp_path)
    make_image_folder(Path("photos"), per_class=12)
    Path("mine.yaml").write_text(yaml.safe_dump(config("elsewhere")))
    given = ("--data.images.root=photos", "--data.images.seed=7", "--data.num_train=12")
    assert main(["fit", "--config", "mine.yaml", *given]) == 0
    [run] = Path("runs/mine").iterdir()
    checkpoint = run / "checkpoints" / "last.ckpt"
    again = GrayToColourDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert again.sizes == {"train": 12, "val": 6, "test": 12}
    assert (again.images.root, again.images.seed, again.images.val_size) == (Path("photos"), 7, 6)
    assert main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint)]) == 0


def test_the_command_line_takes_the_images_by_their_short_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({"model": config("")["model"]}))
    options = ("--data=GrayToColourDataModule", "--data.images=MNISTDataModule")
    assert main(["fit", "--config", "mine.yaml", *options]) == 2
    assert "nobp: images=MNISTDataModule has images of shape (1, 28, 28)" in capsys.readouterr().err
