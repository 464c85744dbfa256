"""Springs that yield: a potential whose forces are bounded."""

from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from lightning_nobp.functional.hamiltonian import Sums
from lightning_nobp.nn.hamiltonian.outer_products import OuterProducts
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem


class LogCoshNetwork(HamiltonianSystem):
    r"""Units that are bound by springs, which yield where they are stretched far.

    :math:`V = \frac\alpha2 |q|^2 + \sum_j \log \cosh (W q + u + b)_j` with learned :math:`W`, :math:`b`, positions
    ``(batch, n_units)`` and, if wanted, a drive ``(batch, hidden_features)``. Its curvature is nowhere larger than
    :math:`\alpha + |W|^2`, so a time step that is right for one state is right for all.

    Args:
        n_units: Number of positions.
        hidden_features: Number of springs that yield.
        alpha: Stiffness of the others, one a unit.
        bias: Whether there is a ``b``; a drive that comes from a layer has one already.

    Raises:
        ValueError: No units, or no springs.
    """

    def __init__(self, n_units: int, hidden_features: int, alpha: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        if min(n_units, hidden_features) < 1:
            raise ValueError(f"n_units={n_units} and hidden_features={hidden_features} must be at least 1")
        self.n_units, self.hidden_features, self.alpha = n_units, hidden_features, alpha
        self.weight = nn.Parameter(torch.empty(hidden_features, n_units))
        self.bias = nn.Parameter(torch.empty(hidden_features)) if bias else None
        self.reset_parameters()

    @property
    def state_shape(self) -> tuple[int, ...]:
        """``(n_units,)``."""
        return (self.n_units,)

    @property
    def drive_shape(self) -> tuple[int, ...]:
        """``(hidden_features,)``."""
        return (self.hidden_features,)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw ``weight`` with standard deviation ``1 / sqrt(n_units)``; no bias."""
        nn.init.normal_(self.weight, std=1 / self.n_units**0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def potential(self, q: Tensor, u: Tensor | None) -> Tensor:
        """See the class."""
        doubled = self.doubled_stretch(q, u).abs()
        # cosh itself overflows early.
        log_cosh = doubled / 2 + F.softplus(-doubled) - log(2)
        return self.alpha / 2 * q.square().sum(dim=1) + log_cosh.sum(dim=1)

    def potential_gradient(self, q: Tensor, u: Tensor | None) -> Tensor:
        """``dV/dq``."""
        return self.pull(q, self.tension(q, u))

    def tension(self, q: Tensor, u: Tensor | None) -> Tensor:
        """Of the springs that yield ``(batch, hidden_features)``: ``tanh(W q + u + b)``, which is ``dV/du``."""
        # tanh(x) by sigmoid(2x): on a CPU torch's tanh takes as long as a product of matrices.
        return self.doubled_stretch(q, u).sigmoid() * 2 - 1

    def pull(self, q: Tensor, tension: Tensor) -> Tensor:
        """``dV/dq`` of all springs."""
        return torch.addmm(q, tension, self.weight, beta=self.alpha)

    def highest_frequency(self, q: Tensor, u: Tensor | None) -> Tensor:
        """Its bound for all states."""
        norm: Tensor = torch.linalg.matrix_norm(self.weight.detach(), ord=2)
        return (self.alpha + norm.square()).clamp_min(0).sqrt()

    def sums(self, weight: Tensor) -> Sums:
        """Derivatives by the weight and the bias."""
        # The formulas know parameters, not what they are made of.
        return super().sums(weight) if is_parametrized(self) else _SpringSums(self, weight)

    def doubled_stretch(self, q: Tensor, u: Tensor | None, out: Tensor | None = None) -> Tensor:
        """``2 (W q + u + b)``, ``(batch, hidden_features)``.

        Args:
            q: Positions.
            u: The drive.
            out: Where it is to be written.
        """
        shift = self.bias if u is None else u if self.bias is None else u + self.bias
        if shift is None:
            return torch.mul(q @ self.weight.t(), 2, out=out)
        return torch.addmm(shift, q, self.weight.t(), beta=2, alpha=2, out=out)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.n_units}, {self.hidden_features}, alpha={self.alpha}, bias={self.bias is not None}"


class _SpringSums:
    r"""Of :math:`t_+ q_+^T - t_- q_-^T`: tensions are written where the next product of several kicks reads them."""

    def __init__(self, system: LogCoshNetwork, weight: Tensor) -> None:
        self.system = system
        self.signed = torch.cat([weight, -weight]).to(system.weight.dtype)
        learned = system.weight.requires_grad
        self._products = OuterProducts(torch.zeros_like(system.weight.t())) if learned else None
        bias = system.bias
        self._by_bias = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None

    def kick(self, q: Tensor, u: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
        signed = self.signed * factor
        if self._products is None:
            tension = self.system.tension(q, u)
        else:
            left, right = self._products.slots(len(q))
            torch.mul(q, signed.unsqueeze(1), out=left)
            tension = self.system.doubled_stretch(q, u, right).sigmoid_().mul_(2).sub_(1)
        if self._by_bias is not None:
            self._by_bias.addmv_(tension.t(), signed)
        return self.system.pull(q, tension), None if u is None else tension

    def gradients(self) -> dict[Tensor, Tensor]:
        found: dict[Tensor, Tensor] = {}
        if self._products is not None:
            found[self.system.weight] = self._products.sum().t()
        if self._by_bias is not None:
            assert self.system.bias is not None
            found[self.system.bias] = self._by_bias
        return found
