"""Spikes as lists of events: what travels from layer to layer, and the way back for gradients."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_nobp.functional.spiking import kernels
from lightning_nobp.typed import explained

_INTEGERS = (torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class SpikeTrain:
    """The spikes of a population of neurons, one list a sample, sorted by time.

    Args:
        times: ``(batch, events)``, ascending, padded with infinity.
        index: ``(batch, events)``, whole numbers: the neuron of each spike; anything where there is none.
        counts: ``(batch,)``, whole numbers: how many events of each sample there are.
        source: ``(batch, events)``, int64, or None: where each spike stood in the flattened ``(neurons, max_spikes)``
            that :func:`events_from_spikes` got.

    Raises:
        TypeError: Times that are not floating point, or indices or counts that are not whole numbers.
        ValueError: Shapes that do not fit each other.
    """

    times: Tensor
    index: Tensor
    counts: Tensor
    source: Tensor | None = None

    def __post_init__(self) -> None:
        check_shapes(self.times, self.index, self.counts)

    @property
    def is_spike(self) -> Tensor:
        """``(batch, events)``, bool: which places hold a spike."""
        return torch.arange(self.times.shape[1], device=self.times.device) < self.counts.unsqueeze(1)

    def to(self, device: torch.device | str) -> "SpikeTrain":
        """The same spikes on a device."""
        source = None if self.source is None else self.source.to(device)
        return SpikeTrain(self.times.to(device), self.index.to(device), self.counts.to(device), source)


def check_spike_times(spikes: Tensor) -> None:
    """Whether a tensor holds the spikes of a layer: ``(batch, neurons, spikes)``, some place for them, no nan.

    Raises:
        ValueError: It does not.
    """
    if spikes.dim() != 3 or not spikes.shape[2]:
        raise ValueError(
            f"spikes of shape {tuple(spikes.shape)}: give (batch, neurons, spikes), padded with infinity, at least one "
            "place a neuron"
        )
    if not spikes.is_meta and bool(spikes.detach().isnan().any()):
        raise ValueError("spike_times hold nan: a spike that is not there is infinity")


@explained
def events_from_spikes(spike_times: Tensor) -> SpikeTrain:
    """The spikes of a layer as one sorted list a sample, as long as the longest needs.

    Simultaneous spikes keep the order of their neurons. The times are differentiable.

    Args:
        spike_times: ``(batch, neurons, max_spikes)``, padded with infinity.

    Raises:
        ValueError: Another number of dimensions, or nan.
    """
    if spike_times.dim() != 3:
        raise ValueError(
            f"spike_times of shape {tuple(spike_times.shape)}: give (batch, neurons, max_spikes), padded with infinity"
        )
    flat = spike_times.flatten(1)
    if not flat.is_meta and bool(flat.detach().isnan().any()):
        raise ValueError("spike_times hold nan: a spike that is not there is infinity")
    is_native = kernels.supports(flat) and kernels.are_built()
    source, counts = (_sources_native if is_native else _sources)(flat.detach())
    times = _gathered(flat, source, counts)
    return SpikeTrain(times, source // max(1, spike_times.shape[2]), counts, source)


@explained
def events_vjp(grad: Tensor, train: SpikeTrain, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Gradient of the spike times that :func:`events_from_spikes` got, for that of its events.

    Args:
        grad: ``(batch, events)``.
        train: What it returned, or a :func:`delayed` form of that.
        shape: Of the spike times, ``(batch, neurons, max_spikes)``.

    Raises:
        ValueError: The train was not made of spike times, or ``grad`` is no gradient of its times.
    """
    if train.source is None:
        raise ValueError("train.source is None: only a train that events_from_spikes made leads back to spike times")
    check_grad(grad, train.times.shape)
    grad = torch.where(train.is_spike, grad, 0.0)
    flat = grad.new_zeros(shape).flatten(1)
    return flat.scatter_add(1, train.source, grad).reshape(shape)


@explained
def delayed(train: SpikeTrain, delay: Tensor) -> SpikeTrain:
    """The same spikes, each later by the delay of its neuron's axon, and sorted again.

    Args:
        train: Spikes of ``neurons`` neurons.
        delay: ``(neurons,)``, not negative, in the unit of the times. Differentiable, as the times are.

    Raises:
        ValueError: Not one delay a neuron, or a negative one.
    """
    if delay.dim() != 1:
        raise ValueError(f"delay of shape {tuple(delay.shape)}: give one for every input neuron, (neurons,)")
    if not bool((delay.detach() >= 0).all()):
        raise ValueError(f"delay={delay.detach().amin().item():g} is negative: give delay.clamp(min=0)")
    index = torch.where(train.is_spike, train.index, 0)
    check_index(index, delay.numel(), "delay")
    times = torch.where(train.is_spike, train.times + delay[index], torch.inf)
    order = _order(times.detach())
    source = None if train.source is None else train.source.gather(1, order)
    return SpikeTrain(times.gather(1, order), train.index.gather(1, order), train.counts, source)


@explained
def delay_vjp(grad: Tensor, train: SpikeTrain, neurons: int) -> Tensor:
    """Gradient of the delays ``(neurons,)`` for that of the delayed times.

    The gradient of the spikes themselves is ``grad``, which :func:`events_vjp` takes back as from any train.

    Args:
        grad: ``(batch, events)``.
        train: What :func:`delayed` returned.
        neurons: How many delays there are.
    """
    check_grad(grad, train.times.shape)
    is_spike = train.is_spike
    return grad.new_zeros(neurons).index_add(0, train.index[is_spike], grad[is_spike])


