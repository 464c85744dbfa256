"""The rule: two engines, two losses, without a Trainer and with one."""

from functools import partial

import pytest
import torch
from torch import nn
from toys import backprop, blobs, loader, plain_loop, trainer, weights

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP
from lightning_nobp.rules import Backprop


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_engines_give_the_same_gradients_and_values(loss, network):
    batch = (torch.randn(9, 1, 8, 8, dtype=torch.float64), torch.arange(9) % 4)
    gradients, values = [], []
    for engine in ("explicit", "autograd"):
        torch.manual_seed(0)
        rule = Backprop(network=network, num_classes=4, input_shape=(1, 8, 8), loss=loss, engine=engine).double()
        values.append(rule.compute_gradients(batch))
        gradients.append(torch.cat([p.grad.flatten() for p in rule.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12 * gradients[1].abs().max().item())
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)


def test_explicit_engine_builds_no_graph():
    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            assert not torch.is_grad_enabled()
            return function(*args, **(kwargs or {}))

    rule = backprop()
    x, target = blobs().tensors
    with torch.no_grad(), Watch():
        rule.compute_gradients((x, target))
    assert rule.network[1].weight.grad is not None


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_reported_loss_is_the_trained_one(loss):
    rule = backprop(loss=loss)
    batch = blobs().tensors
    trained = rule.compute_gradients(batch)["loss"]
    torch.testing.assert_close(trained, rule.loss_function(rule(batch[0]), batch[1]).detach())
    torch.testing.assert_close(trained, rule.global_loss(batch).detach())


class _Margin(Backprop):
    def loss_function(self, scores, target):
        return torch.nn.functional.multi_margin_loss(scores, target)


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_a_subclass_with_a_loss_of_its_own_learns_that(engine):
    torch.manual_seed(0)
    rule = _Margin(network=partial(MLP, hidden_dims=(8,)), num_classes=3, input_shape=(1, 2, 3), engine=engine)
    batch = blobs().tensors
    trained = rule.compute_gradients(batch)["loss"]
    loss = rule.global_loss(batch)
    torch.testing.assert_close(trained, loss.detach())
    expected = torch.autograd.grad(loss, list(rule.parameters()))
    torch.testing.assert_close([p.grad for p in rule.parameters()], list(expected))


def test_plain_torch_loop():
    rule = backprop()
    assert plain_loop(rule)["accuracy"] > 0.95


def test_probabilities_sum_to_one(tmp_path):
    rule = backprop()
    predictions = torch.cat(trainer(tmp_path).predict(rule, loader()))
    assert predictions.shape == (96, 3)
    torch.testing.assert_close(predictions.sum(-1), torch.ones(96))


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_engines_train_alike_with_dropout_and_batch_norm(tmp_path, engine):
    def train(engine):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        )
        rule = Backprop(network=network, num_classes=3, loss="cross_entropy", engine=engine).double()
        trainer(tmp_path, precision="64-true", max_epochs=3).fit(rule, loader())
        return rule

    reference, rule = train("autograd"), train(engine)
    torch.testing.assert_close(weights(rule), weights(reference), rtol=1e-12, atol=1e-13)
    for a, b in zip(rule.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_unknown_layer_is_refused_when_the_rule_is_built():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Softplus())
    with pytest.raises(TypeError, match=r"network\.2.*Softplus.*register_vjp"):
        Backprop(network=network, num_classes=3)
    assert Backprop(network=network, num_classes=3, engine="autograd").network is network


def test_sample_numbers_in_a_batch_do_not_matter(tmp_path):
    trained = []
    for numbers in (False, True):
        module = backprop(num_classes=10, input_shape=(1, 8, 8))
        trainer(tmp_path).fit(module, datamodule=DigitsDataModule(subset=200, val_size=50, with_index=numbers))
        trained.append(weights(module))
    assert torch.equal(*trained)
