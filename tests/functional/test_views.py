"""Views of images."""

import pytest
import torch

from lightning_nobp.functional.views import image_view


def test_views_move_and_mirror():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    expected = {
        "original": [[1, 2], [3, 4]],
        "flip": [[2, 1], [4, 3]],
        "up": [[3, 4], [0, 0]],
        "down": [[0, 0], [1, 2]],
        "left": [[2, 0], [4, 0]],
        "right": [[0, 1], [0, 3]],
        "flip+down": [[0, 0], [2, 1]],
        "left+left": [[0, 0], [0, 0]],
    }
    for name, pixels in expected.items():
        assert image_view(x, name)[0, 0].tolist() == pixels, name


def test_unknown_views_are_refused():
    with pytest.raises(ValueError, match=r"views='flip\+rotate': 'rotate' is not one of 'original', 'flip'"):
        image_view(torch.zeros(1, 1, 2, 2), "flip+rotate")
