"""Modules to be trained on imperfect hardware, and how."""

from functools import partial

import lightning as L
import torch
from torch import nn
from toys import backprop, loader, trainer, weights

from lightning_nobp.functional.counter_random import random_signs
from lightning_nobp.nn import MLP
from lightning_nobp.rules import (
    ClassificationRule,
    LearningRule,
)

SIGMOID = partial(MLP, hidden_dims=(8,), activation="sigmoid")


class Spsa(ClassificationRule):
    """Two costs a perturbation, ten perturbations a batch."""

    def __init__(self, in_time_order=True, **kwargs):
        super().__init__(**kwargs)
        self.cost_hooks, self.difference_hooks = [], []
        self.reads_in_time_order = in_time_order

    @torch.no_grad()
    def compute_gradients(self, batch):
        flat = weights(self)
        steps = torch.arange(10 * self.trainer.global_step, 10 * self.trainer.global_step + 10)
        signs = random_signs(0, steps, 0, len(flat))
        costs = torch.stack([self.cost(flat + turn * 0.01 * s, batch) for s in signs for turn in (1, -1)]).view(-1, 2)
        for hook in self.cost_hooks:
            costs = hook(costs)
        differences = (costs[:, 0] - costs[:, 1]) / 2
        for hook in self.difference_hooks:
            differences = hook(differences)
        nn.utils.vector_to_parameters(flat, self.parameters())
        grad = (differences / 0.01) @ signs / 10
        for p, piece in zip(self.parameters(), grad.split([p.numel() for p in self.parameters()]), strict=True):
            p.grad = piece.view_as(p)
        return {"loss": costs.mean()}

    def cost(self, flat, batch):
        nn.utils.vector_to_parameters(flat, self.parameters())
        return self.loss_function(self(batch[0]), batch[1])


class Ordinary(L.LightningModule):
    """A module of somebody else's, in automatic optimization."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = SIGMOID((1, 2, 3), 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class TwoOptimizers(Ordinary):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.network[1].parameters(), lr=0.1), torch.optim.Adam(self.network[3].parameters())]


def spsa(**kwargs):
    torch.manual_seed(0)
    defaults = {"network": SIGMOID, "num_classes": 3, "input_shape": (1, 2, 3)}
    return Spsa(**defaults | {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.5)} | kwargs)


def varied(**kwargs):
    return backprop(network=SIGMOID, engine="autograd", **kwargs)


def fit(folder, module, *callbacks, **kwargs):
    run = trainer(folder, callbacks=list(callbacks), **kwargs)
    run.fit(module, loader(), loader() if isinstance(module, LearningRule) else None)
    return run


def written(memory, start, changes, seed=0, dtype=torch.float32):
    """Weights after each of some changes that plain SGD asks for."""
    parameter = nn.Parameter(torch.as_tensor(start, dtype=dtype).clone())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    memory.attach([optimizer], seed)
    results = []
    for change in changes:
        parameter.grad = None if change is None else -torch.as_tensor(change, dtype=dtype).expand_as(parameter)
        optimizer.step()
        results.append(parameter.detach().clone())
    memory.detach()
    return results


class Watch(L.Callback):
    """Keep the weights at the start and after every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(weights(pl_module))
