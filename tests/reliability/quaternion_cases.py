"""Public functions of quaternions, each beside a version made of a table of units, real matrices and loops."""

import math
from random import Random

import torch
from reliability.fuzzing import Arguments, Case, leading, numbers
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional import quaternion as Q

UNITS = torch.zeros(4, 4, 4, dtype=torch.float64)
"""``e_a e_b = sum_c UNITS[a, b, c] e_c``, from i^2 = j^2 = k^2 = ijk = -1."""
for _a, _row in enumerate(("+0 +1 +2 +3", "+1 -0 +3 -2", "+2 -3 -0 +1", "+3 +2 -1 -0")):
    for _b, _unit in enumerate(_row.split()):
        UNITS[_a, _b, int(_unit[1])] = 1.0 if _unit[0] == "+" else -1.0

STAR = torch.tensor([1.0, -1, -1, -1], dtype=torch.float64)


def times(p: Tensor, q: Tensor) -> Tensor:
    p, q = torch.broadcast_tensors(p, q)
    return torch.einsum("...a,...b,abc->...c", p, q, UNITS.to(torch.promote_types(p.dtype, q.dtype)))


def size(q: Tensor) -> Tensor:
    return (q.real**2 if not q.is_complex() else q * q).sum(-1, keepdim=True).sqrt()


def unit(q: Tensor) -> Tensor:
    return torch.where(size(q) == 0, 0.0, q / size(q))


def of(function):
    """A function of quaternions in the last dimension, for components along any."""

    def run(q, *others, dim=-1, **options):
        moved = [other.movedim(dim, -1) for other in others]
        return function(q.movedim(dim, -1), *moved, **options).movedim(-1, dim)

    return run


def one(chance: Random) -> Arguments:
    shape = leading(chance)
    dim = chance.randint(-len(shape) - 1, len(shape))
    place = dim % (len(shape) + 1)
    return {"q": numbers(chance, *shape[:place], 4, *shape[place:]), "dim": dim}


def pair(chance: Random, first: str = "p", second: str = "q") -> Arguments:
    given = one(chance)
    other = numbers(chance, *given["q"].shape)
    return {first: given["q"], second: other, "dim": given["dim"]}


def with_scalars(*names: str):
    def make(chance: Random) -> Arguments:
        given = one(chance)
        place = given["dim"] % given["q"].dim()
        shape = [1 if d == place else n for d, n in enumerate(given["q"].shape)]
        return given | {name: numbers(chance, *shape) for name in names}

    return make


def turn(angle):
    """``r (cos f(t) + n sin f(t))``."""

    def run(q):
        real, vector = q[..., :1], q[..., 1:]
        length = vector.square().sum(-1, keepdim=True).sqrt()
        new = angle(torch.atan2(length, real))
        axis = torch.where(length == 0, 0.0, vector / length)
        turned = size(q) * torch.cat([new.cos(), axis * new.sin()], -1)
        # On the real line an angle of 0 or pi stays.
        return torch.where(length <= 1e-16 * size(q), q, turned)

    return of(run)


def exp(q: Tensor) -> Tensor:
    if not bool((q.abs() < 100).all()):
        vector = q[..., 1:].square().sum(-1, keepdim=True).sqrt()
        axis = torch.where(vector == 0, 0.0, q[..., 1:] / vector)
        return q[..., :1].exp() * torch.cat([vector.cos(), axis * vector.sin()], -1)
    left = torch.einsum("...a,abc->...cb", q, UNITS.to(q.dtype))
    flat = left.reshape(-1, 4, 4)
    return torch.stack([torch.linalg.matrix_exp(m)[:, 0] for m in flat]).reshape(q.shape) if len(flat) else q.clone()


def log(q: Tensor) -> Tensor:
    real, vector = q[..., :1], q[..., 1:]
    length = vector.square().sum(-1, keepdim=True).sqrt()
    along_i = torch.cat([torch.where(real < 0, math.pi, 0.0), torch.zeros_like(vector[..., 1:])], -1)
    turned = torch.where(length == 0, along_i, vector / length * torch.atan2(length, real))
    return torch.cat([size(q).log(), turned], -1)


def parts(x: Tensor) -> Tensor:
    """Component-major features ``(..., 4N)`` as ``(..., N, 4)``."""
    return torch.stack(x.tensor_split(4, -1), -1)


def features(chance: Random) -> Arguments:
    shape = (*leading(chance), 4 * chance.randint(1, 3))
    return {"y": numbers(chance, *shape), "target": numbers(chance, *shape)}


def same_shape(function):
    def run(y, target):
        assert y.shape == target.shape
        return function(parts(y), parts(target))

    return run


def angle(p: Tensor, q: Tensor) -> Tensor:
    found = times(unit(p) * STAR, unit(q))
    turned = 2 * torch.atan2(found[..., 1:].square().sum(-1).sqrt(), found[..., 0].abs())
    return torch.where((found == 0).all(-1), 0.0, turned)


def geodesic(y: Tensor, t: Tensor) -> Tensor:
    return torch.where((y == 0).all(-1) | (t == 0).all(-1), math.pi, angle(y, t)).mean()


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


def square(q: Tensor) -> Tensor:
    return Q.hamilton_product(q, q)


def partials(q: Tensor) -> list[Tensor]:
    """Of the square: ``e_a q + q e_a``."""
    eye = torch.eye(4, dtype=q.dtype)
    return [times(eye[a], q) + times(q, eye[a]) for a in range(4)]


def ghr(q, mu=None, conjugate=False, side="left"):
    eye = torch.eye(4, dtype=q.dtype)
    found = partials(q)
    total = found[0]
    for a in range(1, 4):
        direction = eye[a] if mu is None else times(times(mu, eye[a]), mu * STAR) / mu.square().sum(-1, keepdim=True)
        term = times(found[a], direction) if side == "left" else times(direction, found[a])
        total = total + term if conjugate else total - term
    assert side in ("left", "right")
    return total / 4


