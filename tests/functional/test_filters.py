"""Each kind of filters against what defines it."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lightning_nobp.functional.filters import FILTERS, ClassTotals, choose_filters, patch_mean_projector, whitened
from lightning_nobp.functional.patches import patch_covariance, patch_second_moment, patch_total, pca_filters


def patches(x, kernel_size):
    return torch.nn.functional.unfold(x, kernel_size).transpose(1, 2).flatten(0, 1)


def images(count=60, channels=2):
    torch.manual_seed(0)
    target = torch.arange(count) % 3
    x = torch.randn(count, channels, 8, 8, dtype=torch.float64)
    x = torch.nn.functional.avg_pool2d(x, 3, 1, padding=1)
    bumps = torch.randn(3, channels, 1, 8, dtype=torch.float64)
    return x + 0.3 * bumps[target], target


def class_totals(x, target, kernel_size):
    totals = torch.stack([patch_total(x[target == label], kernel_size) for label in range(3)])
    per_image = (x.shape[-1] - kernel_size + 1) ** 2
    return ClassTotals(totals, target.bincount() * per_image)


def chosen(kind, num_filters=8, **kwargs):
    x, target = images()
    moments = patch_second_moment(x, 3)
    generator = torch.Generator().manual_seed(1)
    classes = class_totals(x, target, 3)
    return choose_filters(kind, moments, num_filters, 3, generator=generator, classes=classes, **kwargs), moments


@pytest.mark.parametrize("remove_patch_mean", [False, True])
@pytest.mark.parametrize("kind", FILTERS)
def test_all_kinds_are_orthonormal_and_know_their_variances(kind, remove_patch_mean):
    if kind == "saab" and remove_patch_mean:
        with pytest.raises(ValueError, match="'saab' keeps the patches' mean"):
            chosen(kind, remove_patch_mean=True)
        return
    (filters, variances, mean), _ = chosen(kind, remove_patch_mean=remove_patch_mean)
    torch.testing.assert_close(filters @ filters.T, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-10)
    x, _ = images()
    rows = patches(x, 3)
    torch.testing.assert_close((rows @ filters.T).var(0, correction=0), variances, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    if remove_patch_mean:
        torch.testing.assert_close(filters.view(8, 2, 9).sum(2), torch.zeros(8, 2).double(), rtol=0, atol=1e-12)


def test_taking_the_mean_off_patches_equals_taking_it_off_their_covariance():
    x, _ = images()
    rows = patches(x, 3)
    centred = (rows.view(-1, 2, 9) - rows.view(-1, 2, 9).mean(2, keepdim=True)).flatten(1)
    projector = patch_mean_projector(2, 3)
    covariance = projector @ patch_covariance(*patch_second_moment(x, 3)) @ projector
    expected = torch.cov(centred.T, correction=0)
    torch.testing.assert_close(covariance, expected, rtol=1e-12, atol=1e-14)
    (filters, _, _), _ = chosen("pca", remove_patch_mean=True)
    torch.testing.assert_close(rows @ filters.T, centred @ filters.T, rtol=1e-12, atol=1e-12)


def test_rotated_components_span_what_the_components_span():
    (rotated, _, _), moments = chosen("pca_rotated")
    filters, _, _ = pca_filters(*moments, 8)
    torch.testing.assert_close(rotated.T @ rotated, filters.T @ filters, rtol=0, atol=1e-10)
    assert (rotated - filters).abs().max() > 0.1


def test_saab_starts_with_the_constant_patch_and_goes_on_with_components_of_the_rest():
    (filters, _, _), _ = chosen("saab")
    torch.testing.assert_close(filters[0], torch.full((18,), 18**-0.5, dtype=torch.float64))
    x, _ = images()
    rest = patches(x, 3)
    rest = rest - rest.mean(1, keepdim=True)
    expected, _, _ = pca_filters(rest.T @ rest, rest.sum(0), len(rest), 7)
    torch.testing.assert_close((filters[1:] * expected).sum(1).abs(), torch.ones(7).double(), rtol=0, atol=1e-10)


def test_cosines_of_all_frequencies_are_the_discrete_cosine_transform():
    from scipy.fft import dctn

    (filters, _, _), _ = chosen("dct", num_filters=18)
    patch = torch.randn(2, 3, 3, dtype=torch.float64)
    # Up to the sign of each.
    found = (filters @ patch.flatten()).abs().sort().values
    expected = torch.from_numpy(dctn(patch.numpy(), axes=(1, 2), norm="ortho")).flatten().abs().sort().values
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_discriminants_are_those_of_scikit_learn():
    (filters, _, _), _ = chosen("lda")
    x, target = images()
    rows, labels = patches(x, 3), target.repeat_interleave(36)
    lda = LinearDiscriminantAnalysis(solver="eigen").fit(rows.numpy(), labels.numpy())
    expected, _ = torch.linalg.qr(torch.from_numpy(lda.scalings_[:, :2]))
    # The same plane: its projector is unique, its axes are not.
    torch.testing.assert_close(filters[:2].T @ filters[:2], expected @ expected.T, rtol=0, atol=1e-7)


def test_whitened_components_are_white():
    (found, _), x = chosen("pca"), images()[0]
    white = whitened(found)
    responses = patches(x, 3) @ white.filters.T
    torch.testing.assert_close(torch.cov(responses.T, correction=0), torch.eye(8).double(), rtol=0, atol=1e-10)


def test_what_cannot_be_is_refused():
    x, _ = images()
    moments = patch_second_moment(x, 3)
    with pytest.raises(ValueError, match="filters='ica' is not one of 'pca'"):
        choose_filters("ica", moments, 2, 3)
    with pytest.raises(ValueError, match="num_filters=17 is above 16, the rank of patches of 2 channels"):
        choose_filters("pca", moments, 17, 3, remove_patch_mean=True)
    with pytest.raises(ValueError, match="'lda' needs the sums of patches by class"):
        choose_filters("lda", moments, 2, 3)
    grey = x[:, :1].expand(-1, 2, -1, -1)
    found = choose_filters("pca", patch_second_moment(grey, 3), 12, 3)
    with pytest.raises(ValueError, match=r"12 filters are above 9, the rank of the patches.*at most 9 channels"):
        whitened(found)
