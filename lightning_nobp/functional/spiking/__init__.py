"""Spiking networks by their spike times: exact simulation, exact gradients, codes and losses."""

from lightning_nobp.functional.spiking.clock import time_stepped_reference
from lightning_nobp.functional.spiking.coding import latency_encode, regular_encode, threshold_encode, with_inverse
from lightning_nobp.functional.spiking.events import SpikeTrain, delay_vjp, delayed, events_from_spikes, events_vjp
from lightning_nobp.functional.spiking.kernel import psc_kernel
from lightning_nobp.functional.spiking.lif import lif_record, lif_spike_times, lif_spike_times_vjp, saturated
from lightning_nobp.functional.spiking.losses import (
    SpikeLoss,
    first_spike_cross_entropy,
    first_spike_logits,
    first_time_penalty,
    spike_time_mse,
    spike_trace,
    trace_cross_entropy,
    trace_mse,
)
from lightning_nobp.functional.spiking.potential import PotentialGradients, free_potential, free_potential_vjp
from lightning_nobp.functional.spiking.record import LayerGradients, SpikeRecord

__all__ = [
    "LayerGradients",
    "PotentialGradients",
    "SpikeLoss",
    "SpikeRecord",
    "SpikeTrain",
    "delay_vjp",
    "delayed",
    "events_from_spikes",
    "events_vjp",
    "first_spike_cross_entropy",
    "first_spike_logits",
    "first_time_penalty",
    "free_potential",
    "free_potential_vjp",
    "latency_encode",
    "lif_record",
    "lif_spike_times",
    "lif_spike_times_vjp",
    "psc_kernel",
    "regular_encode",
    "saturated",
    "spike_time_mse",
    "spike_trace",
    "threshold_encode",
    "time_stepped_reference",
    "trace_cross_entropy",
    "trace_mse",
    "with_inverse",
]
