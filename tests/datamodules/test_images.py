"""Splits, normalisation and augmentation of image batches."""

import pytest
import torch
from torchvision.transforms import v2

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.datamodules.augment import RandomHorizontalFlip, RandomShift
from lightning_nobp.datamodules.split import stratified_split


def set_up(**kwargs):
    data = DigitsDataModule(**kwargs)
    data.setup("fit")
    data.setup("test")
    return data


def samples(batches):
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def test_digits_are_all_there_once():
    data = set_up(val_size=200)
    counts = [
        len(samples(loader())[1]) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    ]
    assert counts == [1438 - 200, 200, 359]


def test_batches_are_normalised():
    x, y = samples(set_up().train_dataloader())
    assert (x.shape[1:], x.dtype, y.dtype) == ((1, 8, 8), torch.float32, torch.int64)
    assert x.mean().abs() < 0.02
    assert (x.std() - 1).abs() < 0.02


def test_normalisation_is_the_documented_one():
    data = set_up(batch_size=10)
    source, chosen = data._sets["test"]
    x, _ = next(iter(data.test_dataloader()))
    expected = (source.images(chosen).float() / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(x, expected)


def test_split_is_stratified_and_the_same_every_time():
    first, second = set_up(val_size=0.25), set_up(val_size=0.25)
    for data in (first, second):
        _, y = samples(data.val_dataloader())
        counts = y.bincount(minlength=10)
        assert counts.max() - counts.min() <= 3
    assert torch.equal(first._sets["val"][1], second._sets["val"][1])
    assert not set(first._sets["val"][1].tolist()) & set(first._sets["train"][1].tolist())


def test_test_set_does_not_depend_on_the_seed():
    a, b = set_up(seed=0), set_up(seed=1)
    assert torch.equal(a._sets["test"][0].labels, b._sets["test"][0].labels)
    assert not torch.equal(a._sets["val"][1], b._sets["val"][1])


def test_subset_is_stratified_and_leaves_the_test_set_alone():
    data = set_up(subset=200, val_size=0.2)
    _, train = samples(data.train_dataloader())
    _, val = samples(data.val_dataloader())
    assert (len(train), len(val)) == (160, 40)
    assert torch.cat([train, val]).bincount().min() >= 19
    assert len(samples(data.test_dataloader())[1]) == 359


def test_no_validation_set():
    data = set_up(val_size=0)
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_size": 5000}, "val_size=5000 must be a number of samples from 0 to 1438"),
        ({"val_size": 5}, "val_size=5 splits 1438 samples into 5 and 1433.*each of the 10 classes"),
        ({"val_size": 1.0}, "leave no training samples"),
    ],
)
def test_impossible_splits_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        set_up(**arguments)


def test_stratified_split_keeps_proportions():
    labels = torch.tensor([0] * 90 + [1] * 10)
    chosen, rest = stratified_split(labels, 0.5, 0, "val_size")
    assert labels[chosen].sum() == 5
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(100))


def test_class_with_a_single_sample_is_named():
    labels = torch.tensor([0] * 50 + [1] * 50 + [4])
    with pytest.raises(
        ValueError, match=r"val_size=0.1 splits 101 samples, but class number 4 has only one.*val_size=0"
    ):
        stratified_split(labels, 0.1, 0, "val_size")
    assert len(stratified_split(labels, 0, 0, "val_size")[1]) == 101


def test_shift_moves_every_image_by_its_own_and_nothing_else():
    torch.manual_seed(0)
    images = torch.zeros(64, 2, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4], images[:, 1, 4, 4] = 100, 200
    shifted = RandomShift(2)(images)
    where = [tuple(image[0].nonzero()[0].tolist()) for image in shifted]
    assert {len(image.nonzero()) for image in shifted} == {2}
    assert set(where) <= {(i, j) for i in range(2, 7) for j in range(2, 7)}
    assert len(set(where)) > 15
    assert all(shifted[k, 1, i, j] == 200 for k, (i, j) in enumerate(where))


def test_flip_mirrors_about_half_of_the_images():
    torch.manual_seed(0)
    images = torch.arange(3, dtype=torch.uint8).expand(400, 1, 2, 3)
    flipped = RandomHorizontalFlip()(images)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert ((flipped == images).all(dim=(1, 2, 3)) ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_augmentation_is_repeatable_and_new_in_every_epoch():
    def epoch(number, workers=0):
        loader = set_up(augment=True, num_workers=workers, batch_size=500).train_dataloader()
        loader.batch_sampler.set_epoch(number)
        return samples(loader)

    assert torch.equal(epoch(0)[0], epoch(0)[0])
    assert torch.equal(epoch(1)[0], epoch(1, workers=2)[0])
    plain = set_up(batch_size=500).train_dataloader()
    assert not torch.equal(samples(plain)[0], epoch(0)[0])


def test_own_transforms_see_the_bytes_of_training_batches_only():
    seen = []
    data = set_up(transforms=lambda x: seen.append((x.dtype, len(x))) or x, batch_size=500)
    samples(data.val_dataloader())
    assert seen == []
    samples(data.train_dataloader())
    assert {dtype for dtype, _ in seen} == {torch.uint8}


def test_torchvision_transforms_fit():
    data = set_up(transforms=v2.RandomErasing(p=1.0), batch_size=500)
    assert next(iter(data.train_dataloader()))[0].shape == (500, 1, 8, 8)


def test_batches_tell_the_numbers_of_their_samples():
    data = set_up(with_index=True, batch_size=100)
    for split, loader in (
        ("train", data.train_dataloader),
        ("val", data.val_dataloader),
        ("test", data.test_dataloader),
    ):
        x, y, numbers = (torch.cat(parts) for parts in zip(*loader(), strict=True))
        source, chosen = data._sets[split]
        assert numbers.sort().values.tolist() == list(range(len(chosen)))
        assert torch.equal(source.labels[chosen[numbers]], y)
        expected = (source.images(chosen[numbers]).float() / 255 - data.mean[0]) / data.std[0]
        torch.testing.assert_close(x, expected)


def test_without_shuffling_every_epoch_has_the_order_of_the_files():
    loader = set_up(with_index=True, shuffle=False, batch_size=100).train_dataloader()
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        numbers = torch.cat([batch[2] for batch in loader])
        assert torch.equal(numbers, torch.arange(len(numbers)))
