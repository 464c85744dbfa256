"""The network that grows: shapes, prefixes, state, and a fit in a plain loop."""

import pytest
import torch
from torch.nn import functional as F

from lightning_nobp.functional.patches import patch_second_moment
from lightning_nobp.functional.pooling import second_order_pool
from lightning_nobp.functional.ridge import ridge_solve, ridge_statistics
from lightning_nobp.nn import ResCNet


def small(depth=3, **kwargs):
    torch.manual_seed(0)
    defaults = {"channels": 4, "first_kernel_size": 3, "pooling": {"second_order": 2, "mean": 1}}
    return ResCNet((2, 8, 8), 3, depth=depth, **defaults | kwargs).double()


def images(count=20):
    torch.manual_seed(1)
    return torch.randn(count, 2, 8, 8, dtype=torch.float64)


@torch.no_grad()
def fit(network, x, target, shrinkage=0.5, ridge=1e-2):
    """Layer after layer, without Lightning: what the documentation shows."""
    residual = F.one_hot(target, 3).double()
    h = x
    for number in range(1, network.depth + 1):
        layer = network.compensation(number)
        layer.conv.fit(patch_second_moment(h, layer.conv.kernel_size, layer.conv.padding))
        h, features = layer(h)
        layer.readout.fit(ridge_solve(ridge_statistics(features, residual), ridge), shrinkage)
        residual = residual - layer.readout(features)
        network.num_fitted = number
        yield residual


def test_scores_are_the_sum_of_the_readouts_of_the_fitted_layers():
    network, x, target = small(), images(), torch.arange(20) % 3
    assert (network(x) == 0).all()
    assert network.staged_predict(x).shape == (0, 20, 3)
    for number, residual in enumerate(fit(network, x, target), start=1):
        torch.testing.assert_close(network(x), F.one_hot(target, 3) - residual, rtol=1e-10, atol=1e-12)
        staged = network.staged_predict(x)
        assert staged.shape == (number, 20, 3)
        for depth in range(number + 1):
            expected = network(x, depth=depth)
            torch.testing.assert_close(staged[depth - 1] if depth else 0 * expected, expected)


def test_every_layer_lessens_the_residual():
    for shrinkage in (0.3, 1.0):
        lengths = [float(r.norm()) for r in fit(small(), images(), torch.arange(20) % 3, shrinkage)]
        assert lengths == sorted(lengths, reverse=True)


def test_a_prefix_of_a_deep_fit_is_a_shallow_fit():
    x, target = images(), torch.arange(20) % 3
    deep, shallow = small(3), small(1)
    assert list(fit(deep, x, target))
    assert list(fit(shallow, x, target))
    assert torch.equal(deep(x, depth=1), shallow(x))


def test_features_of_all_layers_side_by_side():
    network, x = small(), images()
    assert list(fit(network, x, torch.arange(20) % 3))
    per_layer = 4 * 10 + 4
    features = network.features(x)
    assert features.shape == (20, 3 * per_layer)
    z = network.compensation(1).conv(x)
    torch.testing.assert_close(features[:, :40], second_order_pool(z, 2))
    assert torch.equal(network.features(x, depth=2), features[:, : 2 * per_layer])


@pytest.mark.parametrize(("activation", "function"), [("relu", F.relu), ("abs", torch.abs), ("tanh", torch.tanh)])
def test_what_goes_to_the_next_layer(activation, function):
    network = small(activation=activation, pool_after=[1])
    z = network.compensation(1).conv(images())
    torch.testing.assert_close(network.compensation(1).next_input(z), F.avg_pool2d(function(z), 2))
    z = network.compensation(2).conv(torch.randn(2, 4, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(network.compensation(2).next_input(z), function(z))
    assert torch.equal(small(activation="identity").compensation(2).next_input(z), z)


def test_shapes_of_maps():
    assert small().map_shapes == [(2, 8, 8), (4, 4, 4), (4, 4, 4), (4, 4, 4)]
    assert small(2, pool_after=[2, 9]).map_shapes == [(2, 8, 8), (4, 8, 8), (4, 4, 4)]
    valid = small(2, padding="valid", pool_after=[], channels=[4, 5])
    assert valid.map_shapes == [(2, 8, 8), (4, 6, 6), (5, 4, 4)]


def test_how_many_layers_are_fitted_is_part_of_the_state():
    network = small()
    network.num_fitted = 2
    other = small()
    other.load_state_dict(network.state_dict())
    assert other.num_fitted == 2
    with torch.device("meta"):
        assert ResCNet((2, 8, 8), 3, depth=1, channels=4, first_kernel_size=3).num_fitted == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"padding": "full"}, "padding='full' is not one of 'same', 'valid'"),
        ({"activation": "gelu"}, "activation='gelu' is not one of 'relu'"),
        ({"channels": [4, 4]}, r"channels=\[4, 4\] are 2 numbers for depth=3"),
        ({"pool_after": [0]}, r"pool_after=\[0\]: layers are numbered from 1"),
        ({"channels": 19}, "layer 1 of depth=3: channels=19 must be from 1 to 18"),
        ({"first_kernel_size": 9}, "layer 1 of depth=3: kernel_size=9 is larger than images of 8x8"),
        ({"pooling": {"mean": 5}}, "layer 2 of depth=3: pooling={'mean': 5} has finer grids than maps of 4x4"),
        ({"pooling": {"median": 1}}, "layer 1 of depth=3: pooling='median' is not one of"),
        ({"pool_after": [1, 2, 3], "kernel_size": 5}, "layer 2 of depth=3: kernel_size=5 is larger than images of 4x4"),
        ({"pooling": {}}, r"pooling=\{\} gives no features"),
        ({"pooling": {"mean": []}}, r"pooling=\{'mean': \[\]\} gives no features"),
        ({"power": 0.0}, "power=0.0 must be positive"),
        (
            {"pool_after": [1, 2, 3, 4], "depth": 4, "pooling": {"mean": 1}, "kernel_size": 1},
            "layer 4 of depth=4: pool_after=.* maps of 1x1 cannot be halved",
        ),
        ({"filters": "ica"}, "layer 1 of depth=3: filters='ica' is not one of"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_layers_that_were_not_fitted_are_refused():
    network = small()
    with pytest.raises(ValueError, match="depth=1 must be from 0 to 0, the layers that have been fitted"):
        network(images(), depth=1)
    with pytest.raises(ValueError, match="no layer has been fitted"):
        network.features(images())
