"""Torch layers and networks, usable without Lightning."""

from lightning_nobp.nn.backprop import accumulate_grad, check_supported, register_vjp, vjp
from lightning_nobp.nn.forward_forward import FFConv2d, FFLayer, FFLinear
from lightning_nobp.nn.forward_forward_network import ForwardForwardNetwork
from lightning_nobp.nn.forward_forward_presets import ForwardForwardCNN, ForwardForwardMLP
from lightning_nobp.nn.labelled_input import LabelledInput
from lightning_nobp.nn.networks import CNN, MLP, PRESETS, NetworkFactory, sequential
from lightning_nobp.nn.residual import Residual

__all__ = [
    "CNN",
    "MLP",
    "PRESETS",
    "FFConv2d",
    "FFLayer",
    "FFLinear",
    "ForwardForwardCNN",
    "ForwardForwardMLP",
    "ForwardForwardNetwork",
    "LabelledInput",
    "NetworkFactory",
    "Residual",
    "accumulate_grad",
    "check_supported",
    "register_vjp",
    "sequential",
    "vjp",
]
