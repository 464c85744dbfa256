"""Features of maps against loops over cells."""

import pytest
import torch
from torch.nn import functional as F

from lightning_nobp.functional.pooling import (
    binary_codes,
    block_histograms,
    crelu_mean_pool,
    histogram_pool,
    num_pooled_features,
    pooled_features,
    power_norm,
    second_order_pool,
)


def maps(batch=3, channels=8, height=7, width=6):
    torch.manual_seed(0)
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def cells(z, grid):
    """As adaptive pooling cuts them: from floor(i H / g) to ceil((i + 1) H / g)."""
    height, width = z.shape[2:]
    for i in range(grid):
        for j in range(grid):
            rows = slice(i * height // grid, -(-(i + 1) * height // grid))
            columns = slice(j * width // grid, -(-(j + 1) * width // grid))
            yield z[:, :, rows, columns].flatten(2)


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize("power", [1.0, 0.5, 0.3])
def test_second_order_pooling_is_the_mean_product_of_each_pair(grid, power):
    z, expected = maps(), []
    for cell in cells(z, grid):
        for i in range(8):
            for j in range(i, 8):
                product = (cell[:, i] * cell[:, j]).mean(1)
                expected.append(product.sign() * product.abs() ** power)
    found = second_order_pool(z, grid, power)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", [1, 3])
def test_crelu_means_are_those_of_both_signs(grid):
    z = maps()
    expected = [F.adaptive_avg_pool2d(part, grid).flatten(1) for part in (z.relu(), (-z).relu())]
    torch.testing.assert_close(crelu_mean_pool(z, grid), torch.cat(expected, 1), rtol=1e-12, atol=1e-14)


def test_codes_count_the_first_channel_lowest():
    z = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0]).view(1, 6, 1, 1)
    assert binary_codes(z, 3).flatten().tolist() == [0b101, 0b100]
    assert binary_codes(torch.zeros(1, 6, 1, 1), 3).flatten().tolist() == [0, 0]


@pytest.mark.parametrize(("block", "stride"), [(3, 3), (4, 2), (6, 1)])
def test_histograms_of_blocks_count_every_pixel_of_a_block(block, stride):
    codes = binary_codes(maps(), 4)
    found = block_histograms(codes, 4, block, stride)
    rows, columns = ((size - block) // stride + 1 for size in (7, 6))
    assert found.shape == (3, 2, rows, columns, 16)
    assert (found.sum(-1) == block**2).all()
    last = codes[2, 1, stride * (rows - 1) :][:block, :block]
    assert found[2, 1, rows - 1, 0].tolist() == last.flatten().bincount(minlength=16).tolist()
    # The histogram entries of an image sum to maps x blocks x pixels of a block.
    assert (found.flatten(1).sum(1) == 2 * rows * columns * block**2).all()


@pytest.mark.parametrize("grid", [1, 2])
def test_histograms_of_cells_are_shares(grid):
    z = maps()
    found = histogram_pool(z, grid)
    expected = [
        torch.stack([codes.bincount(minlength=256) for codes in cell.flatten(1)]) / cell.shape[-1]
        for cell in cells(binary_codes(z, 8), grid)
    ]
    torch.testing.assert_close(found, torch.cat(expected, 1).double(), rtol=1e-6, atol=1e-8)


def test_poolings_stand_side_by_side_and_a_list_of_grids_is_a_pyramid():
    z = maps()
    pooling = {"mean": [1, 2], "max": 3, "second_order": 1, "crelu_mean": 2, "histogram": 1}
    found = pooled_features(z, pooling)
    assert found.shape[1] == num_pooled_features(8, pooling) == 8 * 5 + 8 * 9 + 36 + 64 + 256
    expected = [F.adaptive_avg_pool2d(z, 1), F.adaptive_avg_pool2d(z, 2), F.adaptive_max_pool2d(z, 3)]
    torch.testing.assert_close(found[:, : 8 * 14], torch.cat([t.flatten(1) for t in expected], 1))


def test_power_norm_keeps_signs():
    values = torch.tensor([-4.0, 0.0, 9.0])
    assert power_norm(values, 0.5).tolist() == [-2.0, 0.0, 3.0]
    assert power_norm(values, 1) is values


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: num_pooled_features(8, {"median": 2}), "pooling='median' is not one of 'second_order'"),
        (lambda: num_pooled_features(8, {"mean": 0}), "'mean': 0}: a grid has at least 1 cell"),
        (lambda: num_pooled_features(8, {}), "gives no features: name at least one"),
        (lambda: num_pooled_features(9, {"histogram": 1}), "channels=9 is no multiple of 8"),
        (lambda: binary_codes(torch.zeros(1, 5, 2, 2), 2), "channels=5 must be a multiple of bits=2"),
        (
            lambda: block_histograms(torch.zeros(1, 1, 3, 9).long(), 2, 4, 1),
            "block=4 is larger than maps of 3x9",
        ),
        (lambda: pooled_features(maps(), {"median": 2}), "pooling='median' is not one of"),
    ],
)
def test_what_cannot_be_pooled_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
