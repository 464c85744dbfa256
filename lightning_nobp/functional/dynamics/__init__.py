"""Networks of coupled oscillators: vector fields, simulation, and derivatives of series."""

from lightning_nobp.functional.dynamics.adjoint import (
    Adjoint,
    FieldVjp,
    WindowGradient,
    autograd_vjp,
    coupling_adjoint,
)
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
from lightning_nobp.functional.dynamics.prediction import noisy_start, valid_steps
from lightning_nobp.functional.dynamics.topology import TOPOLOGIES, draw_links, draw_weights

__all__ = [
    "FIELDS",
    "TOPOLOGIES",
    "Adjoint",
    "Chua",
    "Derivative",
    "Differentiated",
    "Field",
    "FieldVjp",
    "FitzHughNagumo",
    "Integrator",
    "Lorenz",
    "Roessler",
    "VectorField",
    "WindowGradient",
    "autograd_vjp",
    "check_weights",
    "coupling",
    "coupling_adjoint",
    "differentiate",
    "draw_links",
    "draw_weights",
    "noisy_start",
    "rk4_increment",
    "rollout",
    "simulate_network",
    "step",
    "valid_steps",
    "velocity",
]
