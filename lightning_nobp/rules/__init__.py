"""Learning rules: one LightningModule each."""

from lightning_nobp.rules.backprop import Backprop
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.classification import ClassificationRule
from lightning_nobp.rules.closed_form import ClosedFormRule
from lightning_nobp.rules.dynamical import DynamicalNetworkBackprop
from lightning_nobp.rules.forward_forward import ForwardForward, SymBa
from lightning_nobp.rules.hamiltonian_echo import HamiltonianEcho
from lightning_nobp.rules.mgd import MultiplexedGradientDescent
from lightning_nobp.rules.network_rule import NetworkRule
from lightning_nobp.rules.pcanet import PCANet
from lightning_nobp.rules.quaternion import QuaternionBackprop
from lightning_nobp.rules.residual_compensation import ResidualCompensation
from lightning_nobp.rules.self_learning_machine import SelfLearningMachine
from lightning_nobp.rules.sparseprop import SparseProp
from lightning_nobp.rules.spiking import SpikeTimingBackprop

__all__ = [
    "Backprop",
    "ClassificationRule",
    "ClosedFormRule",
    "DynamicalNetworkBackprop",
    "ForwardForward",
    "HamiltonianEcho",
    "LearningRule",
    "MultiplexedGradientDescent",
    "NetworkRule",
    "PCANet",
    "QuaternionBackprop",
    "ResidualCompensation",
    "SelfLearningMachine",
    "SparseProp",
    "SpikeTimingBackprop",
    "SymBa",
]
