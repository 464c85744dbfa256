"""Read-outs from sums against scikit-learn and against their own optimality."""

import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from lightning_nobp.functional.ridge import (
    RidgeStatistics,
    backfit,
    dual_ridge,
    ridge_path,
    ridge_solve,
    ridge_statistics,
    squared_error,
    symmetric_product,
)


def problem(count=300, features=20, targets=4):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
    x = torch.randn(count, features, generator=generator, dtype=torch.float64) @ mixing + 3.0
    y = torch.randn(count, targets, generator=generator, dtype=torch.float64) + 0.2 * x[:, :targets]
    return x, y


def predict(readout, x):
    return x @ readout.weight + readout.bias


@pytest.mark.parametrize("ridge", [1e-4, 1e-2, 1.0])
def test_equal_to_scikit_learn_on_standardised_features(ridge):
    x, y = problem()
    scaled = StandardScaler().fit_transform(x)
    expected = Ridge(alpha=ridge * len(x)).fit(scaled, y).predict(scaled)
    found = predict(ridge_solve(ridge_statistics(x, y), ridge), x)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-11, atol=1e-11)


def test_in_any_shards_chunks_and_order():
    x, y = problem()
    whole = ridge_statistics(x, y)
    order = torch.randperm(len(x))
    parts = [ridge_statistics(x[part], y[part]) for part in order.split([1, 7, 92, 200])]
    joined = parts[0].plus(parts[1]).plus(parts[2]).plus(parts[3])
    for found, expected in zip(joined, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    without = whole.minus(parts[3])
    rest = order[:100]
    expected = ridge_solve(ridge_statistics(x[rest], y[rest]), 1e-2)
    torch.testing.assert_close(ridge_solve(without, 1e-2).weight, expected.weight, rtol=1e-10, atol=1e-10)


def test_sums_are_those_of_the_samples():
    x, y = problem()
    expected = (x.T @ x, x.T @ y, x.sum(0), y.sum(0), y.square().sum(), torch.tensor(300.0).double())
    for found, wanted in zip(ridge_statistics(x, y), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-10)


def test_single_precision_products_lose_little():
    x, y = problem(2000, 300)
    exact, found = ridge_statistics(x, y), ridge_statistics(x.float(), y.float())
    assert found.gram.dtype is torch.float64
    assert (found.gram - exact.gram).norm() < 1e-6 * exact.gram.norm()
    twice = ridge_statistics(x.float(), y.float(), torch.float64)
    assert (twice.gram - exact.gram).norm() < 1e-7 * exact.gram.norm()
    # Features far from zero are where plain single precision fails.
    far = x + 1e4
    centred = ridge_solve(ridge_statistics(far.float(), y.float()), 1e-2)
    expected = predict(ridge_solve(ridge_statistics(far, y), 1e-2), far)
    assert (predict(centred, far) - expected).abs().max() < 2e-2


@pytest.mark.parametrize("size", [5, 64, 257, 300])
def test_half_of_a_symmetric_product_is_enough(size):
    x = torch.randn(50, size, dtype=torch.float64)
    torch.testing.assert_close(symmetric_product(x), x.T @ x, rtol=1e-12, atol=1e-12)


def test_optimal():
    x, y = problem()
    readout = ridge_solve(ridge_statistics(x, y), 0.05)
    residual = y - predict(readout, x)
    scale = x.std(0, correction=0)
    standardised = (x - x.mean(0)) / scale
    # The gradient of the penalised error is zero: features against the residual are the penalty's pull.
    torch.testing.assert_close(standardised.T @ residual / len(x), 0.05 * scale.unsqueeze(1) * readout.weight)
    torch.testing.assert_close(residual.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-12)


def test_without_penalty_least_squares():
    x, y = problem()
    expected = LinearRegression().fit(x, y).predict(x)
    found = predict(ridge_solve(ridge_statistics(x, y), 0.0), x)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_without_penalty_repeated_features_are_solved_by_the_least_norm():
    x, y = problem()
    doubled = torch.cat([x, x], 1)
    found = ridge_solve(ridge_statistics(doubled, y), 0.0)
    torch.testing.assert_close(predict(found, doubled), predict(ridge_solve(ridge_statistics(x, y), 0.0), x))
    torch.testing.assert_close(found.weight[:20], found.weight[20:], rtol=1e-6, atol=1e-8)
    assert found.ridge == 0


def test_features_that_do_not_vary_get_no_weight():
    x, y = problem()
    x[:, 3] = 5.0
    readout = ridge_solve(ridge_statistics(x, y), 1e-3)
    assert (readout.weight[3] == 0).all()
    assert readout.weight.isfinite().all()


def test_a_penalty_too_weak_for_the_numbers_grows():
    x, y = problem()
    exact = ridge_statistics(x, y)
    broken = exact._replace(gram=exact.gram - 1e-3 * exact.gram.diagonal().mean() * torch.eye(20).double())
    readout = ridge_solve(broken, 1e-12)
    assert readout.ridge > 1e-12
    assert readout.weight.isfinite().all()


def test_the_error_follows_from_the_sums():
    x, y = problem()
    seen, unseen = ridge_statistics(x[:200], y[:200]), ridge_statistics(x[200:], y[200:])
    readout = ridge_solve(seen, 1e-2)
    direct = (y[200:] - predict(readout, x[200:])).square().sum()
    torch.testing.assert_close(squared_error(unseen, readout.weight, readout.bias), direct, rtol=1e-10, atol=1e-9)


def test_the_path_chooses_by_what_was_left_out():
    x, y = problem(60, 20)
    folds = [ridge_statistics(x[part::3], y[part::3]) for part in range(3)]
    ridges = (1e-3, 1e-1, 1e1)
    best, errors, readouts = ridge_path(folds, ridges)
    for ridge, error, row in zip(ridges, errors, readouts, strict=True):
        direct = 0.0
        for part in range(3):
            left = torch.arange(60) % 3 != part
            expected = ridge_solve(ridge_statistics(x[left], y[left]), ridge)
            torch.testing.assert_close(row[part].weight, expected.weight, rtol=1e-8, atol=1e-8)
            direct += float((y[~left] - predict(expected, x[~left])).square().sum())
        assert error == pytest.approx(direct / 60, rel=1e-9)
    assert best == ridges[errors.index(min(errors))]


def test_backfitting_ends_at_the_joint_solution():
    x, y = problem()
    statistics = ridge_statistics(x, y)
    joint = ridge_solve(statistics, 0.1)
    found = backfit(statistics, [5, 12, 3], 0.1, sweeps=500)
    torch.testing.assert_close(found.weight, joint.weight, rtol=1e-8, atol=1e-8)
    solutions = [backfit(statistics, [5, 12, 3], 0.1, sweeps).weight for sweeps in (1, 3, 10, 30)]
    distances = [float((weight - joint.weight).norm()) for weight in solutions]
    assert distances == sorted(distances, reverse=True)
    alone = backfit(statistics, [20], 0.1, sweeps=1)
    torch.testing.assert_close(alone.weight, joint.weight, rtol=1e-9, atol=1e-9)


def test_few_samples_through_a_system_of_their_size():
    x, y = problem(15, 40)
    expected = ridge_solve(ridge_statistics(x, y), 1e-2)
    found = dual_ridge(x, y, 1e-2)
    torch.testing.assert_close(predict(found, x), predict(expected, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-8, atol=1e-9)


def test_repeated_layers_filter_the_residual():
    """R_T = U diag((1 - eta f)^T) U' Y + (I - U U') Y with f = s^2 / (s^2 + ridge), for the same features T times."""
    x, y = problem()
    eta, ridge, times = 0.5, 0.1, 4
    residual = y - y.mean(0)
    for _ in range(times):
        readout = ridge_solve(ridge_statistics(x, residual), ridge)
        residual = residual - eta * predict(readout, x)
    scaled = torch.from_numpy(StandardScaler().fit_transform(x))
    u, s, _ = torch.linalg.svd(scaled, full_matrices=False)
    share = s.square() / len(x) / (s.square() / len(x) + ridge)
    centred = y - y.mean(0)
    expected = u @ (((1 - eta * share) ** times).unsqueeze(1) * (u.T @ centred)) + centred - u @ (u.T @ centred)
    torch.testing.assert_close(residual, expected, rtol=1e-10, atol=1e-10)


def test_without_penalty_a_second_identical_layer_has_nothing_to_do():
    x, y = problem()
    first = ridge_solve(ridge_statistics(x, y), 0.0)
    second = ridge_solve(ridge_statistics(x, y - predict(first, x)), 0.0)
    assert second.weight.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ridge_solve(ridge_statistics(x, y), -1.0), "ridge=-1.0 must be at least 0"),
        (lambda x, y: ridge_solve(ridge_statistics(x[:0], y[:0]), 1.0), "count=0.0: no samples"),
        (lambda x, y: ridge_solve(ridge_statistics(x * float("nan"), y), 1.0), "not finite: features or targets"),
        (lambda x, y: ridge_statistics(x, y[:5]), r"features \(300, 20\) and targets \(5, 4\) must be"),
        (lambda x, y: ridge_path([ridge_statistics(x, y)], [1.0]), "1 folds: at least two"),
        (lambda x, y: backfit(ridge_statistics(x, y), [3, 4], 1.0, 2), r"sizes=\[3, 4\] must add up to 20"),
        (lambda x, y: backfit(ridge_statistics(x, y), [20], 0.0, 2), "ridge=0.0 be positive"),
        (lambda x, y: dual_ridge(x, y, 0.0), "ridge=0.0 must be positive"),
        (lambda x, y: dual_ridge(x * float("nan"), y, 1.0), "features or targets hold nan or inf"),
        (lambda x, y: ridge_solve(ridge_statistics(x, y), float("inf")), "ridge=inf must be at least 0, and finite"),
    ],
)
def test_what_has_no_solution_is_refused(call, message):
    x, y = problem()
    with pytest.raises(ValueError, match=message):
        call(x, y)


def test_statistics_are_named():
    assert RidgeStatistics._fields == ("gram", "cross", "feature_sum", "target_sum", "target_square", "num_samples")
