"""Polynomials of a node's own state: what its local motion is made of."""

from itertools import combinations_with_replacement

import torch
from torch import Tensor


def polynomial_exponents(components: int, degree: int) -> Tensor:
    """Exponents ``(terms, components)`` of all monomials up to a degree, the constant first.

    Args:
        components: Numbers in the state of a node.
        degree: The highest.
    """
    factors = [c for total in range(degree + 1) for c in combinations_with_replacement(range(components), total)]
    return torch.tensor([[chosen.count(i) for i in range(components)] for chosen in factors])


def polynomial_features(x: Tensor, exponents: Tensor, degree: int | None = None) -> Tensor:
    """Values of monomials ``(..., terms)``.

    Args:
        x: States ``(..., components)``.
        exponents: ``(terms, components)``.
        degree: The highest of them; None looks it up, which no exported graph can.
    """
    if degree is None:
        degree = int(exponents.max())
    values = torch.ones(*x.shape[:-1], len(exponents), dtype=x.dtype, device=x.device)
    for component in range(exponents.shape[1]):
        powers = [torch.ones_like(x[..., 0])]
        for _ in range(degree):
            powers.append(powers[-1] * x[..., component])
        values = values * torch.stack(powers, dim=-1)[..., exponents[:, component]]
    return values
