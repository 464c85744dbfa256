"""Layers of Hamilton products, ``y = w x`` or ``y = x w`` summed over inputs, in two algorithms.

*Block* writes the four components of a weight into a real matrix of four times the width and takes one real product:
16 products of real weights. *Fast8* takes 8: the Hamilton product is a convolution over the group of four elements,
which a Hadamard transform makes diagonal (4 products), but for the signs of four of its terms, which are put right (4
products). With ``Had(a) = (a0+a1+a2+a3, a0-a1+a2-a3, a0+a1-a2-a3, a0-a1-a2+a3)`` and ``K = Had(Had(w)/4 Had(x))``::

    left:  y0 = 2 w0 x0 - K0   y1 = K1 - 2 w3 x2   y2 = K2 - 2 w1 x3   y3 = K3 - 2 w2 x1
    right: y0 = 2 w0 x0 - K0   y1 = K1 - 2 w2 x3   y2 = K2 - 2 w3 x1   y3 = K3 - 2 w1 x2

No algorithm for real numbers has fewer than 8 (Howell and Lafon; de Groote). Both passes back, to the input and to the
weight, are the transposed algorithm, 8 products each.

References:
    Howell and Lafon, "The Complexity of the Quaternion Product", Cornell University TR 75-245 (1975).
    de Groote, "On the Complexity of Quaternion Multiplication", Information Processing Letters 3 (1975).
"""

import sys
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from lightning_nobp.csrc import have_memory
from lightning_nobp.functional.quaternion.algebra import autocasts, check_types
from lightning_nobp.functional.quaternion.hadamard import hadamard, hadamard_
from lightning_nobp.typed import explained

Side = Literal["left", "right"]
"""Whether weights multiply inputs from the left, ``w x``, or from the right, ``x w``."""
Algorithm = Literal["auto", "block", "fast8"]
"""How products are computed; ``'auto'`` takes the faster one for the shapes at hand."""

# Of the block matrix: the component c of the input goes into p of the output by the weight's component p xor c.
_SIGNS: dict[str, tuple[tuple[int, ...], ...]] = {
    "left": ((1, -1, -1, -1), (1, 1, -1, 1), (1, 1, 1, -1), (1, -1, 1, 1)),
    "right": ((1, -1, -1, -1), (1, 1, 1, -1), (1, -1, 1, 1), (1, 1, -1, 1)),
}
# Of fast8, for each component of the output: which of the weight and of the input put it right.
_CORRECTIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "left": ((0, 0), (3, 2), (1, 3), (2, 1)),
    "right": ((0, 0), (2, 3), (3, 1), (1, 2)),
}
_WIDE = (torch.float32, torch.float64)


class RealProduct(Protocol):
    """A real layer, linear in its input and in its weight: what the components of quaternions go through.

    ``forward``, ``input_grad`` and ``weight_grad`` write ``factor`` times their result, plus ``keep`` times what is
    there, over ``onto`` if that is given.
    """

    chunk: int
    """So many samples are done at a time: what belongs to them should stay in the cache."""

    def forward(
        self, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1, keep: float = 1
    ) -> Tensor:
        """The layer's output for the input ``(batch, N, ...)``."""
        ...

    def input_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1
    ) -> Tensor:
        """Gradient of ``x`` for ``grad``, that of the output."""
        ...

    def weight_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1
    ) -> Tensor:
        """Gradient of ``weight``."""
        ...

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output with a bias of one number a feature."""
        ...

    def block(self, weight: Tensor, side: Side) -> Tensor:
        """The weight of the real layer of four times the width, from that of quaternions ``(4, ...)``."""
        ...

    def block_vjp(self, grad: Tensor, side: Side) -> Tensor:
        """The gradient of the weight of quaternions for that of :meth:`block`."""
        ...

    def gather(self, x: Tensor, *, back: bool = False) -> Tensor:
        """The features ``(batch, 4N, ...)`` in the order that the layer :meth:`block` wants, and ``back``."""
        ...

    def gains(self, x: Tensor, weight: Tensor) -> bool:
        """Whether fast8 is faster than block for these shapes."""
        ...


def quaternion_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    product: RealProduct,
    side: Side = "left",
    algorithm: Algorithm = "auto",
) -> Tensor:
    """A layer of Hamilton products, differentiable any number of times.

    Args:
        x: ``(batch, 4N, ...)``, component-major.
        weight: ``(4, ...)``, four weights of ``product``.
        bias: ``(4M,)``, component-major, or None.
        product: The real layer.
        side: Of the weights.
        algorithm: ``'auto'``, ``'block'`` or ``'fast8'``.

    Returns:
        ``(batch, 4M, ...)``.

    Raises:
        ValueError: Input, weight and bias are of different types.
    """
    check_types(x, weight, bias)
    if chosen(algorithm, x, weight, product) == "block":
        gathered = None if bias is None else product.gather(bias.unsqueeze(0)).squeeze(0)
        y = product.layer(product.gather(x), product.block(weight, side), gathered)
        return product.gather(y, back=True)
    # One number a feature, whatever dimensions follow.
    bias = None if bias is None else bias.view(-1, *(1,) * (x.dim() - 2))
    run = fast8 if torch.compiler.is_compiling() else _Fast8.apply
    return run(x, weight, bias, product, side)


@torch.no_grad()
def quaternion_product_vjp(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    product: RealProduct,
    side: Side = "left",
    algorithm: Algorithm = "auto",
    wanted: Sequence[bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and ``weight`` of :func:`quaternion_product` for ``grad``, None where not ``wanted``."""
    check_types(x, weight)
    check_types(grad, weight)
    if chosen(algorithm, x, weight, product) == "fast8":
        run = _fast8_vjp if have_memory(grad, x, weight) else fast8_vjp
        return run(grad, x, weight, product, side, wanted)
    grad, gathered, block = product.gather(grad), product.gather(x), product.block(weight, side)
    grad_x = product.gather(product.input_grad(grad, gathered, block), back=True) if wanted[0] else None
    grad_weight = product.block_vjp(product.weight_grad(grad, gathered, block), side) if wanted[1] else None
    return grad_x, grad_weight