def _sources(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Where the spikes are in each row, by time, ``(batch, longest)``, and how many."""
    is_spike = flat < torch.inf
    counts = is_spike.sum(1)
    source = _packed(is_spike, counts)
    return source.gather(1, _order(_gathered(flat, source, counts))), counts


def _sources_native(flat: Tensor) -> tuple[Tensor, Tensor]:
    flat = flat.contiguous()
    rows = flat, *flat.shape, torch.get_num_threads()
    counts = torch.empty(len(flat), dtype=torch.int64)
    kernels.call("count", flat.dtype, *rows, counts)
    source = torch.empty(len(flat), _longest(counts), dtype=torch.int64)
    kernels.call("order", flat.dtype, *rows, source.shape[1], source)
    return source, counts


def _longest(counts: Tensor) -> int:
    return int(counts.max()) if counts.numel() else 0


def _packed(is_spike: Tensor, counts: Tensor) -> Tensor:
    """``(batch, longest)``: the columns that are true in each row, in order, then zeros."""
    row, column = is_spike.nonzero(as_tuple=True)
    place = torch.arange(row.numel(), device=row.device) - (counts.cumsum(0) - counts)[row]
    return column.new_zeros(len(counts), _longest(counts)).index_put((row, place), column)


def _gathered(flat: Tensor, source: Tensor, counts: Tensor) -> Tensor:
    is_spike = torch.arange(source.shape[1], device=source.device) < counts.unsqueeze(1)
    return torch.where(is_spike, flat.gather(1, source), torch.inf)


def _order(times: Tensor) -> Tensor:
    """By time; simultaneous spikes stay in order."""
    return times.argsort(dim=1, stable=True)


# At the door


def rounded(t: float, dtype: torch.dtype) -> float:
    """A time as tensors of a type hold it: the one that they are compared with."""
    return float(torch.tensor(t, dtype=dtype))


def whole(number: int, name: str) -> int:
    """A whole number, of whichever type; others are refused.

    Raises:
        TypeError: It is none.
    """
    try:
        return operator.index(number)
    except TypeError as error:
        raise TypeError(f"{name}={number} is no whole number") from error


def check_shapes(times: Tensor, index: Tensor, counts: Tensor) -> None:
    """Whether three tensors can be a :class:`SpikeTrain`."""
    if not times.is_floating_point():
        raise TypeError(f"times of type {times.dtype}: spike times are floating point")
    for name, tensor in (("index", index), ("num_events, a train's counts,", counts)):
        if tensor.dtype not in _INTEGERS:
            raise TypeError(f"{name} of type {tensor.dtype}: give whole numbers, int32 or int64")
    if times.dim() != 2 or index.shape != times.shape or counts.shape != times.shape[:1]:
        raise ValueError(
            f"times of shape {tuple(times.shape)}, index of {tuple(index.shape)} and num_events, a train's counts, of "
            f"{tuple(counts.shape)}: give (batch, events) twice and (batch,)"
        )


def check_events(train: SpikeTrain, neurons: int, t_max: float) -> None:
    """Whether the events of a train are sorted and of so many inputs, none before 0 or after ``t_max``.

    ``t_max`` is a number of the type of the times: see :func:`rounded`.
    """
    events = train.times.shape[1]
    if train.counts.numel():
        least, most = (int(n) for n in train.counts.aminmax())
        if least < 0 or most > events:
            raise ValueError(f"num_events from {least} to {most}: each must be from 0 to the {events} events of times")
    if not train.times.numel():
        return
    is_spike = train.is_spike
    times = torch.where(is_spike, train.times.detach(), t_max)
    first, last = (float(t) for t in times.aminmax())
    if not (bool((times[:, 1:] >= times[:, :-1]).all()) and first >= 0 and last <= t_max):
        _refuse(train.times.detach(), is_spike, t_max)
    check_index(torch.where(is_spike, train.index, 0), neurons, "weight")


def _refuse(times: Tensor, is_spike: Tensor, t_max: float) -> None:
    """The reason why times are no events."""
    events = times[is_spike]
    if bool((events < 0).any()):
        raise ValueError(f"times begin at {float(events.amin()):g}: the simulation begins at 0, so shift them")
    if not bool(events.isfinite().all()):
        raise ValueError("times hold nan or infinity among the events: num_events counts those that there are")
    if float(events.amax()) > t_max:
        raise ValueError(f"t_max={t_max:g} is before the last event at {float(events.amax()):g}: give a longer window")
    descends = (times[:, 1:] < times[:, :-1]) & is_spike[:, 1:]
    sample = int(descends.any(1).int().argmax())
    raise ValueError(f"times of sample {sample} are not sorted: sort them, and index along with them")


def check_index(index: Tensor, neurons: int, name: str) -> None:
    """Whether indices are those of so many neurons."""
    if index.numel() == 0:
        return
    least, most = (int(n) for n in index.aminmax())
    if least < 0 or most >= neurons:
        raise ValueError(f"index from {least} to {most}: {name} has {neurons} inputs, 0 to {neurons - 1}")


def check_grad(grad: Tensor, shape: torch.Size) -> None:
    """Whether a gradient has the shape of what it is of."""
    if grad.shape != shape:
        raise ValueError(f"grad of shape {tuple(grad.shape)}: what it is the gradient of has {tuple(shape)}")
