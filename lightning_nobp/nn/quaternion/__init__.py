"""Layers and networks of quaternions."""

from lightning_nobp.nn.quaternion.activations import Cardioid, MagnitudeTanh, ModReLU, NormGate, PhaseSin, PhaseTanh
from lightning_nobp.nn.quaternion.adam import QuaternionAdam, quaternion_parameters, retract_
from lightning_nobp.nn.quaternion.conversion import to_quaternion, to_real
from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConv3d,
    QuaternionConvTranspose1d,
    QuaternionConvTranspose2d,
    QuaternionConvTranspose3d,
)
from lightning_nobp.nn.quaternion.dropout import QuaternionDropout, QuaternionDropout2d
from lightning_nobp.nn.quaternion.encoding import ColourToQuaternions, PatchesToQuaternions, QuaternionsToReal
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv1d, PHMConv2d, PHMConv3d, PHMLinear
from lightning_nobp.nn.quaternion.init import quaternion_init_
from lightning_nobp.nn.quaternion.linear import QuaternionLinear
from lightning_nobp.nn.quaternion.networks import EquivariantMLP, QuaternionAutoencoder, QuaternionCNN, QuaternionMLP
from lightning_nobp.nn.quaternion.normalisation import QuaternionBatchNorm
from lightning_nobp.nn.quaternion.peers import from_component_weights, from_hypercomplex_weights
from lightning_nobp.nn.quaternion.pooling import QuaternionMaxPool2d
from lightning_nobp.nn.quaternion.recurrent import QuaternionGRU, QuaternionLSTM, QuaternionRNN
from lightning_nobp.nn.quaternion.rotation import QuaternionRotation

__all__ = [
    "Cardioid",
    "ColourToQuaternions",
    "EquivariantMLP",
    "MagnitudeTanh",
    "ModReLU",
    "NormGate",
    "PHMConv1d",
    "PHMConv2d",
    "PHMConv3d",
    "PHMLinear",
    "PatchesToQuaternions",
    "PhaseSin",
    "PhaseTanh",
    "QuaternionAdam",
    "QuaternionAutoencoder",
    "QuaternionBatchNorm",
    "QuaternionCNN",
    "QuaternionConv1d",
    "QuaternionConv2d",
    "QuaternionConv3d",
    "QuaternionConvTranspose1d",
    "QuaternionConvTranspose2d",
    "QuaternionConvTranspose3d",
    "QuaternionDropout",
    "QuaternionDropout2d",
    "QuaternionGRU",
    "QuaternionLSTM",
    "QuaternionLinear",
    "QuaternionMLP",
    "QuaternionMaxPool2d",
    "QuaternionRNN",
    "QuaternionRotation",
    "QuaternionsToReal",
    "from_component_weights",
    "from_hypercomplex_weights",
    "quaternion_init_",
    "quaternion_parameters",
    "retract_",
    "to_quaternion",
    "to_real",
]
