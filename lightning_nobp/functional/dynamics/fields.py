"""Vector fields of single oscillators.

References:
    Lorenz, "Deterministic nonperiodic flow", J. Atmos. Sci. 20, 130 (1963); Roessler, "An equation for continuous
    chaos", Phys. Lett. A 57, 397 (1976); Chua, Komuro and Matsumoto, "The double scroll family", IEEE Trans. Circuits
    Syst. 33, 1072 (1986), with a cubic nonlinearity; FitzHugh, "Impulses and physiological states in theoretical models
    of nerve membrane", Biophys. J. 1, 445 (1961); parameters as in Tan, Correa, Stemler and Small, "Backpropagation on
    Dynamical Networks", arXiv 2207.03093.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

Parameter = float | Tensor
"""A number, or one a node ``(nodes,)``."""


class VectorField(ABC):
    """How an oscillator moves alone: called with states ``(..., nodes, components)``, gives their time derivatives.

    Its fields are its parameters: numbers, or one a node.
    """

    components: ClassVar[int]
    """Numbers in the state of a node; the first is what others feel."""
    dt: ClassVar[float]
    """A sampling interval that resolves the motion, in the field's unit of time."""
    coupling: ClassVar[tuple[float, float]]
    """Mean and standard deviation of coupling weights that leave the nodes out of step."""
    lyapunov_exponent: ClassVar[float | None] = None
    """Rate at which errors of an oscillator alone grow, one over its unit of time; None if they do not."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """``dx/dt`` of states ``(..., nodes, components)``."""

    @abstractmethod
    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random states ``(*shape, components)``, float64, from which a transient leads to the attractor."""

    def varied(self, spread: float, num_nodes: int, generator: torch.Generator) -> Self:
        """The same field with parameters that differ from node to node, by a relative standard deviation.

        Args:
            spread: Standard deviation over the parameter's value.
            num_nodes: How many nodes.
            generator: Of the differences.
        """
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        drawn = torch.randn(len(names), num_nodes, generator=generator, dtype=torch.float64)
        changed = {n: getattr(self, n) * (1 + spread * d) for n, d in zip(names, drawn, strict=True)}
        return replace(self, **changed)  # type: ignore[type-var]


def _uniform(shape: tuple[int, ...], low: list[float], high: list[float], generator: torch.Generator) -> Tensor:
    lowest, highest = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    return lowest + (highest - lowest) * torch.rand(*shape, len(low), generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Lorenz(VectorField):
    """``(sigma (y - x), x (rho - z) - y, x y - beta z)``."""

    sigma: Parameter = 10.0
    rho: Parameter = 28.0
    beta: Parameter = 8 / 3
    components = 3
    dt = 0.02
    coupling = (0.15, 0.02)
    lyapunov_exponent = 0.906

    def __call__(self, x: Tensor) -> Tensor:
        """``dx/dt``."""
        x, y, z = x.unbind(-1)
        return torch.stack([self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z], dim=-1)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Around the attractor."""
        return _uniform(shape, [-15.0, -15.0, 10.0], [15.0, 15.0, 40.0], generator)


@dataclass(frozen=True)
class Roessler(VectorField):
    """``(-y - z, x + a y, b + z (x - c))``."""

    a: Parameter = 0.2
    b: Parameter = 0.2
    c: Parameter = 5.7
    components = 3
    dt = 0.05
    coupling = (0.02, 0.003)
    lyapunov_exponent = 0.0714

    def __call__(self, x: Tensor) -> Tensor:
        """``dx/dt``."""
        x, y, z = x.unbind(-1)
        return torch.stack([-y - z, x + self.a * y, self.b + z * (x - self.c)], dim=-1)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Around the attractor."""
        return _uniform(shape, [-6.0, -6.0, 0.0], [6.0, 6.0, 1.0], generator)


@dataclass(frozen=True)
class Chua(VectorField):
    """``k (alpha (y - x - a x^3 - b x), x - y + z, -beta y - gamma z)``, a cubic double scroll."""

    k: Parameter = -1.0
    alpha: Parameter = 17.0
    beta: Parameter = 53.612186
    gamma: Parameter = -0.75087096
    a: Parameter = -0.0375582129
    b: Parameter = -0.8415410391
    components = 3
    dt = 0.02
    coupling = (0.02, 0.003)
    lyapunov_exponent = 0.36

    def __call__(self, x: Tensor) -> Tensor:
        """``dx/dt``."""
        x, y, z = x.unbind(-1)
        by_x = self.k * self.alpha * (y - x - self.a * x**3 - self.b * x)
        return torch.stack([by_x, self.k * (x - y + z), self.k * (-self.beta * y - self.gamma * z)], dim=-1)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Around the attractor."""
        return _uniform(shape, [-1.0, -0.2, -1.0], [1.0, 0.2, 1.0], generator)


@dataclass(frozen=True)
class FitzHughNagumo(VectorField):
    """A neuron under a sinusoidal current, which is two further numbers of its state.

    ``(v (v - 1) (1 - b1 v) - w + alpha / omega I, b2 v, I', -omega^2 I)`` with ``omega = 2 pi frequency``.
    """

    alpha: Parameter = 0.1
    b1: Parameter = 10.0
    b2: Parameter = 1.0
    frequency: Parameter = 0.129
    components = 4
    dt = 0.05
    coupling = (0.02, 0.003)
    lyapunov_exponent = 0.039

    @property
    def omega(self) -> Parameter:
        """Of the current, in radians over time."""
        return 2 * math.pi * self.frequency

    def __call__(self, x: Tensor) -> Tensor:
        """``dx/dt``."""
        v, w, current, change = x.unbind(-1)
        by_v = v * (v - 1) * (1 - self.b1 * v) - w + self.alpha / self.omega * current
        return torch.stack([by_v, self.b2 * v, change, -(self.omega**2) * current], dim=-1)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Currents of amplitude 1 and any phase."""
        rest = _uniform(shape, [-0.2, -0.1], [0.8, 0.1], generator)
        phase = 2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
        current = torch.stack([phase.cos(), -self.omega * phase.sin()], dim=-1)
        return torch.cat([rest, current], dim=-1)


FIELDS: dict[str, type[VectorField]] = {
    "lorenz": Lorenz,
    "chua": Chua,
    "fitzhugh_nagumo": FitzHughNagumo,
    "roessler": Roessler,
}
"""Fields by name."""
