"""Small networks under masks, dense or with sparse layers, and how they are trained."""

from functools import partial

import torch
from torch import nn
from toys import loader, trainer

from lightning_nobp.nn import MLP
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.rules import Backprop, SparseProp

OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
}


def mlp():
    """48, 48 and 18 weights."""
    torch.manual_seed(0)
    return MLP((1, 2, 3), 3, (8, 6), activation="tanh")


def pruned():
    network = mlp()
    for k in (1, 3, 5):
        network[k].weight.data *= torch.rand_like(network[k].weight) < 0.4
    return network


def cnn():
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, (2, 3), bias=False), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(24, 3))


def layers(rule):
    return {f"network.{n}": m for n, m in rule.network.named_modules() if hasattr(m, "weight")}


def masks(rule, callback):
    """Of all layers that have one, dense or sparse."""
    sparse = {n: m.mask for n, m in layers(rule).items() if isinstance(m, SparseLayer)}
    return callback.state_dict()["masks"] | sparse


def fit(folder, network, *callbacks, sparse=None, num_samples=96, max_epochs=2, **kwargs):
    """Six steps an epoch, in float64; with sparse layers if they are given their arguments."""
    arguments = {"num_classes": 3, "input_shape": (1, 2, 3), "loss": "cross_entropy", "optimizer": OPTIMIZERS["sgd"]}
    kind = Backprop if sparse is None else partial(SparseProp, sparsity=None, **sparse)
    rule = kind(network=network, **arguments | kwargs)
    run = trainer(folder, callbacks=list(callbacks), max_epochs=max_epochs, precision="64-true", log_every_n_steps=100)
    run.fit(rule, loader(num_samples))
    return rule
