"""What layers of spiking neurons share: their parameters, and how spikes and gradients go through them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.functional.spiking import SpikeTrain, events_from_spikes, events_vjp, lif_record, lif_spike_times
from lightning_nobp.functional.spiking import lif_spike_times_vjp as lif_vjp
from lightning_nobp.functional.spiking.events import whole
from lightning_nobp.functional.spiking.kernel import TimeConstant
from lightning_nobp.functional.spiking.record import LayerGradients
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.typed import Typed


@dataclass(frozen=True)
class NeuronOptions:
    """How the neurons of a layer work; all times are in one unit.

    Args:
        tau_v: Membrane time constant; ``float('inf')`` for no leak.
        tau_i: Time constant of the synaptic current, likewise.
        theta: Threshold.
        t_max: When the simulation ends.
        max_spikes: After so many spikes a neuron is silent.
        p_max: Bound of the influence of a spike that only grazes the threshold on the loss of its sample, if that of
            the batch is their mean; None for the exact gradient.
        delays: Whether each input has a delay that is learned.
        learn_tau: Whether the time constants are learned, as logarithms.

    Raises:
        ValueError: A number out of range, or ``learn_tau`` with an infinite time constant.
        TypeError: ``max_spikes`` is no whole number.
    """

    tau_v: float
    tau_i: float
    theta: float
    t_max: float
    max_spikes: int
    p_max: float | None
    delays: bool
    learn_tau: bool

    def __post_init__(self) -> None:
        whole(self.max_spikes, "max_spikes")
        for name in ("tau_v", "tau_i", "theta", "t_max", "max_spikes"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name}={value} must be positive")
        for name in ("theta", "t_max"):
            if getattr(self, name) == math.inf:
                raise ValueError(f"{name}=inf must be finite")
        if self.p_max is not None and not self.p_max > 0:
            raise ValueError(f"p_max={self.p_max} must be positive; None is no bound")
        if self.learn_tau and math.inf in (self.tau_v, self.tau_i):
            raise ValueError(
                f"learn_tau=True with tau_v={self.tau_v} and tau_i={self.tau_i}: an infinite time constant has no "
                "logarithm to learn, so give a long one"
            )


class SpikingLayer(Typed, nn.Module):
    """Leaky integrate-and-fire neurons that all see the same inputs.

    A subclass whose neurons see only part of a sample says what by :meth:`seen`, which makes a row of each part.

    Attributes:
        weight: ``(inputs, outputs)``.
        delay: ``(inputs,)``, not negative, or None: how much later each input's spikes arrive. In training a delay that
            the optimizer has moved below 0 is put back to 0.
        log_tau_v: Logarithm of the membrane time constant if that is learned, else None.
        log_tau_i: Likewise, of the synaptic current.
        is_scaled: Whether :func:`initialise_from_data` has scaled the weights; it is part of the state.

    Spikes that arrive after ``t_max`` cause nothing, and are dropped.
    """

    weight: nn.Parameter
    delay: nn.Parameter | None
    log_tau_v: nn.Parameter | None
    log_tau_i: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, options: NeuronOptions, device: Any, dtype: Any) -> None:
        super().__init__()
        for name, size in (("inputs", inputs), ("outputs", outputs)):
            if whole(size, f"the number of {name}") < 1:
                raise ValueError(f"a layer with {size} {name}: give at least one")
        kind = {"device": device, "dtype": dtype}
        self.tau_v, self.tau_i, self.theta, self.t_max = options.tau_v, options.tau_i, options.theta, options.t_max
        self.max_spikes, self.p_max = options.max_spikes, options.p_max
        self.delays, self.learn_tau = options.delays, options.learn_tau
        self.is_scaled = False
        self.weight = nn.Parameter(torch.empty(inputs, outputs, **kind))
        self.delay = nn.Parameter(torch.empty(inputs, **kind)) if options.delays else None
        self.log_tau_v = nn.Parameter(torch.empty((), **kind)) if options.learn_tau else None
        self.log_tau_i = nn.Parameter(torch.empty((), **kind)) if options.learn_tau else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, for :func:`initialise_from_data` to scale; delays become 0."""
        nn.init.normal_(self.weight, std=len(self.weight) ** -0.5)
        self.is_scaled = False
        if self.delay is not None:
            nn.init.zeros_(self.delay)
        for log_tau, tau in ((self.log_tau_v, self.tau_v), (self.log_tau_i, self.tau_i)):
            if log_tau is not None:
                nn.init.constant_(log_tau, math.log(tau))

    def time_constants(self) -> tuple[TimeConstant, TimeConstant]:
        """Of the membrane and of the current: numbers, or tensors where they are learned."""
        if self.log_tau_v is None or self.log_tau_i is None:
            return self.tau_v, self.tau_i
        return self.log_tau_v.exp(), self.log_tau_i.exp()

    def get_extra_state(self) -> Tensor:
        """Whether the weights have been scaled by data."""
        return torch.tensor(self.is_scaled, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Weights that have been scaled are not scaled again."""
        self.is_scaled = bool(state)

    # What a neuron sees

    def seen(self, spikes: Tensor) -> Tensor:
        """What each neuron sees of inputs ``(batch, ...)``: ``(rows, inputs, spikes)``, by default a row a sample."""
        return spikes

    def seen_vjp(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Gradient of inputs of a shape for that of what is :meth:`seen` of them."""
        return grad

    def by_row(self, outputs: Tensor) -> Tensor:
        """The layer's spikes ``(rows, outputs, max_spikes)``, a row for each that is :meth:`seen`."""
        return outputs

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The layer's spikes in their own shape, for inputs of a shape: the way back from :meth:`by_row`."""
        return rows

    def arrivals(self, spikes: Tensor) -> Tensor:
        """When the spikes ``(rows, inputs, spikes)`` are here; infinity for those that come too late."""
        if spikes.dim() != 3 or spikes.shape[1] != len(self.weight):
            raise ValueError(
                f"spikes of shape {tuple(spikes.shape)} do not fit {len(self.weight)} inputs: give "
                f"(batch, {len(self.weight)}, spikes), padded with infinity"
            )
        if spikes.dtype is not self.weight.dtype:
            raise TypeError(
                f"spikes of {spikes.dtype} and weights of {self.weight.dtype}: convert inputs or network to one type, "
                "x.float(), or Trainer(precision='64-true') for float64"
            )
        if self.delay is not None:
            # Not by clamp, which has no gradient at 0, where delays begin.
            spikes = spikes + torch.where(self.delay < 0, 0.0, self.delay).unsqueeze(1)
        return torch.where(spikes > self.t_max, torch.inf, spikes)

    @torch.no_grad()
    def _put_back_delays(self) -> None:
        # Below 0 a delay has no gradient, and would never grow again.
        if self.training and self.delay is not None and bool((self.delay < 0).any()):
            self.delay.clamp_(min=0)

    # What neurons do

    def forward(self, spikes: Tensor) -> Tensor:
        """The spikes that the neurons send for those that they get, both padded with infinity.

        Raises:
            ValueError: Spikes that do not fit the layer, negative times, or nan.
        """
        self._put_back_delays()
        train = events_from_spikes(self.arrivals(self.seen(spikes)))
        layer = self._arguments(train)
        times, _ = lif_spike_times(*layer[:4], self.max_spikes, *layer[4:], p_max=self._bound(len(spikes)))
        return self.from_rows(times, spikes.shape)

    def vjp(self, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
        """:meth:`forward` without an autograd graph, and its pullback."""
        self._put_back_delays()
        arrivals = self.arrivals(self.seen(spikes))
        train, shape = events_from_spikes(arrivals), spikes.shape
        layer = self._arguments(train)
        record = lif_record(*layer[:4], self.max_spikes, *layer[4:])

        def pull(grad: Tensor) -> Tensor | None:
            grads = lif_vjp(
                *(self.by_row(grad), record, *layer),
                p_max=self._bound(len(spikes)),
                needs_times_grad=needs_input_grad or self.delays,
                needs_weight_grad=self.weight.requires_grad,
                needs_tau_grad=self.learn_tau,
            )
            by_row = self.pull_events(grads, train, arrivals.shape)
            return None if by_row is None else self.seen_vjp(by_row, shape)

        return self.from_rows(record.times, shape), pull

    def _arguments(
        self, train: SpikeTrain
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, TimeConstant, TimeConstant, float, float]:
        constants = *self.time_constants(), self.theta, self.t_max
        return train.times, train.index, train.counts, self.weight, *constants

    def _bound(self, samples: int) -> float | None:
        """Of the influence of one spike on a mean over samples."""
        return None if self.p_max is None else self.p_max / max(1, samples)

    def pull_events(self, grads: LayerGradients, train: SpikeTrain, shape: torch.Size) -> Tensor | None:
        """Add the gradients of the parameters, and return that of what is :meth:`seen`; None if nobody needs it.

        Args:
            grads: Of the events and the parameters.
            train: The events.
            shape: Of the :meth:`arrivals` that they were made of.
        """
        accumulate_grad(self.weight, grads.weight)
        for log_tau, grad in ((self.log_tau_v, grads.tau_v), (self.log_tau_i, grads.tau_i)):
            if log_tau is not None and grad is not None:
                accumulate_grad(log_tau, grad * log_tau.exp())
        if grads.times is None:
            return None
        by_arrival = events_vjp(grads.times, train, shape)
        if self.delay is not None:
            accumulate_grad(self.delay, by_arrival.sum((0, 2)) * (self.delay >= 0))
        return by_arrival

    def operations(self, spikes: Tensor) -> Tensor:
        """Synaptic operations of each sample: how many synapses its input spikes reach in time, ``(batch,)``."""
        reached = (self.arrivals(self.seen(spikes)) < torch.inf).flatten(1).sum(1) * self.weight.shape[1]
        return reached.view(len(spikes), len(reached) // max(1, len(spikes))).sum(1)

    def _neuron_repr(self) -> str:
        extra = f"{', delays=True' if self.delays else ''}{', learn_tau=True' if self.learn_tau else ''}"
        return (
            f"tau_v={self.tau_v}, tau_i={self.tau_i}, theta={self.theta}, t_max={self.t_max}, "
            f"max_spikes={self.max_spikes}, p_max={self.p_max}{extra}"
        )


@register_vjp(SpikingLayer)
def _spiking_layer(layer: SpikingLayer, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    return layer.vjp(spikes, needs_input_grad)