def last(name: str = "q"):
    def make(chance: Random) -> Arguments:
        return {name: numbers(chance, *leading(chance), 4)}

    return make


def two(chance: Random) -> Arguments:
    shape = leading(chance)
    return {"p": numbers(chance, *shape, 4), "q": numbers(chance, *shape, 4)}


def ghr_arguments(chance: Random) -> Arguments:
    options = {"conjugate": chance.random() < 0.5, "side": chance.choice(("left", "right"))}
    return last()(chance) | {"mu": chance.choice((None, numbers(chance, 4)))} | options


def pack_arguments(chance: Random) -> Arguments:
    shape = leading(chance)
    return {
        "q": numbers(chance, *shape, chance.randint(1, 3), 4),
        "channel_dim": chance.randint(-len(shape) - 1, len(shape)),
    }


def unpack_arguments(chance: Random) -> Arguments:
    shape = (*leading(chance), 4 * chance.randint(1, 3))
    dim = chance.randint(-len(shape), len(shape) - 1)
    return {"x": numbers(chance, *shape).movedim(-1, dim), "channel_dim": dim}


def complex_pair(chance: Random) -> Arguments:
    shape = leading(chance)
    u, v = (numbers(chance, *shape, dtype=torch.complex128) for _ in range(2))
    return {"u": u, "v": v, "dim": chance.randint(-len(shape) - 1, len(shape))}


def from_complex(u, v, dim=-1):
    assert u.shape == v.shape
    return torch.stack([u.real, u.imag, v.real, v.imag], dim)


def to_complex(q, dim=-1):
    q = q.movedim(dim, -1)
    return tuple(torch.complex(q[..., k], q[..., k + 1]) for k in (0, 2))


CASES = {
    "hamilton_product": Case(
        Q.hamilton_product, pair, lambda p, q, dim=-1: times(p.movedim(dim, -1), q.movedim(dim, -1)).movedim(-1, dim)
    ),
    "conjugate": Case(Q.conjugate, one, of(lambda q: q * STAR.to(q.dtype))),
    "norm": Case(
        Q.norm,
        lambda c: one(c) | {"keepdim": c.random() < 0.5},
        lambda q, dim=-1, keepdim=False: q.abs().square().sum(dim, keepdim=bool(keepdim)).sqrt(),
    ),
    "inverse": Case(Q.inverse, one, of(lambda q: q * STAR / size(q) / size(q))),
    "normalize": Case(Q.normalize, one, of(unit)),
    "exp": Case(Q.exp, one, of(exp)),
    "log": Case(Q.log, one, of(log)),
    "rotate": Case(
        Q.rotate,
        lambda c: pair(c, "q", "mu"),
        lambda q, mu, dim=-1: of(lambda a, b: times(times(b, a), b * STAR) / size(b) / size(b))(q, mu, dim=dim),
    ),
    "pack": Case(
        Q.pack, pack_arguments, lambda q, channel_dim=-1: torch.cat(q.unbind(-1), -1).movedim(-1, channel_dim)
    ),
    "unpack": Case(Q.unpack, unpack_arguments, lambda x, channel_dim=-1: parts(x.movedim(channel_dim, -1))),
    "to_complex": Case(Q.to_complex, one, to_complex),
    "from_complex": Case(Q.from_complex, complex_pair, from_complex),
    "cardioid": Case(Q.cardioid, one, of(lambda q: (1 + unit(q)[..., :1]) / 2 * q)),
    "magnitude_tanh": Case(Q.magnitude_tanh, one, of(lambda q: unit(q) * size(q).tanh())),
    "mod_relu": Case(
        Q.mod_relu,
        with_scalars("bias"),
        lambda q, bias, dim=-1: of(lambda a: size(a))(q, dim=dim).add(bias).relu() * of(unit)(q, dim=dim),
    ),
    "norm_gate": Case(
        Q.norm_gate,
        with_scalars("slope", "shift"),
        lambda q, slope, shift, dim=-1: torch.tanh(slope * of(size)(q, dim=dim) + shift) * q,
    ),
    "phase_tanh": Case(Q.phase_tanh, one, turn(lambda t: math.pi / 2 * (1 - (t.cos() / t.sin()).tanh()))),
    "phase_sin": Case(Q.phase_sin, one, turn(lambda t: t - (2 * t).sin() / 2)),
    "component_mse": Case(Q.component_mse, features, same_shape(lambda y, t: (y - t).square().mean())),
    "imaginary_mse": Case(Q.imaginary_mse, features, same_shape(lambda y, t: (y - t)[..., 1:].square().mean())),
    "unit_mse": Case(Q.unit_mse, features, same_shape(lambda y, t: 4 * (unit(y) - t).square().mean())),
    "chordal_loss": Case(
        Q.chordal_loss, features, same_shape(lambda y, t: 1 - (unit(y) * unit(t)).sum(-1).square().mean())
    ),
    "geodesic_loss": Case(Q.geodesic_loss, features, same_shape(geodesic)),
    "rotation_angle": Case(Q.rotation_angle, two, angle),
    "ghr_derivative": Case(lambda **a: Q.ghr_derivative(square, **a), ghr_arguments, ghr),
    "naive_derivative": Case(
        lambda q: Q.naive_derivative(square, q),
        last(),
        lambda q: sum(
            (times(p, e) for p, e in zip(partials(q), torch.eye(4, dtype=q.dtype), strict=True)),
            torch.zeros(4, dtype=q.dtype),
        ),
    ),
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
