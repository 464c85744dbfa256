r"""Exact flows of complex fields, :math:`i \dot\psi = \partial H / \partial \psi^*`.

Reversed in time a field is its complex conjugate, so every part must have :math:`H(\psi^*) = H(\psi)`: couplings and
frequencies are real.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.flows import Drives, Recorder, Scale, Unrecorded
from lightning_nobp.functional.hamiltonian.phase_space import State, per_sample


class DenseFlow:
    r"""Linear waves: :math:`H = \psi^\dagger A \psi`, moved by one product with :math:`e^{-i h A}` for each axis.

    The fastest for up to some hundred sites along an axis, and for couplings of any kind.

    Args:
        operators: :math:`A` of each of the last axes of a field, real and symmetric ``(sites, sites)``, in float64
            whatever the field's type: a propagator made of rounded numbers would be no longer unitary.
    """

    def __init__(self, operators: Sequence[Tensor]) -> None:
        self.operators = tuple(operators)
        self._spectra = [torch.linalg.eigh(operator) for operator in operators]
        self._propagators: dict[float, list[Tensor]] = {}

    def __call__(self, state: State, h: float, step: int) -> State:
        """The fields a time ``h`` later."""
        if h not in self._propagators:
            self._propagators[h] = [_propagator(w, modes, h).to(state[0]) for w, modes in self._spectra]
        return tuple(_along_axes(self._propagators[h], psi) for psi in state)

    def energy(self, state: State, step: int) -> Tensor:
        """Of each sample ``(batch,)``."""
        total = torch.zeros(())
        for psi in state:
            for number, operator in enumerate(self.operators):
                axis = number - len(self.operators)
                moved = psi.movedim(axis, -1)
                total = total + (moved.conj() * (moved @ operator.to(psi))).real.flatten(1).sum(dim=1)
        return total

    def recorder(self, weight: Tensor, scale: Scale) -> Recorder:
        """Nothing to record."""
        return Unrecorded(self)


def _propagator(frequencies: Tensor, modes: Tensor, h: float) -> Tensor:
    phases = torch.polar(torch.ones_like(frequencies), -h * frequencies)
    return (modes * phases) @ modes.T.to(phases)


def _along_axes(propagators: Sequence[Tensor], psi: Tensor) -> Tensor:
    """Multiply the last axes; propagators are symmetric."""
    *_, last = propagators
    psi = psi @ last
    return propagators[0] @ psi if len(propagators) == 2 else psi


class FourierFlow:
    r"""Linear waves on a periodic grid: :math:`H = \sum_k \omega_k |\psi_k|^2`, moved by fast Fourier transforms.

    Args:
        frequencies: :math:`\omega_k` in the order of ``torch.fft.fftn``, even in every component of ``k``, of the shape
            of a field's last axes; in float64 whatever the field's type.
    """

    def __init__(self, frequencies: Tensor) -> None:
        self.frequencies = frequencies
        self._axes = tuple(range(-frequencies.dim(), 0))
        self._phases: dict[float, Tensor] = {}

    def __call__(self, state: State, h: float, step: int) -> State:
        """The fields a time ``h`` later."""
        if h not in self._phases:
            phases = torch.polar(torch.ones_like(self.frequencies), -h * self.frequencies)
            self._phases[h] = phases.to(state[0])
        axes, phases = self._axes, self._phases[h]
        return tuple(torch.fft.ifftn(torch.fft.fftn(psi, dim=axes) * phases, dim=axes) for psi in state)

    def energy(self, state: State, step: int) -> Tensor:
        """Of each sample ``(batch,)``."""
        total = torch.zeros(())
        for psi in state:
            amplitudes = torch.fft.fftn(psi, dim=self._axes, norm="ortho")
            frequencies = self.frequencies.to(amplitudes.real)
            total = total + (frequencies * amplitudes.abs().square()).flatten(1).sum(dim=1)
        return total

    def recorder(self, weight: Tensor, scale: Scale) -> Recorder:
        """Nothing to record."""
        return Unrecorded(self)


class PhaseFlow:
    r"""Potentials and Kerr effect: :math:`H = \sum_x (V + u) |\psi|^2 + \frac{g}{2} |\psi|^4`.

    Intensities stay as they are, and the field turns by :math:`e^{-i h (V + u + g |\psi|^2)}`. Several fields
    :math:`\psi_a` on one grid act on each other by :math:`\frac12 \sum_{ab} g_{ab} |\psi_a|^2 |\psi_b|^2`.

    Args:
        strength: :math:`g`: one number for fields ``(batch, *sites)``; a symmetric matrix ``(fields, fields)`` for
            ``(batch, fields, *sites)``.
        potential: :math:`V`, ``(slices, *sites)``; None for none.
        steps_per_slice: So many time steps see the same slice of the potential; after the last the first comes again.
        drives: :math:`u`, real, of the field's shape.
    """

    def __init__(
        self, strength: Tensor, potential: Tensor | None, steps_per_slice: int = 1, drives: Drives | None = None
    ) -> None:
        self.strength, self.potential, self.steps_per_slice = strength, potential, steps_per_slice
        self.drives = Drives(()) if drives is None else drives
        self._one = torch.ones((), dtype=strength.dtype, device=strength.device)
        self._turns: dict[float, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, state: State, h: float, step: int) -> State:
        """The field turned for a time ``h``."""
        (psi,) = state
        return (self.turned(psi, intensity_of(psi), h, step),)

    def turned(self, psi: Tensor, intensity: Tensor, h: float, step: int) -> Tensor:
        """The field turned, of known intensity."""
        strength, potential = self._scaled(h)
        angle = self._shift(strength, intensity, None if potential is None else potential[self.slice(step)])
        drive = self.drives(step)
        if drive is not None:
            angle = torch.add(angle, drive, alpha=-h)
        return psi * torch.polar(self._one.to(angle.dtype), angle)

    def slice(self, step: int) -> int:
        """Which part of the potential acts at a step."""
        assert self.potential is not None
        return step // self.steps_per_slice % len(self.potential)

    def energy(self, state: State, step: int) -> Tensor:
        """Of each sample ``(batch,)``, at a time step."""
        intensity = intensity_of(state[0])
        potential = None if self.potential is None else self.potential[self.slice(step)]
        level = self._shift(self.strength / 2, intensity, potential)
        drive = self.drives(step)
        level = level if drive is None else level + drive
        return (level * intensity).flatten(1).sum(dim=1)

    def recorder(self, weight: Tensor, scale: Scale) -> Recorder:
        """Of drives, and of potential and strength where they require gradients."""
        learns = self.strength.requires_grad or (self.potential is not None and self.potential.requires_grad)
        if learns or self.drives.tensors:
            return _PhaseRecorder(self, weight, scale)
        return Unrecorded(self)

    def _scaled(self, h: float) -> tuple[Tensor, Tensor | None]:
        """Strength and potential times ``-h``."""
        if torch.is_grad_enabled():
            return self._times(-h)
        if h not in self._turns:
            self._turns[h] = self._times(-h)
        return self._turns[h]

    def _times(self, factor: float) -> tuple[Tensor, Tensor | None]:
        return self.strength * factor, None if self.potential is None else self.potential * factor

    def _shift(self, strength: Tensor, intensity: Tensor, potential: Tensor | None) -> Tensor:
        if not strength.dim():
            return strength * intensity if potential is None else torch.addcmul(potential, strength, intensity)
        by_field = (strength.to(intensity.dtype) @ intensity.flatten(2)).view(intensity.shape)
        return by_field if potential is None else by_field + potential


def intensity_of(psi: Tensor) -> Tensor:
    """``|psi|^2``, without the root of ``psi.abs()``."""
    return (psi * psi.conj()).real


class _PhaseRecorder:
    def __init__(self, flow: PhaseFlow, weight: Tensor, scale: Scale) -> None:
        self.flow, self.scale = flow, scale
        self.signed = torch.cat([weight, -weight])
        learned = [p for p in (flow.strength, flow.potential) if p is not None and p.requires_grad]
        self._totals = {p: torch.zeros_like(p) for p in learned}
        self._by_drive: list[Tensor | None] = [None] * len(flow.drives.tensors)

    def __call__(self, state: State, h: float, step: int) -> State:
        (psi,) = state
        intensity = intensity_of(psi)
        factor = h * self.scale(step)
        if self._totals:
            self._add_parameters(intensity, factor, step)
        if self._by_drive:
            plus, minus = intensity.chunk(2)
            change = (plus - minus) * (factor * per_sample(self.signed[: len(plus)], plus))
            index = self.flow.drives.index(step)
            so_far = self._by_drive[index]
            self._by_drive[index] = change if so_far is None else so_far.add_(change)
        return (self.flow.turned(psi, intensity, h, step),)

    def _add_parameters(self, intensity: Tensor, factor: float, step: int) -> None:
        flow = self.flow
        if flow.potential is not None and flow.potential in self._totals:
            of_slice = self._totals[flow.potential][flow.slice(step)].view(-1)
            of_slice.addmv_(intensity.flatten(1).T, self.signed.to(intensity.dtype), alpha=factor)
        if flow.strength in self._totals:
            weighted = intensity * (factor / 2 * per_sample(self.signed, intensity))
            if flow.strength.dim():
                change = torch.einsum("baf,bcf->ac", weighted.flatten(2), intensity.flatten(2))
            else:
                change = (weighted * intensity).sum()
            self._totals[flow.strength] += change

    def parameter_gradients(self) -> dict[Tensor, Tensor]:
        return self._totals

    def drive_gradients(self) -> list[Tensor] | None:
        found = [g for g in self._by_drive if g is not None]
        return found if found and len(found) == len(self._by_drive) else None
