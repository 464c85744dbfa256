"""Arguments of a data module as plain values, so that a checkpoint with them loads safely."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """``value`` with paths as strings, and what is numpy's as Python's numbers and lists; inside containers too.

    ``torch.load(weights_only=True)`` refuses the others.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    # Only these two themselves: a named tuple is not built from a list.
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    return value
