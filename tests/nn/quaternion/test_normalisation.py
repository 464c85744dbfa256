"""The layer of batch normalisation: running statistics as torch keeps them, and errors at the door."""

import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion.normalisation import quaternion_moments, quaternion_variance
from lightning_nobp.nn import vjp
from lightning_nobp.nn.quaternion.normalisation import QuaternionBatchNorm

MODES = ["whiten", "norm", "split"]


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(mode="whiten", **options):
    return QuaternionBatchNorm(8, mode=mode, dtype=torch.float64, **options)


def test_whitening_starts_with_components_that_are_uncorrelated_with_variance_a_quarter():
    mixing = draw(8, 8, seed=2)
    x = torch.einsum("bc...,cd->bd...", draw(50, 8, 4, 4), mixing) + 3
    y = layer(eps=1e-9)(x)
    mean, covariance = quaternion_moments(y)
    assert mean.abs().max() < 1e-6
    assert (covariance - torch.eye(4) / 4).abs().max() < 1e-6


@pytest.mark.parametrize("mode", ["whiten", "norm"])
def test_quaternions_start_with_a_mean_squared_length_of_one(mode):
    y = layer(mode, eps=1e-12)(3 * draw(50, 8, 4) + 1)
    _, variance = quaternion_variance(y)
    assert (variance - 1).abs().max() < 1e-10


@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3), (9, 8, 3, 2)])
def test_split_is_torchs_batch_norm_of_the_real_channels(momentum, shape):
    mine = layer("split", momentum=momentum)
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    other = kinds[len(shape)](8, momentum=momentum, dtype=torch.float64)
    for training in (True, True, False):
        x = 2 * draw(*shape, seed=3 + training) + 1
        mine.train(training)
        other.train(training)
        assert torch.equal(mine(x), other(x))
    assert mine.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in mine.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", ["autograd", "vjp"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_move_as_torchs_do(mode, engine, momentum):
    """Of components that torch can see, the mean and the variances on the diagonal."""
    mine, other = layer(mode, momentum=momentum), nn.BatchNorm1d(8, momentum=momentum, dtype=torch.float64)
    for seed in range(3):
        x = (1 + seed) * draw(9, 8, 3, seed=seed) + seed
        mine(x) if engine == "autograd" else vjp(mine, x)
        other(x)
    found = mine.running_var
    if mode == "whiten":
        found = found.diagonal(dim1=1, dim2=2).t().flatten()
    expected = other.running_var
    if mode == "norm":
        # One variance a quaternion, the sum over components; both started at 1, so that is told apart.
        left = 0.0 if momentum is None else (1 - momentum) ** 3
        found, expected = found - left, expected.view(4, 2).sum(0) - 4 * left
    assert (mine.running_mean - other.running_mean).abs().max() < 1e-13
    assert (found - expected).abs().max() < 1e-12
    assert mine.num_batches_tracked == 3


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_takes_the_running_statistics(mode):
    batch = layer(mode, momentum=1.0, eps=1e-13)
    x = draw(200, 8) @ draw(8, 8, seed=1)
    trained = batch(x)
    evaluated = batch.eval()(x)
    # They are the unbiased ones.
    assert (evaluated * (200 / 199) ** 0.5 - trained).abs().max() < 1e-11


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_of_one_sample_is_that_within_a_batch(mode):
    batch = layer(mode)
    x = draw(9, 8, seed=4)
    batch(x)
    batch.eval()
    assert (batch(x[:1]) - batch(x)[:1]).abs().max() < 1e-14


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_before_the_pullback_does_not_change_it(mode):
    batch, x, grad = layer(mode).eval(), draw(9, 8), draw(9, 8, seed=1)
    _, first = vjp(batch, x, needs_input_grad=True)
    expected = first(grad.clone())
    _, second = vjp(batch, x, needs_input_grad=True)
    batch.train()(5 * draw(9, 8, seed=2))
    assert torch.equal(second(grad.clone()), expected)


@pytest.mark.parametrize("mode", MODES)
def test_reset_puts_everything_back(mode):
    fresh, used = layer(mode), layer(mode)
    used(draw(9, 8))
    for parameter in used.parameters():
        nn.init.normal_(parameter)
    used.reset_parameters()
    assert all(torch.equal(value, used.state_dict()[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
def test_without_running_statistics_evaluation_takes_those_of_the_batch(mode):
    batch, x = layer(mode, track_running_stats=False), draw(9, 8)
    assert torch.equal(batch.train()(x), batch.eval()(x))
    assert "running_mean" not in batch.state_dict()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 1, 1)])
def test_statistics_of_one_value_are_refused_and_leave_the_running_ones(mode, shape):
    batch = layer(mode)
    before = {key: value.clone() for key, value in batch.state_dict().items()}
    for run in (batch, lambda x: vjp(batch, x)):
        with pytest.raises(ValueError, match=r"one value a channel.*drop_last=True"):
            run(draw(*shape))
    assert all(torch.equal(value, before[key]) for key, value in batch.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 6}, r"num_features has 6 features"),
        ({"num_features": 0}, r"num_features=0"),
        ({"mode": "colour"}, r"mode='colour' is not one of 'whiten', 'norm', 'split'"),
        ({"eps": 0.0}, r"eps=0.0"),
        ({"momentum": 2.0}, r"momentum=2.0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuaternionBatchNorm(**{"num_features": 8} | options)


@pytest.mark.parametrize("mode", MODES)
def test_inputs_of_another_width_are_refused(mode):
    with pytest.raises(ValueError, match=r"\(9, 12\) does not fit num_features=8: give \(batch, 8, \.\.\.\)"):
        layer(mode)(draw(9, 12))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("shape", [(0, 8), (0, 8, 3, 2), (3, 8, 0)])
def test_empty_batches_pass_as_through_torchs_layer(mode, training, track, shape):
    mine = layer(mode, track_running_stats=track).train(training)
    torchs = nn.BatchNorm2d(8, track_running_stats=track, dtype=torch.float64).train(training)
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    x = draw(*shape).requires_grad_()
    y = mine(x)
    y.sum().backward()
    torchs(draw(0, 8, 1, 1))
    assert y.shape == x.grad.shape == shape
    vjp_y, pullback = vjp(mine, x.detach(), needs_input_grad=True)
    assert vjp_y.shape == pullback(torch.empty_like(vjp_y)).shape == shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in mine.parameters())
    if track:
        assert mine.num_batches_tracked == 2 * torchs.num_batches_tracked
        assert torch.equal(mine.running_mean, before["running_mean"])
        assert torch.equal(mine.running_var, before["running_var"])
