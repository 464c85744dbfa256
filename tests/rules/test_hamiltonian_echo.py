"""HamiltonianEcho: the gradient is that of the loss, without a graph through time, and what cannot learn is refused."""

from functools import partial

import pytest
import torch
from oscillators import error
from torch import nn

from lightning_nobp.nn import (
    DriveEncoder,
    DuffingClassifier,
    DuffingNetwork,
    HamiltonianLayer,
    HamiltonianNetwork,
    KleinGordonField,
    LogCoshClassifier,
    PositionEncoder,
)
from lightning_nobp.rules import HamiltonianEcho


class FieldClassifier(nn.Module):
    """A user's own network: an image is where a field begins, and scores are linear in where it ends."""

    def __init__(self):
        super().__init__()
        self.layer = HamiltonianLayer(KleinGordonField(2, (4, 4)), 0.1, 10)
        self.readout = nn.Linear(32, 3)

    def forward(self, x):
        q, p = self.layer(x.expand(-1, 2, -1, -1))
        return self.readout((q + p).flatten(1))


def two_layers():
    first = HamiltonianNetwork(DriveEncoder(16, 8, 8), HamiltonianLayer(DuffingNetwork(8), 0.1, 10), nn.Tanh())
    second = HamiltonianNetwork(PositionEncoder(9), HamiltonianLayer(DuffingNetwork(9), 0.1, 10), nn.Linear(9, 3))
    return nn.Sequential(first, nn.Linear(8, 6), second)


NETWORKS = {
    "duffing": partial(DuffingClassifier, hidden_units=5),
    "log cosh": partial(LogCoshClassifier, n_units=8, hidden_features=12),
    "linear readout": partial(LogCoshClassifier, n_units=8, hidden_features=12, linear_readout=True, pool=2),
    "field": lambda *_: FieldClassifier(),
    "two layers": lambda *_: two_layers(),
}


def batch(samples=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.arange(samples) % 3


def make_rule(network="duffing", seed=0, **options):
    torch.manual_seed(seed)
    made = NETWORKS[network]((1, 4, 4), 3) if isinstance(network, str) and network in NETWORKS else network
    return HamiltonianEcho(network=made, num_classes=3, input_shape=(1, 4, 4), **options).double()


def gradients(rule, data):
    rule.zero_grad()
    values = rule.compute_gradients(data)
    return values, [p.grad.clone() for p in rule.parameters()]


def expected(rule, data):
    return torch.autograd.grad(rule.global_loss(data), list(rule.parameters()))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", nn.MultiMarginLoss()], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_gradient_is_that_of_the_loss(network, loss):
    rule, data = make_rule(network, loss=loss), batch()
    values, found = gradients(rule, data)
    assert error(found, expected(rule, data)) < 1e-6
    torch.testing.assert_close(values["loss"], rule.global_loss(data).detach())
    assert float(values["accuracy"]) == pytest.approx(float((rule(data[0]).argmax(1) == data[1]).double().mean()))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"gradient_engine": "adjoint"}, 1e-12),
        ({"gradient_engine": "autograd"}, 1e-12),
        ({"nudge": "richardson", "eta": 1e-2}, 1e-6),
        ({"nudge": "one_sided"}, 1e-3),
        ({"eta": 1e-3}, 1e-3),
        ({"relative_eta": False, "eta": 1e-4}, 1e-5),
    ],
)
@pytest.mark.parametrize("network", ["duffing", "log cosh", "two layers"])
def test_options_reach_the_simulations(network, options, tolerance):
    rule, data = make_rule(network, **options), batch()
    _, found = gradients(rule, data)
    deviation = error(found, expected(rule, data))
    assert deviation < tolerance
    # Rough nudges are rough.
    if options.get("nudge") == "one_sided" or options.get("eta") == 1e-3:
        assert deviation > 1e-9
    layers = [m for m in rule.modules() if isinstance(m, HamiltonianLayer)]
    assert {layer.gradient_engine for layer in layers} == {options.get("gradient_engine", "echo")}


