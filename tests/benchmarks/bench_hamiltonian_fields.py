"""Self-learning wave fields beside the same in plain NumPy.

    python tests/benchmarks/bench_hamiltonian_fields.py [--rounds 5] [--runs 8]

One step of a 4x4 cavity array that learns XOR, averaged over two echoes: 4 patterns on each of 8 machines, 500 time
steps there and 500 back. *numpy, sines* moves the lattice by sine transforms and the modes' couplings to its corners
apart, *numpy, dense* by one product as we do; both run the second echo after the first, as the paper's program does,
in double precision. *echoes together* is `mode="averaged"`, *one after the other* `mode="sequential"`, *autograd*
backpropagation through the same simulation.

Most of the gain comes from one dense unitary in place of sine transforms: NumPy with the same unitary is nearly as fast
in double precision.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from report import Plot, Report, options
from timing import medians
from torch import Tensor

from lightning_nobp.functional.hamiltonian import PhaseFlow, strang
from lightning_nobp.nn import KerrCavityArray, KerrCavityNetwork, TwoFieldNLSE
from lightning_nobp.nn.hamiltonian import field_system
from lightning_nobp.rules import SelfLearningMachine

WIDTH, DT, STEPS, ETA, MASS = 4, 0.04, 500, 1e-4, 1e-2
CORNERS = [0, WIDTH - 1, WIDTH * (WIDTH - 1), WIDTH**2 - 1]
Half = Callable[[np.ndarray], np.ndarray]


def sine_half_step(array: KerrCavityArray) -> Half:
    """Half a step of all linear couplings: modes with their corners, the lattice by sine transforms, modes again."""
    k = np.pi * np.arange(1, WIDTH + 1) / (WIDTH + 1)
    frequencies = 2 * array.J * (np.cos(k)[:, None] + np.cos(k))
    phases = np.exp(-0.5j * DT * frequencies)
    cosine, sine = np.cos(0.25 * DT * array.kappa), -1j * np.sin(0.25 * DT * array.kappa)

    def corners(state: np.ndarray) -> np.ndarray:
        moved, lattice = state.copy(), state[:, 4:]
        moved[:, :4] = cosine * state[:, :4] + sine * lattice[:, CORNERS]
        moved[:, [4 + c for c in CORNERS]] = cosine * lattice[:, CORNERS] + sine * state[:, :4]
        return moved

    def half(state: np.ndarray) -> np.ndarray:
        state = corners(state)
        lattice = scipy.fft.dstn(state[:, 4:].reshape(-1, WIDTH, WIDTH), type=1, axes=(1, 2), norm="ortho")
        lattice = scipy.fft.dstn(lattice * phases, type=1, axes=(1, 2), norm="ortho")
        state[:, 4:] = lattice.reshape(len(state), -1)
        return corners(state)

    return half


def dense_half_step(array: KerrCavityArray) -> Half:
    unitary = scipy.linalg.expm(-0.5j * DT * array.couplings().numpy())
    return lambda state: state @ unitary


def numpy_step(array: KerrCavityArray, half: Half, psi: np.ndarray, target: np.ndarray) -> Callable[[], np.ndarray]:
    """The averaged step of the paper, of learning fields of norm 1."""

    def evolve(state: np.ndarray) -> np.ndarray:
        for _ in range(STEPS):
            state = half(state)
            state = state * np.exp(-1j * DT * array.g * np.abs(state) ** 2)
            state = half(state)
        return state

    def run() -> np.ndarray:
        theta = np.full((len(psi), WIDTH**2), 1 / WIDTH, dtype=complex)
        for eta, mass in ((ETA, MASS), (-ETA, -MASS)):
            end = evolve(np.concatenate([psi, theta], axis=1))
            end[:, 3] -= 1j * eta * (end[:, 3] - target)
            echo = np.conj(evolve(np.conj(end)))[:, 4:]
            theta = echo.real + echo.imag / mass + 0j
        return theta

    return run


def torch_step(x: Tensor, target: Tensor, mode: str, dtype: torch.dtype) -> Callable[[], Any]:
    """One machine with all samples, as many as the machines of numpy have together."""
    network = KerrCavityNetwork((2,), 2, dt=DT, n_steps=STEPS)
    rule = SelfLearningMachine(network=network, num_classes=2, input_shape=(2,), mode=mode).to(dtype)
    return lambda: rule.compute_gradients((x.to(dtype), target))


def autograd_step(x: Tensor, target: Tensor) -> Callable[[], Any]:
    network = KerrCavityNetwork((2,), 2, dt=DT, n_steps=STEPS)
    rule = SelfLearningMachine(network=network, num_classes=2, input_shape=(2,))
    return lambda: torch.autograd.grad(rule.global_loss((x, target)), network.learning_field)


def steps_of_learning(report: Report, runs: int, rounds: int) -> None:
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(runs, 1)
    target = torch.tensor([0, 1, 1, 0]).repeat(runs)
    array = KerrCavityArray(WIDTH)
    psi = np.zeros((4 * runs, 4), dtype=complex)
    psi[:, :2] = 0.4858 * (2 * bits.numpy() - 1)
    goal = 0.2429 * (2 * target.numpy() - 1)
    found = medians(
        {
            "numpy, sines": numpy_step(array, sine_half_step(array), psi, goal),
            "numpy, dense": numpy_step(array, dense_half_step(array), psi, goal),
            "one after the other, float64": torch_step(bits, target, "sequential", torch.float64),
            "echoes together, float64": torch_step(bits, target, "averaged", torch.float64),
            "echoes together, float32": torch_step(bits, target, "averaged", torch.float32),
            "autograd, float32": autograd_step(bits, target),
        },
        rounds,
    )
    slowest = found["numpy, sines"]
    rows = [{"way": name, "ms": value, "numpy, sines / this": slowest / value} for name, value in found.items()]
    report.table(f"A step of learning, {runs} x 4 patterns", rows)


def linear_waves(report: Report, rounds: int) -> None:
    """Products against Fourier transforms, 100 time steps, float32."""
    for shapes in (((32,), (64,), (128,), (256,), (512,)), ((8, 8), (16, 16), (24, 24))):
        rows = []
        for shape in shapes:
            found = {name: waves(shape, most, rounds) for name, most in (("products", 1000), ("Fourier transforms", 1))}
            rows.append({"sites": math.prod(shape), **found})
        kind = "a line" if len(shapes[0]) == 1 else "a square"
        plot = Plot(("products", "Fourier transforms"), f"sites of {kind}", "100 time steps, ms")
        report.table(f"100 time steps of two waves on {kind}, batch 16, ms", rows, plot)


def waves(shape: tuple[int, ...], most_dense: int, rounds: int) -> float:
    """Milliseconds where up to so many sites are moved by a product."""
    system, state = TwoFieldNLSE(shape), torch.randn(16, 2, *shape, dtype=torch.complex64)
    field_system._MOST_DENSE = most_dense
    with torch.no_grad():
        return medians({"": lambda: strang(system, state, dt=0.01, n_steps=100)}, rounds)[""]


def phases(report: Report, rounds: int) -> None:
    """The calls of one phase step at the size of a cavity array."""
    psi = torch.randn(32, 20, dtype=torch.complex64)
    flow, real = PhaseFlow(torch.tensor(-2.0), None), torch.randn(32, 40)
    with torch.no_grad():
        found = medians(
            {
                "complex numbers": lambda: [flow((psi,), DT, 0) for _ in range(STEPS)],
                "real and imaginary parts": lambda: [_real_phase(real) for _ in range(STEPS)],
            },
            rounds,
        )
    report.table(f"{STEPS} phase steps of 32 samples, ms", [{"way": name, "ms": ms} for name, ms in found.items()])


def _real_phase(x: Tensor) -> Tensor:
    real, imaginary = x.chunk(2, dim=1)
    angle = (real * real + imaginary * imaginary) * (2 * DT)
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=1)


def main() -> None:
    runs = {"type": int, "default": 8, "help": "machines that learn at once"}
    choices = options(__doc__, rounds=5, runs=runs)
    report = Report(choices)
    steps_of_learning(report, choices.runs, choices.rounds)
    phases(report, choices.rounds)
    linear_waves(report, choices.rounds)


if __name__ == "__main__":
    main()
