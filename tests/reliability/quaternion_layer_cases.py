"""Public functions of layers of quaternions, each beside real matrices that are made unit by unit."""

from random import Random

import torch
from reliability.fuzzing import Arguments, Case, leading, numbers
from reliability.quaternion_cases import STAR, UNITS, times, unit
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional import quaternion as Q


def block(weight: Tensor, side: str = "left") -> Tensor:
    """The real matrix ``(4M, 4N, ...)``, unit by unit."""
    assert side in ("left", "right")
    rows = []
    for c in range(4):
        row = []
        for b in range(4):
            unit_of = UNITS[:, b, c] if side == "left" else UNITS[b, :, c]
            row.append(sum(unit_of[a] * weight[a] for a in range(4) if unit_of[a]))
        rows.append(torch.cat(row, 1))
    return torch.cat(rows, 0)


def by_group(weight: Tensor, groups: int, outputs_at: int) -> list[Tensor]:
    """Weights ``(4, ., ., ...)`` of each group, cut along the dimension that has all of them."""
    return list(weight.tensor_split(groups, outputs_at))


def grouped(x: Tensor, groups: int, dims: int) -> list[Tensor]:
    """Channels ``4N`` of each group."""
    channel = x.dim() - dims - 1
    pieces = [list(part.tensor_split(groups, channel)) for part in x.tensor_split(4, channel)]
    return [torch.cat([piece[g] for piece in pieces], channel) for g in range(groups)]


def joined(outputs: list[Tensor], dims: int) -> Tensor:
    channel = outputs[0].dim() - dims - 1
    split = [y.tensor_split(4, channel) for y in outputs]
    return torch.cat([torch.cat([y[c] for y in split], channel) for c in range(4)], channel)


def conv(dims: int, transposed: bool = False):
    real = getattr(F, f"conv_transpose{dims}d" if transposed else f"conv{dims}d")

    def run(x, weight, bias=None, groups=1, side="left", algorithm="auto", **geometry):
        assert algorithm in ("auto", "block", "fast8")
        outputs = []
        for part, own in zip(grouped(x, groups, dims), by_group(weight, groups, 1), strict=True):
            outputs.append(
                real(part, _oriented(block(own.transpose(1, 2) if transposed else own, side), transposed), **geometry)
            )
        y = joined(outputs, dims)
        return y if bias is None else y + bias.view(-1, *[1] * dims)

    return run


def _oriented(matrix: Tensor, transposed: bool) -> Tensor:
    return matrix.transpose(0, 1) if transposed else matrix


def conv_arguments(dims: int, transposed: bool = False):
    def make(chance: Random) -> Arguments:
        groups, n, m = chance.choice((1, 1, 2)), chance.randint(1, 2), chance.randint(1, 2)
        kernel = [chance.randint(1, 3) for _ in range(dims)]
        stride, dilation = chance.randint(1, 2), chance.randint(1, 2)
        sizes = [chance.randint(5, 6) for _ in range(dims)]
        batch = chance.choice(((), (0,), (1,), (2,)))
        first, second = (n * groups, m) if transposed else (m * groups, n)
        return {
            "x": numbers(chance, *batch, 4 * n * groups, *sizes),
            "weight": numbers(chance, 4, first, second, *kernel),
            "bias": chance.choice((None, numbers(chance, 4 * m * groups))),
            "stride": stride,
            "padding": chance.randint(0, 1) if min(kernel) > 1 or not transposed else 0,
            "dilation": dilation,
            "groups": groups,
            "side": chance.choice(("left", "right")),
            "algorithm": chance.choice(("auto", "block", "fast8")),
        }

    return make


def linear(x, weight, bias=None, side="left", algorithm="auto"):
    assert algorithm in ("auto", "block", "fast8")
    assert weight.dim() == 3
    return F.linear(x, block(weight, side), bias)


def linear_arguments(chance: Random) -> Arguments:
    n, m = chance.randint(1, 3), chance.randint(1, 3)
    return {
        "x": numbers(chance, *leading(chance), 4 * n),
        "weight": numbers(chance, 4, m, n),
        "bias": chance.choice((None, numbers(chance, 4 * m))),
        "side": chance.choice(("left", "right")),
        "algorithm": chance.choice(("auto", "block", "fast8")),
    }


def vjp_arguments(chance: Random) -> Arguments:
    given = linear_arguments(chance)
    grad = numbers(chance, *given["x"].shape[:-1], 4 * given["weight"].shape[1])
    wanted = {"needs_input_grad": chance.random() < 0.8, "needs_weight_grad": chance.random() < 0.8}
    return {"grad": grad} | {k: v for k, v in given.items() if k != "bias"} | wanted


def linear_by_autograd(grad, x, weight, side, algorithm, needs_input_grad, needs_weight_grad):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = linear(x, weight, None, side, algorithm)
    assert grad.shape == y.shape
    of_x, of_weight = torch.autograd.grad(y, (x, weight), grad)
    return of_x if needs_input_grad else None, of_weight if needs_weight_grad else None


