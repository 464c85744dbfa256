"""Dropout of whole quaternions: what is dropped together, how often, and what is left."""

import pytest
import torch

from lightning_nobp.functional.quaternion import unpack
from lightning_nobp.nn import vjp
from lightning_nobp.nn.quaternion.dropout import QuaternionDropout, QuaternionDropout2d

P = 0.25


def dropped(kind, shape):
    """Which components are dropped, ``(batch, ..., N, 4)``, and the output."""
    torch.manual_seed(0)
    y = kind(P)(torch.ones(shape))
    return unpack(y, 1) == 0, y


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (QuaternionDropout, (200, 24)),
        (QuaternionDropout, (200, 24, 3)),
        (QuaternionDropout2d, (200, 24, 3, 5)),
    ],
)
def test_the_components_of_a_quaternion_are_dropped_together(kind, shape):
    gone, y = dropped(kind, shape)
    assert torch.equal(gone.any(-1), gone.all(-1))
    assert set(y.unique().tolist()) == {0.0, y.max().item()}
    assert y.max().item() == pytest.approx(1 / (1 - P))
    # Five standard deviations of the mean of 1200 independent draws or more.
    assert gone.float().mean().item() == pytest.approx(P, abs=5 * (P * (1 - P) / 1200) ** 0.5)


def test_other_quaternions_are_dropped_independently():
    gone, _ = dropped(QuaternionDropout, (200, 24, 3))
    quaternions = gone[..., 0].flatten(0, 1).float()
    correlation = torch.corrcoef(quaternions.t()).triu(1)
    assert correlation.abs().max() < 5 / 600**0.5
    assert not torch.equal(gone[:, 0], gone[:, 1])


def test_channels_are_dropped_in_every_pixel():
    gone, _ = dropped(QuaternionDropout2d, (200, 24, 3, 5))
    by_channel = gone[..., 0].flatten(1, 2)
    assert torch.equal(by_channel.any(1), by_channel.all(1))


@pytest.mark.parametrize("kind", [QuaternionDropout, QuaternionDropout2d])
def test_both_engines_drop_the_same_from_the_same_seed_and_go_on_alike(kind):
    x = torch.randn(6, 12, 3, 2)
    torch.manual_seed(5)
    first, after = kind(0.5)(x), torch.rand(3)
    torch.manual_seed(5)
    second, _ = vjp(kind(0.5), x)
    assert (first == 0).any()
    assert torch.equal(first, second)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("layer", [QuaternionDropout(0.5).eval(), QuaternionDropout2d(0.0)])
def test_nothing_is_dropped_in_evaluation_or_with_probability_zero(layer):
    x = torch.randn(6, 12, 3, 2)
    assert torch.equal(layer(x), x)


def test_everything_is_dropped_with_probability_one():
    assert torch.equal(QuaternionDropout(1.0)(torch.randn(6, 12)), torch.zeros(6, 12))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"p=1.5 is no probability"):
        QuaternionDropout(1.5)
    with pytest.raises(ValueError, match=r"\(6, 12\) holds no maps"):
        QuaternionDropout2d()(torch.randn(6, 12))
