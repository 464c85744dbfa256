"""Networks of coupled nodes that move in time."""

from lightning_nobp.nn.dynamical.local import DynamicsFactory, LocalDynamics, NodeDynamics, PolynomialDynamics
from lightning_nobp.nn.dynamical.network import DynamicalNetwork
from lightning_nobp.nn.dynamical.optimizer import NetworkDescent

__all__ = [
    "DynamicalNetwork",
    "DynamicsFactory",
    "LocalDynamics",
    "NetworkDescent",
    "NodeDynamics",
    "PolynomialDynamics",
]
