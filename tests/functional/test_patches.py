"""Moments of patches against the patches themselves, and filters against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from lightning_nobp.functional.patches import patch_second_moment, patch_total, pca_filters, principal_components


def patches(x, kernel_size, padding=0):
    """All patches, a row each."""
    columns = torch.nn.functional.unfold(x, kernel_size, padding=padding)
    return columns.transpose(1, 2).flatten(0, 1)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel_size=st.integers(1, 5),
    padding=st.integers(0, 2),
    algorithm=st.sampled_from(["auto", "unfold", "row", "autocorrelation"]),
)
def test_every_kernel_sums_the_patches(batch, channels, height, width, kernel_size, padding, algorithm):
    rows, columns = (size + 2 * padding - kernel_size + 1 for size in (height, width))
    if min(rows, columns) < (kernel_size - 1 if algorithm == "autocorrelation" else 1):
        return
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    expected = patches(x, kernel_size, padding)
    second_moment, total, count = patch_second_moment(x, kernel_size, padding, algorithm=algorithm)
    torch.testing.assert_close(second_moment, expected.T @ expected, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(total, expected.sum(0), rtol=1e-12, atol=1e-11)
    assert count == len(expected)


@pytest.mark.parametrize("algorithm", ["row", "autocorrelation"])
def test_many_images_are_summed_in_chunks(algorithm):
    x = torch.randn(450, 3, 6, 5, dtype=torch.float64)
    expected = patches(x, 3, 1)
    second_moment, _, count = patch_second_moment(x, 3, 1, algorithm=algorithm)
    torch.testing.assert_close(second_moment, expected.T @ expected, rtol=1e-12, atol=1e-10)
    assert count == 450 * 30


@pytest.mark.parametrize(("channels", "tolerance"), [(3, 1e-12), (16, 1e-6)])
def test_single_precision_images_give_double_precision_sums(channels, tolerance):
    x = torch.randn(300, channels, 10, 10).relu()
    exact = patch_second_moment(x.double(), 3, 1)
    found = patch_second_moment(x, 3, 1)
    assert found.second_moment.dtype is found.total.dtype is torch.float64
    assert (found.second_moment - exact.second_moment).norm() < tolerance * exact.second_moment.norm()
    assert (patch_second_moment(x, 3, 1, dtype=torch.float64).second_moment - exact.second_moment).abs().max() == 0


def test_total_alone():
    x = torch.randn(5, 2, 6, 7)
    expected = patches(x.double(), 3, 1).sum(0)
    torch.testing.assert_close(patch_total(x, 3, 1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "kernel_size", "num_filters"), [(1, 5, 25), (3, 3, 27), (3, 3, 7), (8, 2, 10)])
def test_filters_are_principal_components(channels, kernel_size, num_filters):
    scale = torch.rand(channels, 1, 1, dtype=torch.float64) + 0.5
    x = torch.randn(200, channels, 9, 9, dtype=torch.float64) * scale + 3.0
    x = torch.nn.functional.avg_pool2d(x, 2, 1)
    filters, eigenvalues, mean = pca_filters(*patch_second_moment(x, kernel_size), num_filters)
    rows = patches(x, kernel_size).numpy()
    expected = PCA(num_filters, svd_solver="full").fit(rows)
    cosines = (filters * torch.from_numpy(expected.components_)).sum(1).abs()
    assert filters.shape == (num_filters, channels * kernel_size**2)
    assert 1 - cosines.min() < 1e-10
    # scikit-learn divides by one less.
    variances = torch.from_numpy(expected.explained_variance_) * (len(rows) - 1) / len(rows)
    torch.testing.assert_close(eigenvalues, variances, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, torch.from_numpy(expected.mean_), rtol=1e-12, atol=1e-12)


def test_filters_have_one_sign():
    x = torch.randn(50, 2, 8, 8, dtype=torch.float64)
    filters, _, _ = pca_filters(*patch_second_moment(x, 3), 18)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(filters @ filters.T, torch.eye(18, dtype=torch.float64), rtol=0, atol=1e-12)


def test_signs_do_not_hang_on_rounding():
    # Of mirrored images, half of the filters are a and -a on both sides.
    x = torch.randn(40, 1, 9, 9, dtype=torch.float64)
    x = torch.cat([x, x.flip(-1)])
    expected, _, _ = pca_filters(*patch_second_moment(x, 5), 12)
    mirrored = expected.view(12, 5, 5).flip(-1).flatten(1)
    assert (((mirrored + expected).abs().amax(1) < 1e-9).sum()) > 2
    for seed in range(5):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        parts = [patch_second_moment(part, 5) for part in x[order].split(11 + seed)]
        found, _, _ = pca_filters(*(sum(column) for column in zip(*parts, strict=True)), 12)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_sums_of_parts_give_the_same_filters():
    x = torch.randn(60, 3, 8, 8, dtype=torch.float64)
    parts = [patch_second_moment(part, 3, 1) for part in (x[:7], x[7:40], x[40:])]
    joined = [sum(column) for column in zip(*parts, strict=True)]
    whole = pca_filters(*patch_second_moment(x, 3, 1), 5)
    for found, expected in zip(pca_filters(*joined, 5), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 8, 8), 3), r"x has shape \(3, 8, 8\): images"),
        ((torch.zeros(1, 1, 2, 8), 3), "2x8 pixels with padding=0 are smaller than kernel_size=3"),
        ((torch.zeros(1, 1, 8, 8), 0), "kernel_size=0 must be at least 1"),
        ((torch.zeros(1, 1, 8, 8), 3, -1), "padding=-1 at least 0"),
    ],
)
def test_what_is_no_image_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        patch_second_moment(*arguments)


def test_unknown_kernels_and_impossible_filters_are_refused():
    with pytest.raises(ValueError, match="algorithm='fft' is not one of 'auto', 'unfold'"):
        patch_second_moment(torch.zeros(1, 1, 8, 8), 3, algorithm="fft")
    with pytest.raises(ValueError, match="'autocorrelation' needs kernel_size - 1 = 4 or more patches"):
        patch_second_moment(torch.zeros(1, 1, 6, 6), 5, algorithm="autocorrelation")
    with pytest.raises(ValueError, match="num_filters=10 must be from 1 to 9"):
        principal_components(torch.eye(9, dtype=torch.float64), 10)
    with pytest.raises(ValueError, match="count=0: no patches"):
        pca_filters(torch.zeros(9, 9), torch.zeros(9), 0, 2)
