"""What is wrong with an apparatus that makes an echo."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.flows import Flow, Recorder, Scale, Unrecorded
from lightning_nobp.functional.hamiltonian.phase_space import PhaseSpace, State, sizes


@dataclass(frozen=True)
class Imperfections:
    r"""Imperfections of an apparatus; by default none.

    Args:
        gain: Rate with which the echo is amplified; None compensates the damping exactly.
        noise: Standard deviation of what is added to every momentum, :math:`\sigma`, per square root of time.
        shared_noise: Whether the echoes that are subtracted from each other see the same noise.
        conjugation_error: Fraction of the momentum that is lost when time is reversed.
        readout_noise: Standard deviation of the error signal's components, as a fraction of their root mean square.
        generator: Of the noise; None for torch's own.
    """

    gain: float | None = None
    noise: float = 0.0
    shared_noise: bool = False
    conjugation_error: float = 0.0
    readout_noise: float = 0.0
    generator: torch.Generator | None = field(default=None, compare=False)

    def flows(self, space: PhaseSpace, copies: int) -> list[Flow]:
        """The noise that acts on a simulation, or on echoes whose rows are ``copies`` of the samples."""
        if not self.noise:
            return []
        return [Noise(space, self.noise, copies if self.shared_noise else 1, self.generator)]

    def misread(self, gradient: State) -> State:
        """The error signal as it is read."""
        if not self.readout_noise:
            return gradient
        entries = sum(g[0].numel() * (2 if g.is_complex() else 1) for g in gradient)
        scale = self.readout_noise * sizes(gradient) / entries**0.5
        return tuple(g + self._normal(g) * scale.view(-1, *[1] * (g.dim() - 1)).to(g.dtype) for g in gradient)

    def _normal(self, like: Tensor) -> Tensor:
        return normal(like, self.generator)


class Noise:
    """Momenta that walk at random.

    Args:
        space: Of the states.
        sigma: Standard deviation per square root of time.
        copies: So many equal parts of the batch see the same noise.
        generator: Of the noise.
    """

    def __init__(self, space: PhaseSpace, sigma: float, copies: int, generator: torch.Generator | None) -> None:
        self.space, self.sigma, self.copies, self.generator = space, sigma, copies, generator

    def __call__(self, state: State, h: float, step: int) -> State:
        """The state with ``sigma * sqrt(h)`` of noise."""
        parts = [part[: len(part) // self.copies] for part in state]
        drawn = [normal(part, self.generator) * (self.sigma * h**0.5) for part in parts]
        return self.space.shaken(state, tuple(torch.cat([d] * self.copies) for d in drawn))

    def recorder(self, weight: Tensor, scale: Scale) -> Recorder:
        """Nothing to record."""
        return Unrecorded(self)


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the shape and type of ``like``; real and imaginary parts each, where it is complex."""
    real = torch.view_as_real(like) if like.is_complex() else like
    device = generator.device if generator is not None else like.device
    drawn = torch.randn(real.shape, dtype=real.dtype, device=device, generator=generator).to(like.device)
    return torch.view_as_complex(drawn) if like.is_complex() else drawn
