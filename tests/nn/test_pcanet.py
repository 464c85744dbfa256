"""Convolutions of principal components, and the classical network."""

import pytest
import torch
from torch.nn import functional as F

from lightning_nobp.functional.patches import patch_second_moment
from lightning_nobp.functional.ridge import LinearReadout
from lightning_nobp.nn import HashingNetwork, PCAConv2d, Readout


def images(count=30, channels=2, size=8):
    torch.manual_seed(0)
    return F.avg_pool2d(torch.randn(count, channels, size, size, dtype=torch.float64), 3, 1, padding=1) + 0.5


def fitted(**kwargs):
    conv = PCAConv2d(2, 7, 3, padding=1, **kwargs).double()
    conv.fit(patch_second_moment(images(), 3, 1))
    return conv


def flat(z):
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def test_responses_are_uncorrelated_with_zero_mean_and_the_eigenvalues_as_variances():
    conv = fitted()
    responses = flat(conv(images()))
    torch.testing.assert_close(responses.mean(0), torch.zeros(7).double(), rtol=0, atol=1e-14)
    covariance = torch.cov(responses.T, correction=0)
    torch.testing.assert_close(covariance, conv.eigenvalues.diag(), rtol=1e-11, atol=1e-12)
    patches = F.unfold(images(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    total = patches.var(0, correction=0).sum()
    torch.testing.assert_close(conv.explained_variance_ratio, conv.eigenvalues / total)


def test_whitened_responses_have_unit_variance():
    responses = flat(fitted(whiten=True)(images()))
    torch.testing.assert_close(torch.cov(responses.T, correction=0), torch.eye(7).double(), rtol=0, atol=1e-10)


def test_all_components_keep_the_length_of_patches():
    conv = PCAConv2d(2, 18, 3).double()
    conv.fit(patch_second_moment(images(), 3))
    patches = F.unfold(images(), 3).transpose(1, 2)
    centred = patches - patches.flatten(0, 1).mean(0)
    length = conv(images()).square().sum(1).flatten(1)
    torch.testing.assert_close(length, centred.square().sum(2), rtol=1e-11, atol=1e-11)


def test_filters_without_patch_means_see_only_differences():
    conv = fitted(remove_patch_mean=True)
    brighter = PCAConv2d(2, 7, 3).double()
    brighter.load_state_dict(conv.state_dict())
    torch.testing.assert_close(brighter(images() + 3.0), brighter(images()), rtol=0, atol=1e-12)


def test_maps_lie_channels_last_also_behind_a_single_channel():
    for channels in (1, 2):
        z = PCAConv2d(channels, 4, 3, padding=1)(torch.randn(2, channels, 6, 6))
        assert channels == 2 or z.is_contiguous(memory_format=torch.channels_last)


def test_random_filters_depend_on_their_generator_alone():
    weights = []
    for seed in (1, 1, 2):
        conv = PCAConv2d(2, 7, 3, padding=1, filters="random").double()
        conv.fit(patch_second_moment(images(), 3, 1), generator=torch.Generator().manual_seed(seed))
        weights.append(conv.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 26, 5), "channels=26 must be from 1 to 25: patches of 1 channels with kernel_size=5"),
        ((2, 0, 3), "channels=0 must be from 1 to 18"),
        ((2, 17, 3, 0, "pca", False, True), "from 1 to 16: .* less their means"),
        ((2, 4, 3, 0, "ica"), "filters='ica' is not one of"),
    ],
)
def test_filters_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PCAConv2d(*arguments)


def test_a_readout_takes_a_share_of_a_solution():
    readout = Readout(3, 2).double()
    assert (readout(torch.randn(4, 3, dtype=torch.float64)) == 0).all()
    found = LinearReadout(torch.randn(3, 2).double(), torch.randn(2).double(), 0.1, 1.0)
    readout.fit(found, 0.5)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(readout(x), 0.5 * (x @ found.weight + found.bias))


