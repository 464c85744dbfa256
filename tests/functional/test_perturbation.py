"""Codes tell parameters apart, and are the same whoever asks for which part."""

import pytest
import torch

from lightning_nobp.functional.counter_random import random_normal, random_signs, random_uniform, random_words
from lightning_nobp.functional.perturbation import CODES, code_period, code_power, perturbation_codes

SIZE = 37


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 36), (31, 37)])
def test_a_part_of_the_codes_is_that_part_of_all(kind, start, stop):
    steps = torch.tensor([3, 0, 200, 10**12])
    part = perturbation_codes(kind, 7, steps, SIZE, start=start, stop=stop)
    assert torch.equal(part, perturbation_codes(kind, 7, steps, SIZE)[:, start:stop])


@pytest.mark.parametrize("kind", CODES)
def test_a_code_is_a_function_of_seed_and_step(kind):
    steps = torch.arange(50)
    codes = perturbation_codes(kind, 7, steps, SIZE)
    backwards = perturbation_codes(kind, 7, steps.flip(0), SIZE).flip(0)
    assert torch.equal(codes, backwards)
    if kind != "coordinate":
        assert not torch.equal(codes, perturbation_codes(kind, 8, steps, SIZE))


@pytest.mark.parametrize("kind", ["coordinate", "walsh", "sinusoidal"])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 37])
@pytest.mark.parametrize("turn", [0, 1, 5])
def test_codes_are_orthogonal_over_each_period(kind, size, turn):
    period = code_period(kind, size)
    codes = perturbation_codes(kind, 1, torch.arange(period) + turn * period, size).double()
    expected = torch.eye(size, dtype=torch.float64) * code_power(kind, size)
    torch.testing.assert_close(codes.T @ codes / period, expected, atol=1e-6, rtol=0)
    if kind != "coordinate":
        torch.testing.assert_close(codes.mean(0), torch.zeros(size, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["walsh", "sinusoidal"])
def test_every_second_period_turns_the_signs_and_every_third_shuffles(kind):
    period = code_period(kind, SIZE)
    first, second, third = (perturbation_codes(kind, 1, torch.arange(period) + k * period, SIZE) for k in range(3))
    torch.testing.assert_close(second, -first)
    assert not torch.allclose(first, third, atol=0.1)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_random_codes_are_orthogonal_on_average(kind):
    steps = 20_000
    codes = perturbation_codes(kind, 3, torch.arange(steps), SIZE)
    correlation = codes.T @ codes / steps
    spread = (correlation - torch.eye(SIZE)) * steps**0.5
    assert spread.abs().max() < 6
    assert codes.mean(0).abs().max() * steps**0.5 < 5


@pytest.mark.parametrize("kind", ["walsh", "rademacher"])
def test_codes_of_signs_are_signs(kind):
    codes = perturbation_codes(kind, 3, torch.arange(100), SIZE)
    assert torch.equal(codes.abs(), torch.ones(100, SIZE))


def test_a_longer_period_is_orthogonal_too():
    codes = perturbation_codes("walsh", 1, torch.arange(256), SIZE, period=256)
    assert torch.equal(codes.T @ codes, 256 * torch.eye(SIZE))
    assert not torch.equal(codes[:64].T @ codes[:64], 64 * torch.eye(SIZE))


@pytest.mark.parametrize(
    ("kind", "period", "message"),
    [
        ("walsh", 32, "period=32 cannot tell 37 parameters apart by walsh codes: .* at least 64"),
        ("walsh", 65, "period=65 cannot tell 37"),
        ("sinusoidal", 64, "at least 128"),
        ("rademacher", 64, "period=64: rademacher codes have none to choose"),
        ("coordinate", 64, "period=64: coordinate codes have none to choose"),
        ("hadamard", None, "perturbation='hadamard' is not one of 'coordinate', 'rademacher'"),
    ],
)
def test_a_wrong_period_is_named(kind, period, message):
    with pytest.raises(ValueError, match=message):
        code_period(kind, SIZE, period)


def test_the_shortest_walsh_period_leaves_out_the_constant_row():
    assert code_period("walsh", 63) == 64
    assert code_period("walsh", 64) == 128


def test_random_words_never_repeat():
    words = random_words(0, torch.arange(2000), 0, 100)
    assert len(words.unique()) == words.numel()


def test_signs_of_rows_numbers_and_seeds_are_unrelated():
    signs = random_signs(0, torch.arange(1000), 0, 1024)
    other = random_signs(1, torch.arange(1000), 0, 1024)
    total = signs.numel() ** 0.5
    assert signs.sum().abs() / total < 4
    assert (signs * other).sum().abs() / total < 4
    for product in (signs[:, 1:] * signs[:, :-1], signs[1:] * signs[:-1], signs[:, 64:] * signs[:, :-64]):
        assert product.sum().abs() / total < 4
    # The largest of half a million correlations of independent signs is five standard deviations.
    assert (signs @ signs.T).fill_diagonal_(0).abs().max() / 1024**0.5 < 6.5


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    uniform = random_uniform(0, torch.arange(500), 3, 2003).double()
    assert 0 < uniform.min() < uniform.max() < 1
    counts = torch.histc(uniform.float(), 20, 0, 1)
    assert ((counts - 50_000).square() / 50_000).sum() < 45  # chi-squared of 19 degrees of freedom
    assert torch.equal(random_uniform(0, torch.arange(5), 3, 11), random_uniform(0, torch.arange(5), 0, 20)[:, 3:11])


def test_normal_numbers_have_the_moments_of_a_normal_distribution():
    normal = random_normal(0, torch.arange(500), 1, 2001).double().flatten()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(normal.pow(power).mean() - moment) < 4.5 * (spread / len(normal)) ** 0.5
    assert torch.equal(random_normal(0, torch.arange(5), 3, 8), random_normal(0, torch.arange(5), 0, 9)[:, 3:8])
