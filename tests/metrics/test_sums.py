"""Sums as torchmetrics: added up over batches, kept in float64, merged and forgotten."""

import pytest
import torch

from lightning_nobp.functional.patches import patch_second_moment, patch_total
from lightning_nobp.functional.ridge import ridge_statistics
from lightning_nobp.metrics import FeatureRows, NormalEquations, PatchStatistics


def data(count=40):
    torch.manual_seed(0)
    return torch.randn(count, 6, dtype=torch.float64), torch.randn(count, 3, dtype=torch.float64)


def test_normal_equations_of_batches_are_those_of_all_samples():
    x, y = data()
    metric = NormalEquations(6, 3)
    for part in (slice(0, 5), slice(5, 6), slice(6, 40)):
        metric.update(x[part], y[part])
    for found, expected in zip(metric.compute(), ridge_statistics(x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    metric.reset()
    assert all((state == 0).all() for state in metric.sums().values())


def test_patch_statistics_of_batches_are_those_of_all_images():
    x, target = torch.randn(10, 2, 6, 5, dtype=torch.float64), torch.arange(10) % 3
    metric = PatchStatistics(2, 3, padding=1, num_classes=4)
    metric.update(x[:3], target[:3])
    metric.update(x[3:], target[3:])
    moments, classes = metric.compute()
    for found, expected in zip(moments, patch_second_moment(x, 3, 1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for label in range(3):
        torch.testing.assert_close(classes.total[label], patch_total(x[target == label], 3, 1))
    assert classes.num_patches.tolist() == [4 * 30, 3 * 30, 3 * 30, 0]
    without = PatchStatistics(2, 3, padding=1)
    without.update(x)
    assert without.compute()[1] is None


def test_sites_merge_and_samples_are_forgotten():
    x, y = data()
    here, there = NormalEquations(6, 3), NormalEquations(6, 3)
    here.update(x[:30], y[:30])
    there.update(x[30:], y[30:])
    here.merge(there.sums())
    for found, expected in zip(here.compute(), ridge_statistics(x, y), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    here.forget(there.sums())
    for found, expected in zip(here.compute(), ridge_statistics(x[:30], y[:30]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # torchmetrics' own way gives the same.
    other = NormalEquations(6, 3)
    other.update(x[:30], y[:30])
    other.merge_state(there)
    torch.testing.assert_close(other.compute().gram, x.T @ x, rtol=1e-12, atol=1e-12)


def test_sums_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"have the shapes .*'gram': \(5, 5\).* NormalEquations has .*\(6, 6\)"):
        NormalEquations(6, 3).merge(NormalEquations(5, 3).sums())


@pytest.mark.parametrize(
    "convert", [lambda m: m.float(), lambda m: m.to(torch.bfloat16), lambda m: m.set_dtype(torch.float16)]
)
def test_sums_stay_in_double_precision(convert):
    metric = NormalEquations(6, 3)
    metric.update(*data())
    convert(metric)
    assert {state.dtype for state in metric.sums().values()} == {torch.float64}
    metric.reset()
    assert {state.dtype for state in metric.sums().values()} == {torch.float64}


def test_classes_are_needed_where_they_are_summed():
    with pytest.raises(ValueError, match="num_classes=2: sums by class need the images' classes"):
        PatchStatistics(1, 3, num_classes=2).update(torch.zeros(1, 1, 4, 4))


def test_kept_features_come_back():
    features, target = torch.randn(12, 7).relu(), torch.arange(12) % 3
    here, there = FeatureRows(7), FeatureRows(7)
    here.update(features[:5], target[:5])
    here.update(features[5:8], target[5:8])
    there.update(features[8:], target[8:])
    here.merge(there.sums())
    matrix, classes = here.compute()
    assert torch.equal(torch.from_numpy(matrix.toarray()), features)
    assert torch.equal(classes, target)
    assert FeatureRows(7).sums()["targets"].shape == (0,)
    with pytest.raises(ValueError, match="kept features cannot be forgotten"):
        here.forget(there.sums())
