"""Nonlinear waves in a medium that is learned."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight
from torch.nn.utils.parametrize import is_parametrized

from lightning_nobp.functional.hamiltonian import AutogradSums, Drift, Drives, Flow, Kick, Sums
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem

Boundary = Literal["periodic", "fixed"]


class KleinGordonField(HamiltonianSystem):
    r"""A field of several channels on a line or a plane: waves with a mass, a nonlinearity, and couplings nearby.

    :math:`V = \sum_x \frac{c^2}2 |\nabla \phi|^2 + \frac12 m^2(x) \phi^2 + \frac14 g(x) \phi^4 + \frac12 \phi \,
    (k * \phi) - u \phi` with learned :math:`m^2`, :math:`g` and kernel :math:`k`, fields ``(batch, channels, *shape)``
    and, if wanted, a drive of that shape. Where :math:`g` gets negative, fields may run away.

    Args:
        channels: Components of the field.
        shape: Points of the grid, one number or two.
        kernel_size: Reach of the couplings: the side of the kernel, odd.
        c: Speed of light.
        dx: Distance of points.
        boundary: ``'periodic'``, or ``'fixed'``, where the field is 0 beyond the grid.

    Raises:
        ValueError: An argument out of its range.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """

    def __init__(
        self,
        channels: int,
        shape: Sequence[int],
        kernel_size: int = 3,
        c: float = 1.0,
        dx: float = 0.5,
        boundary: Boundary = "periodic",
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels={channels} must be at least 1")
        if len(shape) not in (1, 2) or min(shape) < 3:
            raise ValueError(f"shape={tuple(shape)}: give the points of a line or a plane, at least 3 a side")
        if kernel_size % 2 == 0 or not 1 <= kernel_size <= min(shape):
            raise ValueError(f"kernel_size={kernel_size} must be odd, from 1 to the shortest side of {tuple(shape)}")
        if not (c >= 0 and dx > 0):
            raise ValueError(f"c={c} must be at least 0, and dx={dx} positive")
        if boundary not in get_args(Boundary):
            raise ValueError(f"boundary={boundary!r} is not one of {', '.join(map(repr, get_args(Boundary)))}")
        self.channels, self.shape, self.kernel_size = channels, tuple(shape), kernel_size
        self.c, self.dx, self.boundary = c, dx, boundary
        self.mass_squared = nn.Parameter(torch.empty(channels, *shape))
        self.nonlinearity = nn.Parameter(torch.empty(channels, *shape))
        self.kernel = nn.Parameter(torch.empty(channels, channels, *[kernel_size] * len(self.shape)))
        self.reset_parameters()

    @property
    def state_shape(self) -> tuple[int, ...]:
        """``(channels, *shape)``."""
        return (self.channels, *self.shape)

    @property
    def drive_shape(self) -> tuple[int, ...]:
        """``(channels, *shape)``."""
        return self.state_shape

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mass and nonlinearity 1 everywhere, couplings drawn with a norm of a third."""
        nn.init.ones_(self.mass_squared)
        nn.init.ones_(self.nonlinearity)
        nn.init.normal_(self.kernel, std=0.3 / (self.channels * self.kernel_size ** len(self.shape)) ** 0.5)

    def couplings(self) -> Tensor:
        """The kernel of ``dV/dphi``: waves, and the symmetric part of the learned one."""
        kernel = (self.kernel + _mirrored(self.kernel)) / 2
        missing = max(0, 3 - self.kernel_size) // 2
        kernel = F.pad(kernel, [missing] * (2 * len(self.shape)))
        channels = torch.eye(self.channels, dtype=kernel.dtype, device=kernel.device)
        waves = torch.zeros_like(kernel).flatten(2)
        side, middle = kernel.shape[-1], waves.shape[-1] // 2
        for axis in range(len(self.shape)):
            for offset, weight in ((0, 2.0), (1, -1.0), (-1, -1.0)):
                waves[..., middle + offset * side**axis] += weight * (self.c / self.dx) ** 2 * channels
        return kernel + waves.view_as(kernel)

    def convolved(self, field: Tensor, kernel: Tensor) -> Tensor:
        """``kernel * field``, over the boundary too."""
        convolve = F.conv1d if len(self.shape) == 1 else F.conv2d
        with exact_convolutions(field):
            found: Tensor = convolve(self.surrounded(field, kernel.shape[-1] // 2), kernel)
        return found

    def surrounded(self, field: Tensor, reach: int) -> Tensor:
        """The field with so many points beyond each of its sides."""
        mode = "circular" if self.boundary == "periodic" else "constant"
        return F.pad(field, [reach] * (2 * len(self.shape)), mode=mode) if reach else field

    def potential(self, q: Tensor, u: Tensor | None) -> Tensor:
        """See the class."""
        square = q.square()
        density = q * self.convolved(q, self.couplings()) + self.mass_squared * square
        density = density / 2 + self.nonlinearity / 4 * square.square()
        return (density if u is None else density - u * q).flatten(1).sum(dim=1)

    def potential_gradient(self, q: Tensor, u: Tensor | None) -> Tensor:
        """``dV/dphi``."""
        return _Medium(self).potential_gradient(q, u)

    def sums(self, weight: Tensor) -> Sums:
        """Derivatives by mass, nonlinearity and kernel."""
        return _Medium(self).sums(weight)

    def flows(self, drives: Drives, grid: float = 0.0) -> Sequence[Flow]:
        """Drift and kick, with the kernel computed once."""
        medium = _Medium(self)
        return Drift(self, grid), Kick(medium, drives, grid)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return (
            f"{self.channels}, {self.shape}, kernel_size={self.kernel_size}, c={self.c}, dx={self.dx}, "
            f"boundary={self.boundary!r}"
        )


def _mirrored(kernel: Tensor) -> Tensor:
    """The kernel of the transposed convolution."""
    return kernel.transpose(0, 1).flip(*range(2, kernel.dim()))


def exact_convolutions(like: Tensor) -> AbstractContextManager[None]:
    """Convolutions on a GPU without TF32, which cuDNN takes unless told otherwise, and in which echoes drown.

    Args:
        like: What is convolved.
    """
    backend = torch.backends.cudnn
    if not like.is_cuda or not backend.allow_tf32:
        return nullcontext()
    options = {name: getattr(backend, name) for name in ("enabled", "benchmark", "deterministic")}
    found: AbstractContextManager[None] = backend.flags(**options, allow_tf32=False)
    return found


class _Medium:
    """The formulas, for one simulation."""

    def __init__(self, system: KleinGordonField) -> None:
        self.system, self.kernel = system, system.couplings()

    def velocity(self, p: Tensor) -> Tensor:
        return self.system.velocity(p)

    def potential_gradient(self, q: Tensor, u: Tensor | None) -> Tensor:
        system = self.system
        stiffness = torch.addcmul(system.mass_squared, system.nonlinearity, q.square())
        found = torch.addcmul(system.convolved(q, self.kernel), stiffness, q)
        return found if u is None else found - u

    def sums(self, weight: Tensor) -> Sums:
        # The formulas know parameters, not what they are made of.
        return AutogradSums(self.system, weight) if is_parametrized(self.system) else _MediumSums(self, weight)


class _MediumSums:
    """From differences and means of two echoes, so that little cancels."""

    def __init__(self, medium: _Medium, weight: Tensor) -> None:
        self.medium, self.system = medium, medium.system
        self.weight = weight.to(medium.kernel.dtype).view(-1, *[1] * len(self.system.state_shape))
        self.totals: dict[Tensor, Any] = {p: torch.zeros_like(p) for p in self.system.parameters() if p.requires_grad}

    def kick(self, q: Tensor, u: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
        plus, minus = q.chunk(2)
        mean, difference = torch.lerp(plus, minus, 0.5), (plus - minus) * (self.weight * factor)
        half_squares = mean * difference
        system = self.system
        if system.mass_squared in self.totals:
            self.totals[system.mass_squared] += half_squares.sum(dim=0)
        if system.nonlinearity in self.totals:
            squares = torch.addcmul(mean.square(), plus - minus, plus - minus, value=0.25)
            self.totals[system.nonlinearity] += (half_squares * squares).sum(dim=0)
        if system.kernel in self.totals:
            self.totals[system.kernel] += self._by_kernel(mean, difference)
        return self.medium.potential_gradient(q, u), None if u is None else -q

    def _by_kernel(self, mean: Tensor, difference: Tensor) -> Tensor:
        """Of ``difference . (kernel * mean)``."""
        around = self.system.surrounded(mean, self.system.kernel_size // 2)
        by_weight = conv1d_weight if len(self.system.shape) == 1 else conv2d_weight
        with exact_convolutions(mean):
            found: Tensor = by_weight(around, self.system.kernel.shape, difference)  # type: ignore[no-untyped-call]
        return found

    def gradients(self) -> dict[Tensor, Tensor]:
        if self.system.kernel in self.totals:
            found = self.totals[self.system.kernel]
            return self.totals | {self.system.kernel: (found + _mirrored(found)) / 2}
        return self.totals
