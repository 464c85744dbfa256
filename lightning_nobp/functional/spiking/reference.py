"""Spike times and gradients in plain torch: a loop over events, vectorised over samples and neurons.

It states what the compiled kernels compute, and stands in for them where there are none.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.spiking.events import SpikeTrain
from lightning_nobp.functional.spiking.kernel import Rates, kernel_rate_derivatives, response
from lightning_nobp.functional.spiking.record import LayerGradients, Needs, SpikeRecord

# At a tangent each step of Newton's method only halves the distance.
_MAX_STEPS = 100


class State(NamedTuple):
    """Potential and current of some neurons."""

    v: Tensor
    i: Tensor

    def slope(self, rates: Rates) -> Tensor:
        """Of the potential."""
        return self.i - rates.v * self.v

    def bend(self, rates: Rates) -> Tensor:
        """How fast the slope falls."""
        return rates.v * self.slope(rates) + rates.i * self.i

    def after(self, s: Tensor, rates: Rates) -> "State":
        """Without input or spike for a time."""
        left = response(s, rates)
        return State(self.v * left.v + self.i * left.kernel, self.i * left.i)

    def at(self, mask: Tensor) -> "State":
        """Those of the neurons where the mask is true."""
        return State(self.v[mask], self.i[mask])


def intervals(train: SpikeTrain, t_max: float) -> Tensor:
    """``(batch, events)``: the time from each event to the next, or to the end; 0 where there is no event."""
    times = torch.where(train.is_spike, train.times.detach(), t_max)
    end = times.new_full((len(times), 1), t_max)
    return torch.cat([times, end], 1).diff(dim=1)


def forward(train: SpikeTrain, weight: Tensor, max_spikes: int, rates: Rates, t_max: float) -> SpikeRecord:
    """See :func:`~lightning_nobp.functional.spiking.lif_spike_times`."""
    times = train.times.detach()
    batch, neurons = len(times), weight.shape[1]
    out = SpikeRecord(
        times.new_full((batch, neurons, max_spikes), torch.inf),
        torch.zeros(batch, neurons, dtype=torch.int64, device=times.device),
        torch.zeros(batch, neurons, max_spikes, dtype=torch.int32, device=times.device),
        times.new_zeros(batch, neurons, max_spikes),
    )
    state = State(times.new_zeros(batch, neurons), times.new_zeros(batch, neurons))
    is_spike, lengths = train.is_spike, intervals(train, t_max)
    for e in range(times.shape[1]):
        drive = torch.where(is_spike[:, e, None], weight[torch.where(is_spike[:, e], train.index[:, e], 0)], 0.0)
        start = State(state.v, state.i + drive)
        state = _fire(out, e, start, times[:, e, None], lengths[:, e, None], rates, t_max)
    return out


def _fire(out: SpikeRecord, e: int, start: State, begin: Tensor, length: Tensor, rates: Rates, t_max: float) -> State:
    """Write the spikes of the interval after event e into ``out``; return the state at its end."""
    end = start.after(length, rates)
    may = _may_cross(start, end, length, rates) & (out.counts < out.times.shape[2])
    who = may.nonzero(as_tuple=True)
    now, time, left = start.at(may), begin.expand_as(may)[may], length.expand_as(may)[may]
    while len(time):
        s = crossing(now, left, end.v[who] >= rates.theta, rates)
        fires = s < torch.inf
        who, s = _at(who, fires), s[fires]
        now = State(torch.zeros_like(s), now.at(fires).after(s, rates).i)
        time, left = time[fires] + s, left[fires] - s
        _write(out, who, e, time.clamp(max=t_max), now.i - rates.theta * rates.v)
        later = now.after(left, rates)
        end.v[who], end.i[who] = later
        again = _may_cross(now, later, left, rates) & (out.counts[who] < out.times.shape[2])
        who, now, time, left = _at(who, again), now.at(again), time[again], left[again]
    return end


def _at(who: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, ...]:
    return tuple(index[mask] for index in who)


def _write(out: SpikeRecord, who: tuple[Tensor, ...], e: int, time: Tensor, slope: Tensor) -> None:
    place = (*who, out.counts[who])
    out.times[place] = time
    out.event[place] = e
    # At a tangent it is 0 but for rounding.
    out.slope[place] = slope.clamp(min=torch.finfo(slope.dtype).tiny)
    out.counts[who] += 1


def _may_cross(start: State, end: State, length: Tensor, rates: Rates) -> Tensor:
    """Whether the potential may reach the threshold on its way: it ends above, or it has risen and fallen.

    The tangent at the start is above the potential as long as that rises. Where all has decayed to 0, it has fallen.
    A current that does not outweigh the leak at the threshold never lifts it there.
    """
    hump = (start.v + start.slope(rates) * length >= rates.theta) & (end.slope(rates) <= 0)
    return ((end.v >= rates.theta) | hump) & (start.i > rates.theta * rates.v)


def crossing(start: State, length: Tensor, certain: Tensor, rates: Rates) -> Tensor:
    """The time at which the potential reaches the threshold, infinity if it does not.

    The potential is concave while it rises: Newton's method approaches from below, and without a crossing it leaves the
    rise.

    Args:
        start: Below the threshold, ``(n,)``.
        length: Time there is, ``(n,)``.
        certain: Whether there is a crossing, ``(n,)``, bool.
        rates: Of the neurons.
    """
    precision = torch.finfo(length.dtype).eps / 2
    s = _first_guess(start, length, rates)
    found = torch.full_like(s, torch.inf)
    searches = start.slope(rates) > 0
    for _ in range(_MAX_STEPS):
        now = start.after(s, rates)
        slope = now.slope(rates)
        step = (rates.theta - now.v) / slope
        following = (s + step).clamp(min=0)
        is_past, is_late = slope <= 0, following > length
        is_found = now.bend(rates) * step.square() <= 2 * slope * precision * following
        last = torch.where(is_past, s, torch.where(is_late, length, following))
        ends = searches & (is_past | is_late | is_found)
        found = torch.where(ends & (certain | ~(is_past | is_late)), last, found)
        searches = searches & ~ends
        if not bool(searches.any()):
            return found
        s = torch.where(searches, following, s)
    return torch.where(searches, s, found)


def _first_guess(start: State, length: Tensor, rates: Rates) -> Tensor:
    """The crossing of the parabola, which is a little late; 0 where there is none or the peak has passed."""
    missing, slope = rates.theta - start.v, start.slope(rates)
    square = slope.square() - 2 * missing * start.bend(rates)
    guess = 2 * missing / (slope + square.clamp(min=0).sqrt())
    is_good = (square > 0) & (guess <= length)
    guess = torch.where(is_good, guess, 0.0)
    return torch.where(start.after(guess, rates).slope(rates) > 0, guess, 0.0)


# Backward


class Multipliers(NamedTuple):
    """What the gradients are sums of: dL/dt over the slope of each spike, later resets included."""

    p: Tensor
    """``(batch, neurons, max_spikes)``, 0 where there is no spike."""
    by_rate_v: Tensor
    """Gradient of ``1 / tau_v`` that comes of the resets alone, 0-dimensional."""


def multipliers(grad: Tensor, record: SpikeRecord, rates: Rates, p_max: float) -> Multipliers:
    """From the gradient of the spike times, from each neuron's last spike to its first."""
    max_spikes = grad.shape[2]
    is_spike = torch.arange(max_spikes, device=grad.device) < record.counts.unsqueeze(2)
    times, slope = torch.where(is_spike, record.times, 0.0), torch.where(is_spike, record.slope, 1.0)
    grad = torch.where(is_spike, grad, 0.0)
    p = torch.zeros_like(grad)
    # Sums over later spikes of the neuron, s after this one: of p exp(-s / tau_v) and of p s exp(-s / tau_v).
    carry, late = torch.zeros_like(grad[..., 0]), torch.zeros_like(grad[..., 0])
    by_rate_v = grad.new_zeros(())
    for k in reversed(range(max_spikes)):
        if k + 1 < max_spikes:
            gap = torch.where(is_spike[..., k + 1], times[..., k + 1] - times[..., k], 0.0)
            decay = torch.exp(-gap * rates.v)
            carry = carry + p[..., k + 1]
            carry, late = carry * decay, (late + gap * carry) * decay
            by_rate_v -= rates.theta * late.sum()
        p[..., k] = (grad[..., k] + rates.theta * rates.v * carry) / slope[..., k]
        p[..., k].clamp_(-p_max, p_max).masked_fill_(~is_spike[..., k], 0)
    return Multipliers(p, by_rate_v)


