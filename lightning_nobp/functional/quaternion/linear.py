"""Fully connected layers of quaternions."""

from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional.quaternion.algebra import check_features
from lightning_nobp.functional.quaternion.products import (
    Algorithm,
    RealProduct,
    Side,
    check_options,
    hamilton_block,
    hamilton_block_vjp,
    quaternion_product,
    quaternion_product_vjp,
)
from lightning_nobp.typed import explained


@explained
def quaternion_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, side: Side = "left", algorithm: Algorithm = "auto"
) -> Tensor:
    """``y_m = sum_n w_mn x_n + b_m`` over quaternions, or ``sum_n x_n w_mn + b_m``.

    Args:
        x: ``(..., 4N)``, component-major: all real parts, all i, all j, all k.
        weight: ``(4, M, N)``: component, output, input.
        bias: ``(4M,)``, component-major, or None.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: ``'block'`` takes one real product with the matrix ``(4M, 4N)``, ``'fast8'`` eight of ``(M, N)``,
            half the multiplications; ``'auto'`` the faster one, and ``'block'`` wherever code is compiled. In half
            precision, autocast's included, ``'fast8'`` rounds too much: ``'block'`` is taken, with a warning.

    Returns:
        ``(..., 4M)``.

    Raises:
        ValueError: Shapes or types that do not fit, or an unknown side or algorithm.
    """
    check_options(side, algorithm)
    _check(x, weight, bias)
    y = quaternion_product(x.reshape(-1, x.shape[-1]), weight, bias, PRODUCT, side, algorithm)
    return y.view(*x.shape[:-1], y.shape[-1])


@explained
def quaternion_linear_vjp(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    side: Side = "left",
    algorithm: Algorithm = "auto",
    needs_input_grad: bool = True,
    needs_weight_grad: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`quaternion_linear`: of the input ``w* g``, of the weight ``g x*``, summed.

    From the right ``g w*`` and ``x* g``. With ``g = 4 dL/dy*`` they are ``4 dL/dx*`` and ``4 dL/dw*`` of the GHR
    calculus, and equal to autograd's.

    Args:
        grad: ``(..., 4M)``, the gradient of the output.
        x: ``(..., 4N)``.
        weight: ``(4, M, N)``.
        side: Of the weights.
        algorithm: As in the forward pass.
        needs_input_grad: Whether to compute the gradient of ``x``.
        needs_weight_grad: Whether to compute the gradient of ``weight``.

    Returns:
        The gradients of ``x`` and ``weight``, None where not needed.
    """
    check_options(side, algorithm)
    rows = x.reshape(-1, x.shape[-1])
    wanted = (needs_input_grad, needs_weight_grad)
    flat = grad.reshape(-1, grad.shape[-1])
    grad_x, grad_weight = quaternion_product_vjp(flat, rows, weight, PRODUCT, side, algorithm, wanted)
    return None if grad_x is None else grad_x.view(x.shape), grad_weight


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dim() != 3 or weight.shape[0] != 4:
        raise ValueError(f"weight of shape {tuple(weight.shape)} is not (4, M, N): component, output, input")
    if x.dim() == 0:
        raise ValueError("x has no dimensions: quaternion_linear takes (..., 4N)")
    check_features(x.shape[-1], "x")
    if x.shape[-1] != 4 * weight.shape[2]:
        raise ValueError(
            f"x has {x.shape[-1]} features, {x.shape[-1] // 4} quaternions: weight of shape {tuple(weight.shape)} "
            f"takes {weight.shape[2]}"
        )
    check_bias(bias, weight.shape[1])


def check_bias(bias: Tensor | None, outputs: int) -> None:
    """Refuse a bias that is not one of so many quaternions.

    Raises:
        ValueError: It has another shape.
    """
    if bias is not None and bias.shape != (4 * outputs,):
        raise ValueError(f"bias of shape {tuple(bias.shape)} does not fit {outputs} quaternions: give ({4 * outputs},)")


class _Linear:
    """Real fully connected layers."""

    chunk = 512

    def forward(
        self, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1, keep: float = 1
    ) -> Tensor:
        return x @ weight.t() if onto is None else onto.addmm_(x, weight.t(), alpha=factor, beta=keep)

    def input_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1
    ) -> Tensor:
        return grad @ weight if onto is None else onto.addmm_(grad, weight, alpha=factor)

    def weight_grad(
        self, grad: Tensor, x: Tensor, weight: Tensor, onto: Tensor | None = None, *, factor: float = 1
    ) -> Tensor:
        return grad.t() @ x if onto is None else onto.addmm_(grad.t(), x, alpha=factor)

    def layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def block(self, weight: Tensor, side: Side) -> Tensor:
        return hamilton_block(weight, side)

    def block_vjp(self, grad: Tensor, side: Side) -> Tensor:
        return hamilton_block_vjp(grad, side)

    def gather(self, x: Tensor, *, back: bool = False) -> Tensor:
        return x

    def gains(self, x: Tensor, weight: Tensor) -> bool:
        narrow = min(weight.shape[1:])
        return any(narrow >= width and len(x) >= rows for width, rows in _GAINS)


# Widths, and the rows from which fast8 is faster there. Of wide layers, writing the block takes longest.
_GAINS = ((64, 256), (128, 32), (256, 1))
PRODUCT: RealProduct = _Linear()
