"""Public functions of spikes, each beside loops, closed forms, autograd or the readable version."""

import math
from random import Random

import torch
from reliability.fuzzing import Arguments, Case, leading, numbers
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.functional import spiking as S


def spikes(chance: Random) -> Tensor:
    """Spike times of a layer, a third of them missing."""
    times = numbers(chance, chance.randint(0, 2), chance.randint(1, 4), chance.randint(1, 3)).abs()
    return torch.where(numbers(chance, *times.shape) > 0.5, torch.inf, times)


def shown(train: S.SpikeTrain) -> tuple[Tensor, Tensor, Tensor]:
    """What a train holds, with zeros where it may hold anything."""
    return train.times, torch.where(train.is_spike, train.index, 0), train.counts


def listed(rows: list[list[tuple[float, int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """The same, of lists of time and neuron."""
    longest = max((len(row) for row in rows), default=0)
    times = torch.full((len(rows), longest), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(rows), longest, dtype=torch.int64)
    for b, row in enumerate(rows):
        for e, (time, neuron) in enumerate(sorted(row, key=lambda spike: spike[0])):
            times[b, e], index[b, e] = time, neuron
    return times, index, torch.tensor([len(row) for row in rows], dtype=torch.int64)


def all_spikes(spike_times: Tensor, delay: Tensor | None = None) -> list[list[tuple[float, int]]]:
    assert spike_times.dim() == 3
    assert not bool(spike_times.isnan().any())
    late = [0.0] * spike_times.shape[1] if delay is None else delay.tolist()
    assert len(late) >= spike_times.shape[1]
    return [
        [(t + late[n], n) for n, times in enumerate(sample.tolist()) for t in times if t < math.inf]
        for sample in spike_times
    ]


def delay_arguments(chance: Random) -> Arguments:
    times = spikes(chance)
    return {"spike_times": times, "delay": numbers(chance, times.shape[1]).abs()}


def pulled(spike_times, delay):
    """Gradients of the sum of squares of all delayed times, by delays and by spikes."""
    train = S.delayed(S.events_from_spikes(spike_times), delay)
    grad = torch.where(train.is_spike, 2 * train.times, 0.0)
    return S.delay_vjp(grad, train, len(delay)), S.events_vjp(grad, train, spike_times.shape)


def pulled_by_loop(spike_times, delay):
    assert spike_times.dim() == 3
    assert delay.shape == spike_times.shape[1:2]
    assert bool((delay >= 0).all())
    later = spike_times + delay[:, None]
    grad = torch.where(spike_times < torch.inf, 2 * later, 0.0)
    return grad.sum((0, 2)), grad


def image(chance: Random) -> Tensor:
    return numbers(chance, chance.randint(0, 2), *leading(chance)[:1], chance.randint(1, 3)).sigmoid()


def coded(times):
    """A code of each number of a sample."""

    def run(x, **options):
        assert x.dim() >= 2
        assert bool(((x >= 0) & (x <= 1)).all())
        flat = x.flatten(1)
        return listed([[(t, n) for n, u in enumerate(row) for t in times(u, **options)] for row in flat.tolist()])

    return run


def latency(u, t_last, threshold):
    return [t_last * (1 - u)] if u > threshold else []


def crossings(u, t_last, thresholds):
    return [t_last * h / u for h in thresholds if u >= h]


def regular(u, t_last, max_spikes):
    n = round(u * max_spikes)
    return [t_last * (k + 0.5) / n for k in range(n)]


def shown_code(encode):
    return lambda **a: shown(encode(**a))


def logits(spike_times, sigma, t_max):
    first = spike_times[..., 0]
    return -torch.where(first <= t_max, first, torch.full_like(first, t_max)) / sigma


def trace(spike_times, tau_out):
    is_spike = spike_times < torch.inf
    return torch.where(is_spike, torch.exp(-torch.where(is_spike, spike_times, 0.0) / tau_out), 0.0).sum(-1)


def with_gradient(value):
    """A loss and its gradient by autograd."""

    def run(spike_times, **others):
        x = spike_times.clone().requires_grad_()
        found = value(x, **others)
        return found.detach(), torch.autograd.grad(found, x, allow_unused=True, materialize_grads=True)[0]

    return run


def classes(chance: Random) -> Arguments:
    times = spikes(chance)
    generator = torch.Generator().manual_seed(chance.getrandbits(32))
    return {"spike_times": times, "target": torch.randint(times.shape[1], times.shape[:1], generator=generator)}


def mean_squares(spike_times, target, t_max):
    assert spike_times.shape == target.shape
    times = torch.where(spike_times < torch.inf, spike_times, torch.full_like(spike_times, t_max))
    wanted = target < torch.inf
    return torch.where(wanted, times - torch.where(wanted, target, 0.0), 0.0).square().sum() / 2 / max(1, len(times))


def penalty(spike_times, t_ref):
    first = spike_times[..., 0]
    is_spike = first < torch.inf
    return (torch.where(is_spike, first, torch.full_like(first, t_ref)) - t_ref).square().sum() / max(1, first.numel())


TAUS = (0.5, 1.0, 2.0, math.inf)


def taus(chance: Random) -> Arguments:
    return {"tau_v": chance.choice(TAUS), "tau_i": chance.choice(TAUS)}


def kernel(s, tau_v, tau_i):
    """The integral of ``exp(-(s - u) / tau_v) exp(-u / tau_i)``."""
    assert tau_v > 0
    assert tau_i > 0
    v, i = 1 / tau_v, 1 / tau_i
    return s * torch.exp(-s * v) if v == i else (torch.exp(-s * v) - torch.exp(-s * i)) / (i - v)


def potential(spikes, weight, t, tau_v, tau_i):
    drive = torch.where(spikes < t, kernel(torch.where(spikes < t, t - spikes, 0.0), tau_v, tau_i), 0.0).sum(-1)
    return drive @ weight


def potential_arguments(chance: Random) -> Arguments:
    times = spikes(chance)
    return {"spikes": times, "weight": numbers(chance, times.shape[1], chance.randint(1, 3)), "t": 1.0} | taus(chance)


def potential_vjp_arguments(chance: Random) -> Arguments:
    given = potential_arguments(chance)
    return {"grad": numbers(chance, len(given["spikes"]), given["weight"].shape[1])} | given


def potential_by_autograd(grad, spikes, weight, t, tau_v, tau_i):
    inputs = spikes.clone().requires_grad_(), weight.clone().requires_grad_()
    found = potential(*inputs, t, tau_v, tau_i)
    assert grad.shape == found.shape
    return torch.autograd.grad(found, inputs, grad)


def layer(chance: Random) -> Arguments:
    batch, events, inputs = chance.randint(0, 2), chance.randint(0, 6), chance.randint(1, 3)
    generator = torch.Generator().manual_seed(chance.getrandbits(32))
    return {
        "times": (2 * torch.rand(batch, events, dtype=torch.float64, generator=generator)).sort(1).values,
        "index": torch.randint(inputs, (batch, events), generator=generator),
        "num_events": torch.randint(events + 1, (batch,), generator=generator),
        "weight": 2 * numbers(chance, inputs, chance.randint(1, 4)),
        "max_spikes": chance.randint(1, 4),
        "theta": 1.0,
        "t_max": 2.0,
    } | taus(chance)


def record(**given):
    """Without what is undefined where there is no spike."""
    found = S.lif_record(**given)
    is_spike = found.times < torch.inf
    return found.times, found.counts, torch.where(is_spike, found.event, 0), torch.where(is_spike, found.slope, 0.0)


def vjp(**given):
    found = S.lif_record(**given)
    grad = torch.where(found.times < torch.inf, found.times, 0.0)
    given.pop("max_spikes")
    return S.lif_spike_times_vjp(grad, found, **given, needs_tau_grad=True)


def readable(function):
    return lambda **given: function(**given, backend="torch")


def in_steps(train, weight, max_spikes, tau_v, tau_i, theta, t_max, dt):
    """Step by step, neuron by neuron."""
    decay_v, decay_i, share = (
        math.exp(-dt / tau_v),
        math.exp(-dt / tau_i),
        float(kernel(torch.tensor(dt), tau_v, tau_i)),
    )
    neurons = weight.shape[1]
    found = torch.full((len(train.times), neurons, max_spikes), torch.inf, dtype=torch.float64)
    counts = torch.zeros(len(train.times), neurons, dtype=torch.int64)
    for b in range(len(train.times)):
        events = [
            (round(float(t) / dt), int(i)) for t, i in zip(train.times[b], train.index[b], strict=True) if t < torch.inf
        ]
        for n in range(neurons):
            v = i = 0.0
            for step in range(round(t_max / dt) + 1):
                v, i = v * decay_v + i * share, i * decay_i
                if v >= theta and counts[b, n] < max_spikes:
                    found[b, n, counts[b, n]] = step * dt
                    counts[b, n] += 1
                    v = 0.0
                i += sum(float(weight[source, n]) for at, source in events if at == step)
    return found, counts


def stepped_arguments(chance: Random) -> Arguments:
    given = {k: v for k, v in layer(chance).items() if k not in ("times", "index", "num_events")}
    return given | {"spike_times": spikes(chance)[:, : len(given["weight"])], "dt": 0.05}


def stepped(function):
    return lambda spike_times, **given: function(S.events_from_spikes(spike_times.double()), **given)


CASES_OF_SPIKES = {
    "events_from_spikes": Case(
        lambda spike_times: shown(S.events_from_spikes(spike_times)),
        lambda c: {"spike_times": spikes(c)},
        lambda spike_times: listed(all_spikes(spike_times)),
    ),
    "delayed": Case(
        lambda spike_times, delay: shown(S.delayed(S.events_from_spikes(spike_times), delay)),
        delay_arguments,
        lambda spike_times, delay: listed(all_spikes(spike_times, delay)),
    ),
    "delay_vjp": Case(pulled, delay_arguments, pulled_by_loop),
    "events_vjp": Case(pulled, delay_arguments, pulled_by_loop),
    "latency_encode": Case(
        shown_code(S.latency_encode),
        lambda c: {"x": image(c), "t_last": 1.0, "threshold": c.choice((0.0, 0.5))},
        coded(latency),
    ),
    "threshold_encode": Case(
        shown_code(S.threshold_encode),
        lambda c: {"x": image(c), "t_last": 1.0, "thresholds": (0.25, 0.5)},
        coded(crossings),
    ),
    "regular_encode": Case(
        shown_code(S.regular_encode),
        lambda c: {"x": image(c), "t_last": 1.0, "max_spikes": c.randint(1, 4)},
        coded(regular),
    ),
    "with_inverse": Case(
        S.with_inverse,
        lambda c: {"x": image(c)},
        lambda x: torch.stack([x, 1 - x], 1).flatten(1, 2),
    ),
    "first_spike_logits": Case(
        S.first_spike_logits, lambda c: {"spike_times": spikes(c), "sigma": 0.1, "t_max": 2.0}, logits
    ),
    "first_spike_cross_entropy": Case(
        S.first_spike_cross_entropy,
        lambda c: classes(c) | {"sigma": 0.1, "t_max": 2.0},
        with_gradient(lambda x, target, sigma, t_max: F.cross_entropy(logits(x, sigma, t_max), target)),
    ),
    "spike_trace": Case(S.spike_trace, lambda c: {"spike_times": spikes(c), "tau_out": c.choice(TAUS)}, trace),
    "trace_cross_entropy": Case(
        S.trace_cross_entropy,
        lambda c: classes(c) | {"tau_out": 0.5},
        with_gradient(lambda x, target, tau_out: F.cross_entropy(trace(x, tau_out), target)),
    ),
    "trace_mse": Case(
        S.trace_mse,
        lambda c: {"spike_times": (t := spikes(c)), "target": numbers(c, *t.shape[:2]), "tau_out": 0.5},
        with_gradient(lambda x, target, tau_out: (trace(x, tau_out) - target).square().sum() / 2 / max(1, len(x))),
    ),
    "spike_time_mse": Case(
        S.spike_time_mse,
        lambda c: {"spike_times": (t := spikes(c)), "target": numbers(c, *t.shape).abs(), "t_max": 2.0},
        with_gradient(mean_squares),
    ),
    "first_time_penalty": Case(
        S.first_time_penalty, lambda c: {"spike_times": spikes(c), "t_ref": 0.5}, with_gradient(penalty)
    ),
    "psc_kernel": Case(S.psc_kernel, lambda c: {"s": numbers(c, *leading(c)).abs()} | taus(c), kernel),
    "free_potential": Case(S.free_potential, potential_arguments, potential),
    "free_potential_vjp": Case(
        lambda **a: S.free_potential_vjp(**a)[:2], potential_vjp_arguments, potential_by_autograd
    ),
    "lif_record": Case(record, layer, readable(record)),
    "lif_spike_times": Case(S.lif_spike_times, layer, readable(S.lif_spike_times)),
    "lif_spike_times_vjp": Case(
        lambda **a: vjp(**a), layer, lambda **a: vjp(**a, backend="torch"), fixed=("max_spikes",)
    ),
    "saturated": Case(
        S.saturated,
        lambda c: {"counts": (numbers(c, *leading(c)).abs() * 3).long(), "max_spikes": c.randint(1, 4)},
        lambda counts, max_spikes: torch.tensor([n >= max_spikes for n in counts.flatten().tolist()]).view(
            counts.shape
        ),
    ),
    "time_stepped_reference": Case(
        stepped(S.time_stepped_reference), stepped_arguments, stepped(in_steps), fixed=("t_max", "dt")
    ),
}