def by_hand(network, x):
    """The network's histograms, by the definition."""
    features = []
    for image in network.first(x):
        for channel in image:
            z = network.second(channel.view(1, 1, *channel.shape))[0]
            code = sum(2**bit * (z[bit] > 0).long() for bit in range(len(z)))
            for top in range(0, code.shape[0] - network.block + 1, network.block_stride):
                for left in range(0, code.shape[1] - network.block + 1, network.block_stride):
                    block = code[top : top + network.block, left : left + network.block]
                    features.append(block.flatten().bincount(minlength=2 ** len(z)))
    return torch.stack(features).view(len(x), -1).double()


def small(**kwargs):
    torch.manual_seed(1)
    return HashingNetwork((2, 8, 8), 3, channels=(3, 4), kernel_size=3, block=4, block_stride=2, **kwargs).double()


def test_histograms_are_those_of_the_definition():
    network, x = small(), images(4)
    found = network.histograms(x)
    assert torch.equal(found, by_hand(network, x))
    assert network.num_histogram_features == found.shape[1] == 3 * 9 * 16
    # Each image's entries sum to L1 x blocks x pixels of a block.
    assert (found.sum(1) == 3 * 9 * 16).all()


def test_a_pyramid_takes_the_largest_over_blocks():
    network, x = small(pyramid=(2, 1)), images(4)
    blocks = by_hand(network, x).view(4, 3, 3, 3, 16)
    found = network.histograms(x)
    assert found.shape[1] == network.num_histogram_features == 3 * 16 * 5
    assert torch.equal(found[:, 3 * 16 * 4 :], blocks.amax((2, 3)).flatten(1))
    corner = blocks[:, :, :2, :2].amax((2, 3))
    assert torch.equal(found[:, : 3 * 16 * 4].view(4, 3, 16, 4)[..., 0], corner)


def test_a_sketch_keeps_inner_products_in_the_mean():
    x = images(30)
    full = small(power=0.5).features(x)
    torch.testing.assert_close(full, small().histograms(x).sqrt())
    sketched = small(power=0.5, sketch_dim=4000).features(x)
    assert sketched.shape == (30, 4000)
    error = (sketched @ sketched.T - full @ full.T).abs().mean()
    assert error < 0.05 * (full @ full.T).mean()
    # The same sketch in every network of these sizes: it is part of the state.
    assert torch.equal(small(sketch_dim=50).bucket, small(sketch_dim=50).bucket)


def test_whole_maps_are_one_block():
    network = HashingNetwork((1, 8, 8), 3, channels=(2, 2), kernel_size=3, block=None)
    assert network.num_histogram_features == 2 * 4
    assert network(torch.randn(5, 1, 8, 8)).shape == (5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (64,)}, r"input_shape=\(64,\): images"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"kernel_size": 9}, "kernel_size=9 is larger than images of 8x8"),
        ({"block": 9}, "block=9 is larger than images of 8x8"),
        ({"channels": (8,)}, r"channels=\[8\]: the classical network has two layers"),
        ({"channels": (8, 20), "kernel_size": 5}, "histograms of 20 bits are too long"),
        ({"channels": (9, 8), "kernel_size": 3}, "channels=9 must be from 1 to 8: .* less their means"),
        ({"pyramid": (4,)}, r"pyramid=\[4\] is finer than 1x1 blocks"),
        ({"sketch_dim": 0}, "sketch_dim=0 must be at least 1"),
        ({"block": 0}, "block=0 must be at least 1"),
        ({"block_stride": -1}, "block_stride=-1 must be at least 1"),
        ({"input_shape": (0, 8, 8)}, r"input_shape=\(0, 8, 8\): images"),
        ({"pyramid": ()}, r"pyramid=\[\] must be grids"),
        ({"power": -1.0}, "power=-1.0 must be positive"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HashingNetwork(**{"input_shape": (1, 8, 8), "num_classes": 3} | arguments)
