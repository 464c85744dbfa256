"""A small rule that perturbs, and gradients to hold it against."""

from functools import partial

import torch
from toys import blobs

from lightning_nobp.nn import MLP
from lightning_nobp.rules import MultiplexedGradientDescent

SGD = partial(torch.optim.SGD, lr=0.1)


def build(double=True, **kwargs):
    """A small rule for the blobs, the same weights at every call."""
    torch.manual_seed(0)
    defaults = {
        "network": partial(MLP, hidden_dims=(5,), activation="tanh"),
        "num_classes": 3,
        "input_shape": (1, 2, 3),
        "optimizer": SGD,
    }
    rule = MultiplexedGradientDescent(**defaults | kwargs)
    return rule.double() if double else rule


def batch(count=12):
    x, y = blobs(count).tensors
    return x.double(), y


def gradient(rule, samples):
    rule.zero_grad()
    rule.compute_gradients(samples)
    return torch.cat([p.grad.flatten() for p in rule.parameters()])


def autograd(rule, samples):
    found = torch.autograd.grad(rule.global_loss(samples), list(rule.parameters()))
    return torch.cat([g.flatten() for g in found])


def distance(found, true):
    return float((found - true).norm() / true.norm())


SIZE = 6 * 5 + 5 + 5 * 3 + 3
