"""Waves of the nonlinear Schrödinger equation, one field or two."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nobp.functional.hamiltonian import Drives, PhaseFlow
from lightning_nobp.nn.hamiltonian.field_system import (
    CoupledFields,
    FieldFlow,
    FieldSystem,
    check_finite_numbers,
    check_positive,
    check_shape,
    free_waves,
)


class NLSEField(FieldSystem):
    r"""Light in a Kerr medium, or a condensate, on a periodic grid, in learnable potentials that change with time.

    :math:`H = \sum_x \frac12 |\nabla\psi|^2 + (V(x, t) + u) |\psi|^2 + \frac g2 |\psi|^4`, for amplitudes
    :math:`\psi` at the sites. Learned is the potential :math:`V`, which starts at zero, and with ``learn_g`` :math:`g`.

    Args:
        shape: Sites along one axis or two.
        slices: Potentials one after the other in time, each ``shape``.
        g: Strength of the Kerr effect; 0 for linear waves.
        length: Of the grid's first axis.
        steps_per_slice: Time steps for which one of the potentials acts.
        learn_g: Whether ``g`` is learned.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        slices: int = 1,
        g: float = 1.0,
        length: float = 16.0,
        steps_per_slice: int = 1,
        learn_g: bool = False,
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape)
        check_positive(slices=slices, length=length, steps_per_slice=steps_per_slice)
        check_finite_numbers(g=g)
        self.slices, self.g, self.length = slices, g, length
        self.steps_per_slice, self.learn_g = steps_per_slice, learn_g
        self.potential = nn.Parameter(torch.zeros(slices, *self.shape))
        strength = torch.tensor(float(g))
        self.strength: Tensor
        if learn_g:
            self.strength = nn.Parameter(strength)
        else:
            self.register_buffer("strength", strength, persistent=False)

    @property
    def n_steps(self) -> int:
        """Time steps that show every potential once."""
        return self.slices * self.steps_per_slice

    def flows(self, drives: Drives, grid: float = 0.0) -> Sequence[FieldFlow]:
        """Waves, and phases; a drive adds to the potential."""
        waves = free_waves(self.shape, self.length / self.shape[0], self.potential.device)
        return waves, PhaseFlow(self.strength, self.potential, self.steps_per_slice, drives)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"shape={self.shape}, slices={self.slices}, g={self.g}, length={self.length}, "
            f"steps_per_slice={self.steps_per_slice}, learn_g={self.learn_g}"
        )


class TwoFieldNLSE(CoupledFields):
    r"""An evaluation and a learning field in a Kerr medium, on a periodic grid.

    :math:`H = \sum_x \frac12 |\nabla\Psi|^2 + \frac12 |\nabla\Theta|^2 + \frac g2 (|\Psi|^4 + |\Theta|^4)
    + \chi |\Psi|^2 |\Theta|^2`, for amplitudes at the sites. A state is ``(batch, 2, *shape)``.

    Args:
        shape: Sites along one axis or two.
        g: Strength of the Kerr effect of each field on itself.
        chi: And of one on the other: how learning acts on evaluation, and is acted on.
        length: Of the grid's first axis.
        amplitude: Root mean square of the learning field at the start.
        modes: It is a sum of waves with up to so many periods along an axis, of random amplitudes.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        shape: Sequence[int] = (64,),
        g: float = 1.0,
        chi: float = 1.5,
        length: float = 16.0,
        amplitude: float = 1.0,
        modes: int = 4,
    ) -> None:
        super().__init__()
        self.shape = check_shape(shape)
        check_positive(length=length, amplitude=amplitude, modes=modes)
        check_finite_numbers(g=g, chi=chi)
        self.g, self.chi, self.length, self.amplitude, self.modes = g, chi, length, amplitude, modes
        self.evaluation_shape = self.learning_shape = self.shape
        self.strength: Tensor
        self.register_buffer("strength", torch.tensor([[float(g), chi], [chi, float(g)]]), persistent=False)

    def flows(self, drives: Drives, grid: float = 0.0) -> Sequence[FieldFlow]:
        """Waves, and phases; a drive is a potential ``(batch, 2, *shape)``."""
        waves = free_waves(self.shape, self.length / self.shape[0], self.strength.device)
        return waves, PhaseFlow(self.strength, None, drives=drives)

    def join(self, evaluation: Tensor, learning: Tensor) -> Tensor:
        """Both fields beside each other."""
        return torch.stack([evaluation, learning], dim=1)

    def evaluation(self, state: Tensor) -> Tensor:
        """The first."""
        return state[:, 0]

    def learning(self, state: Tensor) -> Tensor:
        """The second."""
        return state[:, 1]

    def initial_learning_field(self) -> Tensor:
        """Long waves of random amplitudes."""
        spectrum = torch.fft.fftn(torch.randn(self.shape))
        periods = [torch.fft.fftfreq(n, 1 / n).abs() for n in self.shape]
        kept = torch.stack(torch.meshgrid(*periods, indexing="ij")).amax(dim=0) <= self.modes
        field: Tensor = torch.fft.ifftn(spectrum * kept).real
        return field * (self.amplitude / field.square().mean().sqrt())

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"shape={self.shape}, g={self.g}, chi={self.chi}, length={self.length}, amplitude={self.amplitude}, "
            f"modes={self.modes}"
        )
