"""Polynomials of a node's own state: what its local motion is made of."""

from itertools import combinations_with_replacement

import torch
from torch import Tensor

from lightning_nobp.typed import explained

_HIGHEST = 100


@explained
def polynomial_exponents(components: int, degree: int) -> Tensor:
    """Exponents ``(terms, components)`` of all monomials up to a degree, the constant first.

    Args:
        components: Numbers in the state of a node.
        degree: The highest.
    """
    factors = [c for total in range(degree + 1) for c in combinations_with_replacement(range(components), total)]
    return torch.tensor([[chosen.count(i) for i in range(components)] for chosen in factors])


@explained
def polynomial_features(x: Tensor, exponents: Tensor, degree: int | None = None) -> Tensor:
    """Values of monomials ``(..., terms)``.

    Args:
        x: States ``(..., components)``.
        exponents: ``(terms, components)``.
        degree: The highest of them; None looks it up, which no exported graph can.
    """
    if exponents.dtype == torch.bool or exponents.is_floating_point() or exponents.is_complex():
        raise TypeError(f"exponents of type {exponents.dtype}: give whole numbers, int64")
    if degree is None:
        low, degree = (int(e) for e in exponents.aminmax())
        if low < 0 or degree > _HIGHEST:
            raise ValueError(f"exponents from {low} to {degree}: give whole numbers from 0 to {_HIGHEST}")
    values = torch.ones(*x.shape[:-1], len(exponents), dtype=x.dtype, device=x.device)
    for component in range(exponents.shape[1]):
        powers = [torch.ones_like(x[..., 0])]
        for _ in range(degree):
            powers.append(powers[-1] * x[..., component])
        values = values * torch.stack(powers, dim=-1)[..., exponents[:, component]]
    return values
