"""The fully connected layer of spiking neurons."""

import math
from typing import Any

from lightning_nobp.nn.spiking.layer import NeuronOptions, SpikingLayer


class SpikingLinear(SpikingLayer):
    """Leaky integrate-and-fire neurons, every one connected to every input, that spike up to ``max_spikes`` times each.

    Spikes ``(batch, in_features, spikes)`` cause spikes ``(batch, out_features, max_spikes)``, both padded with
    infinity.

    Args:
        in_features: Input neurons.
        out_features: Neurons of the layer.
        tau_v: Membrane time constant in the unit of the spike times; ``float('inf')`` for no leak.
        tau_i: Time constant of the synaptic current, likewise.
        theta: Threshold.
        t_max: When the simulation ends; spikes that arrive later are dropped.
        max_spikes: After so many spikes a neuron is silent; 1 for the methods of a single spike.
        p_max: Bound of the influence of a spike that only grazes the threshold on the loss of its sample, if that of
            the batch is their mean; None for the exact gradient.
        delays: Whether the spikes of each input neuron come later by a delay that is learned.
        learn_tau: Whether both time constants, which must be finite, are learned.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: An argument out of range.

    References:
        Yamamoto, Sakemi and Aihara, "Timing-Based Backpropagation in Spiking Neural Networks Without Single-Spike
        Restrictions", arXiv 2211.16113.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        tau_v: float = math.inf,
        tau_i: float = math.inf,
        theta: float = 1.0,
        t_max: float = 2.0,
        max_spikes: int = 16,
        p_max: float | None = 1000.0,
        delays: bool = False,
        learn_tau: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = NeuronOptions(tau_v, tau_i, theta, t_max, max_spikes, p_max, delays, learn_tau)
        super().__init__(in_features, out_features, options, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._neuron_repr()}"
