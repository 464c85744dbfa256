"""Systems of complex fields, and a machine in plain numpy to hold ours against."""

import numpy as np
import scipy.linalg
import torch

from lightning_nobp.nn import KerrCavityArray, NLSEField, TwoFieldNLSE

# A system, the shape of a sample, the size of its entries, and times.
CASES = {
    "waves": (lambda: NLSEField((32,), slices=5, g=1.3, steps_per_slice=4, learn_g=True), (32,), 1.0, 0.05, 20),
    "light": (lambda: NLSEField((6, 8), slices=4, g=-1.0, learn_g=True), (6, 8), 1.0, 0.05, 12),
    "two waves": (lambda: TwoFieldNLSE((64,)), (2, 64), 0.7, 0.02, 60),
    "cavities": (KerrCavityArray, (20,), 0.25, 0.04, 100),
    "detuned cavities": (lambda: KerrCavityArray(disorder=0.03), (20,), 0.25, 0.04, 100),
}


def field(*shape, scale=1.0, seed=0):
    """Random complex numbers."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.complex128, generator=generator)


def case(name, batch=3, **overrides):
    """A system in float64 with random parameters, fields at the start, and times."""
    torch.manual_seed(0)
    make, shape, scale, dt, n_steps = CASES[name]
    system = make().double()
    if isinstance(system, NLSEField):
        torch.nn.init.normal_(system.potential)
    return system, field(batch, *shape, scale=scale), {"dt": dt, "n_steps": n_steps} | overrides


def linear(system):
    """The same system without Kerr effect."""
    system.strength.requires_grad_(False).zero_()
    return system


def cost(fields):
    """Of the fourth order, different for each sample, of all parts of the fields."""
    weights = field(*fields.shape, seed=1)
    return (fields * weights).real.sum() + 0.1 * fields.abs().pow(4).sum() + (fields.imag**3).sum() / 3


def gradients(run, system, start, drive=None):
    """By the fields at the start, by the drive and by the parameters."""
    start, drive = start.clone().requires_grad_(), None if drive is None else drive.clone().requires_grad_()
    learned = [p for p in system.parameters() if p.requires_grad]
    inputs = [start, *([] if drive is None else [drive]), *learned]
    return torch.autograd.grad(cost(run(system, start, drive)), inputs)


def relative_error(found, wanted):
    """The largest of several tensors."""
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in zip(found, wanted, strict=True))


class NumpyCavities:
    """The array of the paper by the equations alone, one sample at a time: modes of the corners, then the lattice."""

    def __init__(self, couplings, g, dt, n_steps):
        self.half = scipy.linalg.expm(-0.5j * dt * couplings)
        self.g, self.dt, self.n_steps = g, dt, n_steps

    def evolve(self, state):
        for _ in range(self.n_steps):
            state = self.half @ state
            state = state * np.exp(-1j * self.dt * self.g * np.abs(state) ** 2)
            state = self.half @ state
        return state

    def echo(self, psi, theta, target, eta):
        """The learning field that comes back when mode 3 is nudged towards a target."""
        end = self.evolve(np.concatenate([psi, theta]))
        error = np.zeros_like(end)
        error[3] = end[3] - target
        return np.conj(self.evolve(np.conj(end - 1j * eta * error)))[4:]

    def step(self, psi, theta, target, eta, mass, loss=100.0, cutoff=0.1):
        """The learning field after one echo and its decay step."""
        theta = self.echo(psi, theta, target, eta)
        kick = theta.imag * (1 - np.exp(-loss)) / mass
        kick = kick / np.sqrt(1 + kick**2 / cutoff**2)
        return theta.real + kick + 1j * theta.imag * np.exp(-loss)
