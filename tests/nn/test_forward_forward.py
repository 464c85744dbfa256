"""Layers, labels and candidates: the fast pass against the readable one, gradients against differences."""

import itertools
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lightning_nobp.functional import forward_forward as ff
from lightning_nobp.nn import (
    FFConv2d,
    FFLinear,
    ForwardForwardCNN,
    ForwardForwardMLP,
    ForwardForwardNetwork,
    LabelledInput,
)

LABELS = [
    {"label": "overlay"},
    {"label": "append"},
    {"label": "icp", "pattern_dim": 6},
    {"label": "add"},
    {"label": "overlay", "label_layers": "all"},
    {"label": "icp", "pattern_dim": 6, "label_layers": "all", "amplitude": 3.0},
    {"label": "append", "label_layers": "all", "stream": "neutral"},
]


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def mlp(hidden_dims=(7, 6, 5), **kwargs):
    return ForwardForwardMLP((1, 4, 5), 4, hidden_dims, **kwargs).double()


def cnn(**kwargs):
    return ForwardForwardCNN((3, 12, 12), 4, (5, 6, 7), pattern_dim=4, label_grid=2, **kwargs).double().eval()


def images(network, batch=9):
    return torch.randn(batch, *network.input_shape, dtype=torch.float64)


def goodness_readably(network, x):
    each = []
    for k in range(network.num_classes):
        layers = zip(network.activities(x, torch.full((len(x),), k)), network.layers, strict=True)
        each.append(torch.stack([ff.goodness(h, layer.goodness) for h, layer in layers], -1))
    return torch.stack(each, 1)