def check_options(side: str, algorithm: str) -> None:
    """Refuse what is no side or no algorithm.

    Raises:
        ValueError: Names the argument.
    """
    for name, value, choices in (("side", side, get_args(Side)), ("algorithm", algorithm, get_args(Algorithm))):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def chosen(algorithm: Algorithm, x: Tensor, weight: Tensor, product: RealProduct) -> Literal["block", "fast8"]:
    """What ``algorithm`` comes to for these tensors."""
    # What is compiled or exported must not depend on the number of samples.
    compiling = torch.compiler.is_compiling()
    if algorithm == "block" or (algorithm == "auto" and compiling):
        return "block"
    if not compiling and not len(x):
        return "block"
    # With autocast, the products are taken in half precision whatever the inputs' type.
    wide = x.dtype in _WIDE and not autocasts(x)
    if algorithm == "fast8":
        if not wide and not compiling:
            _warn_of_rounding(torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype)
        return "fast8" if wide else "block"
    return "fast8" if wide and x.device.type == "cpu" and product.gains(x, weight) else "block"


@cache
def _warn_of_rounding(dtype: torch.dtype) -> None:
    warnings.warn(
        f"algorithm='fast8' adds up four components before it multiplies, which doubles the errors of {dtype}: "
        "algorithm='block' is taken instead",
        stacklevel=_outside(),
    )


def _outside() -> int:
    """How many calls lie between a warning and whoever called a quaternion layer or function."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("lightning_nobp.", "torch.nn.")):
        frame, level = frame.f_back, level + 1
    return level


@explained
def hamilton_block(weight: Tensor, side: Side = "left") -> Tensor:
    """The real matrix of a layer of Hamilton products.

    Args:
        weight: ``(4, M, N, ...)``: component, output, input, and a kernel's dimensions.
        side: Of the weights.

    Returns:
        ``(4M, 4N, ...)``, which maps component-major features to component-major features.
    """
    parts = weight.unbind(0)
    negative = [-part for part in parts]
    signs = _SIGNS[side]
    rows = [
        torch.cat([parts[p ^ c] if signs[p][c] > 0 else negative[p ^ c] for c in range(4)], dim=1) for p in range(4)
    ]
    return torch.cat(rows, dim=0)


def hamilton_block_vjp(grad: Tensor, side: Side = "left") -> Tensor:
    """Gradient of the weight ``(4, M, N, ...)`` for that of its :func:`hamilton_block` ``(4M, 4N, ...)``."""
    blocks = torch.unflatten(torch.unflatten(grad, 1, (4, -1)), 0, (4, -1))
    signs = _SIGNS[side]
    return torch.stack([sum(signs[p][p ^ k] * blocks[p, :, p ^ k] for p in range(4)) for k in range(4)])  # type: ignore[misc]


def fast8(x: Tensor, weight: Tensor, bias: Tensor | None, product: RealProduct, side: Side = "left") -> Tensor:
    """The algorithm, to be read, compiled and differentiated: see the head of this file."""
    parts = _parts(x)
    weight_had = hadamard((weight / 4).unbind(0))
    k = hadamard([product.forward(a, w) for a, w in zip(hadamard(parts), weight_had, strict=True)])
    twice = [2 * product.forward(parts[q], weight[p]) for p, q in _CORRECTIONS[side]]
    y = torch.cat([twice[0] - k[0], k[1] - twice[1], k[2] - twice[2], k[3] - twice[3]], dim=1)
    return y if bias is None else y + bias


def fast8_vjp(
    grad: Tensor, x: Tensor, weight: Tensor, product: RealProduct, side: Side, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of input and weight by the transposed algorithm, to be read, compiled and differentiated."""
    grads, parts = _parts(grad), _parts(x)
    grads_had = hadamard((-grads[0], *grads[1:]))
    grad_x, grad_weight = None, None
    if wanted[0]:
        weight_had = hadamard((weight / 4).unbind(0))
        of_x = list(hadamard([product.input_grad(g, parts[0], w) for g, w in zip(grads_had, weight_had, strict=True)]))
        for c, (p, q) in enumerate(_CORRECTIONS[side]):
            of_x[q] = of_x[q] + (-2 if c else 2) * product.input_grad(grads[c], parts[q], weight[p])
        grad_x = torch.cat(of_x, dim=1)
    if wanted[1]:
        pairs = zip(grads_had, hadamard(parts), weight, strict=True)
        of_weight = [total / 4 for total in hadamard([product.weight_grad(g, a, w) for g, a, w in pairs])]
        for c, (p, q) in enumerate(_CORRECTIONS[side]):
            of_weight[p] = of_weight[p] + (-2 if c else 2) * product.weight_grad(grads[c], parts[q], weight[p])
        grad_weight = torch.stack(of_weight)
    return grad_x, grad_weight


