"""What an echo of wave fields looks like, and what noise and disorder do to machines that learn by it.

    python tests/benchmarks/study_hamiltonian_fields.py [--picture docs/hamiltonian_wave.png] [--epochs 200]

The picture is of a machine of two waves on a ring that has learnt XOR, and of one of its samples: the evaluation field
on its way there, the learning field on its way there, and on the way of the echo the momentum that the learning field
gathers: its imaginary part less that of an echo without a nudge. Where the echo ends, below, it is minus half the
gradient.

The tables: accuracy of a cavity array that has learnt XOR, when its inputs are noisy; and how well arrays learn whose
cavities are detuned at random, which learn with the detunings that they have.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_nobp.functional.hamiltonian import COMPLEX, Drives, Simulation
from lightning_nobp.functional.hamiltonian.integrator import run
from lightning_nobp.nn import KerrCavityArray, KerrCavityNetwork, LearningFieldNetwork, WaveFieldNetwork
from lightning_nobp.rules import SelfLearningMachine

BITS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGET = torch.tensor([0, 1, 1, 0])


def taught(network: LearningFieldNetwork, epochs: int, rate: float) -> SelfLearningMachine:
    """The rule after so many steps on the truth table, its rate falling to zero."""
    rule = SelfLearningMachine(network=network, num_classes=2, input_shape=(2,), learning_rate=rate)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        optimizer.zero_grad()
        rule.compute_gradients((BITS, TARGET))
        optimizer.step()
        scheduler.step()
    return rule


@torch.no_grad()
def seen(network: LearningFieldNetwork, state: Tensor) -> Tensor:
    """The states at all times, ``(n_steps + 1, *state.shape)``."""
    states = [state]

    def look(done: int, now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states.append(now[0])
        return now

    flows, order = network.system.flows(Drives(())), range(network.n_steps)
    run(flows, (state,), dt=network.dt, order=order, every=1, visit=look)
    return torch.stack(states)


def draw(file: Path, epochs: int) -> None:
    torch.manual_seed(0)
    network = WaveFieldNetwork((2,), 2)
    rule = taught(network, epochs // 4, 0.05)
    network.double()
    there = seen(network, network.start(BITS[1:2].double()))
    end = there[-1].requires_grad_()
    [gradient] = torch.autograd.grad(rule.loss_function(network.read(end), TARGET[1:2]), end)
    [nudge] = COMPLEX.direction((gradient,))
    eta = 1e-4
    plain, echo = (seen(network, (end.detach() + size * nudge).conj()) for size in (0.0, eta))
    # Reversed once more, the imaginary part is the momentum as it is when the echo has ended.
    panels(file, network, there, plain, (echo - plain).conj() / eta)


def panels(file: Path, network: LearningFieldNetwork, there: Tensor, back: Tensor, change: Tensor) -> None:
    """Four panels of space and time."""
    total = network.n_steps * network.dt
    length = network.system.length
    figure, axes = plt.subplots(1, 4, figsize=(12, 4.2), sharey=True, layout="constrained")
    pictures = [
        ("evaluation field, there", there[:, 0, 0].abs().square(), "magma"),
        ("evaluation field, echo", back[:, 0, 0].abs().square(), "magma"),
        ("learning field, there", there[:, 0, 1].abs().square(), "magma"),
        ("learning field, echo:\nmomentum that the nudge brings", change[:, 0, 1].imag, "RdBu_r"),
    ]
    for axis, (title, picture, colours) in zip(axes, pictures, strict=True):
        limit = float(picture.abs().max())
        lowest = -limit if colours == "RdBu_r" else 0.0
        echo = "echo" in title
        shown = axis.imshow(
            picture.flip(0) if echo else picture,
            origin="lower",
            aspect="auto",
            extent=(0, length, 0, total),
            cmap=colours,
            vmin=lowest,
            vmax=limit,
        )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("place")
        figure.colorbar(shown, ax=axis, location="bottom", shrink=0.8)
        axis.annotate(
            "",
            xy=(0.06, 0.1 if echo else 0.9),
            xytext=(0.06, 0.9 if echo else 0.1),
            xycoords="axes fraction",
            arrowprops={"arrowstyle": "->", "color": "grey", "lw": 2},
        )
    axes[0].set_ylabel("time from the start")
    figure.savefig(file, dpi=110)


@torch.no_grad()
def right(network: LearningFieldNetwork, noise: float, copies: int = 500) -> float:
    """Fraction of right signs when the input amplitudes are noisy, by a fraction of theirs."""
    bits = BITS.repeat(copies, 1)
    state = network.start(bits)
    state[:, :2] += noise * network.encoder.amplitude * torch.randn_like(state[:, :2])
    end = seen_end(network, state)
    return float((network.read(end).argmax(1) == TARGET.repeat(copies)).float().mean())


def seen_end(network: LearningFieldNetwork, state: Tensor) -> Tensor:
    simulation = Simulation(network.system, network.dt, network.n_steps, network.n_steps)
    return simulation.forward((state,), ())[0][0]


def noise(epochs: int, sigmas: Sequence[float], seeds: int) -> None:
    table = Table("noise of the inputs", "right signs, %", title=f"cavity arrays with noisy inputs, {seeds} seeds")
    networks = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        networks.append(KerrCavityNetwork((2,), 2))
        taught(networks[-1], epochs, 0.02)
    for sigma in sigmas:
        found = torch.tensor([100 * right(network, sigma) for network in networks])
        table.add_row(f"{sigma:.2f}", f"{found.mean():.1f} (worst {found.min():.1f})")
    Console().print(table)


def disorder(epochs: int, sigmas: Sequence[float], seeds: int) -> None:
    table = Table("standard deviation", "cost at the end", "right of 4", title=f"detuned arrays, {seeds} seeds")
    for sigma in sigmas:
        costs, correct = [], []
        for seed in range(seeds):
            torch.manual_seed(seed)
            network = KerrCavityNetwork((2,), 2, KerrCavityArray(disorder=sigma))
            rule = taught(network, epochs, 0.02)
            with torch.no_grad():
                scores = network(BITS)
            costs.append(float(rule.loss_function(scores, TARGET)))
            correct.append(int((scores.argmax(1) == TARGET).sum()))
        shown = ", ".join(f"{cost:.1e}" for cost in costs)
        table.add_row(f"{sigma:.2f}", shown, ", ".join(map(str, correct)))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=Path("docs/hamiltonian_wave.png"))
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw(options.picture, options.epochs)
    noise(options.epochs, (0.0, 0.01, 0.02, 0.03, 0.05, 0.1), options.seeds)
    disorder(options.epochs, (0.0, 0.01, 0.03, 0.3), options.seeds)


if __name__ == "__main__":
    main()
