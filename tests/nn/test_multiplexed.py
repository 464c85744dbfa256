"""Perturbed passes against networks with the perturbed weights written out."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.multiplexing import expected_cosine, schedule
from lightning_nobp.nn import (
    ActivationCodes,
    AnalogEstimator,
    BatchedEngine,
    ForwardModeEngine,
    InPlaceEngine,
    ParameterCodes,
    Residual,
    SampleEstimator,
    Turn,
    WeightCodes,
    WindowEstimator,
)

STEPS = torch.tensor([4, 0, 9, 17])
AMPLITUDE = {"*.bias": 0.01, "*": 0.004}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5), nn.Tanh(),
        nn.Linear(5, 3),
    ).double()  # fmt: skip


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 2, 6, 6, dtype=torch.float64), torch.arange(count) % 3


def gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def true_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    found = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("engine", [BatchedEngine, InPlaceEngine])
@pytest.mark.parametrize("kind", ["rademacher", "walsh", "coordinate", "sinusoidal", "gaussian"])
def test_costs_are_those_of_the_network_with_perturbed_weights(engine, kind):
    net, (x, y) = network(), images()
    codes = ParameterCodes(net, kind, AMPLITUDE, 3)
    found = engine(net, F.cross_entropy, codes).costs([(x, y)], STEPS, torch.zeros(4, dtype=torch.int64), (1, -1, 0))
    for row, step in enumerate(STEPS.split(1)):
        changes = codes.perturbations(step, list(codes.parameters))
        for column, sign in enumerate((1, -1, 0)):
            twin = copy.deepcopy(net)
            for name, parameter in twin.named_parameters():
                parameter.data += sign * changes[name][0]
            assert float(found[row, column]) == pytest.approx(F.cross_entropy(twin(x), y).item(), abs=1e-12)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 4])
def test_engines_agree_on_slots_of_any_size(num_slots):
    net, (x, y) = network(), images(7)
    codes = ParameterCodes(net, "rademacher", AMPLITUDE, 3)
    shown = [(x[k::num_slots], y[k::num_slots]) for k in range(num_slots)]
    slots = torch.arange(4) % num_slots
    batched = BatchedEngine(net, F.cross_entropy, codes).costs(shown, STEPS, slots, (1, -1))
    in_place = InPlaceEngine(net, F.cross_entropy, codes).costs(shown, STEPS, slots, (1, -1))
    torch.testing.assert_close(batched, in_place, atol=1e-12, rtol=0)


def test_slopes_are_the_limit_of_vanishing_amplitude():
    net, (x, y) = network(), images()
    slots = torch.tensor([0, 1, 1, 0])
    shown = [(x[::2], y[::2]), (x[1::2], y[1::2])]
    codes = ParameterCodes(net, "rademacher", 1e-5, 3)
    costs = BatchedEngine(net, F.cross_entropy, codes).costs(shown, STEPS, slots, (1, -1))
    slopes = ForwardModeEngine(net, F.cross_entropy, codes).slopes(shown, STEPS, slots)
    torch.testing.assert_close((costs[:, 0] - costs[:, 1]) / 2, slopes[:, 1], atol=1e-12, rtol=1e-4)


def test_large_networks_are_batched_in_parts(monkeypatch):
    net, (x, y) = network(), images()
    codes = ParameterCodes(net, "rademacher", AMPLITUDE, 3)
    args = ([(x, y)], torch.arange(9), torch.zeros(9, dtype=torch.int64), (1, -1))
    whole = BatchedEngine(net, F.cross_entropy, codes).costs(*args)
    codes.add_gradient(whole[:, 0], torch.arange(9))
    expected = gradient(net)
    net.zero_grad()
    monkeypatch.setattr("lightning_nobp.nn.parameter_codes._LARGEST_CHUNK", 700)
    torch.testing.assert_close(BatchedEngine(net, F.cross_entropy, codes).costs(*args), whole)
    assert len(codes.blocks()) == 1
    monkeypatch.setattr("lightning_nobp.nn.parameter_codes._LARGEST_CHUNK", 100)
    assert len(codes.blocks()) > 1
    torch.testing.assert_close(InPlaceEngine(net, F.cross_entropy, codes).costs(*args), whole)
    codes.add_gradient(whole[:, 0], torch.arange(9))
    torch.testing.assert_close(gradient(net), expected)


class Attention(nn.Module):
    """Weights that no module of their own applies, and some that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.attention(x, x, x)[0])) * self.scale
        return self.recurrent(x)[0][:, -1]


