"""The base carries rules of every kind: closed form, zero order, local losses, and sums over data."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from toys import blobs, loader, trainer, weights

from lightning_nobp.nn import MLP
from lightning_nobp.rules import ClassificationRule, LearningRule
from lightning_nobp.rules.classification import accuracy


class Ridge(ClassificationRule):
    """Closed form: statistics over an epoch, solved at its end; nothing has a gradient."""

    def __init__(self, *, ridge: float = 1e-3, **kwargs):
        super().__init__(**kwargs)
        self.ridge = ridge
        self.register_buffer("gram", torch.zeros(7, 7))
        self.register_buffer("moment", torch.zeros(7, 3))
        self.register_buffer("solution", torch.zeros(7, 3))

    def forward(self, x):
        return self.features(x) @ self.solution

    def features(self, x):
        return torch.cat([x.flatten(1), x.new_ones(len(x), 1)], dim=1)

    def compute_gradients(self, batch):
        phi = self.features(batch[0])
        self.gram += phi.T @ phi
        self.moment += phi.T @ nn.functional.one_hot(batch[1], 3).to(phi.dtype)
        return {}

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.solution.copy_(torch.linalg.solve(self.gram + self.ridge * torch.eye(7), self.moment))


class SPSA(ClassificationRule):
    """Zero order: two evaluations of the cost along a random direction."""

    @torch.no_grad()
    def compute_gradients(self, batch):
        x, target = batch
        parameters = list(self.network.parameters())
        signs = [torch.randint_like(p, 2) * 2 - 1 for p in parameters]
        costs = []
        for step in (1e-3, -2e-3):
            for p, s in zip(parameters, signs, strict=True):
                p.add_(s, alpha=step)
            costs.append(self.loss_function(self(x), target))
        for p, s in zip(parameters, signs, strict=True):
            p.add_(s, alpha=1e-3)
            p.grad = (costs[0] - costs[1]) / 2e-3 * s
        return {"loss": costs[0]}


class LocalLoss(ClassificationRule):
    """Local: every linear layer trains a fixed random read-out, nothing travels between layers."""

    def compute_gradients(self, batch):
        x, target = batch
        for number, layer in enumerate(self.network):
            with torch.enable_grad():
                x = layer(x.detach())
                if isinstance(layer, nn.Linear):
                    generator = torch.Generator().manual_seed(number)
                    readout = torch.eye(3) if x.shape[1] == 3 else torch.randn(x.shape[1], 3, generator=generator)
                    loss = nn.functional.cross_entropy(x @ readout, target)
                    loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy(x, target)}


class Slope(LearningRule):
    """A user's own rule that is no classifier: least squares on a line."""

    def __init__(self, *, start: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.slope = nn.Parameter(torch.tensor(start))

    def compute_gradients(self, batch):
        x, y = batch["x"], batch["y"]
        error = self.slope * x - y
        self.slope.grad = (error * x).mean().detach()
        return {"loss": error.square().mean().detach() / 2}


KINDS = {
    "closed form": partial(Ridge),
    "zero order": partial(SPSA, optimizer=partial(torch.optim.Adam, lr=0.1)),
    "local": partial(LocalLoss, optimizer=partial(torch.optim.SGD, lr=0.1)),
}


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_counts_saves_and_loads(tmp_path, name):
    torch.manual_seed(0)
    rule = KINDS[name](network=partial(MLP, hidden_dims=(8,)), num_classes=3, input_shape=(1, 2, 3))
    saved = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    run = trainer(tmp_path, max_epochs=12, callbacks=[saved], enable_checkpointing=True)
    run.fit(rule, loader(shuffle=True), loader())
    assert run.global_step == 12 * 6
    assert run.callback_metrics["val/accuracy"] > 0.9
    again = type(rule).load_from_checkpoint(saved.best_model_path)
    x, target = blobs().tensors
    assert accuracy(again(x), target) == saved.best_model_score


def test_rule_that_is_no_classifier(tmp_path):
    x = torch.linspace(-1, 1, 32)
    data = torch.utils.data.DataLoader([{"x": a, "y": 3 * a} for a in x], batch_size=8)
    rule = Slope(optimizer=partial(torch.optim.SGD, lr=1.0))
    run = trainer(tmp_path, max_epochs=8)
    run.fit(rule, data)
    assert run.global_step == 32
    assert rule.slope.item() == pytest.approx(3, abs=1e-2)
    run.save_checkpoint(tmp_path / "slope.ckpt")
    assert torch.equal(weights(L.LightningModule.load_from_checkpoint(tmp_path / "slope.ckpt")), weights(rule))


def test_rule_without_its_method_says_so(tmp_path):
    with pytest.raises(NotImplementedError, match=r"LearningRule must implement compute_gradients"):
        trainer(tmp_path).fit(LearningRule(), loader())


def test_unknown_shape_is_asked_for(tmp_path):
    rule = ClassificationRule()
    with pytest.raises(RuntimeError, match=r"num_classes=\.\.\."):
        rule(torch.zeros(1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"num_classes is not known.*ClassificationRule\(num_classes=\.\.\.\)"):
        trainer(tmp_path).fit(rule, loader())


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(5, 2),
        [torch.zeros(5), 1],
        {"a": (torch.zeros(5, 1), 2)},
        {"name": ["a", "b"], "id": 3, "weight": torch.tensor(2.0), "x": torch.zeros(5)},
    ],
)
def test_samples_are_counted_in_any_batch(batch):
    assert LearningRule().num_samples(batch) == 5


def test_batch_without_samples_to_count_asks_for_the_method():
    with pytest.raises(TypeError, match=r"type dict .* override LearningRule\.num_samples"):
        LearningRule().num_samples({"name": "a", "id": 3})
