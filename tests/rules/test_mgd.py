"""Multiplexed gradient descent: its special cases, what it never does, and that it learns."""

import copy
from functools import partial
from itertools import product

import pytest
import torch
from multiplexed import SIZE, autograd, batch, build, distance, gradient
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset
from toys import blobs, loader, trainer, weights

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.datamodules import DigitsDataModule, XORDataModule
from lightning_nobp.functional.perturbation import perturbation_codes
from lightning_nobp.nn import CNN, MLP, SigmoidMLP, WindowEstimator
from lightning_nobp.rules import MultiplexedGradientDescent

# Special cases


@pytest.mark.parametrize("difference", ["central", "one_sided"])
def test_one_parameter_at_a_time_is_finite_differences(difference):
    rule = build(perturbation="coordinate", num_perturbations=SIZE, amplitude=1e-3, difference=difference)
    found, expected = gradient(rule, batch()), []
    for parameter in rule.parameters():
        for number in range(parameter.numel()):
            costs = {}
            for sign in (1, -1, 0):
                twin = copy.deepcopy(rule)
                other = dict(twin.named_parameters())[next(n for n, p in rule.named_parameters() if p is parameter)]
                other.data.view(-1)[number] += sign * 1e-3
                costs[sign] = twin.global_loss(batch()).item()
            slope = (costs[1] - costs[-1]) / 2e-3 if difference == "central" else (costs[1] - costs[0]) / 1e-3
            expected.append(slope)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-11, rtol=0)


@pytest.mark.parametrize("perturbation", ["coordinate", "walsh", "sinusoidal"])
def test_a_whole_period_is_the_gradient_up_to_the_square_of_the_amplitude(perturbation):
    period = {"coordinate": SIZE, "walsh": 64, "sinusoidal": 128}[perturbation]
    errors = []
    for amplitude in (0.1, 0.01):
        rule = build(perturbation=perturbation, num_perturbations=period, amplitude=amplitude)
        errors.append(distance(gradient(rule, batch()), autograd(rule, batch())))
    assert errors[1] < 1e-3
    assert 50 < errors[0] / errors[1] < 200


def test_one_sided_walsh_codes_are_right_to_first_order_and_to_second_with_turned_signs():
    errors = {}
    for periods in (1, 2):
        for amplitude in (0.1, 0.01):
            rule = build(
                perturbation="walsh", num_perturbations=64 * periods, amplitude=amplitude, difference="one_sided"
            )
            errors[periods, amplitude] = distance(gradient(rule, batch()), autograd(rule, batch()))
    assert 5 < errors[1, 0.1] / errors[1, 0.01] < 20
    assert 50 < errors[2, 0.1] / errors[2, 0.01] < 200
    assert errors[2, 0.01] < errors[1, 0.01] / 10


def test_the_limit_without_amplitude_is_the_forward_gradient():
    rule = build(perturbation="walsh", num_perturbations=64, engine="jvp")
    torch.testing.assert_close(gradient(rule, batch()), autograd(rule, batch()), atol=1e-12, rtol=0)


def test_all_time_constants_one_is_the_textbook_spsa_update():
    rule = build(tau_p=1, tau_theta=1, tau_x=1, amplitude=0.01, engine="in_place")
    optimizer = rule.configure_optimizers()
    expected = weights(rule)
    for number in range(5):
        sample = tuple(t[number : number + 1] for t in batch())
        optimizer.zero_grad()
        rule.compute_gradients(sample)
        optimizer.step()
        delta = perturbation_codes("rademacher", 0, torch.tensor([number]), SIZE)[0].double()
        costs = []
        for sign in (1, -1):
            twin = copy.deepcopy(rule)
            nn.utils.vector_to_parameters(expected + sign * 0.01 * delta, twin.parameters())
            costs.append(twin.global_loss(sample).detach())
        expected = expected - 0.1 * (costs[0] - costs[1]) / (2 * 0.01 * delta)
        torch.testing.assert_close(weights(rule), expected, atol=1e-12, rtol=0)


def test_windows_of_whole_periods_make_batch_and_stochastic_descent():
    """tau_theta / tau_x samples behind an update: all of them, or one."""
    samples = batch(4)
    settings = {"perturbation": "walsh", "amplitude": 1e-4, "tau_x": 64}
    whole = build(tau_theta=4 * 64, **settings)
    torch.testing.assert_close(gradient(whole, samples), autograd(whole, samples), atol=1e-7, rtol=1e-5)
    single = build(tau_theta=64, **settings)
    sample = tuple(t[1:2] for t in samples)
    torch.testing.assert_close(gradient(single, sample), autograd(single, sample), atol=1e-7, rtol=1e-5)


