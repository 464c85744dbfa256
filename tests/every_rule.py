"""A small training of every rule, on data that are made in no time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.nn import (
    CNN,
    MLP,
    DuffingClassifier,
    ForwardForwardCNN,
    ForwardForwardMLP,
    HashingNetwork,
    LocalDynamics,
    LogCoshClassifier,
    QuaternionCNN,
    QuaternionLinear,
    QuaternionMLP,
    ResCNet,
    SpikingCNN,
    SpikingMLP,
    TwoBeamNetwork,
    TwoFieldNLSE,
)
from lightning_nobp.rules import (
    Backprop,
    DynamicalNetworkBackprop,
    ForwardForward,
    HamiltonianEcho,
    LearningRule,
    MultiplexedGradientDescent,
    PCANet,
    QuaternionBackprop,
    ResidualCompensation,
    SelfLearningMachine,
    SparseProp,
    SpikeTimingBackprop,
    SymBa,
)

Data = tuple[Tensor, ...]


# Data


def images(count: int = 24, classes: int = 3) -> Data:
    """Patterns of three kinds, with values from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) % classes
    patterns = torch.rand(classes, 1, 8, 8, generator=generator)
    return 0.7 * patterns[target] + 0.3 * torch.rand(count, 1, 8, 8, generator=generator), target


