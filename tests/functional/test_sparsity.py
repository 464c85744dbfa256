"""Masks keep exactly as many weights as they should, and the right ones."""

import math
from decimal import Decimal
from itertools import combinations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_nobp.functional.sparsity import (
    check_sparsity,
    cosine_drop_fraction,
    cubic_sparsity,
    drop_and_grow,
    keep_largest,
    keep_largest_globally,
    keep_n_of_m,
    kept_count,
    kept_counts,
    layer_sparsities,
    saliency,
)

NAN = float("nan")
SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=6)
# Of few values, so that many are equal.
SCORES = st.lists(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf]), min_size=1, max_size=12)


def first_largest(scores, kept):
    """The mask by Python's stable sort."""
    chosen = set(sorted(range(len(scores)), key=lambda index: -scores[index])[:kept])
    return [index in chosen for index in range(len(scores))]


@given(SHAPES, st.floats(0, 0.999))
@example([[2, 2], [10, 10], [100, 100]], 0.8896)  # The second layer becomes dense only since the first did.
@example([[3, 4], [5, 6]], 0.0)
def test_erk_densities_are_a_common_scale_cut_off_at_1(shapes, sparsity):
    numels, widths = [math.prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    low, high = 0.0, max(numels)
    for _ in range(200):
        scale = (low + high) / 2
        kept = math.fsum(min(n, scale * w) for n, w in zip(numels, widths, strict=True))
        low, high = (scale, high) if kept < (1 - sparsity) * sum(numels) else (low, scale)
    expected = [1 - min(1, high * w / n) for n, w in zip(numels, widths, strict=True)]
    assert layer_sparsities(shapes, sparsity, "erk") == pytest.approx(expected, abs=1e-9)


def test_uniform_is_the_same_for_every_layer_and_erk_leaves_a_small_one_dense():
    assert layer_sparsities([(3, 5), (7, 2, 3, 3)], 0.9) == [0.9, 0.9]
    # Of 10004 weights 1000.4 stay: 4 of the first layer and 996.4 of the second.
    assert layer_sparsities([(2, 2), (100, 100)], 0.9, "erk") == pytest.approx([0, 1 - 0.09964], abs=1e-15)


@given(SHAPES, st.floats(0, 0.999), st.sampled_from(["uniform", "erk"]))
def test_the_weighted_mean_of_layer_sparsities_is_the_sparsity(shapes, sparsity, distribution):
    numels = [math.prod(shape) for shape in shapes]
    sparsities = layer_sparsities(shapes, sparsity, distribution)
    assert all(0 <= each <= 1 for each in sparsities)
    mean = math.fsum(n * each for n, each in zip(numels, sparsities, strict=True)) / sum(numels)
    assert mean == pytest.approx(sparsity, abs=1e-15)


@given(st.integers(0, 99_999), st.integers(0, 10_000))
def test_a_decimal_sparsity_keeps_exactly_its_share(zeros, multiple):
    sparsity = float(Decimal(zeros) / 100_000)
    assert kept_count(100_000 * multiple, sparsity) == (100_000 - zeros) * multiple


@pytest.mark.parametrize(
    ("numel", "sparsity", "kept"),
    [(1000, 0.9, 100), (0, 0.9, 0), (1, 0.99, 1), (10, 0.999, 1), (10, 0.65, 4), (10, 0.84, 2), (10, 0.0, 10)],
)
def test_kept_count_rounds_and_leaves_at_least_one(numel, sparsity, kept):
    assert kept_count(numel, sparsity) == kept


@given(SHAPES, st.floats(0, 0.9999), st.sampled_from(["uniform", "erk"]))
def test_counts_of_layers_add_up_and_differ_from_their_shares_by_less_than_1(shapes, sparsity, distribution):
    numels = [math.prod(shape) for shape in shapes]
    counts = kept_counts(shapes, sparsity, distribution)
    assert sum(counts) == max(len(shapes), kept_count(sum(numels), sparsity))
    assert all(1 <= count <= numel for count, numel in zip(counts, numels, strict=True))
    sparsities = layer_sparsities(shapes, sparsity, distribution)
    shares = [n * (1 - each) for n, each in zip(numels, sparsities, strict=True)]
    if min(shares) > 1:
        assert all(abs(count - share) < 1 + 1e-9 for count, share in zip(counts, shares, strict=True))


def test_the_largest_remainders_are_rounded_up_and_the_largest_layers_pay_for_the_smallest():
    # Shares 1.2, 1.8, 3; then 0.1, 0.2, 9.7 of which the last keeps 8.
    assert kept_counts([(2, 2), (2, 3), (2, 5)], 0.7) == [1, 2, 3]
    assert kept_counts([(1, 1), (1, 2), (1, 97)], 0.9) == [1, 1, 8]
    assert kept_counts([(5, 5)] * 3, 0.99) == [1, 1, 1]


@given(SCORES, st.data())
def test_the_largest_are_kept_and_of_equal_ones_the_first(scores, data):
    kept = data.draw(st.integers(0, len(scores)))
    mask = keep_largest(torch.tensor(scores).view(1, -1, 1), kept)
    assert (mask.dtype, mask.shape) == (torch.bool, (1, len(scores), 1))
    assert mask.flatten().tolist() == first_largest(scores, kept)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_mask_of_many_equal_scores_depends_neither_on_threads_nor_on_strides(threads, dtype):
    torch.set_num_threads(threads)
    scores = torch.randint(0, 5, (200, 300), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = first_largest(scores.T.flatten().tolist(), 25_001)
    assert keep_largest(scores.T, 25_001).flatten().tolist() == expected


@given(st.lists(st.lists(st.integers(-2, 3), min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_global_masks_keep_the_best_sum_of_all_that_cut_off_no_layer(layers, data):
    places = [(index, place) for index, layer in enumerate(layers) for place in range(len(layer))]
    kept = data.draw(st.integers(len(layers), len(places)))
    masks = keep_largest_globally([torch.tensor([layer], dtype=torch.float64) for layer in layers], kept)
    assert [mask.shape for mask in masks] == [(1, len(layer)) for layer in layers]
    chosen = [place for place in places if masks[place[0]][0, place[1]]]
    assert len(chosen) == kept
    assert {index for index, _ in chosen} == set(range(len(layers)))
    whole = [c for c in combinations(places, kept) if {index for index, _ in c} == set(range(len(layers)))]
    best = max(sum(layers[index][place] for index, place in c) for c in whole)
    assert sum(layers[index][place] for index, place in chosen) == best


@given(SCORES, SCORES, st.data())
def test_where_no_layer_is_cut_off_the_global_mask_is_that_of_all_scores(first, second, data):
    kept = data.draw(st.integers(2, len(first) + len(second)))
    expected = first_largest(first + second, kept)
    masks = keep_largest_globally([torch.tensor(first), torch.tensor(second)], kept)
    if any(expected[: len(first)]) and any(expected[len(first) :]):
        assert torch.cat(masks).tolist() == expected
    else:
        assert [int(mask.sum()) for mask in masks] in ([1, kept - 1], [kept - 1, 1])
    assert keep_largest_globally([], 0) == []


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 4), (3, 4), (4, 4)])
@pytest.mark.parametrize("kernel", [(), (3,), (3, 2)])
def test_n_of_m_is_the_largest_of_each_group_of_channels_at_one_place_of_the_kernel(n, m, kernel):
    scores = torch.randint(0, 4, (5, 8, *kernel)).double()
    mask = keep_n_of_m(scores, n, m)
    assert mask.shape == scores.shape
    assert mask.is_contiguous()
    for out in range(5):
        for place in range(math.prod(kernel)):
            row = scores[out].reshape(8, -1)[:, place].tolist()
            expected = [kept for start in range(0, 8, m) for kept in first_largest(row[start : start + m], n)]
            assert mask[out].reshape(8, -1)[:, place].tolist() == expected


@given(st.integers(-5, 30), st.floats(0, 0.99), st.floats(0, 0.99))
def test_cubic_sparsity_is_the_cubic_with_triple_root_at_the_end(step, initial, final):
    actual = cubic_sparsity(step, begin=3, end=13, initial=initial, final=final)
    remaining = (13 - min(max(step, 3), 13)) / 10
    assert actual == pytest.approx(initial * remaining**3 + final * (1 - remaining**3), abs=1e-15)
    if step <= 3 or step >= 13:
        assert actual == (initial if step <= 3 else final)


def test_schedules_without_duration_jump():
    assert [cosine_drop_fraction(t, begin=3, end=3, initial=0.3) for t in (2, 3, 4)] == [0.3, 0, 0]
    assert [cubic_sparsity(t, begin=3, end=3, initial=0.1, final=0.7) for t in (2, 3, 4)] == [0.1, 0.7, 0.7]


def test_the_drop_fraction_falls_as_half_a_cosine_to_exactly_0():
    fractions = [cosine_drop_fraction(step, begin=2, end=8, initial=0.4) for step in (0, 2, 4, 5, 6, 8, 9)]
    assert fractions == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.1, 0, 0], abs=1e-15)
    assert fractions[-2:] == [0, 0]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=12), st.data())