class Sums(NamedTuple):
    """Over later spikes, s after the present, ``(batch, neurons)``: what the gradients at an event are made of."""

    v: Tensor
    """Of p exp(-s / tau_v)."""
    kernel: Tensor
    """Of p K(s)."""
    i: Tensor
    """Of p exp(-s / tau_i)."""

    def before(self, length: Tensor, rates: Rates) -> "Sums":
        """The sums at a time so much earlier, ``(batch, 1)``."""
        left = response(length, rates)
        return Sums(self.v * left.v, self.kernel * left.i + self.v * left.kernel, self.i * left.i)

    def add(self, who: tuple[Tensor, ...], s: Tensor, p: Tensor, rates: Rates) -> None:
        """Spikes of neurons ``who`` join, s after the present."""
        left = response(s, rates)
        for total, term in zip(self, (left.v, left.kernel, left.i), strict=True):
            total.index_put_(who, p * term, accumulate=True)


class RateSums(NamedTuple):
    """Likewise, for the gradients of the rates."""

    late: Tensor
    """Of p s exp(-s / tau_v)."""
    by_v: Tensor
    """Of p times the kernel's derivative with respect to 1 / tau_v."""
    by_i: Tensor
    """Likewise, 1 / tau_i."""

    def before(self, sums: Sums, length: Tensor, rates: Rates) -> "RateSums":
        """The sums at a time so much earlier than that of ``sums``."""
        left = response(length, rates)
        by_v, by_i = kernel_rate_derivatives(length, rates)
        return RateSums(
            (self.late + length * sums.v) * left.v,
            self.by_v * left.i - self.late * left.kernel + sums.v * by_v,
            (self.by_i - length * sums.kernel) * left.i + sums.v * by_i,
        )

    def add(self, who: tuple[Tensor, ...], s: Tensor, p: Tensor, rates: Rates) -> None:
        """Spikes of neurons ``who`` join, s after the present."""
        by_v, by_i = kernel_rate_derivatives(s, rates)
        for total, term in zip(self, (s * response(s, rates).v, by_v, by_i), strict=True):
            total.index_put_(who, p * term, accumulate=True)


