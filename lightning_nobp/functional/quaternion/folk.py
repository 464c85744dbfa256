"""Backward passes by rules that do not hold for quaternions: what the GHR calculus is compared with.

They are here to be seen failing. Each is what one gets by carrying a derivative through a layer of Hamilton products as
if quaternions commuted, or as if a quaternion function had a single derivative.

References:
    Poeppelbaum and Schwung, "Quaternion Backpropagation", arXiv 2212.13082.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.algebra import conjugate, hamilton_product
from lightning_nobp.functional.quaternion.products import RealProduct, Side, quaternion_product_vjp

FolkRule = Literal["naive", "naive_neg", "noconj", "truncated"]


def folk_product_vjp(
    grad: Tensor, x: Tensor, weight: Tensor, product: RealProduct, side: Side, rule: FolkRule
) -> tuple[Tensor, Tensor]:
    """What a folk rule takes for the gradients of input and weight of a layer of Hamilton products.

    With the naive derivative ``D(w x)/Dx = -2 w`` and ``D(w x)/Dw = -2 x*``, so that ``-2 g w`` goes back where
    ``w* g`` should, and the weight gets ``-2 g x*``; ``'naive_neg'`` steps the other way. ``'noconj'`` descends
    along ``dL/dw`` rather than ``dL/dw*``. ``'truncated'`` is right here, where a layer is linear, and wrong behind it.

    Args:
        grad: ``(batch, 4M, ...)``.
        x: ``(batch, 4N, ...)``.
        weight: ``(4, ...)``, four weights of ``product``.
        product: The real layer.
        side: Of the weights.
        rule: Which one.

    Returns:
        What is taken for the gradients of ``x`` and ``weight``.
    """
    if rule in ("noconj", "truncated"):
        grad_x, grad_weight = quaternion_product_vjp(grad, x, weight, product, side)
        assert grad_x is not None
        assert grad_weight is not None
        return grad_x, conjugate(grad_weight, dim=0) if rule == "noconj" else grad_weight
    if side == "left":
        # g w is the right product's way back with a conjugated weight.
        grad_x, _ = quaternion_product_vjp(grad, x, conjugate(weight, dim=0), product, "right", wanted=(True, False))
        _, grad_weight = quaternion_product_vjp(grad, x, weight, product, "left", wanted=(False, True))
    else:
        grad_x, _ = quaternion_product_vjp(grad, x, weight, product, "right", wanted=(True, False))
        conjugated = _conjugated_features(x)
        _, grad_weight = quaternion_product_vjp(grad, conjugated, weight, product, "left", wanted=(False, True))
    assert grad_x is not None
    assert grad_weight is not None
    return -2 * grad_x, (2 if rule == "naive_neg" else -2) * grad_weight


def folk_bias_vjp(grad: Tensor, rule: FolkRule) -> Tensor:
    """What a folk rule takes for the gradient of a bias ``(4M,)``, for ``grad`` ``(batch, 4M, ...)``."""
    total = grad.sum([d for d in range(grad.dim()) if d != 1])
    if rule == "noconj":
        return conjugate(total.view(4, -1), dim=0).flatten()
    return {"naive": -2.0, "naive_neg": 2.0, "truncated": 1.0}[rule] * total


def truncated_activation_vjp(grad: Tensor, row: Callable[[Tensor], Tensor]) -> Tensor:
    """Back through an activation by the chain rule's first term of four, as if it were analytic: ``(df/dz)* g``.

    Args:
        grad: ``(batch, 4N, ...)``.
        row: The true way back, called four times, for each row of the Jacobian of four by four.

    Returns:
        What the truncated rule takes for the gradient of the input.
    """
    parts = torch.unflatten(grad, 1, (4, -1))
    derivative = torch.zeros_like(parts)
    units = torch.eye(4, dtype=grad.dtype, device=grad.device)
    for r in range(4):
        one = torch.zeros_like(parts)
        one[:, r] = 1
        partials = torch.unflatten(row(one.flatten(1, 2)), 1, (4, -1)).unbind(1)
        for c, partial in enumerate(partials):
            # The derivative is the sum of (df_r/dz_c) e_r e_c*, over 4.
            unit = hamilton_product(units[r], units[c] if c == 0 else -units[c])
            derivative += partial.unsqueeze(1) * unit.view(4, *(1,) * (parts.dim() - 2)) / 4
    return hamilton_product(conjugate(derivative, dim=1), parts, dim=1).flatten(1, 2)


def _conjugated_features(x: Tensor) -> Tensor:
    return conjugate(torch.unflatten(x, 1, (4, -1)), dim=1).flatten(1, 2)