def test_an_exchange_drops_the_smallest_and_grows_the_largest_of_the_others(weights, data):
    fraction = data.draw(st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]))
    mask, magnitude, scores = (torch.tensor(column) for column in zip(*weights, strict=True))
    places, old = range(len(weights)), [place for place in range(len(weights)) if weights[place][0]]
    number = round(fraction * len(old))
    stay = sorted(old, key=lambda place: -weights[place][1])[: len(old) - number]
    by_growth = sorted(set(places) - set(stay), key=lambda place: (-weights[place][2], place))
    for regrow in (False, True):
        order = by_growth if regrow else sorted(by_growth, key=old.__contains__)
        new = drop_and_grow(mask, magnitude.double(), scores.double(), fraction, regrow=regrow)
        assert new.nonzero().flatten().tolist() == sorted(stay + order[:number])


def test_an_exchange_by_hand_leaves_its_argument_alone():
    mask = torch.tensor([[True, True, False], [False, True, True]])
    magnitude = torch.tensor([[0.1, 5.0, 0.0], [0.0, 0.2, 3.0]])
    growth = torch.tensor([[9.0, 0.0, 1.0], [2.0, 8.0, 0.0]])
    before = mask.clone()
    assert drop_and_grow(mask, magnitude, growth, 0.25).int().tolist() == [[0, 1, 0], [1, 1, 1]]
    assert drop_and_grow(mask, magnitude, growth, 0.5).int().tolist() == [[0, 1, 1], [1, 0, 1]]
    assert drop_and_grow(mask, magnitude, growth, 0.75).int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert drop_and_grow(mask, magnitude, growth, 0.5, regrow=True).int().tolist() == [[1, 1, 0], [0, 1, 1]]
    assert torch.equal(mask, before)


