"""A self-learning cavity array, beside the same array in plain numpy.

    python tests/benchmarks/bench_hamiltonian_fields.py [--rounds 7] [--runs 8]

One step of learning XOR, averaged over two echoes: 4 patterns on each of some machines, 500 time steps there and 500
back, one thread, interleaved in one process; times are medians. *numpy, sines* moves the lattice by sine transforms and
the modes' couplings to its corners apart, *numpy, dense* by one product as we do; both run the second echo after the
first, as the paper's program does, in double precision. *echoes together* is ``mode='averaged'``, *one after the other*
``mode='sequential'``, *autograd* backpropagation through the same simulation.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from rich.console import Console
from rich.table import Table
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


def medians(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values[1:]) for name, values in seconds.items()}


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def steps_of_learning(runs: int, rounds: int) -> None:
    torch.manual_seed(0)
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
    rows = [(name, f"{value:.1f}", f"{slowest / value:.1f}") for name, value in found.items()]
    show(f"a step of learning, {runs} x 4 patterns", ("", "ms", "times as fast"), rows)


def linear_waves(rounds: int) -> None:
    """Products against Fourier transforms, 100 time steps, float32."""
    rows = []
    for shape in ((32,), (64,), (128,), (256,), (16, 16), (32, 32), (64, 64)):
        for batch in (4, 64):
            system, state = TwoFieldNLSE(shape), torch.randn(batch, 2, *shape, dtype=torch.complex64)
            found = []
            for most in (1000, 1):
                field_system._MOST_DENSE = most
                with torch.no_grad():
                    found.append(
                        medians({"": lambda s=system, x=state: strang(s, x, dt=0.01, n_steps=100)}, rounds)[""]
                    )
            rows.append(("x".join(map(str, shape)), str(batch), *(f"{ms:.1f}" for ms in found)))
    show("100 time steps of two waves, ms", ("sites", "batch", "products", "Fourier transforms"), rows)


def phases(rounds: int) -> None:
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
    show(f"{STEPS} phase steps, ms", ("", "ms"), [(name, f"{ms:.1f}") for name, ms in found.items()])


def _real_phase(x: Tensor) -> Tensor:
    real, imaginary = x.chunk(2, dim=1)
    angle = (real * real + imaginary * imaginary) * (2 * DT)
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps_of_learning(options.runs, options.rounds)
    phases(options.rounds)
    linear_waves(options.rounds)


if __name__ == "__main__":
    main()
