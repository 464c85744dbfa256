"""Yin-Yang: where the classes lie, and that each is as likely."""

import pytest
import torch
from toys import trainer

from lightning_nobp.datamodules import YinYangDataModule
from lightning_nobp.datamodules.yin_yang import yin_yang_class
from lightning_nobp.nn import MLP
from lightning_nobp.rules import Backprop


def set_up(**kwargs):
    data = YinYangDataModule(**kwargs)
    data.setup("fit")
    data.setup("test")
    return data


@pytest.fixture(scope="module")
def samples():
    return set_up(num_train=6000, val_size=0).batches("train").tensors


def test_points_lie_in_the_disc_and_come_with_their_complements(samples):
    x, _ = samples
    assert (x.shape[1:], x.dtype) == ((4,), torch.float32)
    assert float((x[:, :2] - 0.5).norm(dim=1).max()) <= 0.5
    torch.testing.assert_close(x[:, :2] + x[:, 2:], torch.ones(len(x), 2))


def test_classes_are_as_likely(samples):
    _, labels = samples
    assert bool(((labels.bincount() / len(labels) - 1 / 3).abs() < 0.03).all())


@pytest.mark.parametrize(
    ("point", "label"),
    [
        *(((0.5, 0.9), 1), ((0.5, 0.1), 0), ((0.05, 0.45), 1), ((0.95, 0.55), 0)),
        *(((0.25, 0.5), 2), ((0.75, 0.5), 2), ((0.25, 0.61), 1), ((0.75, 0.39), 0), ((0.25, 0.35), 1)),
    ],
)
def test_known_points(point, label):
    assert int(yin_yang_class(torch.tensor([point]))) == label


def test_half_a_turn_swaps_yin_and_yang(samples):
    x, labels = samples
    turned = yin_yang_class(1 - x[:, :2].double())
    assert torch.equal(turned, torch.tensor([1, 0, 2])[labels])


def test_the_seed_changes_training_and_not_the_test():
    first, second = set_up(seed=0), set_up(seed=1)
    assert not torch.equal(first.batches("train").tensors[0], second.batches("train").tensors[0])
    assert torch.equal(first.batches("test").tensors[0], second.batches("test").tensors[0])
    assert [len(first.batches(split)) for split in ("train", "val", "test")] == [5000, 1000, 1000]


def test_more_than_a_linear_classifier_is_needed(samples):
    x, labels = samples
    inputs = torch.cat([x[:, :2], torch.ones(len(x), 1)], dim=1).double()
    weights = torch.linalg.lstsq(inputs, torch.eye(3, dtype=torch.float64)[labels]).solution
    assert 0.5 < ((inputs @ weights).argmax(1) == labels).double().mean() < 0.7


def test_a_run_brings_the_data_back(tmp_path):
    data = YinYangDataModule(num_train=60, val_size=10, test_size=20)
    run = trainer(tmp_path)
    run.fit(Backprop(network=MLP((4,), 3, (5,)), num_classes=3), datamodule=data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = YinYangDataModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert (again.num_train, again.val_size, again.test_size) == (60, 10, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train=0 must be at least 1"),
        ({"test_size": 0}, "test_size=0 must be at least 1"),
        ({"num_train": 10, "val_size": 10}, "val_size=10 leaves no training samples of num_train=10"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        YinYangDataModule(**options)