@pytest.mark.parametrize(("options", "normalise"), list(itertools.product(LABELS, ["rms", "l2"])))
def test_all_labels_in_one_pass_equal_one_after_another(options, normalise):
    network = mlp(**options, normalise=normalise)
    x = images(network)
    torch.testing.assert_close(network.candidate_goodness(x), goodness_readably(network, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("label", "stream"), list(itertools.product(["append", "icp"], ["neutral", "labelled"])))
def test_all_labels_in_one_pass_equal_one_after_another_in_convolutions(label, stream):
    network = cnn(label=label, stream=stream)
    x = images(network)
    torch.testing.assert_close(network.candidate_goodness(x), goodness_readably(network, x), rtol=1e-12, atol=1e-13)


def test_single_precision_agrees_too():
    network = mlp().float()
    x = images(network).float()
    torch.testing.assert_close(network.candidate_goodness(x), goodness_readably(network, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", LABELS)
def test_gradient_of_each_layer_is_that_of_its_own_loss(options):
    network = mlp(**options)
    x, pair = images(network), torch.randint(4, (2, 9))

    def losses():
        layers = network.passes(x, lambda drive: pair)
        return [ff.symba_loss(*p.goodness(), alpha=3.0) for p in layers]

    with torch.no_grad():
        for current in network.passes(x, lambda drive: pair):
            q, _ = ff.candidate_coefficients("symba", current.goodness(), alpha=3.0)
            current.add_gradients(q)
        for number, layer in enumerate(network.layers):
            for parameter in layer.parameters():
                index = tuple(int(torch.randint(size, ())) for size in parameter.shape)
                original, values = parameter[index].item(), []
                for step in (1e-6, -1e-6):
                    parameter[index] = original + step
                    values.append(losses()[number].item())
                parameter[index] = original
                slope = (values[0] - values[1]) / 2e-6
                assert parameter.grad[index].item() == pytest.approx(slope, abs=1e-7)


def test_overlay_is_what_it_says():
    network = mlp(label="overlay", amplitude=5.0)
    x, y = images(network), torch.randint(4, (9,))
    first = network.layers[0]
    weight = torch.cat([first.label_weight, first.weight[:, 4:]], 1)
    u = ff.normalise_activity(ff.overlay_label(x, y, 4, amplitude=5.0))
    torch.testing.assert_close(next(network.activities(x, y)), F.linear(u, weight, first.bias).relu())
    # What the label hides is not seen.
    hidden = x.clone()
    hidden.view(9, -1)[:, :4] = 7.0
    assert torch.equal(network(hidden), network(x))


def test_random_patterns_that_are_one_hot_are_appended_labels():
    one, other = mlp(label="append"), mlp(label="icp", pattern_dim=4)
    other.load_state_dict(one.state_dict())
    x = images(one)
    assert torch.equal(one(x), other(x))
    assert torch.equal(one.labelled_input.patterns, torch.eye(4, dtype=torch.float64))


def test_planes_are_further_channels():
    network = cnn(label="append", batch_norm=False)
    x, y = images(network), torch.randint(4, (9,))
    layer = FFConv2d(3, 5, 3, padding=1, label_grid=2, label_features=4).double()
    patterns = network.labelled_input.patterns
    # A plane for each class and cell.
    cells = torch.einsum("bp,cd->bpcd", patterns[y], torch.eye(4, dtype=torch.float64)).view(9, 16, 2, 2)
    planes = F.interpolate(cells, (12, 12))
    kernel = F.pad(layer.label_weight.reshape(5, 16, 1, 1), (1, 1, 1, 1))
    expected = F.conv2d(torch.cat([x, planes], 1), torch.cat([layer.weight, kernel], 1), layer.bias, padding=1)
    torch.testing.assert_close(layer(x, patterns[y]), expected.relu(), rtol=1e-12, atol=1e-13)


def test_scaling_the_first_layer_is_not_seen_behind_it():
    network = mlp()
    x = images(network)
    before = network.candidate_goodness(x)
    with torch.no_grad():
        for parameter in network.layers[0].parameters():
            parameter.mul_(3)
    after = network.candidate_goodness(x)
    torch.testing.assert_close(after[..., 0], 9 * before[..., 0])
    torch.testing.assert_close(after[..., 1:], before[..., 1:], rtol=1e-9, atol=1e-9)


def test_dead_layer_is_finite():
    network = mlp()
    with torch.no_grad():
        network.layers[0].bias.fill_(-100)
        for current in network.passes(images(network), lambda drive: torch.zeros(2, 9, dtype=torch.long)):
            q, loss = ff.candidate_coefficients("symba", current.goodness())
            current.add_gradients(q)
            if current.layer is network.layers[0]:
                assert loss.item() == pytest.approx(0.6931471805599453)
    assert not network.layers[0].weight.grad.any()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_black_images_are_legal():
    network = mlp()
    assert network(torch.zeros(3, 1, 4, 5, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_pruned_labels_lie_below_those_that_were_tried(top_k):
    network = mlp()
    x = images(network)
    exact, pruned = network.candidate_goodness(x), network.candidate_goodness(x, top_k)
    assert torch.equal(exact[..., 0], pruned[..., 0])
    kept = exact[..., 0].topk(top_k, dim=1).indices
    for layer in range(3):
        torch.testing.assert_close(pruned[..., layer].gather(1, kept), exact[..., layer].gather(1, kept))
        others = torch.ones(9, 4, dtype=torch.bool).scatter(1, kept, False)
        lowest = pruned[..., layer].gather(1, kept).amin(1, keepdim=True).expand(9, 4)
        assert (pruned[..., layer][others] < lowest[others]).all()


def test_chunks_do_not_change_the_answer(monkeypatch):
    network = mlp()
    x = images(network, 50)
    whole = network.candidate_goodness(x)
    monkeypatch.setattr(network, "_samples_in_chunk", lambda: 6)
    sizes, original = [], network._candidates
    monkeypatch.setattr(network, "_candidates", lambda part, k: sizes.append(len(part)) or original(part, k))
    with torch.no_grad():
        torch.testing.assert_close(network.candidate_goodness(x), whole)
    assert max(sizes) == 6


@pytest.mark.parametrize(
    ("build", "samples"),
    [
        (lambda: ForwardForwardMLP((784,), 10, (2000, 2000)), 2000),
        (lambda: ForwardForwardMLP((3072,), 2, (200, 200)), 20000),
        (lambda: ForwardForwardMLP((12288,), 10, (50,)), 1000),
        (lambda: ForwardForwardCNN((3, 32, 32), 10, pools=(2, 2, 1)), 1000),
        (lambda: ForwardForwardCNN((3, 32, 32), 10, stream="labelled"), 100),
        (lambda: ForwardForwardCNN((3, 64, 64), 200, (16, 16, 16)), 50),
    ],
)
def test_memory_of_a_prediction_stays_within_its_bound(build, samples):
    network = build().eval()
    x = torch.randn(samples, *network.input_shape)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        network(x)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    assert max(live) < 64 * 2**20


@pytest.mark.parametrize("build", [mlp, partial(cnn, batch_norm=True)])
def test_state_dict_carries_patterns_and_everything_else(build):
    one, other = build(label="icp"), build(label="icp", pattern_seed=7)
    x = images(one)
    assert not torch.equal(one.labelled_input.patterns, other.labelled_input.patterns)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_batch_normalisation_counts_only_in_training():
    network = cnn().train()
    x = images(network)
    with network.evaluating():
        network(x)
    assert network.training
    assert not network.layers[0].batch_norm.running_mean.any()
    network(x)
    assert network.layers[0].batch_norm.running_mean.any()


def test_neutral_features_are_the_normalised_activity_without_a_label():
    network = mlp(label="icp")
    x = images(network)
    expected = [ff.normalise_activity(h) for h in network.activities(x)]
    torch.testing.assert_close(network.neutral_features(x), expected)


def test_dense_layers_behind_convolutions():
    label = LabelledInput((1, 4, 4), 3, "append", planes=True)
    layers = [FFConv2d(1, 2, 3, padding=1, label_features=3, label_grid=2), FFLinear(32, 5, label_features=3)]
    network = ForwardForwardNetwork(layers, label, label_layers="all").double()
    network.input_shape = (1, 4, 4)
    x = images(network)
    torch.testing.assert_close(network.candidate_goodness(x), goodness_readably(network, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(hidden_dims=()), r"hidden_dims=\(\) must hold at least one width"),
        (lambda: mlp(hidden_dims=(3, 0)), r"hidden_dims=\(3, 0\) must hold"),
        (lambda: mlp(label="stamp"), "label='stamp' is not one of 'overlay'"),
        (lambda: mlp(amplitude=0.0), "amplitude=0.0 must be positive"),
        (lambda: mlp(label="icp", pattern_dim=0), "pattern_dim=0 is too small"),
        (lambda: mlp(goodness="cube"), "goodness='cube' is not one of 'mean_square'"),
        (lambda: mlp(normalise="max"), "normalise='max' is not one of 'rms', 'l2'"),
        (lambda: mlp(activation="bend"), "activation='bend' is not one of 'relu'"),
        (lambda: mlp(stream="both"), "stream='both' is not one of 'labelled', 'neutral'"),
        (lambda: mlp(stream="neutral"), "stream='neutral'.*label_layers='all'"),
        (lambda: mlp(label="add", label_layers="all"), "label='add' enters no layer behind the first"),
        (lambda: ForwardForwardMLP((3,), 4), "label='overlay' needs at least num_classes=4 input values, not 3"),
        (lambda: ForwardForwardMLP((9,), 1), "num_classes=1: a label needs at least two"),
        (lambda: cnn(label="overlay"), "label='overlay'.*label='append' or 'icp'"),
        (lambda: cnn(label="add"), "label='add'.*label='append' or 'icp'"),
        (lambda: ForwardForwardCNN((3, 12), 4), r"input_shape=\(3, 12\): a CNN takes images"),
        (lambda: ForwardForwardCNN((3, 2, 2), 4), r"input_shape=\(3, 2, 2\) is too small"),
        (lambda: ForwardForwardCNN((3, 8, 8), 4, (3, 4)), r"channels=\(3, 4\).*one entry for each layer"),
        (lambda: cnn(strides=(1, 0, 1)), "strides and pools must be at least 1"),
        (lambda: FFConv2d(1, 2, 3, pool=0), "stride=1 and pool=0 must be at least 1"),
        (lambda: FFLinear(3, 0), r"FFLinear of \(0, 3\): every size must be at least 1"),
        (lambda: LabelledInput((9,), 2, patterns=torch.eye(2)), "patterns with label='overlay'"),
        (
            lambda: ForwardForwardNetwork([FFConv2d(9, 4, 3, label_features=2)], LabelledInput((9,), 2)),
            "planes=False with a first layer of type FFConv2d",
        ),
        (
            lambda: ForwardForwardNetwork([FFLinear(9, 4, label_features=2), FFLinear(5, 4)], LabelledInput((9,), 2)),
            "layers do not fit each other",
        ),
        (
            lambda: LabelledInput((9,), 2, "icp", patterns=torch.tensor([[1.0, 0.0], [1.00001, 0.0]])),
            "patterns has two equal rows",
        ),
        (lambda: ForwardForwardNetwork([], LabelledInput((9,), 2)), "layers is empty"),
        (
            lambda: ForwardForwardNetwork([FFLinear(9, 4)], LabelledInput((9,), 2)),
            r"layers\[0\] has label_features=0: give it 2",
        ),
        (
            lambda: LabelledInput((9,), 3, "icp", patterns=torch.ones(2, 5)),
            r"patterns of shape \(2, 5\) must have the shape \(3, features\)",
        ),
        (lambda: LabelledInput((9,), 2, "icp", patterns=torch.ones(2, 5)), "patterns has two equal rows"),
        (
            lambda: LabelledInput((9,), 2, "icp", patterns=torch.tensor([[1.0, 0.0], [0.0, 2.0]])),
            "patterns of lengths from 1 to 2 would tell the class",
        ),
        (
            lambda: LabelledInput((9,), 2, "add", patterns=torch.eye(2)),
            r"patterns of shape \(2, 2\) must have the shape \(2, 9\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
