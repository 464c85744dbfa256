"""A cache of activations in files."""

import pytest
import torch
from test_files import files_of_at_most

from lightning_nobp.rules.activation_cache import ActivationCache


def test_a_cache_for_which_there_is_no_room_is_named(tmp_path):
    with files_of_at_most(1000), pytest.raises(OSError, match=rf"{tmp_path}/nobp-cache-\w+/0\.rows"):
        ActivationCache(100, 16, 0, 3, torch.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []
