"""Derivatives of quaternion functions by the GHR calculus, and the folk derivative that it replaces."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.algebra import check_components, hamilton_product, rotate
from lightning_nobp.functional.quaternion.products import Side, check_options
from lightning_nobp.typed import explained

QuaternionFunction = Callable[[Tensor], Tensor]
"""From ``(..., 4)`` to ``(..., 4)``, or to real ``(...)``, element by element."""


@explained
def ghr_derivative(
    f: QuaternionFunction, q: Tensor, mu: Tensor | None = None, *, conjugate: bool = False, side: Side = "left"
) -> Tensor:
    """``df/dq^mu``, or with ``conjugate`` ``df/dq^{mu*}``, of the generalised HR calculus.

    The left derivative is ``1/4 (df/dq0 - df/dq1 i^mu - df/dq2 j^mu - df/dq3 k^mu)``, with ``i^mu = mu i mu^-1``; that
    with respect to the conjugate has plus signs; the right derivatives have the units on the left of the partial
    derivatives. They obey a product rule and a chain rule, which :func:`naive_derivative` does not. For a real ``f``
    left and right are equal, and autograd's gradient is ``4 df/dq*``.

    Args:
        f: The function, made of torch's operations with a forward derivative.
        q: Where, ``(..., 4)``.
        mu: Quaternions other than 0, broadcast against ``q``; None for 1, the HR calculus takes 1, i, j and k.
        conjugate: Whether to differentiate by the conjugate.
        side: ``'left'`` or ``'right'`` derivative.

    Returns:
        The derivative at each ``q``, ``(..., 4)``.

    Raises:
        ValueError: ``q`` or ``mu`` are no quaternions, ``q`` is not of floating point, ``mu`` is 0, ``f`` gives neither
            quaternions nor real numbers, or the side is unknown.

    References:
        Xu, Jahanchahi, Took and Mandic, "Enabling quaternion derivatives: the generalized HR calculus", Royal Society
        Open Science 2 (2015). Poeppelbaum and Schwung, "Quaternion Backpropagation", arXiv 2212.13082.
    """
    check_options(side, "auto")
    if mu is not None:
        _check_direction(mu)
    partials = _partials(f, q)
    result = partials[0]
    for partial, unit in zip(partials[1:], torch.eye(4, dtype=q.dtype, device=q.device)[1:], strict=True):
        turned = unit if mu is None else rotate(unit, mu)
        term = hamilton_product(partial, turned) if side == "left" else hamilton_product(turned, partial)
        result = result + term if conjugate else result - term
    return result / 4


@explained
def naive_derivative(f: QuaternionFunction, q: Tensor) -> Tensor:
    """``df/dq0 + df/dq1 i + df/dq2 j + df/dq3 k``, for which neither product nor chain rule holds.

    That of ``q`` itself is -2, that of ``q*`` 4. For a real ``f`` it is autograd's gradient; trouble begins where it
    is carried through a layer by a chain rule.

    Args:
        f: The function.
        q: Where, ``(..., 4)``.

    Returns:
        ``(..., 4)``.
    """
    units = torch.eye(4, dtype=q.dtype, device=q.device)
    partials = _partials(f, q)
    return partials[0] + sum(
        (hamilton_product(partial, unit) for partial, unit in zip(partials[1:], units[1:], strict=True)),
        torch.zeros_like(partials[0]),
    )


def _check_direction(mu: Tensor) -> None:
    check_components(mu, -1, "mu")
    # Numbers that are not there yet cannot be looked at.
    if torch.compiler.is_compiling() or mu.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(mu):
        return
    if (mu == 0).all(-1).any():
        raise ValueError(f"mu of shape {tuple(mu.shape)} holds a quaternion 0, which turns nothing: leave it out")


def _partials(f: QuaternionFunction, q: Tensor) -> list[Tensor]:
    check_components(q, -1, "q")
    if not q.is_floating_point():
        raise ValueError(f"q is {q.dtype}: derivatives are taken at real numbers, so convert it (q.double())")
    found = []
    for direction in torch.eye(4, dtype=q.dtype, device=q.device):
        y, partial = torch.func.jvp(f, (q,), (direction.expand_as(q),))  # type: ignore[misc]
        if y.shape == q.shape[:-1]:
            partial = torch.nn.functional.pad(partial.unsqueeze(-1), (0, 3))
        elif y.shape != q.shape:
            raise ValueError(
                f"f gives {tuple(y.shape)} for q of shape {tuple(q.shape)}: give quaternions {tuple(q.shape)} or real "
                f"numbers {tuple(q.shape[:-1])}, each from its own q"
            )
        found.append(partial)
    return found
