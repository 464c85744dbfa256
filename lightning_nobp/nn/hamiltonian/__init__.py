"""Physical systems that learn by their echo."""

from lightning_nobp.nn.hamiltonian.duffing import DuffingNetwork
from lightning_nobp.nn.hamiltonian.echo_layer import EchoLayer, GradientEngine
from lightning_nobp.nn.hamiltonian.klein_gordon import KleinGordonField
from lightning_nobp.nn.hamiltonian.layer import HamiltonianLayer
from lightning_nobp.nn.hamiltonian.log_cosh import LogCoshNetwork
from lightning_nobp.nn.hamiltonian.networks import (
    DriveEncoder,
    DuffingClassifier,
    HamiltonianNetwork,
    LastUnits,
    LogCoshClassifier,
    PositionEncoder,
)
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem

__all__ = [
    "DriveEncoder",
    "DuffingClassifier",
    "DuffingNetwork",
    "EchoLayer",
    "GradientEngine",
    "HamiltonianLayer",
    "HamiltonianNetwork",
    "HamiltonianSystem",
    "KleinGordonField",
    "LastUnits",
    "LogCoshClassifier",
    "LogCoshNetwork",
    "PositionEncoder",
]
