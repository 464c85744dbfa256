"""Machines of two fields, one that evaluates and one that learns."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_nobp.functional.hamiltonian import strang
from lightning_nobp.functional.hamiltonian.checks import check_run
from lightning_nobp.nn.hamiltonian.cavity import KerrCavityArray
from lightning_nobp.nn.hamiltonian.field_codes import (
    CoherentReadout,
    DetectorReadout,
    ImageEncoder,
    ModeEncoder,
    PulseEncoder,
    as_complex,
)
from lightning_nobp.nn.hamiltonian.field_system import CoupledFields
from lightning_nobp.nn.hamiltonian.nlse import TwoFieldNLSE
from lightning_nobp.typed import Typed


class LearningFieldNetwork(Typed, nn.Module):
    """Inputs are written into an evaluation field, which meets the learning field, and is read.

    Its one parameter is the learning field before they meet, at rest: real, ``(*learning_shape,)``. The field itself
    moves while the machine runs, and is prepared anew for each sample. Autograd sees every operation; the rule
    :class:`~lightning_nobp.rules.SelfLearningMachine` needs none of that.

    Args:
        system: Both fields.
        encoder: Gives evaluation fields ``(batch, *evaluation_shape)`` of inputs.
        readout: Gives outputs of evaluation fields, by torch's operations.
        dt: Length of a time step.
        n_steps: How many.

    Raises:
        ValueError: Times that are none.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """

    def __init__(
        self, system: CoupledFields, encoder: nn.Module, readout: nn.Module, dt: float = 0.04, n_steps: int = 500
    ) -> None:
        super().__init__()
        check_run(dt, n_steps, 0.0, None)
        self.system, self.encoder, self.readout = system, encoder, readout
        self.dt, self.n_steps = dt, n_steps
        self.learning_field = nn.Parameter(system.initial_learning_field())

    def start(self, x: Tensor, learning: Tensor | None = None) -> Tensor:
        """The state before the fields meet.

        Args:
            x: Inputs ``(batch, ...)``.
            learning: Learning fields, complex ``(batch, *learning_shape)``; None for the parameter, at rest.
        """
        if learning is None:
            learning = as_complex(self.learning_field).expand(x.shape[0], *self.learning_field.shape)
        return self.system.join(self.encoder(x.to(self.learning_field.dtype)), learning)

    def read(self, state: Tensor) -> Tensor:
        """Outputs of a state after the fields have met."""
        outputs: Tensor = self.readout(self.system.evaluation(state))
        return outputs

    def forward(self, x: Tensor, learning: Tensor | None = None) -> Tensor:
        """Outputs; see :meth:`start` for the arguments."""
        return self.read(strang(self.system, self.start(x, learning), dt=self.dt, n_steps=self.n_steps))

    def extra_repr(self) -> str:
        """The times."""
        return f"dt={self.dt}, n_steps={self.n_steps}"


class KerrCavityNetwork(LearningFieldNetwork):
    """A cavity array: inputs are amplitudes of the modes at its corners, scores are read at those without an input.

    Args:
        input_shape: Shape of one sample, of numbers from 0 to 1.
        num_classes: Number of scores; there are four modes for the inputs and outputs, two classes have one.
        system: The array; None for the one of the paper.
        amplitude: Of an input 1; 0 has its negative. Outputs are to have half of it.
        dt: Length of a time step.
        n_steps: How many.

    Raises:
        ValueError: More inputs and outputs than modes, or an argument out of range.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992, figure 8.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        system: KerrCavityArray | None = None,
        amplitude: float = 0.4858,
        dt: float = 0.04,
        n_steps: int = 500,
    ) -> None:
        inputs, outputs = math.prod(input_shape), 1 if num_classes == 2 else num_classes
        if inputs + outputs > 4:
            raise ValueError(
                f"input_shape={tuple(input_shape)} and num_classes={num_classes} need {inputs + outputs} modes of 4: "
                "take WaveFieldNetwork, or a LearningFieldNetwork of your own"
            )
        encoder = ModeEncoder(4, range(inputs), amplitude)
        readout = CoherentReadout(4, num_classes, amplitude / 2, modes=range(4 - outputs, 4))
        super().__init__(system or KerrCavityArray(), encoder, readout, dt, n_steps)
        self.input_shape, self.num_classes, self.amplitude = tuple(input_shape), num_classes, amplitude


class WaveFieldNetwork(LearningFieldNetwork):
    """Two waves on a ring: inputs are amplitudes of pulses, scores are read from pulses too.

    Args:
        input_shape: Shape of one sample, of numbers from 0 to 1.
        num_classes: Number of scores; two classes share one pulse.
        system: Both waves, on one axis; None for 64 sites.
        amplitude: Of the pulse of an input 1, at its top; 0 has its negative.
        target: Amplitude of the output pulse that means a class.
        width: Of pulses, as a fraction of the ring.
        dt: Length of a time step.
        n_steps: How many.

    Raises:
        ValueError: A system of two axes, or an argument out of range.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        system: TwoFieldNLSE | None = None,
        amplitude: float = 1.0,
        target: float = 0.3,
        width: float = 0.04,
        dt: float = 0.03,
        n_steps: int = 250,
    ) -> None:
        system = system or TwoFieldNLSE()
        if len(system.shape) != 1:
            raise ValueError(f"system.shape={system.shape}: pulses run on one axis")
        [sites] = system.shape
        encoder = PulseEncoder(sites, math.prod(input_shape), width, amplitude)
        readout = CoherentReadout(sites, num_classes, target, width)
        super().__init__(system, encoder, readout, dt, n_steps)
        self.input_shape, self.num_classes = tuple(input_shape), num_classes
        self.amplitude, self.target, self.width = amplitude, target, width


class TwoBeamNetwork(LearningFieldNetwork):
    """Two beams of light in a Kerr medium: one carries an image to detectors, the other learns to deflect it.

    Args:
        input_shape: ``(channels, height, width)``.
        num_classes: Detectors.
        system: Both beams, on a grid of two axes; None for one of 24 by 24 sites.
        power: Of the image's beam.
        gain: Score of all light on one detector.
        dt: Length of a time step.
        n_steps: How many.

    Raises:
        ValueError: A system of one axis, or an argument out of range.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        system: TwoFieldNLSE | None = None,
        power: float = 5.0,
        gain: float = 40.0,
        dt: float = 0.1,
        n_steps: int = 60,
    ) -> None:
        system = system or TwoFieldNLSE((24, 24), g=0.3)
        if len(system.shape) != 2:
            raise ValueError(f"system.shape={system.shape}: images need two axes")
        encoder, readout = ImageEncoder(system.shape, power), DetectorReadout(system.shape, num_classes, gain)
        super().__init__(system, encoder, readout, dt, n_steps)
        self.input_shape, self.num_classes, self.power, self.gain = tuple(input_shape), num_classes, power, gain
