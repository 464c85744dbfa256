r"""What turns the momentum that an echo brings back into a step of the learning field."""

import math

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.phase_space import per_sample
from lightning_nobp.typed import explained


@explained
def decay_step(start: Tensor, echo: Tensor, mass: Tensor, decay: float, kick_cutoff: float) -> Tensor:
    r"""The learning field after the decay step that ends an echo.

    A nudge :math:`\eta` brings the field back with the momentum :math:`-\frac\eta2 \, \partial C / \partial \mathrm{Re}
    \Theta`. A loss then takes it away while it moves the field. Of momentum that is left over, heavy-ball momentum
    becomes: its factor is ``exp(-decay)``.

    Args:
        start: The field :math:`\Theta` that was let loose, complex ``(batch, ...)``.
        echo: What came back of it.
        mass: :math:`m` of each sample's field ``(batch,)``; negative where the nudge was.
        decay: How far the momentum decays, the ``loss`` of the authors' code; ``math.inf`` for all of it.
        kick_cutoff: The most that the step moves an entry, approached softly; ``math.inf`` for no bound.

    Returns:
        The field to start from next time: real, unless some momentum is left.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """
    kept = math.exp(-decay)
    # An echo of the opposite nudge brings the opposite momentum, and its negative mass turns that around.
    momentum = start.imag + per_sample(mass.sign(), echo.imag) * (echo.imag - start.imag)
    kick = momentum * (1 - kept) / per_sample(mass.abs(), momentum)
    kick = kick / (1 + (kick / kick_cutoff).square()).sqrt()
    return torch.complex(echo.real + kick, momentum * kept)
