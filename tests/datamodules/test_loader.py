"""Orders, shards and positions of batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.datamodules.loader import ResumableLoader
from lightning_nobp.datamodules.sampler import BatchIndex, EpochBatchSampler


class Numbers:
    """Sample i is the number i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, index):
        return torch.tensor(index), torch.tensor(index.seed)


def loader(count=20, batch_size=3, num_workers=0, **kwargs):
    return ResumableLoader(
        Numbers(count), EpochBatchSampler(count, batch_size, shuffle=True, **kwargs), num_workers=num_workers
    )


def seen(batches):
    return [(x.tolist(), seed.item()) for x, seed in batches]


sizes = st.integers(1, 60)


@given(sizes, st.integers(1, 9), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
def test_ranks_together_see_the_batches_of_one_process(count, batch_size, world, shuffle, pad, drop_last):
    if count < world:
        return
    settings = {"shuffle": shuffle, "seed": 3, "drop_last": drop_last}
    ranks = [
        list(EpochBatchSampler(count, batch_size, rank=r, world_size=world, pad=pad, **settings)) for r in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    joined = [sorted(i for part in parts for i in part) for parts in zip(*ranks, strict=True)]
    together = [i for batch in joined for i in batch]
    if not drop_last:
        assert set(together) == set(range(count))
    if pad:
        assert len({len(part) for parts in zip(*ranks, strict=True) for part in parts}) <= 2
        assert all(len({len(part) for part in parts}) == 1 for parts in zip(*ranks, strict=True))
        assert len(together) - len(set(together)) < world
    else:
        assert len(together) == len(set(together))
        assert all(part for parts in zip(*ranks, strict=True) for part in parts)
    single = list(EpochBatchSampler(count, batch_size * world, **settings))
    if count % world == 0 and not (0 < count % (batch_size * world) < world):
        assert joined == [sorted(batch) for batch in single]


def test_every_epoch_and_seed_has_an_order_of_its_own():
    orders = set()
    for seed in (0, 1):
        sampler = EpochBatchSampler(50, 50, shuffle=True, seed=seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler.indices()))
    assert len(orders) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_order_does_not_depend_on_the_global_generator():
    first = seen(loader())
    torch.rand(3)
    assert seen(loader()) == first


def test_loading_does_not_draw_from_the_global_generator():
    before = torch.get_rng_state()
    seen(loader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("position", [0, 1, 6, 7])
def test_goes_on_where_it_stopped(num_workers, position):
    whole, stopped = loader(), loader(num_workers=num_workers)
    for each in (whole, stopped):
        each.batch_sampler.set_epoch(4)
    expected = seen(whole)
    batches = iter(stopped)
    got = [next(batches) for _ in range(position)]
    state = stopped.state_dict()
    assert state == {"epoch": 4, "position": position}
    fresh = loader(num_workers=num_workers)
    fresh.load_state_dict(state)
    rest = iter(fresh)
    # As Lightning does: the epoch is set after iter().
    fresh.batch_sampler.set_epoch(4)
    assert seen(got) + seen(rest) == expected
    fresh.batch_sampler.set_epoch(5)
    assert len(seen(fresh)) == 7


def test_state_of_another_epoch_starts_at_its_beginning():
    fresh = loader()
    fresh.load_state_dict({"epoch": 0, "position": 7})
    fresh.batch_sampler.set_epoch(1)
    assert len(seen(fresh)) == 7


def test_augmentation_seeds_differ_between_batches_and_ranks():
    seeds = [batch.seed for rank in (0, 1) for batch in EpochBatchSampler(40, 5, shuffle=True, rank=rank, world_size=2)]
    assert len(set(seeds)) == len(seeds)


def test_batch_index_survives_the_way_to_a_worker():
    import pickle

    again = pickle.loads(pickle.dumps(BatchIndex([3, 1], 7)))
    assert (list(again), again.seed) == ([3, 1], 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpochBatchSampler(5, 0), "batch_size=0"),
        (lambda: EpochBatchSampler(1, 3, world_size=2), "1 samples cannot be shared by 2"),
        (lambda: DigitsDataModule(batch_size=0), "batch_size=0"),
        (lambda: DigitsDataModule(num_workers=-1), "num_workers=-1"),
        (lambda: DigitsDataModule(val_size=1.5), "val_size=1.5"),
        (lambda: DigitsDataModule(subset=-3), "subset=-3"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