def test_saliency_is_the_slope_of_the_loss_as_each_weight_is_scaled():
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gate = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    (gate * weight).exp().sum().backward()
    torch.testing.assert_close(saliency(weight, weight.grad), gate.grad.abs(), atol=1e-12, rtol=1e-12)


T, M = torch.tensor, torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_sparsity(1.2), r"^sparsity=1.2 is not in \[0, 1\): it is the fraction of .* that are zero$"),
        (lambda: check_sparsity(1, "final"), r"^final=1 is not in \[0, 1\)"),
        (lambda: check_sparsity(NAN), "sparsity=nan is not in"),
        (lambda: kept_count(3, -0.1), "sparsity=-0.1 is not in"),
        (lambda: kept_count(-3, 0.1), "numel=-3 is a number of weights: it must not be negative"),
        (lambda: layer_sparsities([(2, 2)], 1.0), "sparsity=1.0 is not in"),
        (lambda: layer_sparsities([(2, 2)], 0.5, "er"), "distribution='er' is not one of 'uniform', 'erk'"),
        (lambda: layer_sparsities([], 0.5), r"shapes=\[\] has no layer: give the shape of at least one weight"),
        (lambda: layer_sparsities([(2, 2), (0, 3)], 0.5), r"shapes\[1\]=\(0, 3\) is a layer without weights: leave it"),
        (lambda: layer_sparsities([()], 0.5), r"shapes\[0\]=\(\) is a layer without weights"),
        (lambda: keep_largest(T([1.0, NAN]), 1), "scores has 1 NaN of 2, which are neither large nor small: mend what"),
        (lambda: keep_largest(T([1.0, 2.0]), 3), "kept=3 of 2 scores: it must be from 0 to 2"),
        (lambda: keep_largest_globally([T([1.0]), T([NAN])], 2), r"scores\[1\] has 1 NaN of 1"),
        (lambda: keep_largest_globally([T([1.0]), T([[]])], 2), r"scores\[1\] of shape \(1, 0\) is empty: leave that"),
        (lambda: keep_largest_globally([T([1.0]), T([1.0])], 1), "kept=1 must be from 2, one for each layer of scores"),
        (lambda: keep_largest_globally([T([1.0]), T([1.0])], 3), "kept=3 must be from 2, one for .*, to 2"),
        (lambda: keep_n_of_m(T([[NAN, 1.0]]), 1, 2), "scores has 1 NaN of 2"),
        (lambda: keep_n_of_m(T([1.0, 2.0]), 1, 2), r"scores of shape \(2,\) must have at least two .* \(out, in\)"),
        (lambda: keep_n_of_m(torch.ones(1, 4), 0, 2), "n=0 of m=2 cannot be kept: n must be from 1 to m"),
        (lambda: keep_n_of_m(torch.ones(1, 4), 3, 2), "n=3 of m=2 cannot be kept"),
        (lambda: keep_n_of_m(torch.ones(4, 6), 2, 4), r"m=4 does not divide the 6 inputs .* \(4, 6\): take an m that"),
        (lambda: cubic_sparsity(0, begin=5, end=3, initial=0, final=0.5), "end=3 is before begin=5: give an end of at"),
        (lambda: cubic_sparsity(0, begin=0, end=3, initial=-1, final=0.5), "initial=-1 is not in"),
        (lambda: cubic_sparsity(0, begin=0, end=3, initial=0, final=1), "final=1 is not in"),
        (lambda: cosine_drop_fraction(0, end=-3, initial=0.3), "end=-3 is before begin=0"),
        (lambda: cosine_drop_fraction(0, end=3, initial=1.3), r"initial=1.3 is not in \[0, 1\]: .* that are dropped"),
        (lambda: drop_and_grow(M, M.float(), M.float(), NAN), r"fraction=nan is not in \[0, 1\]: it is the fraction"),
        (lambda: drop_and_grow(M.float(), M.float(), M.float(), 0), "mask of dtype torch.float32 must .* give mask !="),
        (lambda: drop_and_grow(M, T([1.0]), M.float(), 0), r"magnitude of shape \(1,\) .* shape \(2,\) of mask"),
        (lambda: drop_and_grow(M, M.float(), T(1.0), 0), r"growth_scores of shape \(\) .* shape \(2,\) of mask"),
        (lambda: drop_and_grow(M, T([1.0, NAN]), M.float(), 0), "magnitude has 1 NaN of 2"),
        (lambda: drop_and_grow(M, M.float(), T([NAN, NAN]), 0), "growth_scores has 2 NaN of 2"),
        (lambda: drop_and_grow(M, T([1.0, -2.5]), M.float(), 0), "magnitude has negative .* to -2.5: give weight.abs"),
        (lambda: saliency(T([1.0]), T([1.0, 2.0])), r"grad of shape \(2,\) must have the shape \(1,\) of weight"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