def test_the_sum_over_time_is_the_paper_s_normalisation():
    options = {"num_perturbations": 10, "engine": "vmap"}
    mean, total = build(**options), build(normalisation="sum", **options)
    torch.testing.assert_close(gradient(total, batch()), 10 * gradient(mean, batch()))


def test_the_scale_of_the_law_makes_the_estimate_as_near_as_can_be():
    plain, scaled = build(num_perturbations=20), build(num_perturbations=20, lr_scale="mgd")
    true = autograd(plain, batch())
    near, far = 0.0, 0.0
    for _ in range(40):
        estimate = gradient(scaled, batch())
        unscaled = gradient(plain, batch())
        torch.testing.assert_close(estimate, unscaled * 20 / (20 + SIZE - 1))
        near += float((estimate - true).square().sum())
        far += float((unscaled - true).square().sum())
    assert near < true.square().sum() * 40 < far


def test_successive_calls_use_successive_perturbations():
    rule = build(num_perturbations=32)
    halves = [gradient(rule, batch()) for _ in range(2)]
    torch.testing.assert_close(sum(halves) / 2, gradient(build(num_perturbations=64), batch()))
    assert not torch.allclose(halves[0], halves[1])


@pytest.mark.parametrize("options", [{}, {"difference": "one_sided"}, {"tau_p": 2, "tau_theta": 8, "tau_x": 2}])
@pytest.mark.parametrize("double", [True, False])
def test_engines_agree(options, double):
    x, y = batch()
    samples = (x if double else x.float(), y)
    if "tau_theta" not in options:
        options = options | {"num_perturbations": 7}
    found, other = (gradient(build(double, engine=engine, **options), samples) for engine in ("vmap", "in_place"))
    # Of costs; the gradient has their differences over the amplitude.
    tolerance = (1e-12 if double else 1e-6) * 2**8
    torch.testing.assert_close(found, other, atol=tolerance, rtol=0)


def test_a_step_of_zero_leaves_the_parameters_bit_for_bit():
    rule = build(double=False, engine="in_place", num_perturbations=3, optimizer=partial(torch.optim.SGD, lr=0.0))
    before, optimizer = weights(rule), rule.configure_optimizers()
    for _ in range(20):
        optimizer.zero_grad()
        rule.compute_gradients(blobs(8).tensors)
        optimizer.step()
    assert torch.equal(weights(rule), before)


# What it never does


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "per_sample"},
        {"engine": "vmap"},
        {"engine": "in_place"},
        {"engine": "jvp"},
        {"perturb": "activations"},
        {"mode": "analog", "tau_x": 2},
    ],
)
def test_no_autograd_graph_is_built_and_no_backward_asked_for(options):
    class OneWay(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            assert not torch.is_grad_enabled()
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            raise AssertionError("backward was called")

        @staticmethod
        def jvp(ctx, tangent):
            return tangent.clone()

    class NoWayBack(nn.Module):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return x if options.get("engine") == "jvp" else OneWay.apply(x)

    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), NoWayBack(), nn.Linear(4, 3))
    rule = build(network=network, **options)
    values = rule.compute_gradients(batch())
    assert not values["loss"].requires_grad
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rule.parameters())
    assert all(p.grad.grad_fn is None for p in rule.parameters())


def test_auto_takes_the_engine_for_the_size():
    small, large = build(), build(network=partial(MLP, hidden_dims=(900,)))
    assert small._chosen_engine(small.network) == "vmap"
    assert large._chosen_engine(large.network) == "per_sample"
    assert large.num_perturbed == 6 * 900 + 900 + 900 * 3 + 3
    for options in (
        {"perturbation": "walsh"},
        {"tau_theta": 4, "tau_x": 2},
        {"mode": "analog", "tau_x": 2},
        {"network": nn.Sequential(nn.Flatten(), nn.Linear(6, 900), nn.LayerNorm(900), nn.Linear(900, 3))},
    ):
        other = build(**{"network": partial(MLP, hidden_dims=(900,))} | options)
        assert other._chosen_engine(other.network) == "in_place"
        assert other.reads_in_time_order


def test_auto_goes_through_networks_that_vmap_cannot_run():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            h = self.lstm(x.flatten(1, 2))[0][:, -1]
            return self.out(-h if h.sum() > 0 else h)

    network = Recurrent()
    rule = build(network=network, num_perturbations=4)
    assert rule._chosen_engine(network) == "vmap"
    found = gradient(rule, batch())
    in_place = build(network=network, num_perturbations=4, engine="in_place")
    torch.testing.assert_close(found, gradient(in_place, batch()))


class Tied(nn.Module):
    """Uses a weight outside its layer, as autoencoders and language models do."""

    def __init__(self, width):
        super().__init__()
        self.first, self.out = nn.Linear(6, width), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(F.linear(torch.tanh(self.first(x.flatten(1))), self.first.weight.t())))


