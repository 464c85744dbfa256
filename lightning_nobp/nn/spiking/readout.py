"""From output spikes to class scores."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.functional.spiking import first_spike_logits, spike_trace
from lightning_nobp.functional.spiking.events import check_spike_times
from lightning_nobp.functional.spiking.potential import free_potential, free_potential_vjp
from lightning_nobp.nn.backprop import Pullback, accumulate_grad, register_vjp
from lightning_nobp.typed import Typed


class FirstSpike(Typed, nn.Module):
    """The class whose neuron spikes first: scores are minus the first spike times, over ``sigma``.

    Args:
        sigma: Time difference of one logit.
        t_max: Stands in for a missing spike, which has no gradient: the end of the simulation.

    Raises:
        ValueError: An argument that is not positive and finite.
    """

    def __init__(self, sigma: float = 0.05, t_max: float = 2.0) -> None:
        super().__init__()
        _check_positive(sigma=sigma, t_max=t_max)
        self.sigma, self.t_max = sigma, t_max

    def forward(self, spikes: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of spike times ``(batch, classes, spikes)``, padded with infinity."""
        check_spike_times(spikes)
        return first_spike_logits(spikes, self.sigma, self.t_max)

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"sigma={self.sigma}, t_max={self.t_max}"


@register_vjp(FirstSpike)
def _first_spike(layer: FirstSpike, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor:
        grad_spikes = grad.new_zeros(spikes.shape)
        grad_spikes[..., 0] = torch.where(spikes[..., 0] <= layer.t_max, -grad / layer.sigma, 0.0)
        return grad_spikes

    return layer(spikes), pull


class SpikeTrace(Typed, nn.Module):
    """The class whose neuron spikes early and often: scores are the sums of ``exp(-t / tau_out)`` over all spikes.

    Args:
        tau_out: How fast a spike's say falls with its time.
        sigma: Difference of the sums of one logit.

    Raises:
        ValueError: An argument that is not positive and finite.
    """

    def __init__(self, tau_out: float = 0.5, sigma: float = 0.05) -> None:
        super().__init__()
        _check_positive(tau_out=tau_out, sigma=sigma)
        self.tau_out, self.sigma = tau_out, sigma

    def forward(self, spikes: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of spike times ``(batch, classes, spikes)``, padded with infinity."""
        check_spike_times(spikes)
        return spike_trace(spikes, self.tau_out) / self.sigma

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"tau_out={self.tau_out}, sigma={self.sigma}"


@register_vjp(SpikeTrace)
def _spike_trace(layer: SpikeTrace, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor:
        return torch.exp(-spikes / layer.tau_out) * (-grad / (layer.tau_out * layer.sigma)).unsqueeze(-1)

    return layer(spikes), pull


class SpikeCount(Typed, nn.Module):
    """The class whose neuron spikes most often. Counts have no gradient: it is for evaluation."""

    def forward(self, spikes: Tensor) -> Tensor:
        """Counts ``(batch, classes)`` of spike times ``(batch, classes, spikes)``, padded with infinity.

        Raises:
            RuntimeError: A gradient is wanted.
        """
        if spikes.requires_grad:
            raise RuntimeError(_NO_GRADIENT)
        return (spikes < torch.inf).sum(-1).to(spikes.dtype)


_NO_GRADIENT = (
    "SpikeCount has no gradient: train with FirstSpike or SpikeTrace (readout='first_spike' or 'trace'), and count "
    "where you evaluate: nn.Sequential(*network[:-1], SpikeCount())"
)


def _refuse_count(layer: SpikeCount, name: str) -> None:
    raise TypeError(f"{name}: {_NO_GRADIENT}")


@register_vjp(SpikeCount, check=_refuse_count)
def _spike_count(layer: SpikeCount, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor:
        raise RuntimeError(_NO_GRADIENT)

    return layer(spikes), pull


class MembraneReadout(Typed, nn.Module):
    """Leaky integrators without threshold: scores are their potentials at the end.

    Attributes:
        weight: ``(in_features, num_classes)``.
        is_scaled: Whether :func:`initialise_from_data` has scaled the weights; it is part of the state.

    Args:
        in_features: Input neurons.
        num_classes: Integrators.
        tau_v: Membrane time constant in the unit of the spike times; ``float('inf')`` for no leak.
        tau_i: Time constant of the synaptic current, likewise.
        t_max: The end.
        device: Of the weight.
        dtype: Of the weight.

    Raises:
        ValueError: An argument that is not positive.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        tau_v: float = math.inf,
        tau_i: float = math.inf,
        t_max: float = 2.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_positive(t_max=t_max)
        for name, tau in (("tau_v", tau_v), ("tau_i", tau_i)):
            if not tau > 0:
                raise ValueError(f"{name}={tau} must be positive; float('inf') is no decay")
        self.in_features, self.num_classes = in_features, num_classes
        self.tau_v, self.tau_i, self.t_max = tau_v, tau_i, t_max
        self.is_scaled = False
        self.weight = nn.Parameter(torch.empty(in_features, num_classes, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        self.is_scaled = False

    def get_extra_state(self) -> Tensor:
        """Whether the weights have been scaled by data."""
        return torch.tensor(self.is_scaled, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Weights that have been scaled are not scaled again."""
        self.is_scaled = bool(state)

    def forward(self, spikes: Tensor) -> Tensor:
        """Scores ``(batch, num_classes)`` of spike times ``(batch, in_features, spikes)``, padded with infinity."""
        check_spike_times(spikes)
        return free_potential(spikes, self.weight, self.t_max, self.tau_v, self.tau_i)

    def operations(self, spikes: Tensor) -> Tensor:
        """Synaptic operations of each sample, ``(batch,)``."""
        return (spikes <= self.t_max).flatten(1).sum(1) * self.num_classes

    def extra_repr(self) -> str:
        """Sizes and options, for printing."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, tau_v={self.tau_v}, tau_i={self.tau_i}, "
            f"t_max={self.t_max}"
        )


@register_vjp(MembraneReadout)
def _membrane_readout(layer: MembraneReadout, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    def pull(grad: Tensor) -> Tensor:
        grads = free_potential_vjp(grad, spikes, layer.weight, layer.t_max, layer.tau_v, layer.tau_i)
        accumulate_grad(layer.weight, grads.weight)
        return grads.spikes

    return layer(spikes), pull


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name}={number} must be positive and finite")