def test_values_are_fitted_too():
    network = HamiltonianNetwork(PositionEncoder(6), HamiltonianLayer(DuffingNetwork(6), 0.1, 20), nn.Linear(6, 2))
    rule = HamiltonianEcho(network=network, task="regression", loss="mse").double()
    x = torch.randn(8, 4, dtype=torch.float64)
    data = (x, x[:, :2].sin())
    values, found = gradients(rule, data)
    assert set(values) == {"loss"}
    assert error(found, expected(rule, data)) < 1e-6
    with pytest.raises(ValueError, match=r"targets of shape \(8, 4\) do not fit outputs of \(8, 2\)"):
        rule.compute_gradients((x, x))


def test_no_graph_goes_through_time():
    rule, (x, target) = make_rule("duffing"), batch()
    rule.compute_gradients((x, target))  # Nothing is checked again.
    sizes = []
    for n_steps in (2, 50):
        saved = []
        rule.network.layer.n_steps = n_steps
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            rule.compute_gradients((x, target))
        sizes.append(sum(saved))
    assert sizes[0] == sizes[1]


def test_the_loss_of_the_whole_network_leaves_the_engine_as_it_was():
    rule, data = make_rule(gradient_engine="adjoint"), batch()
    rule.global_loss(data)
    assert rule.network.layer.gradient_engine == "adjoint"


def test_labels_of_layers_are_their_places():
    rule = make_rule("two layers")
    labels = [m.label for m in rule.modules() if isinstance(m, HamiltonianLayer)]
    assert labels == ["network.0.layer", "network.2.layer"]


# Bad input


def test_an_error_signal_of_zero_is_told_of_once():
    class Indifferent(nn.Module):
        def forward(self, scores, target):
            return 0 * scores.sum()

    rule, data = make_rule(loss=Indifferent()), batch()
    with pytest.warns(UserWarning, match="the error signal of a whole batch is exactly 0, so its echo says nothing"):
        _, found = gradients(rule, data)
    assert not any(bool(g.any()) for g in found)


def test_a_time_step_that_is_too_long_is_refused_with_the_layers_name():
    rule = make_rule(DuffingClassifier((1, 4, 4), 3, dt=1.5))
    with pytest.raises(ValueError, match=r"network\.layer, of a DuffingNetwork: dt=1\.5 times the highest frequency"):
        rule.compute_gradients(batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ranking"}, "task='ranking' is not one of 'classification', 'regression'"),
        ({"loss": "hinge"}, "loss='hinge' is no loss of task='classification': take one of cross_entropy, mse"),
        ({"gradient_engine": "bptt"}, "gradient_engine='bptt' is not one of 'echo'"),
        ({"eta": 0.0}, r"eta=0\.0 must be positive"),
        ({"nudge": "twice"}, "nudge='twice' is not one of"),
        ({"network": "cnn"}, "network='cnn' is not one of 'duffing', 'log_cosh'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_rule(**{"network": DuffingClassifier((1, 4, 4), 3)} | options)


def test_classes_have_no_place_in_regression():
    with pytest.raises(ValueError, match="loss='cross_entropy' is no loss of task='regression': take one of mse"):
        HamiltonianEcho(network=two_layers(), task="regression")


def test_a_network_that_simulates_nothing_is_refused():
    with pytest.raises(TypeError, match="network=Linear simulates nothing that could be reversed in time"):
        HamiltonianEcho(network=nn.Linear(3, 3), num_classes=3)


def test_a_loss_of_several_numbers_is_refused():
    with pytest.raises(ValueError, match=r"loss=CrossEntropyLoss gives numbers of shape \(12,\)"):
        make_rule(loss=nn.CrossEntropyLoss(reduction="none")).compute_gradients(batch())