def pruned():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    prune.random_unstructured(network[1], "weight", amount=0.5)
    return network


class TiedLast(Tied):
    """The same, with the weight that is used twice behind others."""

    def __init__(self, width):
        super().__init__(width)
        self.first, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.last = nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(torch.tanh(self.last(self.out(self.first(x.flatten(1))))), self.last.weight)


@pytest.mark.parametrize("make", [lambda: Tied(5), lambda: TiedLast(5), pruned])
def test_weights_that_are_used_outside_their_layer_are_perturbed_everywhere(make):
    network = make()
    total = sum(p.numel() for p in network.parameters())
    settings = {"network": network, "perturbation": "coordinate", "num_perturbations": total, "amplitude": 1e-4}
    rule = build(engine="in_place", **settings)
    torch.testing.assert_close(gradient(rule, batch()), autograd(rule, batch()), atol=1e-7, rtol=1e-5)


def test_single_samples_are_refused_where_the_network_does_not_have_them():
    mixes = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Unflatten(1, (2, 3)), Transposed(), nn.Linear(12, 3))
    for network, options in product((Tied(5), mixes), ({"engine": "per_sample"}, {"perturb": "activations"})):
        with pytest.raises(TypeError, match=r"uses weights outside their layers, or mixes samples.*in_place"):
            build(network=network, **options).compute_gradients(batch(12))
    with pytest.raises(TypeError, match="a Linear, cannot be perturbed sample by sample"):
        build(network=pruned(), engine="per_sample")
    wide = Tied(900)
    # Otherwise units would be saturated, and nothing to be seen.
    nn.init.normal_(wide.first.weight, std=0.02)
    large = build(network=wide)
    assert large._chosen_engine(large.network) == "per_sample"
    large.compute_gradients(batch())
    assert isinstance(large._estimator, WindowEstimator)


class Transposed(nn.Module):
    """Turns a batch of 12 with two rows of three into 12 rows of others."""

    def forward(self, x):
        return x.permute(1, 0, 2).reshape(len(x), -1).repeat(1, 2)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
)
def test_a_loss_that_is_no_mean_over_samples_is_refused_for_single_samples(loss):
    with pytest.raises(ValueError, match=r"is not the mean over its samples.*engine='vmap'"):
        build(loss=loss, engine="per_sample").compute_gradients(batch())
    rule = build(loss=loss, perturbation="walsh", num_perturbations=64, amplitude=1e-4)
    torch.testing.assert_close(gradient(rule, batch()), autograd(rule, batch()), atol=1e-5, rtol=1e-4)


def test_losses_between_numbers_take_class_numbers_as_one_hot():
    scores, target = torch.randn(7, 3), torch.arange(7) % 3
    rule = build(loss=nn.MSELoss())
    torch.testing.assert_close(rule.loss_function(scores, target), build(loss="mse").loss_function(scores, target))
    torch.testing.assert_close(rule.sample_costs(scores, target), build(loss="mse").sample_costs(scores, target))


def test_the_filters_of_the_analog_form_do_not_take_in_what_is_not_finite():
    rule = build(mode="analog", tau_x=50, tau_theta=4, on_nonfinite="skip")
    good, bad = batch(), (torch.full_like(batch()[0], float("nan")), batch()[1])
    for samples in (good, good, bad):
        found = gradient(rule, samples)
    assert not found.isfinite().any()
    assert gradient(rule, good).isfinite().all()


def test_the_scale_of_the_law_counts_accumulated_batches(tmp_path):
    found = []
    for size, batches in ((16, 2), (32, 1)):
        rule = build(
            double=False, engine="per_sample", lr_scale="mgd", accumulate_grad_batches=batches, network=nn.Linear(6, 3)
        )
        rule.zero_grad()
        x, y = blobs(32).tensors
        rule.compute_gradients((x.flatten(1)[:size], y[:size]))
        found.append(rule._estimator.scale)
    assert found[0] == found[1] == 32 / (32 + 21 - 1)


def test_what_vmap_cannot_run_is_explained():
    network = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 3)), nn.LSTM(3, 4, batch_first=True))
    rule = build(network=network, engine="vmap")
    with pytest.raises(RuntimeError, match=r"torch.vmap cannot run this Sequential.*engine='in_place'"):
        rule.compute_gradients(batch())


def test_convolutions_too(tmp_path):
    network = partial(CNN, channels=(4,), hidden_dim=8)
    rule = MultiplexedGradientDescent(
        network=network, engine="per_sample", optimizer=partial(torch.optim.Adam, lr=1e-2)
    )
    trainer(tmp_path, limit_train_batches=4).fit(rule, datamodule=DigitsDataModule())
    assert rule.samples_seen == 4 * 128
    assert rule.cost_evaluations == 2 * 4 * 128


