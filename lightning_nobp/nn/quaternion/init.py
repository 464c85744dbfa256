"""How weights of quaternions start."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Initialisation = Literal["polar", "isotropic", "unitary", "real"]
Criterion = Literal["he", "glorot"]


@torch.no_grad()
def quaternion_init_(
    weight: Tensor,
    init: Initialisation = "polar",
    criterion: Criterion = "he",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a weight at random, such that signals keep their size from layer to layer.

    The expected squared length of a weight is ``4 sigma^2``, with ``sigma = 1 / sqrt(2 fan_in)`` for ``'he'`` and
    ``1 / sqrt(2 (fan_in + fan_out))`` for ``'glorot'``, fans counted in quaternions: as large as torch's Kaiming start
    of the real layer of the same width. ``'real'`` is the start of ``nn.Linear``, a sixth of the first.

    Args:
        weight: ``(4, M, N, ...)``; changed in place.
        init: ``'polar'``, ``phi (cos t + n sin t)`` with t uniform, n a random axis and phi chi-distributed with 4
            degrees of freedom; ``'isotropic'``, four independent normal components; ``'unitary'``, all of one length;
            ``'real'``, uniform components as ``nn.Linear`` draws them.
        criterion: ``'he'`` or ``'glorot'``; ``'real'`` has its own.
        generator: Source of random numbers; None for torch's.

    Returns:
        The weight.

    Raises:
        ValueError: An unknown ``init`` or ``criterion``, or a weight of another shape.

    References:
        Parcollet et al., "Quaternion Recurrent Neural Networks", arXiv 1806.04418. Its Algorithm 1 draws phi uniform
        and the axis from one octant; its authors' code, and this, draw them as said above.
    """
    for name, value, choices in (
        ("init", init, get_args(Initialisation)),
        ("criterion", criterion, get_args(Criterion)),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
    if weight.dim() < 3 or weight.shape[0] != 4:
        raise ValueError(f"weight of shape {tuple(weight.shape)} is not (4, M, N, ...): component, output, input")
    receptive = math.prod(weight.shape[3:])
    fan_in, fan_out = weight.shape[2] * receptive, weight.shape[1] * receptive
    if not weight.numel():
        return weight
    if init == "real":
        bound = 1 / math.sqrt(4 * fan_in)
        return weight.uniform_(-bound, bound, generator=generator)
    sigma = 1 / math.sqrt(2 * (fan_in if criterion == "he" else fan_in + fan_out))

    def normal(components: int) -> Tensor:
        shape = (components, *weight.shape[1:])
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.empty(shape, device=weight.device, dtype=dtype).normal_(generator=generator)

    if init == "isotropic":
        return weight.copy_(normal(4) * sigma)
    if init == "unitary":
        return weight.copy_(torch.nn.functional.normalize(normal(4), dim=0) * (2 * sigma))
    length = torch.linalg.vector_norm(normal(4), dim=0) * sigma
    axis = torch.nn.functional.normalize(normal(3), dim=0)
    angle = torch.empty_like(length).uniform_(-math.pi, math.pi, generator=generator)
    return weight.copy_(length * torch.cat([angle.cos().unsqueeze(0), axis * angle.sin()]))
