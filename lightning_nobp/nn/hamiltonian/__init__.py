"""Physical systems that learn by their echo."""

from lightning_nobp.nn.hamiltonian.cavity import KerrCavityArray
from lightning_nobp.nn.hamiltonian.duffing import DuffingNetwork
from lightning_nobp.nn.hamiltonian.echo_layer import EchoLayer, GradientEngine
from lightning_nobp.nn.hamiltonian.field_codes import (
    CoherentReadout,
    DetectorReadout,
    HomodyneReadout,
    ImageEncoder,
    ModeEncoder,
    PulseEncoder,
)
from lightning_nobp.nn.hamiltonian.field_system import CoupledFields, FieldSystem
from lightning_nobp.nn.hamiltonian.klein_gordon import KleinGordonField
from lightning_nobp.nn.hamiltonian.layer import HamiltonianLayer
from lightning_nobp.nn.hamiltonian.learning_field import (
    KerrCavityNetwork,
    LearningFieldNetwork,
    TwoBeamNetwork,
    WaveFieldNetwork,
)
from lightning_nobp.nn.hamiltonian.log_cosh import LogCoshNetwork
from lightning_nobp.nn.hamiltonian.networks import (
    DriveEncoder,
    DuffingClassifier,
    HamiltonianNetwork,
    LastUnits,
    LogCoshClassifier,
    PositionEncoder,
)
from lightning_nobp.nn.hamiltonian.nlse import NLSEField, TwoFieldNLSE
from lightning_nobp.nn.hamiltonian.nlse_network import FieldEcho, NLSENetwork
from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem

__all__ = [
    "CoherentReadout",
    "CoupledFields",
    "DetectorReadout",
    "DriveEncoder",
    "DuffingClassifier",
    "DuffingNetwork",
    "EchoLayer",
    "FieldEcho",
    "FieldSystem",
    "GradientEngine",
    "HamiltonianLayer",
    "HamiltonianNetwork",
    "HamiltonianSystem",
    "HomodyneReadout",
    "ImageEncoder",
    "KerrCavityArray",
    "KerrCavityNetwork",
    "KleinGordonField",
    "LastUnits",
    "LearningFieldNetwork",
    "LogCoshClassifier",
    "LogCoshNetwork",
    "ModeEncoder",
    "NLSEField",
    "NLSENetwork",
    "PositionEncoder",
    "PulseEncoder",
    "TwoBeamNetwork",
    "TwoFieldNLSE",
    "WaveFieldNetwork",
]
