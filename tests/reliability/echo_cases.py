"""Public functions of echoes, each beside loops, exact solutions or autograd."""

import math
from random import Random

import torch
from reliability.fuzzing import Arguments, Case, leading, numbers

from lightning_nobp.functional import hamiltonian as H
from lightning_nobp.nn import DuffingNetwork, NLSEField


def duffing(size: int) -> DuffingNetwork:
    torch.manual_seed(0)
    return DuffingNetwork(size).double()


def state(chance: Random) -> Arguments:
    batch, size, steps = chance.randint(0, 3), chance.randint(1, 4), chance.randint(1, 4)
    u = chance.choice((None, numbers(chance, batch, size)))
    return {"q": numbers(chance, batch, size), "p": numbers(chance, batch, size), "u": u, "dt": 0.1, "n_steps": steps}


def kicked(q, p, u, dt, n_steps):
    """Drift, kick, drift, with autograd's force; all states."""
    system = duffing(q.shape[1])
    assert q.shape == p.shape
    assert dt > 0
    assert n_steps >= 1
    seen = []
    for _ in range(n_steps):
        q = q + dt / 2 * p
        with torch.enable_grad():
            x = q if q.requires_grad else q.detach().requires_grad_()
            force = torch.autograd.grad(system.potential(x, u).sum(), x, create_graph=q.requires_grad)[0]
        p = p - dt * force
        q = q + dt / 2 * p
        seen.append((q, p))
    return torch.stack([q for q, _ in seen]), torch.stack([p for _, p in seen])


def last(q, p, u, dt, n_steps):
    return tuple(part[-1] for part in kicked(q, p, u, dt, n_steps))


def with_gradients(run):
    """What comes out, and the gradients of the sum of its squares."""

    def call(q, p, **others):
        inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in (q, p)]
        found = run(*inputs, **others)
        return *found, *torch.autograd.grad(sum(part.square().sum() for part in found), inputs)

    return call


def on_its_way(q, p, u, dt, n_steps, every):
    assert n_steps % every == 0
    return tuple(part[every - 1 :: every] for part in kicked(q, p, u, dt, n_steps))


def every_step(chance: Random) -> Arguments:
    given = state(chance)
    return given | {"every": chance.choice([n for n in (1, 2, 3, 4) if given["n_steps"] % n == 0])}


def simulated(q, p, u, dt, n_steps, every):
    simulation = H.Simulation(duffing(q.shape[1]), dt, n_steps, every, nudge="tangent")
    return H.simulate(simulation, (q, p), () if u is None else (u,))


def drives(u):
    return () if u is None else (u,)


def waves() -> NLSEField:
    """Without a potential and without an effect of intensities: linear waves."""
    system = NLSEField((8,), g=0.0, length=8.0).double()
    torch.nn.init.zeros_(system.potential)
    return system


def fields_arguments(chance: Random) -> Arguments:
    field = numbers(chance, chance.randint(0, 3), 8, dtype=torch.complex128)
    return {"fields": field, "dt": 0.1, "n_steps": chance.randint(1, 4)}


def spread(fields, dt, n_steps):
    """The exact solution on a ring."""
    assert dt > 0
    assert n_steps >= 1
    if not len(fields):
        return fields
    k = 2 * math.pi * torch.fft.fftfreq(8, 1.0, dtype=torch.float64)
    return torch.fft.ifft(torch.exp(-0.5j * k**2 * dt * n_steps) * torch.fft.fft(fields))


def spread_on_its_way(fields, dt, n_steps, every):
    assert every >= 1
    assert n_steps % every == 0
    return torch.stack([spread(fields, dt, n) for n in range(every, n_steps + 1, every)])


def field_every_step(chance: Random) -> Arguments:
    given = fields_arguments(chance)
    return given | {"every": chance.choice([n for n in (1, 2, 3, 4) if given["n_steps"] % n == 0])}


def decay_arguments(chance: Random) -> Arguments:
    shape = (chance.randint(0, 3), *leading(chance))
    start, echo = (numbers(chance, *shape, dtype=torch.complex128) for _ in range(2))
    numbers_of = {"decay": chance.choice((0.5, math.inf)), "kick_cutoff": chance.choice((0.1, math.inf))}
    return {"start": start, "echo": echo, "mass": numbers(chance, shape[0])} | numbers_of


def decayed(start, echo, mass, decay, kick_cutoff):
    kept = math.exp(-decay)
    assert start.shape == echo.shape
    assert mass.shape == start.shape[:1]
    found = torch.empty_like(start)
    for b in range(len(start)):
        sign = math.copysign(1.0, float(mass[b])) if mass[b] else 0.0
        momentum = start[b].imag + sign * (echo[b].imag - start[b].imag)
        kick = momentum * (1 - kept) / abs(float(mass[b]))
        found[b] = torch.complex(echo[b].real + kick / torch.sqrt(1 + (kick / kick_cutoff) ** 2), momentum * kept)
    return found


CASES_OF_ECHOES = {
    "leapfrog": Case(lambda q, p, u, **a: H.leapfrog(duffing(q.shape[1]), q, p, u, **a), state, last),
    "hamiltonian_echo": Case(
        with_gradients(lambda q, p, u, **a: H.hamiltonian_echo(duffing(q.shape[1]), q, p, u, nudge="tangent", **a)),
        state,
        with_gradients(last),
        without=("values",),
    ),
    "hamiltonian_echo_trajectory": Case(
        with_gradients(
            lambda q, p, u, **a: H.hamiltonian_echo_trajectory(duffing(q.shape[1]), q, p, u, nudge="tangent", **a)
        ),
        every_step,
        with_gradients(on_its_way),
        without=("values",),
    ),
    "simulate": Case(simulated, every_step, on_its_way, fixed=("n_steps",)),
    "reversal_error": Case(
        lambda q, p, u, **a: H.reversal_error(duffing(q.shape[1]), (q, p), drives(u), **a),
        state,
        lambda q, p, u, dt, n_steps: torch.zeros(len(last(q, p, u, dt, n_steps)[0])),
        without=("values",),
    ),
    "strang": Case(lambda **a: H.strang(waves(), **a), fields_arguments, spread, fixed=("dt",)),
    "field_echo": Case(lambda **a: H.field_echo(waves(), **a), fields_arguments, spread, fixed=("dt",)),
    "field_echo_trajectory": Case(
        lambda **a: H.field_echo_trajectory(waves(), **a), field_every_step, spread_on_its_way, fixed=("dt",)
    ),
    "decay_step": Case(H.decay_step, decay_arguments, decayed),
}
