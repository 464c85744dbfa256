"""Dropout of spikes."""

import torch
from torch import Tensor, nn

from lightning_nobp.nn.backprop import Pullback, register_vjp
from lightning_nobp.typed import Typed


class SpikeDropout(Typed, nn.Module):
    """In training every spike is lost with a probability; the others keep their times.

    ``nn.Dropout`` would make times 0, which are the earliest. Nothing makes up for the lost spikes: the membranes that
    they would have charged fire later.

    Args:
        p: The probability.

    Raises:
        ValueError: ``p`` is no probability below 1.
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p={p} must be at least 0 and below 1")
        self.p = p

    def forward(self, spikes: Tensor) -> Tensor:
        """Spike times of any shape, of which some became infinity."""
        return torch.where(self._lost(spikes), torch.inf, spikes)

    def extra_repr(self) -> str:
        """The probability, for printing."""
        return f"p={self.p}"

    def _lost(self, spikes: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return torch.zeros_like(spikes, dtype=torch.bool)
        return torch.rand(spikes.shape, device=spikes.device) < self.p


@register_vjp(SpikeDropout)
def _spike_dropout(layer: SpikeDropout, spikes: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    lost = layer._lost(spikes)
    return torch.where(lost, torch.inf, spikes), lambda grad: grad.masked_fill_(lost, 0)
