"""Torch layers and networks, usable without Lightning."""

from lightning_nobp.nn.backprop import accumulate_grad, check_supported, register_vjp, vjp
from lightning_nobp.nn.forward_forward import FFConv2d, FFLayer, FFLinear
from lightning_nobp.nn.forward_forward_network import ForwardForwardNetwork
from lightning_nobp.nn.forward_forward_presets import ForwardForwardCNN, ForwardForwardMLP
from lightning_nobp.nn.labelled_input import LabelledInput
from lightning_nobp.nn.multiplexed import AnalogEstimator, Estimate, Estimator, SampleEstimator, Turn, WindowEstimator
from lightning_nobp.nn.networks import CNN, MLP, PRESETS, NetworkFactory, SigmoidMLP, TwoClasses, sequential
from lightning_nobp.nn.parameter_codes import BatchedEngine, ForwardModeEngine, InPlaceEngine, ParameterCodes
from lightning_nobp.nn.pcanet import HashingNetwork, PCAConv2d, Readout
from lightning_nobp.nn.residual import Residual
from lightning_nobp.nn.residual_compensation import CompensationLayer, ResCNet
from lightning_nobp.nn.resnet import ResNet
from lightning_nobp.nn.sample_codes import ActivationCodes, WeightCodes
from lightning_nobp.nn.sparse import SparseConv2d, SparseLinear
from lightning_nobp.nn.sparsify import densify, sparsify

__all__ = [
    "CNN",
    "MLP",
    "PRESETS",
    "ActivationCodes",
    "AnalogEstimator",
    "BatchedEngine",
    "CompensationLayer",
    "Estimate",
    "Estimator",
    "FFConv2d",
    "FFLayer",
    "FFLinear",
    "ForwardForwardCNN",
    "ForwardForwardMLP",
    "ForwardForwardNetwork",
    "ForwardModeEngine",
    "HashingNetwork",
    "InPlaceEngine",
    "LabelledInput",
    "NetworkFactory",
    "PCAConv2d",
    "ParameterCodes",
    "Readout",
    "ResCNet",
    "ResNet",
    "Residual",
    "SampleEstimator",
    "SigmoidMLP",
    "SparseConv2d",
    "SparseLinear",
    "Turn",
    "TwoClasses",
    "WeightCodes",
    "WindowEstimator",
    "accumulate_grad",
    "check_supported",
    "densify",
    "register_vjp",
    "sequential",
    "sparsify",
    "vjp",
]
