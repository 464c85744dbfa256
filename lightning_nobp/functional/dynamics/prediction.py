"""For how long predictions of chaotic motion hold."""

import torch
from torch import Tensor

from lightning_nobp.functional.dynamics.network import Field, Integrator, rollout
from lightning_nobp.typed import explained


@explained
def valid_steps(predicted: Tensor, true: Tensor, threshold: float = 0.4) -> Tensor:
    """Steps before the root mean square error over the network exceeds a threshold, ``(batch,)``.

    A prediction that never does has as many as there are steps; one that is not finite has ended.

    Args:
        predicted: Normalised states ``(batch, steps + 1, nodes, components)``, from the start.
        true: Likewise.
        threshold: In standard deviations of the series.
    """
    error = (predicted - true).flatten(2).square().mean(dim=2).sqrt()
    failed = ~(error <= threshold)
    steps = torch.arange(error.shape[1], device=error.device)
    return torch.where(failed, steps, error.shape[1]).amin(dim=1).sub(1).clamp_min(0)


@explained
def noisy_start(
    field: Field,
    weights: Tensor,
    true: Tensor,
    dt: float,
    noise: float,
    generator: torch.Generator,
    *,
    integrator: Integrator = "rk4",
) -> Tensor:
    """What the true system predicts from starts that are not exactly known: the yardstick of every model.

    Args:
        field: Of each node alone.
        weights: ``(nodes, nodes)``.
        true: Measured states ``(batch, steps + 1, nodes, components)``.
        dt: Time from one to the next.
        noise: Standard deviation of the error at the start, over that of each component of ``true``.
        generator: Of the error.
        integrator: See :func:`~lightning_nobp.functional.dynamics.step`.

    Returns:
        States of the shape of ``true``.
    """
    if true.dim() != 4:
        raise ValueError(f"true of shape {tuple(true.shape)}: give (batch, steps + 1, nodes, components)")
    start = true[:, 0]
    error = torch.randn(start.shape, generator=generator, dtype=start.dtype) * true.flatten(0, 2).std(dim=0)
    return rollout(field, start + noise * error, weights, true.shape[1] - 1, dt, integrator=integrator).movedim(0, 1)
