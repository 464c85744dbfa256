"""Public functions of quaternions, each beside a version made of a table of units, real matrices and loops."""

import math
from random import Random

import torch
from reliability.fuzzing import Arguments, Case, leading, numbers
from torch import Tensor

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
}
