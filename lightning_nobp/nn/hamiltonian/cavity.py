"""Coupled cavities with the Kerr effect, on a chip."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nobp.functional.hamiltonian import DenseFlow, Drives, PhaseFlow
from lightning_nobp.nn.hamiltonian.field_system import CoupledFields, FieldFlow, check_finite_numbers


class KerrCavityArray(CoupledFields):
    r"""A square lattice of cavities with open boundaries that learns, and four modes at its corners that evaluate.

    :math:`H = \sum_{\langle ij \rangle} 2J \, \mathrm{Re}\, \Theta_i^* \Theta_j + 2\kappa \sum_c \mathrm{Re}\,
    \Psi_c^* \Theta_{corner} + \omega \sum_c |\Psi_c|^2 + \frac g2 \sum (|\Psi|^4 + |\Theta|^4)
    + \sum \Delta |\psi|^2`, where the detunings :math:`\Delta` of all cavities are normal. A state is
    ``(batch, 4 + width ** 2)``, the modes first.

    Args:
        width: Cavities along each side, at least 2.
        J: Coupling of neighbours.
        g: Strength of the Kerr effect.
        kappa: Coupling of a mode to its corner.
        omega: Frequency of the modes.
        disorder: Standard deviation of the detunings.

    Raises:
        ValueError: An argument out of range.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992, figure 8.
    """

    def __init__(
        self,
        width: int = 4,
        J: float = 10.0,  # noqa: N803 - the coupling's usual letter
        g: float = -2.0,
        kappa: float = 0.3,
        omega: float = 0.0,
        disorder: float = 0.0,
    ) -> None:
        super().__init__()
        if width < 2 or width != int(width):
            raise ValueError(f"width={width!r} must be a whole number, at least 2: the modes need four corners")
        check_finite_numbers(J=J, g=g, kappa=kappa, omega=omega)
        if not 0 <= disorder < float("inf"):
            raise ValueError(f"disorder={disorder!r} is a standard deviation: it must be at least 0, and finite")
        self.width, self.J, self.g, self.kappa, self.omega, self.disorder = width, J, g, kappa, omega, disorder
        self.evaluation_shape, self.learning_shape = (4,), (width**2,)
        self.detuning: Tensor
        self.register_buffer("detuning", disorder * torch.randn(4 + width**2))
        self.strength: Tensor
        self.register_buffer("strength", torch.tensor(float(g)), persistent=False)

    def flows(self, drives: Drives, grid: float = 0.0) -> Sequence[FieldFlow]:
        """All couplings at once, and the Kerr effect; a drive detunes the cavities."""
        return DenseFlow([self.couplings()]), PhaseFlow(self.strength, None, drives=drives)

    def couplings(self) -> Tensor:
        """The linear part of the Hamiltonian, ``(4 + width ** 2, 4 + width ** 2)``, in float64."""
        width, device = self.width, self.detuning.device
        line = torch.diag(torch.ones(width - 1, dtype=torch.float64, device=device), 1)
        line, alone = line + line.T, torch.eye(width, dtype=torch.float64, device=device)
        couplings = torch.diag(self.detuning.double())
        couplings[4:, 4:] += self.J * (torch.kron(line, alone) + torch.kron(alone, line))
        corners = [4, 3 + width, 4 + width * (width - 1), 3 + width**2]
        for mode, corner in enumerate(corners):
            couplings[mode, mode] += self.omega
            couplings[mode, corner] = couplings[corner, mode] = self.kappa
        return couplings

    def join(self, evaluation: Tensor, learning: Tensor) -> Tensor:
        """The modes, and the lattice row by row."""
        return torch.cat([evaluation, learning], dim=1)

    def evaluation(self, state: Tensor) -> Tensor:
        """The four modes: upper left, upper right, lower left, lower right."""
        return state[:, :4]

    def learning(self, state: Tensor) -> Tensor:
        """The lattice."""
        return state[:, 4:]

    def initial_learning_field(self) -> Tensor:
        """Uniform between 0 and 1, scaled to norm 1."""
        field = torch.rand(self.learning_shape)
        return nn.functional.normalize(field, dim=0)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"width={self.width}, J={self.J}, g={self.g}, kappa={self.kappa}, omega={self.omega}, "
            f"disorder={self.disorder}"
        )
