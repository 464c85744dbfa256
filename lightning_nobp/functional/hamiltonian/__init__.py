"""Hamiltonian systems, simulated by what time can be reversed in, and gradients from their echo."""

from lightning_nobp.functional.hamiltonian.decay import decay_step
from lightning_nobp.functional.hamiltonian.echo import Simulation, System, simulate
from lightning_nobp.functional.hamiltonian.field_flows import DenseFlow, FourierFlow, PhaseFlow
from lightning_nobp.functional.hamiltonian.fields import field_echo, field_echo_trajectory, strang
from lightning_nobp.functional.hamiltonian.flows import Drift, Drives, Flow, Friction, Kick, Mechanics, Recorder, Sums
from lightning_nobp.functional.hamiltonian.imperfections import Imperfections
from lightning_nobp.functional.hamiltonian.leapfrog import (
    Drive,
    hamiltonian_echo,
    hamiltonian_echo_trajectory,
    leapfrog,
)
from lightning_nobp.functional.hamiltonian.nudge import NudgeMode
from lightning_nobp.functional.hamiltonian.phase_space import CANONICAL, COMPLEX, PhaseSpace, State
from lightning_nobp.functional.hamiltonian.reversal import reversal_error
from lightning_nobp.functional.hamiltonian.sums import AutogradSums

__all__ = [
    "CANONICAL",
    "COMPLEX",
    "AutogradSums",
    "DenseFlow",
    "Drift",
    "Drive",
    "Drives",
    "Flow",
    "FourierFlow",
    "Friction",
    "Imperfections",
    "Kick",
    "Mechanics",
    "NudgeMode",
    "PhaseFlow",
    "PhaseSpace",
    "Recorder",
    "Simulation",
    "State",
    "Sums",
    "System",
    "decay_step",
    "field_echo",
    "field_echo_trajectory",
    "hamiltonian_echo",
    "hamiltonian_echo_trajectory",
    "leapfrog",
    "reversal_error",
    "simulate",
    "strang",
]
