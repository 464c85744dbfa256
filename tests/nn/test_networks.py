"""Shapes and refusals of the preset networks."""

import pytest
import torch
from torch import nn

from lightning_nobp.nn import CNN, MLP, sequential


def test_mlp_is_the_textbook_network():
    network = MLP((1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == 784 * 500 + 500 + 500 * 500 + 500 + 500 * 10 + 10
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_mlp_without_hidden_layers_is_linear():
    assert [type(m) for m in MLP((3,), 2, ())] == [nn.Flatten, nn.Linear]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 9, 11)])
def test_cnn_takes_any_image_large_enough(shape):
    assert CNN(shape, 7, batch_norm=True, dropout=0.1)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CNN((1, 3, 8), 10), "too small.*fewer channels"),
        (lambda: CNN((64,), 10), "images"),
        (lambda: MLP((3,), 2, activation="step"), "activation='step'.*relu"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_slice_is_the_same_layers_in_a_plain_sequence():
    network = MLP((3,), 2, (4, 5))
    body, head = network[:-1], network[-1]
    assert type(body) is nn.Sequential
    assert body[1] is network[1]
    x = torch.randn(6, 3)
    torch.testing.assert_close(head(body(x)), network(x))


def test_sequential_from_a_list():
    assert isinstance(sequential([nn.Linear(2, 2), nn.ReLU()])[1], nn.ReLU)