def test_in_place_perturbs_weights_that_no_module_of_their_own_applies():
    net = Attention().double()
    x, y = torch.randn(5, 3, 4, dtype=torch.float64), torch.arange(5) % 4
    codes = ParameterCodes(net, "rademacher", 0.01, 3)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in net.named_parameters()}
    found = InPlaceEngine(net, F.cross_entropy, codes).costs(
        [(x, y)], STEPS[:1], torch.zeros(1, dtype=torch.int64), (1,)
    )
    assert all(p.data_ptr() == before[n][0] and torch.equal(p, before[n][1]) for n, p in net.named_parameters())
    twin = copy.deepcopy(net)
    changes = codes.perturbations(STEPS[:1], list(codes.parameters))
    for name, parameter in twin.named_parameters():
        parameter.data += changes[name][0]
    assert float(found) == pytest.approx(F.cross_entropy(twin(x), y).item(), abs=1e-12)


def test_in_place_puts_parameters_back_when_a_pass_fails():
    class Breaks(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("broken")
            return x

    net = nn.Sequential(nn.Linear(3, 3), Breaks())
    before = [p.detach().clone() for p in net.parameters()]
    engine = InPlaceEngine(net, F.cross_entropy, ParameterCodes(net, "rademacher", 0.1, 0))
    with pytest.raises(RuntimeError, match="broken"):
        engine.costs([(torch.randn(2, 3), torch.arange(2))], STEPS, torch.zeros(4, dtype=torch.int64), (1, -1))
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert not net[0]._forward_hooks
    assert not net[0]._forward_pre_hooks


def explicit(net: nn.Module, codes: WeightCodes, layer_codes: dict, sample: int, sign: float) -> nn.Module:
    """A copy with the perturbed weights of one sample written out."""
    twin = copy.deepcopy(net)
    for layer, other in zip(net.modules(), twin.modules(), strict=True):
        if layer not in layer_codes:
            continue
        u, v, bias, places = (t[sample] for t in layer_codes[layer])
        change = torch.einsum("o,i,k->oik", u, v, places if len(places) else torch.ones(1, dtype=u.dtype))
        other.weight.data += sign * codes.amplitudes[layer.weight] * change.view_as(layer.weight)
        if layer.bias is not None:
            other.bias.data += sign * codes.amplitudes[layer.bias] * u * bias
    return twin


class Branches(nn.Module):
    """No chain: what the first layer sees is added behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1, dilation=1, bias=False), nn.Tanh())
        self.shared = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x + self.body(x))).flatten(1)


NETWORKS = {
    "chain": (network, (2, 6, 6)),
    "shared layer beside a branch": (Branches, (2, 4)),
    "residual": (lambda: nn.Sequential(Residual(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 2)), (4,)),
    "three dimensions": (lambda: nn.Sequential(nn.Conv3d(2, 4, 2, dilation=2, groups=2), nn.Flatten()), (2, 4, 4, 4)),
    "tokens": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Flatten()), (5, 4)),
    "same padding": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten()), (1, 4, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("signs", [(1, -1), (1, 0)])
def test_every_sample_sees_weights_of_its_own(name, kind, signs):
    make, shape = NETWORKS[name]
    net, x = make().double(), torch.randn(4, *shape, dtype=torch.float64)
    codes = WeightCodes(net, kind, 0.004, 1)
    ids = torch.tensor([5, 2, 77, 2**30])
    found, layer_codes = codes.run(x, ids, signs), codes.layer_codes(ids)
    for block, sign in enumerate(signs):
        for sample in range(4):
            twin = explicit(net, codes, layer_codes, sample, sign)
            torch.testing.assert_close(found[block, sample], twin(x[sample : sample + 1])[0], atol=1e-12, rtol=0)


def test_frozen_parameters_are_not_perturbed():
    net, (x, y) = network(), images()
    net[0].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    net[5].requires_grad_(False)
    codes = WeightCodes(net, "rademacher", 0.01, 1)
    estimator = SampleEstimator(codes, lambda s, t: F.cross_entropy(s, t, reduction="none"))
    estimator.add_gradient(estimator.estimate(x, y, Turn(0)).coefficients, Turn(0))
    assert [p.grad is not None for p in net.parameters()] == [False, True, True, False, False, False]
    parameters = ParameterCodes(net, "rademacher", 0.01, 1)
    assert list(parameters.parameters) == ["0.bias", "3.weight"]


def test_node_perturbation_trains_biases_beside_frozen_weights():
    net, (x, y) = network(), images()
    for layer in (net[0], net[3], net[5]):
        layer.weight.requires_grad_(False)
    codes = ActivationCodes(net, "rademacher", {"*.bias": 0.01}, 1)
    estimator = SampleEstimator(codes, lambda s, t: F.cross_entropy(s, t, reduction="none"))
    estimator.estimate(x, y, Turn(0))
    assert [p.grad is not None for p in net.parameters()] == [False, True] * 3


def test_node_perturbation_in_all_directions_is_backpropagation():
    """Orthogonal codes for one linear layer: the estimate is the gradient, up to second order."""
    net = nn.Linear(4, 8).double()
    x, y = torch.randn(1, 4, dtype=torch.float64), torch.tensor([3])
    codes = ActivationCodes(net, "rademacher", 1e-4, 0)
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0] * 8**0.5
    for row in basis:
        codes._draw = lambda ids, start, size, row=row: row.view(1, -1)
        scores = codes.run(x, torch.zeros(1, dtype=torch.int64), (1, -1))
        costs = F.cross_entropy(scores[:, 0], y.repeat(2), reduction="none")
        codes.add_gradient((costs[:1] - costs[1:]) / 2 / 8)
    torch.testing.assert_close(gradient(net), true_gradient(net, x, y), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("kind", [WeightCodes, ActivationCodes])
def test_estimates_of_single_samples_are_right_on_average(kind):
    net, (x, y) = network(), images()
    estimator = SampleEstimator(kind(net, "rademacher", 1e-3, 1), lambda s, t: F.cross_entropy(s, t, reduction="none"))
    estimates = []
    for call in range(600):
        net.zero_grad()
        estimator.add_gradient(estimator.estimate(x, y, Turn(call)).coefficients, Turn(call))
        estimates.append(gradient(net))
    estimates, true = torch.stack(estimates), true_gradient(net, x, y)
    error = (estimates.mean(0) - true) / (estimates.std(0) / 600**0.5)
    assert error.abs().max() < 4.5
    assert error.square().mean() < 1.5


@pytest.mark.parametrize("codes", ["full", "separable"])
@pytest.mark.parametrize("share", [0.25, 1, 4, 16])
def test_the_cosine_to_the_gradient_grows_as_the_law_says(codes, share):
    """Of T random perturbations of P parameters, 1 / sqrt(1 + (P - 1) / T)."""
    net = nn.Sequential(nn.Linear(12, 4), nn.Sigmoid(), nn.Linear(4, 4)).double()
    x, y = torch.randn(1, 12, dtype=torch.float64), torch.tensor([1])
    true = true_gradient(net, x, y)
    size = len(true)
    total = int(share * size)
    if codes == "full":
        parameter_codes = ParameterCodes(net, "rademacher", 1e-4, 5)
        engine = BatchedEngine(net, F.cross_entropy, parameter_codes)
        estimator = WindowEstimator(parameter_codes, engine, schedule(1, total, total))
        inputs = (x, y)
    else:
        weight_codes = WeightCodes(net, "rademacher", 1e-4, 5)
        estimator = SampleEstimator(weight_codes, lambda s, t: F.cross_entropy(s, t, reduction="none"))
        inputs = (x.expand(total, -1), y.expand(total))
    cosines, squares = [], []
    for call in range(30):
        net.zero_grad()
        estimator.add_gradient(estimator.estimate(*inputs, Turn(call)).coefficients, Turn(call))
        cosines.append(F.cosine_similarity(gradient(net), true, dim=0))
        squares.append(gradient(net).square().sum() / true.square().sum())
    cosines, squares = torch.stack(cosines), torch.stack(squares)
    law = expected_cosine(total, size)
    assert abs(cosines.mean() - law) < 3 * cosines.std() / 30**0.5 + 0.01 * law
    assert abs(squares.mean() - 1 / law**2) < 3 * squares.std() / 30**0.5 + 1e-6


@pytest.mark.parametrize("difference", ["central", "one_sided"])
def test_a_window_is_the_mean_over_its_time_steps(difference):
    net, (x, y) = network(), images(6)
    codes = ParameterCodes(net, "rademacher", 0.01, 3)
    engine = BatchedEngine(net, F.cross_entropy, codes)
    estimator = WindowEstimator(codes, engine, schedule(2, 6, 3), difference)
    estimate = estimator.estimate(x, y, Turn(2))
    estimator.add_gradient(estimate.coefficients, Turn(2))
    expected = torch.zeros_like(gradient(net))
    for time in range(6):
        step = torch.tensor([2 * 3 + time // 2])
        shown = x[time // 3 :: 2], y[time // 3 :: 2]
        costs = engine.costs([shown], step, torch.zeros(1, dtype=torch.int64), (1, -1, 0))[0]
        change = (costs[0] - costs[1]) / 2 if difference == "central" else costs[0] - costs[2]
        expected += change * codes.codes(step, list(codes.parameters))[0].double() / 0.01 / 6
    torch.testing.assert_close(gradient(net), expected, atol=1e-10, rtol=1e-8)
    assert estimate.evaluations == (36 if difference == "central" else 18 + 6)


def test_the_analog_form_is_its_recurrence():
    net, (x, y) = network(), images(2)
    codes = ParameterCodes(net, "sinusoidal", 0.01, 3)
    engine = BatchedEngine(net, F.cross_entropy, codes)
    estimator = AnalogEstimator(codes, engine, tau_p=2, tau_theta=5, tau_x=4, tau_hp=3.0)
    modulation, before, integrated = 0.0, 0.0, torch.zeros(codes.size, dtype=torch.float64)
    for time in range(11):
        shown = x[time // 4 % 2 :][:1], y[time // 4 % 2 :][:1]
        net.zero_grad()
        estimator.add_gradient(estimator.estimate(*shown, Turn(time)).coefficients, Turn(time))
        step = torch.tensor([time // 2])
        cost = engine.costs([shown], step, torch.zeros(1, dtype=torch.int64), (1,))[0, 0]
        modulation = 3 / 4 * (modulation + (0.0 if time % 4 == 0 else cost - before))
        before = cost
        product = modulation * codes.codes(step, list(codes.parameters))[0].double() / 0.01
        integrated = integrated + (product - integrated) / 6
        torch.testing.assert_close(gradient(net), integrated, atol=1e-9, rtol=1e-7)


def test_hooks_change_what_is_read():
    net, (x, y) = network(), images()
    codes = ParameterCodes(net, "rademacher", 0.01, 3)
    estimator = WindowEstimator(codes, BatchedEngine(net, F.cross_entropy, codes), schedule(1, 4, 4))
    plain = estimator.estimate(x, y, Turn(0)).coefficients
    estimator.cost_hooks = [lambda costs: 2 * costs + 1]
    torch.testing.assert_close(estimator.estimate(x, y, Turn(0)).coefficients, 2 * plain)
    estimator.difference_hooks = [lambda differences: differences.roll(1)]
    torch.testing.assert_close(estimator.estimate(x, y, Turn(0)).coefficients, 2 * plain.roll(1))


def test_no_pass_builds_an_autograd_graph():
    class Watches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return x

    net = nn.Sequential(nn.Linear(3, 3), Watches())
    x, y = torch.randn(4, 3), torch.arange(4) % 3
    codes = ParameterCodes(net, "rademacher", 0.01, 3)
    shown, slots = [(x, y)], torch.zeros(4, dtype=torch.int64)
    for engine in (BatchedEngine, InPlaceEngine):
        assert not engine(net, F.cross_entropy, codes).costs(shown, STEPS, slots, (1, -1)).requires_grad
    assert not ForwardModeEngine(net, F.cross_entropy, codes).slopes(shown, STEPS, slots).requires_grad
    for kind in (WeightCodes, ActivationCodes):
        assert not kind(net, "rademacher", 0.01, 1).run(x, STEPS, (1, -1)).requires_grad


@pytest.mark.parametrize(
    ("amplitude", "message"),
    [
        ({"*.bias": 0.1}, r"no pattern for parameter '0.weight': add one, like '\*': 0.004"),
        ({"*": -0.1}, "must be positive"),
        (0.0, "must be positive"),
    ],
)
def test_an_amplitude_that_is_missing_or_not_positive_is_named(amplitude, message):
    with pytest.raises(ValueError, match=message):
        ParameterCodes(nn.Sequential(nn.Linear(2, 2)), "rademacher", amplitude, 0)


def test_what_cannot_be_perturbed_sample_by_sample_is_named():
    with pytest.raises(TypeError, match=r"layer '1', a LayerNorm, cannot be perturbed.*freeze.*in_place"):
        WeightCodes(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "rademacher", 0.1, 0)
    with pytest.raises(TypeError, match="padding_mode='circular'"):
        WeightCodes(nn.Sequential(nn.Conv2d(1, 1, 3, padding_mode="circular")), "rademacher", 0.1, 0)
    with pytest.raises(TypeError, match="a Conv1d, cannot"):
        ActivationCodes(nn.Sequential(nn.Conv1d(1, 1, 3)), "rademacher", 0.1, 0)
    with pytest.raises(ValueError, match="perturbation='walsh' cannot be given to every sample"):
        WeightCodes(nn.Sequential(nn.Linear(2, 2)), "walsh", 0.1, 0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        ParameterCodes(nn.ReLU(), "rademacher", 0.1, 0)
    mixes = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)), nn.Linear(12, 2))
    with pytest.raises(TypeError, match=r"samples are mixed.*in_place"):
        WeightCodes(mixes, "rademacher", 0.1, 0).run(torch.randn(4, 3), STEPS, (1, -1))


def test_too_large_batches_are_refused_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr("lightning_nobp.nn.multiplexed._MOST_SAMPLES", 7)
    net, (x, y) = network(), images(4)
    estimator = SampleEstimator(WeightCodes(net, "rademacher", 0.1, 0), F.cross_entropy)
    with pytest.raises(ValueError, match="a batch of 4 samples is too large: 7 over all processes"):
        estimator.estimate(x, y, Turn(0, 0, 2))


def test_perturbed_passes_warn_of_nothing():
    net, (x, _) = network(), images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WeightCodes(net, "rademacher", 0.1, 0).run(x, torch.arange(6), (1, -1))
