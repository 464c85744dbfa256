"""Torch layers and networks, usable without Lightning."""

from lightning_nobp.nn.backprop import accumulate_grad, check_supported, register_vjp, vjp
from lightning_nobp.nn.forward_forward import FFConv2d, FFLayer, FFLinear
from lightning_nobp.nn.forward_forward_network import ForwardForwardNetwork
from lightning_nobp.nn.forward_forward_presets import ForwardForwardCNN, ForwardForwardMLP
from lightning_nobp.nn.labelled_input import LabelledInput
from lightning_nobp.nn.networks import CNN, MLP, PRESETS, NetworkFactory, sequential
from lightning_nobp.nn.pcanet import HashingNetwork, PCAConv2d, Readout
from lightning_nobp.nn.residual import Residual
from lightning_nobp.nn.residual_compensation import CompensationLayer, ResCNet

__all__ = [
    "CNN",
    "MLP",
    "PRESETS",
    "CompensationLayer",
    "FFConv2d",
    "FFLayer",
    "FFLinear",
    "ForwardForwardCNN",
    "ForwardForwardMLP",
    "ForwardForwardNetwork",
    "HashingNetwork",
    "LabelledInput",
    "NetworkFactory",
    "PCAConv2d",
    "Readout",
    "ResCNet",
    "Residual",
    "accumulate_grad",
    "check_supported",
    "register_vjp",
    "sequential",
    "vjp",
]
