"""The same neurons on a grid of time steps: what exact spike times are held against."""

import torch
from torch import Tensor

from lightning_nobp.functional.spiking.events import SpikeTrain
from lightning_nobp.functional.spiking.kernel import Rates, TimeConstant, response
from lightning_nobp.typed import explained


@explained
def time_stepped_reference(
    train: SpikeTrain,
    weight: Tensor,
    max_spikes: int,
    tau_v: TimeConstant,
    tau_i: TimeConstant,
    theta: float = 1.0,
    t_max: float = 2.0,
    dt: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Spike times by a clock-driven simulation: first order in the step, without gradients.

    Decays over a step are exact; inputs arrive at the nearest step, and spikes are found at the step after them.

    Args:
        train: Input events.
        weight: ``(inputs, neurons)``.
        max_spikes: Of each neuron.
        tau_v: Membrane time constant.
        tau_i: Synaptic time constant.
        theta: Threshold.
        t_max: When the simulation ends.
        dt: Time step.

    Returns:
        As :func:`~lightning_nobp.functional.spiking.lif_spike_times`.
    """
    left = response(weight.new_tensor(dt), Rates.of(tau_v, tau_i, theta))
    synapses = weight[torch.where(train.is_spike, train.index, 0)]
    arrival = torch.where(train.is_spike, (train.times / dt).round(), -1.0)
    v, i = (weight.new_zeros(len(synapses), weight.shape[1]) for _ in range(2))
    times = weight.new_full((*v.shape, max_spikes), torch.inf)
    counts = torch.zeros_like(v, dtype=torch.int64)
    for step in range(round(t_max / dt) + 1):
        v, i = v * left.v + i * left.kernel, i * left.i
        fires = (v >= theta) & (counts < max_spikes)
        times[(*fires.nonzero(as_tuple=True), counts[fires])] = step * dt
        counts += fires
        v = torch.where(fires, 0.0, v)
        i = i + torch.einsum("be,ben->bn", (arrival == step).to(weight.dtype), synapses)
    return times, counts
