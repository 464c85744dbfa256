"""A classifier made of light in a Kerr medium."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_nobp.nn.hamiltonian.echo_layer import EchoLayer
from lightning_nobp.nn.hamiltonian.field_codes import DetectorReadout, ImageEncoder
from lightning_nobp.nn.hamiltonian.nlse import NLSEField
from lightning_nobp.typed import Typed


class FieldEcho(EchoLayer):
    """Complex fields a while later; gradients come from the echo of the simulation.

    Its ``system`` is a :class:`~lightning_nobp.nn.FieldSystem`; its arguments are those of
    :class:`~lightning_nobp.nn.EchoLayer`.
    """

    def forward(self, field: Tensor) -> Tensor:
        """The field at the end, of the shape of the field at the start."""
        return self.run((field,))[0]


class NLSENetwork(Typed, nn.Module):
    """Light with an image's amplitude crosses slices of learned refraction in a Kerr medium, and falls on detectors.

    Args:
        input_shape: ``(channels, height, width)``.
        num_classes: Detectors.
        shape: Of the grid, ``(height, width)``.
        slices: Learned potentials, one after the other.
        g: Strength of the Kerr effect; 0 for a linear medium.
        power: Of the light.
        length: Of the grid's first axis, in the equation's unit.
        dt: Length of a time step; one a slice.
        gain: Score of all light on one detector.
        init_std: Standard deviation of the potentials at the start.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        shape: Sequence[int] = (16, 16),
        slices: int = 12,
        g: float = -5.0,
        power: float = 5.0,
        length: float = 16.0,
        dt: float = 1.0,
        gain: float = 20.0,
        init_std: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = ImageEncoder(shape, power)
        system = NLSEField(shape, slices, g, length)
        nn.init.normal_(system.potential, std=init_std)
        self.echo = FieldEcho(system, dt, system.n_steps)
        self.readout = DetectorReadout(shape, num_classes, gain)
        self.input_shape, self.num_classes, self.shape = tuple(input_shape), num_classes, tuple(shape)
        self.slices, self.g, self.power, self.length = slices, g, power, length
        self.dt, self.gain, self.init_std = dt, gain, init_std

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(batch, num_classes)`` of images ``(batch, channels, height, width)``."""
        field = self.encoder(x.to(self.readout.areas.dtype))
        scores: Tensor = self.readout(self.echo(field))
        return scores