# Training


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"engine": "per_sample", "num_perturbations": 4}, 0.9),
        ({"num_perturbations": 16}, 0.9),
        ({"perturb": "activations"}, 0.9),
        ({"loss": "mse", "num_perturbations": 16}, 0.9),
        ({"loss": nn.MultiMarginLoss(), "num_perturbations": 16}, 0.9),
        ({"perturbation": "gaussian", "num_perturbations": 16}, 0.9),
        ({"engine": "jvp", "num_perturbations": 16}, 0.9),
    ],
)
def test_it_learns(tmp_path, options, least):
    rule = build(double=False, **options | {"optimizer": partial(torch.optim.Adam, lr=0.02)})
    fit = trainer(tmp_path, max_epochs=25)
    fit.fit(rule, loader(), loader())
    assert fit.callback_metrics["val/accuracy"] >= least
    assert fit.global_step == 25 * 6


def test_the_analog_form_learns_xor(tmp_path):
    torch.manual_seed(1)
    rule = MultiplexedGradientDescent(
        network=partial(SigmoidMLP, hidden_dims=(3,), init_range=0.5),
        loss="mse",
        mode="analog",
        perturbation="sinusoidal",
        amplitude=0.05,
        tau_theta=40,
        tau_x=500,
        tau_hp=20.0,
        optimizer=partial(torch.optim.Adam, lr=0.02),
    )
    fit = trainer(tmp_path, max_epochs=1)
    # The whole truth table is one input.
    fit.fit(rule, datamodule=XORDataModule(batch_size=4, repeats=12, shuffle=False, repeat_batches=500))
    assert fit.callback_metrics["val/loss"] < 0.1


def test_regression_learns_a_line(tmp_path):
    x = torch.randn(64, 2)
    data = DataLoader(TensorDataset(x, x @ torch.tensor([[1.0], [-2.0]]) + 0.5), batch_size=16)
    rule = MultiplexedGradientDescent(
        network=nn.Linear(2, 1),
        task="regression",
        loss="mse",
        num_perturbations=8,
        optimizer=partial(torch.optim.Adam, lr=0.1),
    )
    fit = trainer(tmp_path, max_epochs=60)
    fit.fit(rule, data, data)
    assert fit.callback_metrics["val/loss"] < 1e-2
    assert "val/accuracy" not in fit.callback_metrics
    torch.testing.assert_close(rule.network.weight, torch.tensor([[1.0, -2.0]]), atol=0.1, rtol=0)
    assert fit.predict(rule, data)[0].shape == (16, 1)


@pytest.mark.parametrize("loss", ["mse", nn.SmoothL1Loss(), "cross_entropy"])
def test_the_mean_cost_of_single_samples_is_the_cost(loss):
    rule = build(loss=loss)
    scores, target = torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 3
    if isinstance(loss, nn.Module):
        target = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(rule.sample_costs(scores, target).mean(), rule.loss_function(scores, target))


def test_a_cost_of_ones_own():
    class Hinge(MultiplexedGradientDescent):
        def loss_function(self, scores, target):
            return F.multi_margin_loss(scores, target)

    torch.manual_seed(0)
    for options in ({"engine": "per_sample"}, {"engine": "vmap", "num_perturbations": 200}):
        rule = Hinge(network=nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), num_classes=3, **options).double()
        estimates = torch.stack([gradient(rule, batch()) for _ in range(300)])
        error = (estimates.mean(0) - autograd(rule, batch())) / (estimates.std(0) / 300**0.5)
        assert error.abs().max() < 4.5


def test_one_output_for_two_classes():
    network = SigmoidMLP((1, 1, 2), 2, hidden_dims=(2,))
    assert sum(p.numel() for p in network.parameters()) == 9
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 1, 0])
    scores = network(x)
    rule = MultiplexedGradientDescent(network=network, num_classes=2, loss="mse")
    torch.testing.assert_close(rule.loss_function(scores, y), (scores[:, 1] - y).square().mean())
    with pytest.raises(ValueError, match="init_range=-1 must be positive"):
        SigmoidMLP((2,), 2, init_range=-1)


def test_measuring_the_alignment_changes_nothing_and_finds_the_law(tmp_path):
    found = []
    for callbacks in ([], [GradientAlignment(every_n_steps=1)]):
        rule = build(double=False, num_perturbations=16 * (SIZE - 1), amplitude=1e-2)
        trainer(tmp_path, callbacks=callbacks).fit(rule, loader())
        found.append(weights(rule))
    assert torch.equal(*found)
    assert callbacks[0].mean_cosine == pytest.approx((16 / 17) ** 0.5, abs=0.02)
