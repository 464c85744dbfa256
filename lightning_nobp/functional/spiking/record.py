"""What a simulation leaves behind: the spikes, and what their gradients need."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lightning_nobp.functional.spiking.kernel import Rates


@dataclass(frozen=True, eq=False)
class SpikeRecord:
    """The output spikes of a layer.

    Args:
        times: ``(batch, neurons, max_spikes)``, padded with infinity.
        counts: ``(batch, neurons)``, int64: how many spikes each neuron has.
        event: ``(batch, neurons, max_spikes)``, int32: the last input event before each spike. Undefined where there is
            none.
        slope: Of the potential at each spike, same shape. Undefined where there is none.
    """

    times: Tensor
    counts: Tensor
    event: Tensor
    slope: Tensor


class LayerGradients(NamedTuple):
    """Gradients of a layer's arguments, None where nobody asked."""

    times: Tensor | None
    """Of the input times, ``(batch, events)``."""
    weight: Tensor | None
    """``(inputs, neurons)``."""
    tau_v: Tensor | None
    """0-dimensional."""
    tau_i: Tensor | None
    """0-dimensional."""


class Needs(NamedTuple):
    """Which gradients are asked for."""

    times: bool
    weight: bool
    taus: bool

    def chosen(
        self, times: Tensor | None, weight: Tensor | None, rate_v: Tensor | None, rate_i: Tensor | None, rates: Rates
    ) -> LayerGradients:
        """Those of all gradients; of time constants, where rates are given."""
        return LayerGradients(
            times if self.times else None,
            weight if self.weight else None,
            -(rates.v**2) * rate_v if self.taus and rate_v is not None else None,
            -(rates.i**2) * rate_i if self.taus and rate_i is not None else None,
        )
