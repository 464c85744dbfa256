"""Networks that are physical systems, with what brings inputs in and reads scores out."""

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lightning_nobp.nn.hamiltonian.duffing import DuffingNetwork
from lightning_nobp.nn.hamiltonian.layer import HamiltonianLayer
from lightning_nobp.nn.hamiltonian.log_cosh import LogCoshNetwork
from lightning_nobp.typed import Typed


class HamiltonianNetwork(Typed, nn.Module):
    """An encoder that makes the start of a simulation, the simulation, and a read-out of where it ends.

    Args:
        encoder: Of inputs makes positions at the start ``(batch, ...)``, or a tuple ``(q0, p0, u)`` of positions,
            momenta and drives for :class:`HamiltonianLayer`; momenta and drives may be None.
        layer: The simulation.
        readout: Makes scores of positions at the end.
    """

    def __init__(self, encoder: nn.Module, layer: HamiltonianLayer, readout: nn.Module) -> None:
        super().__init__()
        self.encoder, self.layer, self.readout = encoder, layer, readout

    def forward(self, x: Tensor) -> Tensor:
        """What is read out, for classifiers scores ``(batch, num_classes)``."""
        start = self.encoder(x)
        q, _ = self.layer(start) if isinstance(start, Tensor) else self.layer(*start)
        return cast(Tensor, self.readout(q))


class PositionEncoder(Typed, nn.Module):
    """Inputs are where the first units start; the others start at 0, all at rest.

    Args:
        n_units: Number of units, at least that of the inputs.
        amplitude: What inputs are multiplied with.
        pool: Side of the squares of pixels of which the mean is taken; 1 for none.
    """

    def __init__(self, n_units: int, amplitude: float = 1.0, pool: int = 1) -> None:
        super().__init__()
        self.n_units, self.amplitude, self.pool = n_units, amplitude, pool

    def forward(self, x: Tensor) -> Tensor:
        """Positions ``(batch, n_units)`` of inputs ``(batch, ...)``.

        Raises:
            ValueError: More inputs than units.
        """
        x = self.amplitude * _pooled(x, self.pool)
        if x.shape[1] > self.n_units:
            raise ValueError(f"n_units={self.n_units} are fewer than the {x.shape[1]} inputs, which each need one")
        return nn.functional.pad(x, (0, self.n_units - x.shape[1]))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.n_units}, amplitude={self.amplitude}, pool={self.pool}"


class DriveEncoder(Typed, nn.Module):
    """Inputs act on the system through a linear layer, all the time; it starts at rest at the origin.

    Args:
        in_features: Number of inputs, after pooling.
        drive_features: Length of the drive.
        n_units: Number of units.
        pool: Side of the squares of pixels of which the mean is taken; 1 for none.
    """

    def __init__(self, in_features: int, drive_features: int, n_units: int, pool: int = 1) -> None:
        super().__init__()
        self.in_features, self.drive_features, self.n_units, self.pool = in_features, drive_features, n_units, pool
        self.linear = nn.Linear(in_features, drive_features)

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        """Positions ``(batch, n_units)``, no momenta, and a drive ``(batch, drive_features)``."""
        u: Tensor = self.linear(_pooled(x, self.pool))
        # len() would bind an exported network to the size of one batch.
        return u.new_zeros(u.shape[0], self.n_units), None, u

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"n_units={self.n_units}, pool={self.pool}"


class LastUnits(Typed, nn.Module):
    """The positions of the last units are scores.

    Args:
        count: How many.
        gain: What they are multiplied with.
    """

    def __init__(self, count: int, gain: float = 4.0) -> None:
        super().__init__()
        self.count, self.gain = count, gain

    def forward(self, q: Tensor) -> Tensor:
        """Scores ``(batch, count)`` of positions ``(batch, n_units)``."""
        return self.gain * q[:, -self.count :]

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.count}, gain={self.gain}"


