"""Physical systems that learn by their echo."""

from lightning_nobp.nn.hamiltonian.cavity import KerrCavityArray
from lightning_nobp.nn.hamiltonian.field_system import CoupledFields, FieldSystem
from lightning_nobp.nn.hamiltonian.nlse import NLSEField, TwoFieldNLSE
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem

__all__ = [
    "CoupledFields",
    "FieldSystem",
    "HamiltonianSystem",
    "KerrCavityArray",
    "NLSEField",
    "TwoFieldNLSE",
]
