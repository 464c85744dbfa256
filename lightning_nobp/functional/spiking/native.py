"""Spike times and gradients by the compiled kernels: plain functions on CPU tensors."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nobp.csrc import library
from lightning_nobp.functional.spiking.events import SpikeTrain
from lightning_nobp.functional.spiking.kernel import Rates
from lightning_nobp.functional.spiking.kernels import call
from lightning_nobp.functional.spiking.record import LayerGradients, Needs, SpikeRecord

# Rows of weights are whole vectors of the widest registers.
_PADDED_TO = 16
# The sums of every weight's gradient are split the same way for any number of threads: into about as many tasks.
_TASKS = 8


def forward(train: SpikeTrain, weight: Tensor, max_spikes: int, rates: Rates, t_max: float) -> SpikeRecord:
    """As :func:`~lightning_nobp.functional.spiking.reference.forward`."""
    times = train.times.detach()
    batch, neurons = len(times), weight.shape[1]
    record = SpikeRecord(
        times.new_full((batch, neurons, max_spikes), torch.inf),
        torch.zeros(batch, neurons, dtype=torch.int64),
        torch.empty(batch, max_spikes, neurons, dtype=torch.int32).transpose(1, 2),
        times.new_empty(batch, max_spikes, neurons).transpose(1, 2),
    )
    call("forward", times.dtype, *_layer(train, weight, max_spikes, rates, t_max), *_tensors(record))
    return record


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
    """As :func:`~lightning_nobp.functional.spiking.reference.backward`."""
    (batch, events), (inputs, neurons) = train.times.shape, weight.shape
    blocks = -(-_pitch(neurons) // library("spiking").nobp_spiking_block())
    parts = max(1, min(batch, _TASKS // max(1, blocks)))
    by_time = grad.new_zeros(blocks, batch, events) if needs.times else None
    by_weight = grad.new_zeros(parts, inputs, _pitch(neurons)) if needs.weight else None
    by_rate = torch.zeros(parts * blocks, 2, dtype=torch.float64) if needs.taus else None
    tables = [torch.empty_like(train.times) if needs.taus else None for _ in range(2)]
    layer = _layer(train, weight, grad.shape[2], rates, t_max, p_max)
    outputs = by_time, by_weight, by_rate
    call("backward", grad.dtype, *layer, *_tensors(record), grad.contiguous(), parts, *outputs, *tables)
    rate_v, rate_i = (None, None) if by_rate is None else by_rate.sum(0).to(grad.dtype).unbind()
    grad_weight = None if by_weight is None else _total(by_weight)[:, :neurons].contiguous()
    return needs.chosen(None if by_time is None else _total(by_time), grad_weight, rate_v, rate_i, rates)


def _total(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _pitch(neurons: int) -> int:
    return -(-neurons // _PADDED_TO) * _PADDED_TO


def _layer(
    train: SpikeTrain, weight: Tensor, max_spikes: int, rates: Rates, t_max: float, p_max: float = torch.inf
) -> tuple[Any, ...]:
    """What both kernels must know of a layer."""
    (batch, events), (inputs, neurons) = train.times.shape, weight.shape
    pitch = _pitch(neurons)
    sizes = (ctypes.c_int64 * 6)(batch, events, inputs, neurons, pitch, max_spikes)
    numbers = (ctypes.c_double * 5)(*rates, t_max, p_max)
    return (
        train.times.detach().contiguous(),
        train.index.long().contiguous(),
        train.counts.long().contiguous(),
        F.pad(weight.detach(), (0, pitch - neurons)).contiguous(),
        sizes,
        numbers,
        torch.get_num_threads(),
        train.times.new_empty(4, batch, events),
    )


def _tensors(record: SpikeRecord) -> tuple[Tensor, ...]:
    later_apart = (tensor.transpose(1, 2).contiguous() for tensor in (record.event, record.slope))
    return record.times.contiguous(), record.counts.contiguous(), *later_apart
