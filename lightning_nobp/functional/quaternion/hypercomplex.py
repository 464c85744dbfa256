"""Parameterized hypercomplex multiplication: weights that are sums of Kronecker products, ``W = sum_i A_i (x) S_i``.

The ``n`` matrices ``A_i`` say how n components multiply; for n = 4 and the rule of Hamilton they are quaternions.

References:
    Zhang et al., "Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex Multiplications
    with 1/n Parameters", arXiv 2102.08597. Grassucci, Zhang and Comminiello, "PHNNs: Lightweight Neural Networks via
    Parameterized Hypercomplex Convolutions", arXiv 2110.04176.
"""

import math

import torch
from torch import Tensor

from lightning_nobp.functional.quaternion.products import Side, hamilton_block
from lightning_nobp.typed import explained


@explained
def phm_weight(rule: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """``W = sum_i A_i (x) S_i``, the weight of a real layer.

    Args:
        rule: A, ``(n, n, n)``: which A, component of the output, component of the input.
        weight: S, ``(n, M, N / groups, ...)``: which S, output, input, and a kernel's dimensions.
        groups: Of outputs that have no inputs in common.

    Returns:
        ``(n M, n N / groups, ...)``, which maps component-major features to component-major features, those of each
        group by themselves: outputs go group by group.

    Raises:
        ValueError: Shapes that do not fit.
    """
    _check(rule, weight)
    n, outputs, inputs, *kernel = weight.shape
    if groups < 1 or outputs % groups:
        raise ValueError(f"groups={groups} does not divide the {outputs} outputs of the weight")
    # A kernel's dimensions are carried along as one.
    whole = torch.einsum("iab,imkx->ambkx", rule, weight.reshape(n, outputs, inputs, math.prod(kernel)))
    by_group = torch.unflatten(whole, 1, (groups, outputs // groups)).transpose(0, 1)
    return by_group.reshape(n * outputs, n * inputs, *kernel)


def phm_weight_vjp(
    grad: Tensor,
    rule: Tensor,
    weight: Tensor,
    groups: int = 1,
    *,
    needs_rule_grad: bool = True,
    needs_weight_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`phm_weight`: of ``A_i[a, b]`` it is ``<G_ab, S_i>``, of ``S_i`` ``sum_ab A_i[a, b] G_ab``.

    Args:
        grad: ``(n M, n N / groups, ...)``, made of the blocks ``G_ab``.
        rule: ``(n, n, n)``.
        weight: ``(n, M, N / groups, ...)``.
        groups: As in the forward pass.
        needs_rule_grad: Whether to compute the gradient of ``rule``.
        needs_weight_grad: Whether to compute the gradient of ``weight``.

    Returns:
        The gradients of ``rule`` and ``weight``, None where not needed.
    """
    n, outputs, inputs, *kernel = weight.shape
    by_group = grad.reshape(groups, n, outputs // groups, n, inputs, math.prod(kernel))
    blocks = by_group.transpose(0, 1).flatten(1, 2)
    flat = weight.reshape(n, outputs, inputs, math.prod(kernel))
    grad_rule = torch.einsum("ambkx,imkx->iab", blocks, flat.to(grad.dtype)) if needs_rule_grad else None
    if not needs_weight_grad:
        return grad_rule, None
    return grad_rule, torch.einsum("iab,ambkx->imkx", rule.to(grad.dtype), blocks).reshape(weight.shape)


@explained
def hamilton_rule(
    side: Side = "left", *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The rule ``(4, 4, 4)`` whose products are those of quaternions: ``phm_weight`` is then ``hamilton_block``.

    Args:
        side: ``'left'`` for weights from the left, ``w x``; ``'right'`` for ``x w``.
        device: Of the rule.
        dtype: Of the rule.

    Raises:
        ValueError: An unknown side.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r} is not one of 'left', 'right'")
    units = torch.eye(4, device=device, dtype=dtype).view(4, 4, 1, 1)
    # The sum makes 0 of the -0 that the block's signs leave.
    return torch.stack([hamilton_block(unit, side) for unit in units.unbind(0)]) + 0


@explained
def quaternion_to_phm(weight: Tensor, side: Side = "left") -> tuple[Tensor, Tensor]:
    """The rule ``(4, 4, 4)`` and the weight ``(4, M, N, ...)`` of the same layer as one of n = 4.

    Args:
        weight: Of a layer of quaternions, ``(4, M, N, ...)``.
        side: Of the weights.
    """
    return hamilton_rule(side, device=weight.device, dtype=weight.dtype), weight.clone()


@explained
def phm_to_quaternion(rule: Tensor, weight: Tensor, side: Side = "left") -> Tensor:
    """The weight ``(4, M, N, ...)`` of the layer of quaternions that is the same as one of n = 4.

    Rules are taken whose matrices are sums of those of Hamilton, ``A_i = sum_j T_ij H_j``; then
    ``w_j = sum_i T_ij S_i``. For the rule of Hamilton itself that is exact.

    Args:
        rule: ``(4, 4, 4)``.
        weight: ``(4, M, N, ...)``.
        side: Of the weights of quaternions.

    Returns:
        The weight, a new tensor.

    Raises:
        ValueError: Shapes that do not fit, or a rule whose products are not those of quaternions.
    """
    _check(rule, weight)
    if len(rule) != 4:
        raise ValueError(f"rule of shape {tuple(rule.shape)}: quaternions have four components, (4, 4, 4)")
    mixing, distance = _in_units(rule, side)
    # NaN is at no distance.
    if not distance <= 64 * torch.finfo(rule.dtype).eps * rule.abs().max():
        raise ValueError(
            f"rule multiplies in another way than quaternions from the {side}, by up to {distance:.1e} in an "
            "entry: only a layer with the rule of hamilton_rule can become one of quaternions"
        )
    return torch.einsum("ij,i...->j...", mixing, weight)


def closest_side(rule: Tensor) -> Side:
    """The side from which quaternions multiply most like ``rule``, ``(4, 4, 4)``."""
    return "right" if _in_units(rule, "right")[1] < _in_units(rule, "left")[1] else "left"


def _in_units(rule: Tensor, side: Side) -> tuple[Tensor, float]:
    """``T`` of the sums ``T_ij H_j`` that are closest to the rule, and how far they are off in an entry."""
    hamilton = hamilton_rule(side, device=rule.device, dtype=rule.dtype)
    mixing = torch.einsum("iab,jab->ij", rule, hamilton) / 4
    return mixing, float((torch.einsum("ij,jab->iab", mixing, hamilton) - rule).abs().max())


def _check(rule: Tensor, weight: Tensor) -> None:
    if rule.dim() != 3 or len(set(rule.shape)) != 1:
        raise ValueError(f"rule of shape {tuple(rule.shape)} is not (n, n, n)")
    if weight.dim() < 3 or len(weight) != len(rule):
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} does not fit rule of shape {tuple(rule.shape)}: give "
            f"({len(rule)}, M, N, ...)"
        )