def turned(x: Tensor, w: Tensor) -> Tensor:
    """``u x u^-1`` of vectors ``(..., 3)``; 0 turns nothing."""
    u = torch.where((w == 0).all(-1, keepdim=True), torch.eye(4, dtype=w.dtype)[0], w)
    u = unit(u / u.abs().amax(-1, keepdim=True))
    q = torch.cat([torch.zeros_like(x[..., :1]), x], -1)
    return times(times(u, q), u * STAR)[..., 1:]


def matrices(weight: Tensor) -> Tensor:
    w = weight.movedim(0, -1)
    assert w.shape[-1] == 4
    columns = [turned(e.expand(*w.shape[:-1], 3), w) for e in torch.eye(3, dtype=w.dtype)]
    return torch.stack(columns, -1).movedim((-2, -1), (0, 1))


def rotation(x, weight, scale, bias=None):
    scale = scale.expand(weight.shape[1:])
    vectors = torch.stack(x.tensor_split(3, -1), -1)
    assert vectors.shape[-2] == weight.shape[2]
    y = (scale.unsqueeze(-1) * turned(vectors.unsqueeze(-3), weight.movedim(0, -1))).sum(-2)
    y = y.transpose(-1, -2).flatten(-2)
    return y if bias is None else y + bias


def rotation_arguments(chance: Random) -> Arguments:
    n, m = chance.randint(1, 3), chance.randint(1, 3)
    return {
        "x": numbers(chance, *leading(chance), 3 * n),
        "weight": numbers(chance, 4, m, n),
        "scale": numbers(chance, *chance.choice(((m, n), (1, n), (m, 1), ()))),
        "bias": chance.choice((None, numbers(chance, 3 * m))),
    }


def phm_arguments(chance: Random) -> Arguments:
    n, groups = chance.randint(1, 4), chance.choice((1, 1, 2))
    shape = (n, groups * chance.randint(1, 2), chance.randint(1, 2), *leading(chance, 1))
    return {"rule": numbers(chance, n, n, n), "weight": numbers(chance, *shape), "groups": groups}


def phm(rule, weight, groups=1):
    n = len(rule)
    assert weight.shape[0] == n
    assert rule.shape == (n, n, n)
    rows = []
    for part in by_group(weight, groups, 1):
        whole = [torch.cat([sum(rule[i, a, b] * part[i] for i in range(n)) for b in range(n)], 1) for a in range(n)]
        rows += whole
    assert weight.shape[1] % groups == 0
    return torch.cat(rows, 0)


def kernel_arguments(chance: Random) -> Arguments:
    shape = (4, chance.randint(1, 3), chance.randint(1, 3), *leading(chance, 1))
    return {"weight": numbers(chance, *shape), "side": chance.choice(("left", "right"))}


def phm_to_quaternion(rule, weight, side="left"):
    """Its matrix must be that of the layer it came from."""
    return phm(rule, weight)


def some_phm(chance: Random) -> Arguments:
    side = chance.choice(("left", "right"))
    rule, weight = Q.quaternion_to_phm(kernel_arguments(chance)["weight"], side)
    return {"rule": rule, "weight": weight, "side": side}


CASES_OF_LAYERS = {
    "hamilton_block": Case(Q.hamilton_block, kernel_arguments, block),
    "hamilton_rule": Case(
        Q.hamilton_rule,
        lambda c: {"side": c.choice(("left", "right"))},
        lambda side: torch.stack([block(e.view(4, 1, 1), side) for e in torch.eye(4, dtype=torch.float64)]),
    ),
    "phm_weight": Case(Q.phm_weight, phm_arguments, phm),
    "phm_to_quaternion": Case(
        lambda rule, weight, side="left": Q.hamilton_block(Q.phm_to_quaternion(rule, weight, side), side),
        some_phm,
        phm_to_quaternion,
    ),
    "quaternion_to_phm": Case(
        lambda weight, side: Q.phm_weight(*Q.quaternion_to_phm(weight, side)), kernel_arguments, block
    ),
    "quaternion_linear": Case(Q.quaternion_linear, linear_arguments, linear),
    "quaternion_linear_vjp": Case(Q.quaternion_linear_vjp, vjp_arguments, linear_by_autograd),
    "quaternion_rotation": Case(Q.quaternion_rotation, rotation_arguments, rotation),
    "rotation_matrices": Case(Q.rotation_matrices, lambda c: {"weight": numbers(c, 4, *leading(c))}, matrices),
    **{f"quaternion_conv{d}d": Case(getattr(Q, f"quaternion_conv{d}d"), conv_arguments(d), conv(d)) for d in (1, 2, 3)},
    **{
        f"quaternion_conv_transpose{d}d": Case(
            getattr(Q, f"quaternion_conv_transpose{d}d"), conv_arguments(d, transposed=True), conv(d, transposed=True)
        )
        for d in (1, 2, 3)
    },
}
