"""How numbers are written into fields, and read from them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nobp.nn.hamiltonian.field_system import check_positive, check_shape
from lightning_nobp.typed import Typed


class ModeEncoder(Typed, nn.Module):
    """Every input sets the amplitude of a mode; modes without an input are empty.

    Args:
        num_modes: Of the field.
        modes: The inputs' modes, one each.
        amplitude: Of an input 1; an input 0 gets its negative.

    Raises:
        ValueError: Modes that are not there, or used twice.
    """

    def __init__(self, num_modes: int, modes: Sequence[int], amplitude: float = 0.5) -> None:
        super().__init__()
        self.num_modes, self.modes, self.amplitude = num_modes, check_modes(modes, num_modes), amplitude
        check_positive(amplitude=amplitude)

    def forward(self, x: Tensor) -> Tensor:
        """Fields ``(batch, num_modes)`` of inputs from 0 to 1, ``(batch, ...)``."""
        values = signed(x, len(self.modes), self.amplitude)
        return as_complex(values.new_zeros(x.shape[0], self.num_modes).index_copy(1, _index(self.modes, x), values))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"num_modes={self.num_modes}, modes={self.modes}, amplitude={self.amplitude}"


class PulseEncoder(Typed, nn.Module):
    """Every input is the amplitude of a pulse, and one more pulse is always the same; they are spread over a ring.

    Without this reference, inputs of all signs reversed would give the reversed field at all times.

    Args:
        sites: Of the ring.
        num_inputs: Pulses beside the reference.
        width: Standard deviation of a pulse's amplitude, as a fraction of the ring.
        amplitude: At the top, of an input 1 and of the reference; an input 0 gets its negative.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(self, sites: int, num_inputs: int, width: float = 0.04, amplitude: float = 1.0) -> None:
        super().__init__()
        check_positive(sites=sites, num_inputs=num_inputs, width=width, amplitude=amplitude)
        self.sites, self.num_inputs, self.width, self.amplitude = sites, num_inputs, width, amplitude
        self.pulses: Tensor
        self.register_buffer("pulses", pulses(sites, num_inputs + 1, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Fields ``(batch, sites)`` of inputs from 0 to 1, ``(batch, ...)``."""
        inputs = signed(x, self.num_inputs, self.amplitude)
        return as_complex(nn.functional.pad(inputs, (0, 1), value=self.amplitude) @ self.pulses)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"sites={self.sites}, num_inputs={self.num_inputs}, width={self.width}, amplitude={self.amplitude}"


class ImageEncoder(Typed, nn.Module):
    """A beam whose amplitude is an image, or the mean of its channels, stretched to a grid.

    Args:
        shape: Of the grid, ``(height, width)``.
        power: Of every beam, the sum of its intensities.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(self, shape: Sequence[int], power: float = 1.0) -> None:
        super().__init__()
        self.shape, self.power = check_shape(shape), power
        check_positive(power=power)

    def forward(self, x: Tensor) -> Tensor:
        """Fields ``(batch, *shape)`` of images ``(batch, channels, height, width)``.

        Raises:
            ValueError: Inputs that are no images.
        """
        if x.dim() != 4:
            raise ValueError(f"inputs of shape {tuple(x.shape)}: give images (batch, channels, height, width)")
        beam = nn.functional.interpolate(x.mean(dim=1, keepdim=True), size=self.shape, mode="bilinear").squeeze(1)
        norm = torch.linalg.vector_norm(beam, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).eps)
        return as_complex(beam * (math.sqrt(self.power) / norm))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"shape={self.shape}, power={self.power}"


class HomodyneReadout(Typed, nn.Module):
    """The real part of the field's overlap with each output's pulse, or of single modes.

    Args:
        sites: Of the field.
        num_outputs: Pulses, spread evenly over it.
        width: See :class:`PulseEncoder`; 0 for single sites.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(self, sites: int, num_outputs: int, width: float = 0.0) -> None:
        super().__init__()
        self.sites, self.num_outputs, self.width = sites, num_outputs, width
        self.pulses: Tensor
        self.register_buffer("pulses", output_pulses(sites, num_outputs, width), persistent=False)

    def forward(self, field: Tensor) -> Tensor:
        """Outputs ``(batch, num_outputs)`` of fields ``(batch, sites)``."""
        return field.real @ self.pulses.T

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"sites={self.sites}, num_outputs={self.num_outputs}, width={self.width}"


class CoherentReadout(Typed, nn.Module):
    r"""How near output amplitudes are to those that mean a class: minus :math:`|\Psi_{out} - t|^2 / |t|^2`.

    Two classes share one output, :math:`-t` for the first and :math:`t` for the second. More have an output each,
    which is to have the amplitude :math:`t` while the others are dark. A score is 0 at the target, and -1 where no
    light comes.

    Args:
        sites: Of the field.
        num_classes: At least two.
        amplitude: :math:`t`.
        width: Outputs are overlaps with pulses of this width, see :class:`PulseEncoder`, spread evenly; 0 for single
            sites.
        modes: Sites of the outputs, one each, instead.

    Raises:
        ValueError: An argument out of range, or modes and pulses at once.
    """

    def __init__(
        self,
        sites: int,
        num_classes: int,
        amplitude: float = 0.25,
        width: float = 0.0,
        modes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_positive(amplitude=amplitude)
        outputs = 1 if num_classes == 2 else num_classes
        if modes is not None and (width or len(modes) != outputs):
            raise ValueError(f"modes={tuple(modes)} for {outputs} outputs: give one each, and width=0")
        self.sites, self.num_classes, self.amplitude, self.width = sites, num_classes, amplitude, width
        self.modes = None if modes is None else check_modes(modes, sites)
        found = torch.eye(sites)[list(modes)] if modes is not None else output_pulses(sites, outputs, width)
        self.pulses: Tensor
        self.register_buffer("pulses", found, persistent=False)
        targets = torch.tensor([[-amplitude], [amplitude]]) if num_classes == 2 else amplitude * torch.eye(num_classes)
        self.targets: Tensor
        self.register_buffer("targets", targets, persistent=False)

    def forward(self, field: Tensor) -> Tensor:
        """Scores ``(batch, num_classes)`` of fields ``(batch, sites)``."""
        outputs = field @ self.pulses.T.to(field)
        distances = (outputs.unsqueeze(1) - self.targets).abs().square().sum(dim=2)
        return -distances / self.amplitude**2

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"sites={self.sites}, num_classes={self.num_classes}, amplitude={self.amplitude}, width={self.width}, "
            f"modes={self.modes}"
        )


class DetectorReadout(Typed, nn.Module):
    """The light on each class's detector, as a fraction of all light.

    Detectors are equal rectangles that tile the grid, row by row, as far as there are classes.

    Args:
        shape: Of the grid, ``(height, width)``.
        num_classes: Detectors.
        gain: Score of all light.

    Raises:
        ValueError: More detectors than the grid has room for.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, gain: float = 20.0) -> None:
        super().__init__()
        self.shape, self.num_classes, self.gain = check_shape(shape), num_classes, gain
        rows = math.isqrt(num_classes)
        columns = math.ceil(num_classes / rows)
        height, width = shape[0] // rows, shape[1] // columns
        if not height or not width:
            raise ValueError(f"shape={tuple(shape)} has no room for num_classes={num_classes} detectors")
        areas = torch.zeros(num_classes, *self.shape)
        for number in range(num_classes):
            top, left = number // columns * height, number % columns * width
            areas[number, top : top + height, left : left + width] = 1
        self.areas: Tensor
        self.register_buffer("areas", areas.flatten(1), persistent=False)

    def forward(self, field: Tensor) -> Tensor:
        """Scores ``(batch, num_classes)`` of fields ``(batch, *shape)``."""
        intensity = field.abs().square().flatten(1)
        all_light = intensity.sum(dim=1, keepdim=True).clamp_min(torch.finfo(intensity.dtype).eps)
        return self.gain * (intensity @ self.areas.T) / all_light

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"shape={self.shape}, num_classes={self.num_classes}, gain={self.gain}"


