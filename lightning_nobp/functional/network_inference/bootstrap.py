"""How certain couplings are: what comes out of windows drawn again and again.

References:
    Kuensch, "The jackknife and the bootstrap for general stationary observations", Ann. Statist. 17, 1217 (1989).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_nobp.functional.network_inference.statistics import Statistics
from lightning_nobp.typed import explained


@explained
def standard_error(
    windows: Sequence[Statistics], weights: Callable[[Statistics], Tensor], num_bootstrap: int, seed: int = 0
) -> Tensor:
    """Standard deviation of the weights over resamplings of windows, ``(nodes, nodes)``.

    Args:
        windows: Sums of disjoint parts of the series, long against its correlations.
        weights: Solves sums of parts for couplings ``(nodes, nodes)``.
        num_bootstrap: Resamplings.
        seed: Of the resamplings.

    Raises:
        ValueError: Fewer than two windows, or than two resamplings; a resampling that does not determine the weights.
    """
    if len(windows) < 2 or num_bootstrap < 2:
        raise ValueError(f"num_bootstrap={num_bootstrap} of {len(windows)} windows: both must be at least 2")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_bootstrap):
        drawn = torch.randint(len(windows), (len(windows),), generator=generator).bincount(minlength=len(windows))
        parts = [window * times for window, times in zip(windows, drawn.tolist(), strict=True) if times]
        try:
            found.append(weights(sum(parts[1:], start=parts[0])))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(
                f"{len(parts)} of {len(windows)} windows, as a resampling drew them, do not determine the couplings: "
                "take more windows (num_windows), a longer series or a larger ridge"
            ) from error
    return torch.stack(found).std(dim=0)
