"""How far an echo is nudged, and how the echoes of several nudges make a gradient."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.phase_space import State, sizes

NudgeMode = Literal["symmetric", "one_sided", "richardson", "tangent"]


class Pair(NamedTuple):
    """Two echoes, and the factor with which their difference counts."""

    plus: float
    minus: float
    factor: float


PAIRS: dict[str, tuple[Pair, ...]] = {
    "one_sided": (Pair(1.0, 0.0, 1.0),),
    "symmetric": (Pair(1.0, -1.0, 0.5),),
    "richardson": (Pair(1.0, -1.0, -1 / 6), Pair(0.5, -0.5, 4 / 3)),
}
"""Echoes by mode, their nudges in units of the nudge's size; errors of the first, second and fourth order in it."""


def check_nudge(nudge: str, eta: float) -> None:
    """Refuse what is no nudge.

    Raises:
        ValueError: An unknown mode, or a size that is not positive.
    """
    if nudge not in get_args(NudgeMode):
        raise ValueError(f"nudge={nudge!r} is not one of {', '.join(map(repr, get_args(NudgeMode)))}")
    if not 0 < eta < float("inf"):
        raise ValueError(f"eta={eta!r} must be positive, and finite")


def nudge_size(state: State, directions: Sequence[State], eta: float, relative: bool) -> Tensor:
    """How long the flow of the cost acts on each sample ``(batch,)``.

    Args:
        state: The state when the error signal comes.
        directions: Where the flow of the cost moves it, at each time when it does.
        eta: The size, or with ``relative`` the length of the nudge as a fraction of the state's.
        relative: Whether samples have sizes of their own. A fixed size drowns in rounding once gradients shrink.
    """
    of_state = sizes(state)
    if not relative:
        return torch.full_like(of_state, eta)
    of_direction = sizes([part for direction in directions for part in direction])
    # A state at rest at the origin has no scale of its own; without an error signal there is nothing to scale.
    of_state = torch.where(of_state > 0, of_state, torch.ones_like(of_state))
    size = eta * torch.where(of_direction > 0, of_state / of_direction, torch.ones_like(of_state))
    return size.clamp_max(torch.finfo(size.dtype).max)
