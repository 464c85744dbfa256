"""Torch layers and networks, usable without Lightning."""

from lightning_nobp.nn.backprop import accumulate_grad, check_supported, register_vjp, vjp
from lightning_nobp.nn.networks import CNN, MLP, PRESETS, NetworkFactory, sequential
from lightning_nobp.nn.residual import Residual

__all__ = [
    "CNN",
    "MLP",
    "PRESETS",
    "NetworkFactory",
    "Residual",
    "accumulate_grad",
    "check_supported",
    "register_vjp",
    "sequential",
    "vjp",
]
