"""Networks of coupled oscillators: vector fields, simulation, and derivatives of series."""

from lightning_nobp.functional.dynamics.derivatives import Derivative, Differentiated, differentiate
from lightning_nobp.functional.dynamics.fields import FIELDS, Chua, FitzHughNagumo, Lorenz, Roessler, VectorField
from lightning_nobp.functional.dynamics.network import (
    Field,
    Integrator,
    check_weights,
    coupling,
    rk4_increment,
    rollout,
    simulate_network,
    step,
    velocity,
)

__all__ = [
    "FIELDS",
    "Chua",
    "Derivative",
    "Differentiated",
    "Field",
    "FitzHughNagumo",
    "Integrator",
    "Lorenz",
    "Roessler",
    "VectorField",
    "check_weights",
    "coupling",
    "differentiate",
    "rk4_increment",
    "rollout",
    "simulate_network",
    "step",
    "velocity",
]
