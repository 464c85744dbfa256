"""Physical systems that learn by their echo."""

from lightning_nobp.nn.hamiltonian.cavity import KerrCavityArray
from lightning_nobp.nn.hamiltonian.field_codes import (
    CoherentReadout,
    DetectorReadout,
    HomodyneReadout,
    ImageEncoder,
    ModeEncoder,
    PulseEncoder,
)
from lightning_nobp.nn.hamiltonian.field_system import CoupledFields, FieldSystem
from lightning_nobp.nn.hamiltonian.learning_field import (
    KerrCavityNetwork,
    LearningFieldNetwork,
    TwoBeamNetwork,
    WaveFieldNetwork,
)
from lightning_nobp.nn.hamiltonian.nlse import NLSEField, TwoFieldNLSE
from lightning_nobp.nn.hamiltonian.nlse_network import FieldEcho, NLSENetwork
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem

__all__ = [
    "CoherentReadout",
    "CoupledFields",
    "DetectorReadout",
    "FieldEcho",
    "FieldSystem",
    "HamiltonianSystem",
    "HomodyneReadout",
    "ImageEncoder",
    "KerrCavityArray",
    "KerrCavityNetwork",
    "LearningFieldNetwork",
    "ModeEncoder",
    "NLSEField",
    "NLSENetwork",
    "PulseEncoder",
    "TwoBeamNetwork",
    "TwoFieldNLSE",
    "WaveFieldNetwork",
]
