"""The fully connected layer of spiking neurons."""

import math
from typing import Any

from torch import Tensor

from lightning_nobp.nn.backprop import Pullback, register_vjp
from lightning_nobp.nn.spiking.layer import NeuronOptions, SpikingLayer


class SpikingLinear(SpikingLayer):
    """Leaky integrate-and-fire neurons, every one connected to every input, that spike up to ``max_spikes`` times each.

    Args:
        in_features: Input neurons.
        out_features: Neurons of the layer.
        tau_v: Membrane time constant in the unit of the spike times; ``float('inf')`` for no leak.
        tau_i: Time constant of the synaptic current, likewise.
        theta: Threshold.
        t_max: When the simulation ends; spikes that arrive later are dropped.
        max_spikes: After so many spikes a neuron is silent; 1 for the methods of a single spike.
        p_max: Bound of the influence of a spike that only grazes the threshold, on a loss that is a mean over the
            batch; None for the exact gradient.
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
        p_max: float | None = 10.0,
        delays: bool = False,
        learn_tau: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = NeuronOptions(tau_v, tau_i, theta, t_max, max_spikes, p_max, delays, learn_tau)
        super().__init__(in_features, out_features, options, device, dtype)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, spikes: Tensor) -> Tensor:
        """Spike times ``(batch, out_features, max_spikes)`` for ``(batch, in_features, spikes)``, padded with infinity.

        Raises:
            ValueError: Another number of inputs, or negative times.
        """
        return self.neurons(spikes)

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._neuron_repr()}"


@register_vjp(SpikingLinear)
def _spiking_linear(layer: SpikingLinear, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer.neurons_vjp(spikes, needs_input_grad)
