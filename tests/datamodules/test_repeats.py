"""Training batches that come several times in a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.datamodules.sampler import EpochBatchSampler


def seen(batches):
    return [(list(batch), batch.seed) for batch in batches]


def set_up(**kwargs):
    data = DigitsDataModule(batch_size=400, augment=True, **kwargs)
    data.setup("fit")
    data.setup("test")
    return data


@given(st.integers(2, 40), st.integers(1, 9), st.integers(1, 5), st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_each_batch_of_each_rank_comes_so_often_in_a_row(count, batch_size, repeats, world, pad, drop_last):
    settings = {"shuffle": True, "seed": 3, "world_size": world, "pad": pad, "drop_last": drop_last}
    for rank in range(world):
        once = EpochBatchSampler(count, batch_size, rank=rank, **settings)
        often = EpochBatchSampler(count, batch_size, rank=rank, repeats=repeats, **settings)
        for each in (once, often):
            each.set_epoch(2)
        expected = [batch for batch in seen(once) for _ in range(repeats)]
        assert len(often) == len(expected)
        for start in range(len(expected) + 1):
            assert seen(often.batches(start)) == expected[start:]


def test_repeated_batches_are_the_same_tensors():
    once, often = set_up(), set_up(repeat_batches=3)
    expected = [batch for batch in once.train_dataloader() for _ in range(3)]
    found = list(often.train_dataloader())
    assert len(often.train_dataloader()) == len(found) == len(expected)
    assert all(torch.equal(a, b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True))


def test_batches_that_are_all_left_out_are_named():
    data = DigitsDataModule(batch_size=2000, drop_last=True)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"drop_last=True: .* training samples make no full batch of batch_size=2000"):
        data.train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_goes_on_between_two_showings_of_a_batch(num_workers):
    stopped, fresh = (set_up(repeat_batches=3, num_workers=num_workers).train_dataloader() for _ in range(2))
    expected = [x for x, _ in stopped]
    batches = iter(stopped)
    for _ in range(4):
        next(batches)
    fresh.load_state_dict(stopped.state_dict())
    rest = [x for x, _ in fresh]
    assert len(rest) == len(expected) - 4
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[4:], strict=True))


def test_evaluation_repeats_nothing():
    once, often = set_up(), set_up(repeat_batches=3)
    for name in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        assert len(getattr(often, name)()) == len(getattr(once, name)()) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpochBatchSampler(5, 2, repeats=0), "repeats=0 must be at least 1"),
        (lambda: DigitsDataModule(repeat_batches=0), "repeat_batches=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