def backward(
    grad: Tensor,
    record: SpikeRecord,
    train: SpikeTrain,
    weight: Tensor,
    rates: Rates,
    t_max: float,
    p_max: float,
    needs: Needs,
) -> LayerGradients:
    """See :func:`~lightning_nobp.functional.spiking.lif_spike_times_vjp`."""
    p, rate_v = multipliers(grad, record, rates, p_max)
    rate_i = torch.zeros_like(rate_v)
    times, is_spike = train.times.detach(), train.is_spike
    grad_times, grad_weight = torch.zeros_like(times), torch.zeros_like(weight)
    zero = torch.zeros_like(p[..., 0])
    sums, rate_sums = Sums(zero, zero.clone(), zero.clone()), RateSums(zero.clone(), zero.clone(), zero.clone())
    lengths, index = intervals(train, t_max), torch.where(is_spike, train.index, 0).long()
    spikes = _by_event(p, record, times.shape[1])
    for e in reversed(range(times.shape[1])):
        place, row, is_here = spikes[e], index[:, e], is_spike[:, e, None]
        joining = place[:2], record.times[place] - times[place[0], e], p[place], rates
        if needs.taus:
            rate_sums = rate_sums.before(sums, lengths[:, e, None], rates)
            rate_sums.add(*joining)
            rate_v -= (is_here * weight[row] * rate_sums.by_v).sum()
            rate_i -= (is_here * weight[row] * rate_sums.by_i).sum()
        sums = sums.before(lengths[:, e, None], rates)
        sums.add(*joining)
        if needs.weight:
            grad_weight.index_add_(0, row, is_here * sums.kernel, alpha=-1)
        if needs.times:
            grad_times[:, e] = (is_here * weight[row] * (sums.i - rates.v * sums.kernel)).sum(1)
    return needs.chosen(grad_times, grad_weight, rate_v, rate_i, rates)


def _by_event(p: Tensor, record: SpikeRecord, events: int) -> list[tuple[Tensor, ...]]:
    """Indices of the spikes with a gradient in ``(batch, neurons, max_spikes)``, for each event."""
    place = torch.stack((p != 0).nonzero(as_tuple=True))
    event = record.event[tuple(place)].long()
    place = place[:, event.argsort(stable=True)]
    ends = torch.bincount(event, minlength=events).cumsum(0).tolist()
    return [tuple(place[:, start:end]) for start, end in pairwise([0, *ends])]