def numbers(count: int = 24, classes: int = 3) -> Data:
    """Eight numbers of a sample, and the four that they are to become."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator)
    return x, torch.tanh(x @ torch.randn(8, 4, generator=generator))


@cache
def _windows() -> Tensor:
    options = {"num_nodes": 4, "density": 0.6, "num_steps": 241, "num_trajectories": 2, "transient": 300}
    data = CoupledOscillatorsDataModule(**options, num_test=2, window=12, horizon=120, batch_size=8, shuffle=False)
    data.setup("fit")
    return torch.cat([batch[0] if isinstance(batch, list | tuple) else batch for batch in data.train_dataloader()])


def windows(count: int = 24, classes: int = 3) -> Data:
    """Series of coupled oscillators."""
    return (_windows()[:count].clone(),)


# Trainings


@dataclass(frozen=True)
class Training:
    """A rule for so many classes, and its data."""

    make: Callable[..., LearningRule]
    data: Callable[..., Data] = images
    closed_form: bool = False

    def rule(self, classes: int = 3, **options: Any) -> LearningRule:
        torch.manual_seed(0)
        if self.data is images:
            options |= {"num_classes": classes, "input_shape": (1, 8, 8)}
        return self.make(**options)

    @property
    def classifies(self) -> bool:
        return self.data is images


def _mgd(**options: Any) -> Training:
    return Training(partial(MultiplexedGradientDescent, network=partial(MLP, hidden_dims=(5,)), **options))


def _regression(rule: Any, make: Callable[[], nn.Module], **options: Any) -> Training:
    return Training(lambda **more: rule(network=make(), task="regression", **options, **more), numbers)


def _dynamical(**options: Any) -> Training:
    shape = {"num_nodes": 4, "components": 3, "dt": 0.02, "num_steps": 6}
    return Training(partial(DynamicalNetworkBackprop, **shape, **options), windows, "method" not in options)


_SMALL = partial(MLP, hidden_dims=(8,))
_NORMED = partial(CNN, channels=(3, 4), hidden_dim=8, batch_norm=True)
TRAININGS = {
    "Backprop": Training(partial(Backprop, network=_SMALL, loss="cross_entropy")),
    "Backprop, mse": Training(partial(Backprop, network=_SMALL, loss="mse")),
    "Backprop, autograd": Training(partial(Backprop, network=_SMALL, loss="cross_entropy", engine="autograd")),
    "Backprop, batch norm": Training(partial(Backprop, network=_NORMED, loss="cross_entropy")),
    "SparseProp": Training(partial(SparseProp, network=_SMALL, loss="cross_entropy", sparsity=0.6)),
    "ForwardForward": Training(partial(ForwardForward, network=partial(ForwardForwardMLP, hidden_dims=(8, 7)))),
    "ForwardForward, cnn": Training(
        partial(ForwardForward, network=partial(ForwardForwardCNN, channels=(3, 4, 5)), readout="softmax")
    ),
    "ForwardForward, hybrid": Training(
        partial(
            ForwardForward,
            network=partial(ForwardForwardMLP, hidden_dims=(8, 7), label="none"),
            negatives="hybrid",
            readout="softmax",
        )
    ),
    "SymBa": Training(partial(SymBa, network=partial(ForwardForwardMLP, hidden_dims=(8, 7)))),
    "MultiplexedGradientDescent": _mgd(num_perturbations=3),
    "MultiplexedGradientDescent, in place": _mgd(engine="in_place"),
    "MultiplexedGradientDescent, per sample": _mgd(engine="per_sample"),
    "MultiplexedGradientDescent, jvp": _mgd(engine="jvp"),
    "MultiplexedGradientDescent, analog": _mgd(mode="analog", tau_x=2, tau_theta=2),
    "MultiplexedGradientDescent, activations": _mgd(perturb="activations"),
    "MultiplexedGradientDescent, regression": _regression(
        MultiplexedGradientDescent, lambda: nn.Linear(8, 4), loss="mse"
    ),
    "QuaternionBackprop": Training(partial(QuaternionBackprop, network=partial(QuaternionMLP, hidden_dims=(8,)))),
    "QuaternionBackprop, cnn": Training(
        partial(QuaternionBackprop, network=partial(QuaternionCNN, channels=(4, 8), norm="whiten"))
    ),
    "QuaternionBackprop, unit_mse": _regression(QuaternionBackprop, lambda: QuaternionLinear(8, 4), loss="unit_mse"),
    "QuaternionBackprop, geodesic": _regression(QuaternionBackprop, lambda: QuaternionLinear(8, 4), loss="geodesic"),
    "SpikeTimingBackprop": Training(
        partial(SpikeTimingBackprop, network=partial(SpikingMLP, hidden_dims=(10,), tau_v=1.0, tau_i=0.5))
    ),
    "SpikeTimingBackprop, cnn": Training(
        partial(SpikeTimingBackprop, network=partial(SpikingCNN, channels=(3,), kernel_size=3), loss="mse")
    ),
    "HamiltonianEcho": Training(partial(HamiltonianEcho, network=partial(DuffingClassifier, hidden_units=4))),
    "HamiltonianEcho, log cosh": Training(
        partial(HamiltonianEcho, network=partial(LogCoshClassifier, n_units=12, hidden_features=8), loss="mse")
    ),
    "SelfLearningMachine": Training(
        partial(
            SelfLearningMachine,
            network=partial(TwoBeamNetwork, system=TwoFieldNLSE((6, 6)), n_steps=5),
            loss="cross_entropy",
        )
    ),
    "ResidualCompensation": Training(
        partial(ResidualCompensation, network=partial(ResCNet, depth=2, channels=5, first_kernel_size=3)),
        closed_form=True,
    ),
    "ResidualCompensation, second order": Training(
        partial(
            ResidualCompensation,
            network=partial(ResCNet, depth=2, channels=4, pooling={"second_order": 2, "crelu_mean": 2}),
        ),
        closed_form=True,
    ),
    "PCANet": Training(
        partial(PCANet, network=partial(HashingNetwork, channels=(3, 4), kernel_size=3, block=4)), closed_form=True
    ),
    "PCANet, ridge": Training(
        partial(
            PCANet,
            network=partial(HashingNetwork, channels=(3, 4), kernel_size=3, block=4, sketch_dim=20),
            classifier="ridge",
        ),
        closed_form=True,
    ),
    "DynamicalNetworkBackprop": _dynamical(),
    "DynamicalNetworkBackprop, alternation": _dynamical(
        method="alternation", local=partial(LocalDynamics, hidden_dims=(8,)), initial_epochs=1
    ),
}
"""Of every rule, by its name and what is special."""
