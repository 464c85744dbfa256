"""Data sets that are computed: parity, XOR and NIST7x7."""

import warnings
from math import comb

import numpy as np
import pytest
import torch
from toys import backprop, trainer

from lightning_nobp.datamodules import NIST7x7DataModule, ParityDataModule, XORDataModule

TABLES = [(XORDataModule, {}, 2), (ParityDataModule, {}, 3), (ParityDataModule, {"num_bits": 5}, 5)]


def set_up(kind, **kwargs):
    data = kind(**kwargs)
    data.setup("fit")
    data.setup("test")
    return data


def samples(batches):
    """Inputs ``(num_samples, pixels)`` and labels."""
    x, y = zip(*batches, strict=True)
    return torch.cat(x).flatten(1), torch.cat(y)


@pytest.fixture(scope="module")
def letters():
    """All images of NIST7x7 ``(44136, 49)`` and their labels: training, then test."""
    data = set_up(NIST7x7DataModule, val_size=0)
    parts = [samples(loader()) for loader in (data.train_dataloader, data.test_dataloader)]
    x, y = (torch.cat(values) for values in zip(*parts, strict=True))
    return x, y


def numbers(x):
    """Each image as one number, its pixels the bits."""
    return x.long() @ 2 ** torch.arange(x.shape[1])


def test_xor_is_exclusive_or():
    x, y = samples(set_up(XORDataModule).val_dataloader())
    assert x.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert torch.equal(y, (x[:, 0] != x[:, 1]).long())


@pytest.mark.parametrize(("kind", "arguments", "num_bits"), TABLES)
def test_a_truth_table_has_every_row_once_and_the_parity_of_its_ones(kind, arguments, num_bits):
    data = set_up(kind, **arguments)
    assert data.input_shape == (1, 1, num_bits)
    for loader in (data.val_dataloader, data.test_dataloader):
        x, y = samples(loader())
        assert numbers(x.flip(1)).tolist() == list(range(2**num_bits))
        assert torch.equal(1 - 2 * y, (1 - 2 * x.long()).prod(1))
        assert y.bincount().tolist() == [2 ** (num_bits - 1)] * 2


@pytest.mark.parametrize("repeats", [1, 7, np.int64(7)])
def test_a_training_epoch_has_the_truth_table_so_many_times(repeats):
    data = set_up(ParityDataModule, num_bits=4, repeats=repeats, batch_size=5)
    x, y = samples(data.train_dataloader())
    assert numbers(x).bincount().tolist() == [repeats] * 16
    assert torch.equal(y, x.long().sum(1) % 2)


@pytest.mark.parametrize("kind", [XORDataModule, ParityDataModule, NIST7x7DataModule])
def test_inputs_are_exactly_zero_and_one_and_need_no_files(kind, tmp_path):
    data = set_up(kind, root=tmp_path)
    data.prepare_data()
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        x, y = next(iter(loader()))
        assert (x.shape[1:], x.dtype, y.dtype) == (data.input_shape, torch.float32, torch.int64)
        assert x.unique().tolist() == [0.0, 1.0]
    assert len(data.class_names) == data.num_classes
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParityDataModule(num_bits=1), "num_bits=1 must be from 2 to 16"),
        (lambda: ParityDataModule(num_bits=17), "num_bits=17 must be from 2 to 16"),
        (lambda: ParityDataModule(repeats=0), "repeats=0 must be at least 1"),
        (lambda: XORDataModule(repeats=-1), "repeats=-1 must be at least 1"),
        (lambda: set_up(NIST7x7DataModule, augment=True).train_dataloader(), "nothing is usual for NIST7x7DataModule"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("kind", "arguments", "num_bits"), [*TABLES, (ParityDataModule, {"num_bits": np.int64(4)}, 4)])
def test_a_truth_table_is_rebuilt_from_a_checkpoint(tmp_path, kind, arguments, num_bits):
    data = kind(repeats=3, **arguments)
    run = trainer(tmp_path)
    run.fit(backprop(num_classes=2, input_shape=data.input_shape), datamodule=data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert (again.num_bits, again.repeats) == (num_bits, 3)


def test_xor_has_no_choice_of_bits():
    with pytest.raises(TypeError, match="num_bits"):
        XORDataModule(num_bits=3)


def test_letters_have_up_to_two_flips_at_nine_places(letters):
    x, y = letters
    assert y.bincount().tolist() == [9 * (1 + 49 + 49 * 48 // 2)] * 4
    for label, ones in enumerate((13, 13, 17, 9)):
        # Flipping i of the ones and j of the zeros.
        expected = [0] * 50
        for i, j in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)):
            expected[ones - i + j] += 9 * comb(ones, i) * comb(49 - ones, j)
        assert x[y == label].sum(1).long().bincount(minlength=50).tolist() == expected


@pytest.mark.parametrize(
    ("label", "rows"),
    [
        (0, "#...# ##..# #.#.# #..## #...#"),
        (1, "##### ..#.. ..#.. ..#.. #####"),
        (2, "##### #.... ##### ....# #####"),
        (3, "##### ..#.. ..#.. ..#.. ..#.."),
    ],
)
def test_letters_look_like_letters(letters, label, rows):
    glyph = torch.tensor([[float(pixel == "#") for pixel in row] for row in rows.split()])
    seen = set(numbers(letters[0][letters[1] == label]).tolist())
    for top in range(3):
        for left in range(3):
            image = torch.zeros(7, 7)
            image[top : top + 5, left : left + 5] = glyph
            assert numbers(image.view(1, 49)).item() in seen


def test_only_some_of_i_and_t_coincide(letters):
    """They differ in four pixels: two flips from either meet in 4 choose 2 images at each of nine places."""
    sets = [set(numbers(letters[0][letters[1] == label]).tolist()) for label in range(4)]
    assert [len(found) for found in sets] == [11034] * 4
    common = {(a, b): len(sets[a] & sets[b]) for a in range(4) for b in range(a)}
    assert {pair: count for pair, count in common.items() if count} == {(3, 1): 6 * 9}


def test_test_letters_are_a_tenth_of_each_class_and_the_same_every_time():
    first, second = set_up(NIST7x7DataModule, seed=0), set_up(NIST7x7DataModule, seed=1)
    x, y = samples(first.test_dataloader())
    again = samples(second.test_dataloader())
    assert (len(y), y.bincount().min()) == (4414, 1103)
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    others = samples([*first.train_dataloader(), *first.val_dataloader()])
    test, rest = (set(zip(numbers(a).tolist(), b.tolist(), strict=True)) for a, b in ((x, y), others))
    assert (len(test), len(test | rest)) == (4414, 44136)


def test_letters_need_more_than_a_linear_least_squares_fit(letters):
    from sklearn.neural_network import MLPClassifier

    x, y = letters
    inputs = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    weights = torch.linalg.lstsq(inputs, torch.eye(4, dtype=torch.float64)[y]).solution
    linear = ((inputs @ weights).argmax(1) == y).double().mean()
    assert 0.8 < linear < 0.97
    with warnings.catch_warnings(action="ignore"):
        network = MLPClassifier(16, learning_rate_init=0.01, max_iter=3, random_state=0).fit(x.numpy(), y.numpy())
    assert 0.99 < network.score(x.numpy(), y.numpy()) <= 1 - 54 / len(y)
