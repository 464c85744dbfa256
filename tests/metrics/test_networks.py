"""How well links, weights and the future are known, against sklearn and by hand."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from lightning_nobp.functional.network_inference import statistics
from lightning_nobp.metrics import (
    LinkAUROC,
    LinkAveragePrecision,
    NetworkStatistics,
    ValidPredictionTime,
    WeightError,
)

NODES = 12


def pair(seed, ties=False):
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(NODES, NODES, generator=generator) * (torch.rand(NODES, NODES, generator=generator) < 0.3)
    weights = true + torch.randn(NODES, NODES, generator=generator)
    return (weights * 2).round() if ties else weights, true


def flat(weights, true):
    others = ~torch.eye(NODES, dtype=torch.bool)
    return (true[others] != 0).numpy(), weights[others].abs().numpy()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("metric", "reference"), [(LinkAUROC, roc_auc_score), (LinkAveragePrecision, average_precision_score)]
)
def test_link_metrics_are_sklearns_and_means_over_networks(metric, reference, ties):
    metric = metric()
    expected = []
    for seed in range(3):
        metric.update(*pair(seed, ties))
        expected.append(reference(*flat(*pair(seed, ties))))
    assert float(metric.compute()) == pytest.approx(sum(expected) / 3, abs=1e-12)


def test_the_diagonal_does_not_matter():
    weights, true = pair(0)
    for metric in (LinkAUROC, LinkAveragePrecision, WeightError):
        one, other = metric(), metric()
        one.update(weights, true)
        other.update(weights + 50 * torch.eye(NODES), true - 3 * torch.eye(NODES))
        assert one.compute() == other.compute()


def test_the_weight_error_is_relative():
    true = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    metric = WeightError()
    metric.update(true + torch.tensor([[0.0, 0.3], [0.4, 0.0]]), true)
    assert float(metric.compute()) == pytest.approx(0.1)


def test_without_links_or_with_all_there_is_no_answer():
    weights = torch.rand(3, 3)
    for true in (torch.zeros(3, 3), torch.ones(3, 3)):
        metric = LinkAUROC()
        metric.update(weights, true)
        assert metric.compute().isnan()


def test_matrices_of_other_shapes_are_named():
    with pytest.raises(ValueError, match=r"weights of shape \(3, 3\) and true ones of \(2, 2\)"):
        LinkAUROC().update(torch.zeros(3, 3), torch.zeros(2, 2))


def test_prediction_times_are_medians_in_lyapunov_times():
    true = torch.zeros(3, 11, 2, 3)
    predicted = true.clone()
    predicted[0, 3:] = 1.0
    predicted[1, 6:] = 1.0
    metric = ValidPredictionTime(dt=0.1, lyapunov_exponent=2.0)
    metric.update(predicted[:2], true[:2])
    metric.update(predicted[2:], true[2:])
    torch.testing.assert_close(metric.times(), torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64))
    assert float(metric.compute()) == pytest.approx(1.0)
    plain = ValidPredictionTime(dt=0.1)
    plain.update(predicted, true)
    assert float(plain.compute()) == pytest.approx(0.5)


def test_the_threshold_is_in_standard_deviations():
    true = torch.zeros(1, 5, 2, 3)
    for threshold, steps in ((0.4, 0.0), (0.6, 4.0)):
        metric = ValidPredictionTime(dt=1.0, threshold=threshold)
        metric.update(true + 0.5 * (torch.arange(5) > 0).view(1, 5, 1, 1), true)
        assert float(metric.compute()) == steps


@pytest.mark.parametrize(
    "arguments", [{"dt": 0.0}, {"dt": 1.0, "threshold": -1.0}, {"dt": 1.0, "lyapunov_exponent": 0.0}]
)
def test_numbers_that_are_not_positive_are_named(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        ValidPredictionTime(**arguments)


def test_sums_of_parts_are_those_of_the_whole_and_in_double_precision():
    features, h, moved = torch.randn(30, 4, 5), torch.randn(30, 4), torch.randn(30, 4, 2)
    whole = statistics(features.double(), h.double(), moved.double())
    metric, other = NetworkStatistics(4, 5, 2).float(), NetworkStatistics(4, 5, 2)
    metric.update(features[:20], h[:20], moved[:20])
    other.update(features[20:], h[20:], moved[20:])
    metric.merge(other.sums())
    for name, value in vars(metric.statistics()).items():
        torch.testing.assert_close(value, getattr(whole, name), rtol=1e-12, atol=1e-12)