class _Fast8(torch.autograd.Function):
    """:func:`fast8` with as few passes over memory as there can be."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, product: RealProduct, side: Side) -> Tensor:
        return (_fast8 if have_memory(x, weight) else fast8)(x, weight, bias, product, side)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.product, ctx.side = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.shape = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        grad_bias = grad.sum((0, *range(2, grad.dim())), keepdim=True)[0] if ctx.needs_input_grad[2] else None
        plain = have_memory(grad, x, weight) and not torch.is_grad_enabled()
        grads = (_fast8_vjp if plain else fast8_vjp)(grad, x, weight, ctx.product, ctx.side, wanted)
        return *grads, grad_bias, None, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, weight: Tensor | None, bias: Tensor | None, *_: None) -> Tensor:
        x0, weight0 = ctx.saved_tensors
        parts = [] if x is None else [fast8(x, weight0, None, ctx.product, ctx.side)]
        parts += [] if weight is None else [fast8(x0, weight, None, ctx.product, ctx.side)]
        parts += [] if bias is None else [bias.expand(ctx.shape)]
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, bias: Tensor, product: RealProduct, side: Side) -> Any:
        run = torch.vmap(lambda a, w, b: fast8(a, w, b, product, side), in_dims=in_dims[:3], randomness=info.randomness)
        return run(x, weight, bias), 0


def _fast8(x: Tensor, weight: Tensor, bias: Tensor | None, product: RealProduct, side: Side) -> Tensor:
    y, weight_had = None, _transformed(weight)
    for first in range(0, len(x), product.chunk):
        here = slice(first, first + product.chunk)
        parts = _parts(x[here])
        sums = [product.forward(a, w) for a, w in zip(_hadamard(parts), weight_had, strict=True)]
        if y is None:
            y = x.new_empty(len(x), 4 * sums[0].shape[1], *sums[0].shape[2:])
        out = _parts(y[here])
        hadamard_(out, sums)
        for c, (p, q) in enumerate(_CORRECTIONS[side]):
            product.forward(parts[q], weight[p], onto=out[c], **({"factor": -2} if c else {"factor": 2, "keep": -1}))
        if bias is not None:
            y[here] += bias
    assert y is not None
    return y


def _fast8_vjp(
    grad: Tensor, x: Tensor, weight: Tensor, product: RealProduct, side: Side, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """:func:`fast8_vjp` with as few passes over memory as there can be."""
    weight_had = _transformed(weight)
    grad_x = torch.empty_like(x) if wanted[0] else None
    sums, corrections = (torch.zeros_like(weight) if wanted[1] else None for _ in range(2))
    for first in range(0, len(x), product.chunk):
        here = slice(first, first + product.chunk)
        grads, parts = _parts(grad[here]), _parts(x[here])
        grads_had = _hadamard(grads, negate_first=True)
        if grad_x is not None:
            out = _parts(grad_x[here])
            hadamard_(out, [product.input_grad(g, parts[0], w) for g, w in zip(grads_had, weight_had, strict=True)])
            for c, (p, q) in enumerate(_CORRECTIONS[side]):
                product.input_grad(grads[c], parts[q], weight[p], onto=out[q], factor=-2 if c else 2)
        if sums is not None and corrections is not None:
            for h, part in enumerate(_hadamard(parts)):
                product.weight_grad(grads_had[h], part, weight[h], onto=sums[h])
            for c, (p, q) in enumerate(_CORRECTIONS[side]):
                product.weight_grad(grads[c], parts[q], weight[p], onto=corrections[p], factor=-2 if c else 2)
    if sums is None or corrections is None:
        return grad_x, None
    hadamard_(sums.unbind(0), sums.unbind(0))
    return grad_x, corrections.add_(sums, alpha=0.25)


def _transformed(weight: Tensor) -> Tensor:
    """``Had(w) / 4``."""
    found = torch.empty_like(weight)
    hadamard_(found.unbind(0), weight.unbind(0))
    return found.mul_(0.25)


def _hadamard(parts: Sequence[Tensor], *, negate_first: bool = False) -> Sequence[Tensor]:
    return hadamard_([torch.empty_like(part) for part in parts], parts, negate_first=negate_first)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(4, dim=1)
