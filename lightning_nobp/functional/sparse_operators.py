"""The compiled kernels as differentiable functions, and as operators that compilers and exporters can see."""

from typing import Any

import torch
from torch import Tensor

from lightning_nobp.functional import sparse_native as native
from lightning_nobp.functional.backprop import bias_vjp
from lightning_nobp.functional.sparse_structure import SparseStructure

# The indices of a structure, in the order of its fields, and the seven numbers of a convolution or none.
_LAYOUT = "int[] shape, Tensor row_first, Tensor column, Tensor column_first, Tensor row, Tensor origin, int[] geometry"
_FORWARD = f"sparse_layer(Tensor x, Tensor values, Tensor? bias, {_LAYOUT}) -> Tensor"
_BACKWARD = (
    "sparse_layer_backward(Tensor grad, Tensor x, Tensor values, bool needs_input, bool needs_values, "
    f"{_LAYOUT}) -> (Tensor, Tensor)"
)


def sparse_layer(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    structure: SparseStructure,
    geometry: native.Geometry | None = None,
) -> Tensor:
    """A sparse convolution of ``x``, or without ``geometry`` a sparse linear layer, by the compiled kernels."""
    # An operator takes several times as long to call as autograd's own function, and that as long as a plain one.
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        numbers = [] if geometry is None else [*geometry[0], *geometry[1], *geometry[2], geometry[3]]
        return torch.ops.lightning_nobp.sparse_layer(  # type: ignore[no-any-return]
            x, values, bias, structure.shape, *structure.tensors(), numbers
        )
    if not torch.is_grad_enabled():
        return native.forward(x, values, bias, structure, geometry)
    return _SparseLayer.apply(x, values, bias, structure, geometry)  # type: ignore[no-any-return]


class _SparseLayer(torch.autograd.Function):
    # The older form: the one with setup_context takes ten times as long to call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        structure: SparseStructure,
        geometry: native.Geometry | None,
    ) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.structure, ctx.geometry = structure, geometry
        return native.forward(x, values, bias, structure, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_input, needs_values, needs_bias = ctx.needs_input_grad[:3]
        x, values = ctx.saved_tensors
        # Gradients that are to be differentiated again must know that they cannot be.
        run = _SparseLayerGradients.apply if torch.is_grad_enabled() else native.backward
        grads = run(grad, x, values, ctx.structure, ctx.geometry, needs_input, needs_values)
        return *grads, bias_vjp(grad, channel_dim=1) if needs_bias else None, None, None


class _SparseLayerGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, Tensor | None]:
        return native.backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("sparse layers can be differentiated once: for a second time take backend='torch'")


# The operators


def _forward(x: Tensor, values: Tensor, bias: Tensor | None, shape: list[int], *layout: Any) -> Tensor:
    return native.forward(x, values, bias, *_restored(shape, layout))


def _backward(
    grad: Tensor, x: Tensor, values: Tensor, needs_input: bool, needs_values: bool, shape: list[int], *layout: Any
) -> tuple[Tensor, Tensor]:
    grads = native.backward(grad, x, values, *_restored(shape, layout), needs_input, needs_values)
    # An operator returns tensors: empty ones for what nobody needs.
    first, second = (x.new_empty(0) if g is None else g for g in grads)
    return first, second


def _restored(shape: list[int], layout: tuple[Any, ...]) -> tuple[SparseStructure, native.Geometry | None]:
    *indices, numbers = layout
    return SparseStructure(tuple(shape), *indices, trusted=True), _geometry(numbers)


def _geometry(numbers: list[int]) -> native.Geometry | None:
    if not numbers:
        return None
    return (numbers[0], numbers[1]), (numbers[2], numbers[3]), (numbers[4], numbers[5]), numbers[6]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, ctx.shape, *indices, ctx.numbers = inputs
    ctx.save_for_backward(x, values, *indices)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_input, needs_values, needs_bias = ctx.needs_input_grad[:3]
    x, values, *indices = ctx.saved_tensors
    grad_x, grad_values = torch.ops.lightning_nobp.sparse_layer_backward(
        grad, x, values, needs_input, needs_values, ctx.shape, *indices, ctx.numbers
    )
    return (
        grad_x if needs_input else None,
        grad_values if needs_values else None,
        bias_vjp(grad, channel_dim=1) if needs_bias else None,
        *(None,) * (len(indices) + 2),
    )


def _fake_forward(x: Tensor, values: Tensor, bias: Tensor | None, shape: list[int], *layout: Any) -> Tensor:
    geometry = _geometry(layout[-1])
    size = () if geometry is None else native.output_size(x.shape[2:], shape[2:], geometry)
    return x.new_empty(x.shape[0], shape[0], *size)


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, needs_input: bool, needs_values: bool, *layout: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if needs_input else 0), values.new_empty(values.shape if needs_values else 0)


def _register() -> torch.library.Library:
    operators = torch.library.Library("lightning_nobp", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema, kernel, fake in ((_FORWARD, _forward, _fake_forward), (_BACKWARD, _backward, _fake_backward)):
        name = operators.define(schema)  # type: ignore[no-untyped-call]
        operators.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"lightning_nobp::{name}", fake, lib=operators)
    torch.library.register_autograd("lightning_nobp::sparse_layer", _gradients, setup_context=_save, lib=operators)
    return operators


# Operators live as long as their library.
_OPERATORS = _register()
