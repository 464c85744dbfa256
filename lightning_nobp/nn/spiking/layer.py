"""What layers of spiking neurons share: their parameters, and how spikes and gradients go through them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.functional.spiking import events_from_spikes, events_vjp, lif_record, lif_spike_times
from lightning_nobp.functional.spiking import lif_spike_times_vjp as lif_vjp
from lightning_nobp.functional.spiking.kernel import TimeConstant
from lightning_nobp.functional.spiking.potential import free_potential, free_potential_vjp
from lightning_nobp.nn.backprop import accumulate_grad


@dataclass(frozen=True)
class NeuronOptions:
    """How the neurons of a layer work; all times are in one unit.

    Args:
        tau_v: Membrane time constant; ``float('inf')`` for no leak.
        tau_i: Time constant of the synaptic current, likewise.
        theta: Threshold.
        t_max: When the simulation ends.
        max_spikes: After so many spikes a neuron is silent.
        p_max: Bound of the influence of a spike that only grazes the threshold; None for the exact gradient.
        delays: Whether each input has a delay that is learned.
        learn_tau: Whether the time constants are learned, as logarithms.

    Raises:
        ValueError: A number out of range, or ``learn_tau`` with an infinite time constant.
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


class SpikingLayer(nn.Module):
    """Leaky integrate-and-fire neurons that all see the same inputs.

    Attributes:
        weight: ``(inputs, outputs)``.
        delay: ``(inputs,)``, not negative, or None: how much later each input's spikes arrive. In training a delay that
            the optimizer has moved below 0 is put back to 0.
        log_tau_v: Logarithm of the membrane time constant if that is learned, else None.
        log_tau_i: Likewise, of the synaptic current.

    Spikes that arrive after ``t_max`` cause nothing, and are dropped.
    """

    weight: nn.Parameter
    delay: nn.Parameter | None
    log_tau_v: nn.Parameter | None
    log_tau_i: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, options: NeuronOptions, device: Any, dtype: Any) -> None:
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        self.tau_v, self.tau_i, self.theta, self.t_max = options.tau_v, options.tau_i, options.theta, options.t_max
        self.max_spikes, self.p_max = options.max_spikes, options.p_max
        self.delays, self.learn_tau = options.delays, options.learn_tau
        self.weight = nn.Parameter(torch.empty(inputs, outputs, **kind))
        self.delay = nn.Parameter(torch.empty(inputs, **kind)) if options.delays else None
        self.log_tau_v = nn.Parameter(torch.empty((), **kind)) if options.learn_tau else None
        self.log_tau_i = nn.Parameter(torch.empty((), **kind)) if options.learn_tau else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, for :func:`initialise_from_data` to scale; delays become 0."""
        nn.init.normal_(self.weight, std=len(self.weight) ** -0.5)
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

    def arrivals(self, spikes: Tensor) -> Tensor:
        """When the spikes ``(batch, inputs, spikes)`` are here; infinity for those that come too late."""
        if spikes.dim() != 3 or spikes.shape[1] != len(self.weight):
            raise ValueError(
                f"spikes of shape {tuple(spikes.shape)} do not fit {len(self.weight)} inputs: give "
                f"(batch, {len(self.weight)}, spikes), padded with infinity"
            )
        if self.delay is not None:
            self._put_back_delays(self.delay)
            # Not by clamp, which has no gradient at 0, where delays begin.
            spikes = spikes + torch.where(self.delay < 0, 0.0, self.delay).unsqueeze(1)
        return torch.where(spikes <= self.t_max, spikes, torch.inf)

    @torch.no_grad()
    def _put_back_delays(self, delay: Tensor) -> None:
        # Below 0 a delay has no gradient, and would never grow again.
        if self.training and bool((delay < 0).any()):
            delay.clamp_(min=0)

    def neurons(self, spikes: Tensor) -> Tensor:
        """Spikes ``(batch, outputs, max_spikes)`` that the spikes ``(batch, inputs, spikes)`` cause; differentiable."""
        train = events_from_spikes(self.arrivals(spikes))
        times, _ = lif_spike_times(
            *(train.times, train.index, train.counts, self.weight, self.max_spikes),
            *self.time_constants(),
            self.theta,
            self.t_max,
            p_max=self.p_max,
        )
        return times

    def neurons_vjp(self, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Callable[[Tensor], Tensor | None]]:
        """:meth:`neurons` without an autograd graph, and its pullback."""
        arrivals = self.arrivals(spikes)
        train = events_from_spikes(arrivals)
        layer = *(train.times, train.index, train.counts, self.weight), *self.time_constants(), self.theta, self.t_max
        record = lif_record(*layer[:4], self.max_spikes, *layer[4:])

        def pull(grad: Tensor) -> Tensor | None:
            grads = lif_vjp(
                *(grad, record, *layer),
                p_max=self.p_max,
                needs_times_grad=needs_input_grad or self.delays,
                needs_weight_grad=self.weight.requires_grad,
                needs_tau_grad=self.learn_tau,
            )
            accumulate_grad(self.weight, grads.weight)
            self._accumulate_taus(grads.tau_v, grads.tau_i)
            if grads.times is None:
                return None
            return self._through_delays(events_vjp(grads.times, train, arrivals.shape))

        return record.times, pull

    def final_potential(self, spikes: Tensor) -> Tensor:
        """Potential at ``t_max`` of neurons that never spike, ``(batch, outputs)``; differentiable."""
        return free_potential(self.arrivals(spikes), self.weight, self.t_max, *self.time_constants())

    def final_potential_vjp(self, grad: Tensor, spikes: Tensor) -> Tensor:
        """Add the parameters' gradients for that of :meth:`final_potential`, and return that of the spikes."""
        arrivals = self.arrivals(spikes)
        taus = self.time_constants()
        grads = free_potential_vjp(grad, arrivals, self.weight, self.t_max, *taus, needs_tau_grad=self.learn_tau)
        accumulate_grad(self.weight, grads.weight)
        self._accumulate_taus(grads.tau_v, grads.tau_i)
        return self._through_delays(grads.spikes)

    def _through_delays(self, grad: Tensor) -> Tensor:
        if self.delay is not None:
            accumulate_grad(self.delay, grad.sum((0, 2)) * (self.delay >= 0))
        return grad

    def _accumulate_taus(self, *grads: Tensor | None) -> None:
        for log_tau, grad in zip((self.log_tau_v, self.log_tau_i), grads, strict=True):
            if log_tau is not None and grad is not None:
                accumulate_grad(log_tau, grad * log_tau.exp())

    def operations(self, spikes: Tensor) -> Tensor:
        """Synaptic operations of each sample: how many synapses its input spikes reach, ``(batch,)``."""
        return (spikes <= self.t_max).flatten(1).sum(1) * self.weight.shape[1]

    def _neuron_repr(self) -> str:
        extra = f"{', delays=True' if self.delays else ''}{', learn_tau=True' if self.learn_tau else ''}"
        return (
            f"tau_v={self.tau_v}, tau_i={self.tau_i}, theta={self.theta}, t_max={self.t_max}, "
            f"max_spikes={self.max_spikes}, p_max={self.p_max}{extra}"
        )