class DuffingClassifier(HamiltonianNetwork):
    """All-to-all coupled Duffing oscillators: inputs are where the first start, scores where the last end.

    Args:
        input_shape: Shape of one sample, for images ``(channels, height, width)``.
        num_classes: Number of scores.
        hidden_units: Oscillators beside those of inputs and scores.
        n_steps: Time steps.
        dt: Length of one.
        alpha: Stiffness of the springs.
        beta: How fast they harden.
        amplitude: What inputs are multiplied with.
        gain: Of the scores.
        pool: Side of the squares of pixels of which the mean is taken; 1 for none.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden_units: int = 64,
        n_steps: int = 20,
        dt: float = 0.2,
        alpha: float = 1.0,
        beta: float = 1.0,
        amplitude: float = 1.0,
        gain: float = 4.0,
        pool: int = 1,
    ) -> None:
        if hidden_units < 0:
            raise ValueError(f"hidden_units={hidden_units} must be at least 0")
        n_units = _pooled_size(input_shape, pool) + hidden_units + num_classes
        super().__init__(
            PositionEncoder(n_units, amplitude, pool),
            HamiltonianLayer(DuffingNetwork(n_units, alpha, beta), dt, n_steps),
            LastUnits(num_classes, gain),
        )
        self.input_shape, self.num_classes, self.hidden_units = tuple(input_shape), num_classes, hidden_units
        self.n_steps, self.dt, self.alpha, self.beta = n_steps, dt, alpha, beta
        self.amplitude, self.gain, self.pool = amplitude, gain, pool


class LogCoshClassifier(HamiltonianNetwork):
    """Units bound by springs that yield, driven by a linear map of the inputs; scores are where the last units end.

    Args:
        input_shape: Shape of one sample, for images ``(channels, height, width)``.
        num_classes: Number of scores.
        n_units: Number of positions, at least ``num_classes``.
        hidden_features: Number of springs that yield, and length of the drive.
        n_steps: Time steps.
        dt: Length of one.
        alpha: Stiffness of the other springs.
        gain: Of the scores, which are the last positions.
        linear_readout: Whether scores are a linear map of all positions instead.
        pool: Side of the squares of pixels of which the mean is taken; 1 for none.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        n_units: int = 74,
        hidden_features: int = 256,
        n_steps: int = 12,
        dt: float = 0.25,
        alpha: float = 1.0,
        gain: float = 4.0,
        linear_readout: bool = False,
        pool: int = 1,
    ) -> None:
        if n_units < num_classes:
            raise ValueError(f"n_units={n_units} must be at least num_classes={num_classes}")
        system = LogCoshNetwork(n_units, hidden_features, alpha, bias=False)
        super().__init__(
            DriveEncoder(_pooled_size(input_shape, pool), hidden_features, n_units, pool),
            HamiltonianLayer(system, dt, n_steps),
            nn.Linear(n_units, num_classes) if linear_readout else LastUnits(num_classes, gain),
        )
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.n_units, self.hidden_features, self.n_steps, self.dt = n_units, hidden_features, n_steps, dt
        self.alpha, self.gain, self.linear_readout, self.pool = alpha, gain, linear_readout, pool


def _pooled(x: Tensor, pool: int) -> Tensor:
    """Flat inputs ``(batch, features)``, images shrunk before."""
    return (nn.functional.avg_pool2d(x, pool) if pool > 1 else x).flatten(1)


def _pooled_size(input_shape: Sequence[int], pool: int) -> int:
    if pool < 1:
        raise ValueError(f"pool={pool} must be at least 1")
    if pool > 1 and (len(input_shape) != 3 or min(input_shape[1:]) < pool):
        raise ValueError(f"pool={pool} shrinks images (channels, height, width), not {tuple(input_shape)}")
    return math.prod(size // (pool if axis and pool > 1 else 1) for axis, size in enumerate(input_shape))