def as_complex(real: Tensor) -> Tensor:
    """A field without imaginary part."""
    return torch.complex(real, torch.zeros_like(real))


def signed(x: Tensor, num_inputs: int, amplitude: float) -> Tensor:
    """Amplitudes ``(batch, num_inputs)`` of inputs from 0 to 1.

    Raises:
        ValueError: Another number of inputs.
    """
    flat = x.flatten(1)
    if flat.shape[1] != num_inputs:
        raise ValueError(f"inputs of shape {tuple(x.shape[1:])} are {flat.shape[1]} numbers: there are {num_inputs}")
    return amplitude * (2 * flat - 1)


def pulses(sites: int, count: int, width: float) -> Tensor:
    """Gaussian pulses spread evenly over a ring, of height 1, ``(count, sites)``."""
    centres = (torch.arange(count) + 0.5) / count
    distance = (torch.arange(sites) / sites - centres[:, None] + 0.5).remainder(1) - 0.5
    return (-(distance / width).square() / 2).exp()


def output_pulses(sites: int, count: int, width: float) -> Tensor:
    """Pulses of norm 1 spread evenly over a ring, ``(count, sites)``; single sites where the width is 0."""
    if not 1 <= count <= sites or not 0 <= width < float("inf"):
        raise ValueError(f"{count} outputs of width={width} on {sites} sites: give 1 to {sites}, and a width from 0")
    if not width:
        return torch.eye(sites)[((torch.arange(count) + 0.5) / count * sites).long()]
    return nn.functional.normalize(pulses(sites, count, width), dim=1)


def check_modes(modes: Sequence[int], num_modes: int) -> tuple[int, ...]:
    """Modes as a tuple.

    Raises:
        ValueError: One is not there, or named twice.
    """
    if len(set(modes)) < len(modes) or not all(0 <= mode < num_modes for mode in modes):
        raise ValueError(f"modes={tuple(modes)}: give different numbers from 0 to {num_modes - 1}")
    return tuple(modes)


def _index(modes: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(modes, device=like.device)
