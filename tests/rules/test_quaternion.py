"""QuaternionBackprop: the written derivatives are those of the GHR calculus, and only they descend."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion import hamilton_product, unpack
from lightning_nobp.nn import (
    EquivariantMLP,
    QuaternionAdam,
    QuaternionAutoencoder,
    QuaternionBatchNorm,
    QuaternionCNN,
    QuaternionConv2d,
    QuaternionLinear,
    QuaternionMLP,
    Residual,
)
from lightning_nobp.rules import QuaternionBackprop

FOLK = ["naive", "naive_neg", "noconj", "truncated"]


def small_network(side="left", seed=0, activation=nn.Tanh):
    """Layers of 3, 8, 6 and 2 quaternions."""
    torch.manual_seed(seed)
    kind = {"side": side, "dtype": torch.float64}
    return nn.Sequential(
        QuaternionLinear(12, 32, **kind),
        activation(),
        QuaternionLinear(32, 24, **kind),
        activation(),
        QuaternionLinear(24, 8, **kind),
    )


def regression_batch(seed=1, samples=64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 12, dtype=torch.float64, generator=generator)
    return x, torch.randn(samples, 8, dtype=torch.float64, generator=generator)


def make_rule(network, **options):
    return QuaternionBackprop(network=network, **{"loss": "mse", "task": "regression"} | options)


def gradients(rule, batch):
    rule.zero_grad()
    rule.compute_gradients(batch)
    return [p.grad.clone() for p in rule.parameters()]


def relative_difference(found, expected):
    norm = sum(e.square().sum() for e in expected).sqrt()
    return sum((f - e).square().sum() for f, e in zip(found, expected, strict=True)).sqrt() / norm


def train(rule, steps, lr):
    batch = regression_batch()
    optimizer = torch.optim.SGD(rule.parameters(), lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(float(rule.compute_gradients(batch)["loss"]))
        optimizer.step()
    return losses


# The derivatives


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("loss", ["mse", "imaginary_mse", "unit_mse", "geodesic", "chordal", nn.L1Loss()], ids=str)
def test_the_written_gradient_is_four_times_the_ghr_derivative(side, loss):
    network, batch = small_network(side), regression_batch()
    explicit = gradients(make_rule(network, loss=loss), batch)
    automatic = gradients(make_rule(network, loss=loss, backward_mode="autograd"), batch)
    assert relative_difference(explicit, automatic) < 1e-14


@torch.no_grad()
def central_differences(rule, batch, eps=1e-6):
    """Of the loss in every number of every parameter."""
    found = []
    for parameter in rule.parameters():
        slopes = []
        for number in parameter.view(-1).unbind():
            value, ends = number.clone(), []
            for sign in (1, -1):
                number.copy_(value + sign * eps)
                ends.append(rule.loss_function(rule(batch[0]), batch[1]))
            number.copy_(value)
            slopes.append((ends[0] - ends[1]) / (2 * eps))
        found.append(torch.stack(slopes).view_as(parameter))
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("loss", ["mse", "geodesic"])
def test_finite_differences_agree(side, loss):
    rule, batch = make_rule(small_network(side), loss=loss), regression_batch()
    assert relative_difference(gradients(rule, batch), central_differences(rule, batch)) < 1e-7


def test_the_papers_equations_layer_by_layer():
    network, (x, target) = small_network(), regression_batch()
    found = gradients(make_rule(network, grad_scale=1, loss=nn.MSELoss(reduction="sum")), (x, target))
    with torch.no_grad():
        a = [x]
        z = []
        for layer in (network[0], network[2], network[4]):
            z.append(layer(a[-1]))
            a.append(z[-1].tanh())
        p = unpack(-(target - z[-1]) / 2)
        expected = []
        for number, layer in reversed(list(enumerate((network[0], network[2], network[4])))):
            conjugated = unpack(a[number]) * torch.tensor([1.0, -1, -1, -1])
            outer = hamilton_product(p.unsqueeze(2), conjugated.unsqueeze(1)).sum(0)
            expected = [outer.movedim(-1, 0), p.sum(0).t().flatten(), *expected]
            w = layer.weight.movedim(0, -1) * torch.tensor([1.0, -1, -1, -1])
            p = hamilton_product(w, p.unsqueeze(2)).sum(1)
            p = p * (1 - unpack(a[number]).square()) if number else p
    assert relative_difference(found, expected) < 1e-14


def test_one_times_the_derivative_with_four_times_the_rate_goes_the_same_way():
    first, second = small_network(), small_network()
    train(make_rule(first, grad_scale=1), 500, lr=0.4)
    batch, optimizer = regression_batch(), torch.optim.SGD(second.parameters(), 0.1)
    for _ in range(500):
        optimizer.zero_grad()
        nn.functional.mse_loss(second(batch[0]), batch[1]).backward()
        optimizer.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["ghr", "autograd"])
def test_grad_scale_scales(mode):
    network, batch = small_network(), regression_batch()
    four = gradients(make_rule(network, backward_mode=mode), batch)
    one = gradients(make_rule(network, backward_mode=mode, grad_scale=1), batch)
    assert relative_difference([4 * g for g in one], four) < 1e-15


def test_no_autograd_graph_is_built(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "requires_grad_", lambda *_: pytest.fail("a graph is begun"))
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("autograd runs"))
    rule = QuaternionBackprop(network="mlp", num_classes=10, input_shape=(1, 8, 8))
    seen = []
    for module in rule.modules():
        module.register_forward_hook(lambda module, inputs, y: seen.append(y.requires_grad))
    rule.compute_gradients((torch.randn(5, 1, 8, 8), torch.arange(5)))
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("preset", ["mlp", "cnn"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 16)])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_presets_learn_classes_by_autograds_gradient(preset, shape, loss):
    torch.manual_seed(0)
    network = "mlp" if preset == "mlp" else partial(QuaternionCNN, channels=(16, 32))
    rule = QuaternionBackprop(network=network, num_classes=10, input_shape=shape, loss=loss)
    rule = rule.double()
    other = copy.deepcopy(rule)
    other.backward_mode = "autograd"
    batch = torch.randn(6, *shape, dtype=torch.float64), torch.arange(6)
    assert relative_difference(gradients(rule, batch), gradients(other, batch)) < 1e-13


# The rules that do not hold


@pytest.mark.parametrize("lr", [0.4, 0.04, 0.004])
def test_ghr_descends_at_every_rate(lr):
    losses = train(make_rule(small_network()), 500, lr)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("mode", ["naive", "noconj"])
@pytest.mark.parametrize("lr", [0.4, 0.04, 0.004])
def test_the_naive_rule_and_the_one_without_conjugate_ascend(mode, lr):
    losses = train(make_rule(small_network(), backward_mode=mode), 500, lr)
    assert not losses[-1] <= losses[0]


@pytest.mark.parametrize("mode", FOLK)
def test_no_folk_rule_finds_the_gradient(mode):
    network, batch = small_network(), regression_batch()
    truth = gradients(make_rule(network), batch)
    assert relative_difference(gradients(make_rule(network, backward_mode=mode), batch), truth) > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_naive_rule_is_the_chain_of_naive_derivatives(side):
    torch.manual_seed(0)
    layer = QuaternionLinear(4, 4, side=side, dtype=torch.float64)
    (x, target) = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    weight_grad, bias_grad = gradients(make_rule(nn.Sequential(layer), backward_mode="naive"), (x, target))
    error = (layer(x) - target)[0] / 2
    conjugate = torch.tensor([1.0, -1, -1, -1], dtype=torch.float64)
    # D(w a)/Dw = -2 a*, D(a w)/Dw = -2 a.
    inner = -2 * (x[0] * conjugate if side == "left" else x[0])
    assert (weight_grad.flatten() - hamilton_product(error, inner)).abs().max() < 1e-14
    assert (bias_grad + 2 * error).abs().max() < 1e-15


@pytest.mark.parametrize("mode", FOLK)
def test_folk_rules_go_through_convolutions_and_real_layers(mode):
    torch.manual_seed(0)
    network = nn.Sequential(
        QuaternionConv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), QuaternionLinear(8 * 16, 8), nn.Linear(8, 3)
    )
    rule = QuaternionBackprop(network=network, num_classes=3, backward_mode=mode)
    found = gradients(rule, (torch.randn(5, 4, 4, 4), torch.tensor([0, 1, 2, 0, 1])))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in found)


def test_a_truncated_chain_is_whole_where_nothing_is_bent():
    network, batch = small_network(activation=nn.Identity), regression_batch()
    truth = gradients(make_rule(network), batch)
    assert relative_difference(gradients(make_rule(network, backward_mode="truncated"), batch), truth) < 1e-14


def test_folk_rules_refuse_what_they_cannot_see_into():
    inner = nn.Sequential(QuaternionLinear(8, 8), nn.ReLU())
    network = nn.Sequential(QuaternionLinear(8, 8), Residual(inner))
    QuaternionBackprop(network=network, num_classes=8)
    with pytest.raises(TypeError, match=r"network\.1 is a Residual with quaternion layers inside"):
        QuaternionBackprop(network=network, num_classes=8, backward_mode="naive")


# What holds whatever the weights


def test_an_equivariant_network_turns_with_its_input():
    torch.manual_seed(0)
    network = EquivariantMLP(32, hidden_dims=(64, 64)).double()
    x, turn = torch.randn(9, 8, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    turn = turn / turn.norm()
    features = lambda q: q.transpose(1, 2).flatten(1)  # noqa: E731
    whole = network(features(hamilton_product(turn, x)))
    assert (whole - hamilton_product(turn, network(features(x)))).abs().max() < 1e-13
    split = nn.Sequential(network[0], nn.Tanh(), network[-1].__class__(64, 4, side="right", dtype=torch.float64))
    bent = split(features(hamilton_product(turn, x))) - hamilton_product(turn, split(features(x)))
    assert bent.abs().max() > 0.1


# The optimizer


def test_quaternion_adam_shares_second_moments_in_quaternion_layers_only():
    torch.manual_seed(0)
    network = nn.Sequential(QuaternionLinear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    rule = QuaternionBackprop(network=network, num_classes=3, optimizer=QuaternionAdam)
    optimizer = rule.configure_optimizers()
    gradients(rule, (torch.randn(5, 8), torch.tensor([0, 1, 2, 0, 1])))
    optimizer.step()
    quaternion, real = (optimizer.state[layer.weight]["exp_avg_sq"] for layer in (network[0], network[2]))
    assert torch.equal(quaternion[0], quaternion[3])
    assert quaternion[0].unique().numel() > 1
    assert not torch.equal(real[:, 0], real[:, 1])


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' is no loss of task='classification': take one of mse, cross_entropy"),
        ({"loss": "geodesic"}, "loss='geodesic' is no loss of task='classification'"),
        ({"loss": "cross_entropy", "task": "regression"}, "loss='cross_entropy' is no loss of task='regression'"),
        ({"task": "ranking"}, "task='ranking' is not one of"),
        ({"backward_mode": "hr"}, "backward_mode='hr' is not one of 'ghr'"),
        (
            {"task": "regression", "loss": "mse", "num_classes": None},
            "network: presets make scores of classes.* a module",
        ),
        ({"task": "regression", "loss": "mse", "num_classes": None, "network": "cnn"}, "network: presets make"),
        ({"grad_scale": 0}, "grad_scale=0 must be a positive number"),
        ({"grad_scale": float("inf")}, "grad_scale=inf must be a positive number"),
        ({"grad_scale": "4"}, "grad_scale='4' is of type str: give float"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        QuaternionBackprop(**{"num_classes": 3} | options)


def test_a_network_for_regression_is_built_and_says_itself_what_is_wrong_with_it():
    rule = QuaternionBackprop(network=partial(EquivariantMLP, in_features=8), task="regression", loss="mse")
    assert rule(torch.randn(2, 8)).shape == (2, 4)
    with pytest.raises(ValueError, match="in_features has 30 features: quaternions take four each"):
        QuaternionBackprop(network=partial(EquivariantMLP, in_features=30), task="regression", loss="mse")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: EquivariantMLP(8, hidden_dims=[30]), ValueError, "hidden_dims has 30 features: quaternions take four"),
        (lambda: EquivariantMLP(8, hidden_dims=32), TypeError, r"hidden_dims=32 is of type int: give Sequence\[int\]"),
        (lambda: QuaternionMLP((1, 8, 8), 3, hidden_dims=30), TypeError, "hidden_dims=30 is of type int"),
        (lambda: QuaternionMLP((1, 8, 8), 3, hidden_dims=[30]), ValueError, "hidden_dims has 30 features"),
        (lambda: QuaternionCNN((3, 8, 8), 3, channels=[6]), ValueError, "channels has 6 features"),
        (lambda: QuaternionAutoencoder(channels=32), TypeError, "channels=32 is of type int"),
    ],
)
def test_presets_name_the_widths_that_are_wrong(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_layer_without_a_written_derivative_is_refused_with_the_option_of_this_rule():
    with pytest.raises(TypeError, match=r"a PReLU.*QuaternionBackprop\(backward_mode='autograd'\)"):
        make_rule(nn.Sequential(QuaternionLinear(8, 8), nn.PReLU()))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(8, 4)

    def forward(self, x):
        return self.layer(x)


def test_a_network_that_returns_more_than_a_tensor_is_refused():
    rule = make_rule(Recurrent(), backward_mode="autograd")
    with pytest.raises(TypeError, match=r"the network Recurrent returns a tuple: .* a tensor alone"):
        rule.compute_gradients((torch.randn(5, 8), torch.randn(5, 4)))


@pytest.mark.parametrize("loss", ["imaginary_mse", "unit_mse", "geodesic", "chordal"])
def test_losses_of_quaternions_refuse_maps(loss):
    rule = QuaternionBackprop(network=nn.Sequential(QuaternionConv2d(4, 8, 1)), loss=loss, task="regression")
    with pytest.raises(ValueError, match=rf"loss='{loss}' takes outputs \(batch, 4N\), not \(2, 8, 3, 3\)"):
        rule.compute_gradients((torch.randn(2, 4, 3, 3), torch.randn(2, 8, 3, 3)))


def test_a_loss_that_would_not_train_is_refused():
    loss = nn.AdaptiveLogSoftmaxWithLoss(8, 4, [2])
    with pytest.raises(ValueError, match="loss=AdaptiveLogSoftmaxWithLoss has weights of its own"):
        make_rule(small_network(), loss=loss)
    make_rule(small_network(), loss=loss, backward_mode="autograd")
    make_rule(small_network(), loss=loss.requires_grad_(False))


@pytest.mark.parametrize("mode", ["ghr", "autograd"])
def test_a_loss_of_several_numbers_is_refused(mode):
    rule = make_rule(small_network(), loss=nn.MSELoss(reduction="none"), backward_mode=mode)
    with pytest.raises(ValueError, match=r"loss=MSELoss gives numbers of shape \(64, 8\): it must give one, by reduct"):
        rule.compute_gradients(regression_batch())


def test_targets_of_another_shape_are_refused():
    rule = make_rule(small_network())
    x, target = regression_batch()
    with pytest.raises(ValueError, match=r"targets of shape \(64, 4\) do not fit outputs of shape \(64, 8\)"):
        rule.compute_gradients((x, target[:, :4]))


def test_layers_that_are_not_known_are_named():
    with pytest.raises(TypeError, match=r"'network\.1', a Bilinear"):
        QuaternionBackprop(network=nn.Sequential(QuaternionLinear(4, 4), nn.Bilinear(2, 2, 2)), num_classes=2)


def test_batch_normalisation_goes_back_as_autograd_does():
    torch.manual_seed(0)
    network = nn.Sequential(QuaternionLinear(12, 16), QuaternionBatchNorm(16), nn.Tanh(), QuaternionLinear(16, 8))
    network = network.double()
    explicit = gradients(make_rule(network), regression_batch())
    automatic = gradients(make_rule(network, backward_mode="autograd"), regression_batch())
    assert relative_difference(explicit, automatic) < 1e-12
