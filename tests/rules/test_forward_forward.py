"""Forward-Forward and SymBa as rules: options, prediction, locality, precision, resume, and what they refuse."""

import pickle
from functools import partial
from itertools import pairwise

import lightning as L
import pytest
import torch
from ddp_training import load, train_symba
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from toys import blobs, loader, trainer, weights

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.cli.export import export
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.functional import forward_forward as ff
from lightning_nobp.nn import MLP, ForwardForwardCNN, ForwardForwardMLP
from lightning_nobp.rules import ForwardForward, SymBa

SGD = partial(torch.optim.SGD, lr=0.1)
NEUTRAL = partial(ForwardForwardMLP, hidden_dims=(7, 6), label="append", label_layers="all", stream="neutral")
UNLABELLED = {
    "network": partial(ForwardForwardMLP, hidden_dims=(8, 7), label="none"),
    "negatives": "hybrid",
    "readout": "softmax",
}


def build(rule=SymBa, **kwargs):
    """A small rule for the blobs, the same weights at every call."""
    torch.manual_seed(0)
    defaults = {"hidden_dims": (8, 7), "num_classes": 3, "input_shape": (1, 2, 3), "optimizer": SGD}
    if "network" in kwargs:
        del defaults["hidden_dims"]
    return rule(**defaults | kwargs)


def gradients(rule, batch):
    rule.zero_grad()
    values = rule.compute_gradients(batch)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in rule.parameters()], values


@pytest.mark.parametrize("loss", ["ff", "symba", "swish", "class_softmax"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "softplus", "relu_full_grad"])
@pytest.mark.parametrize("goodness", ["mean_square", "sum_square", "mean_abs", "negative"])
def test_engines_give_the_same_gradients(loss, activation, goodness):
    network = partial(ForwardForwardMLP, hidden_dims=(8, 7, 6), activation=activation, goodness=goodness)
    peer = 0.0 if loss == "class_softmax" else 0.3
    batch = [t.double() if t.is_floating_point() else t for t in blobs(20).tensors]
    found = []
    for engine in ("explicit", "autograd"):
        rule = build(network=network, loss=loss, engine=engine, peer_normalisation=peer).double()
        for layer in rule.network.layers:
            layer.peer_means.fill_(0.2)
        found.append(gradients(rule, batch))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("stream", ["labelled", "neutral"])
def test_engines_give_the_same_gradients_in_convolutions(stream):
    batch = (torch.randn(6, 2, 12, 12, dtype=torch.float64), torch.arange(6) % 3)
    found = []
    for engine in ("explicit", "autograd"):
        network = partial(ForwardForwardCNN, channels=(4, 5, 6), stream=stream, label_grid=2, batch_norm=True)
        rule = build(network=network, input_shape=(2, 12, 12), engine=engine, readout="softmax").double()
        found.append(gradients(rule, batch))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-13)


def test_explicit_engine_builds_no_graph():
    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            assert not (isinstance(result, torch.Tensor) and result.grad_fn is not None)
            return result

    rule, batch = build(readout="softmax"), blobs().tensors
    with Watch():
        rule.compute_gradients(batch)
    assert all(p.grad is not None for p in rule.parameters())


def test_symba_is_forward_forward_with_another_loss():
    batch = blobs().tensors
    one, other = build(SymBa), build(ForwardForward, loss="symba")
    torch.testing.assert_close(gradients(one, batch), gradients(other, batch), rtol=0, atol=0)


def test_first_layers_do_not_know_how_many_follow():
    short, long = build(hidden_dims=(8, 7), negatives="random"), build(hidden_dims=(8, 7, 6), negatives="random")
    optimizers = [torch.optim.Adam(rule.parameters(), lr=0.01) for rule in (short, long)]
    for _ in range(30):
        for rule, optimizer in zip((short, long), optimizers, strict=True):
            optimizer.zero_grad()
            rule.compute_gradients(blobs().tensors)
            optimizer.step()
    for one, other in zip(short.network.layers, long.network.layers, strict=False):
        assert torch.equal(weights(one), weights(other))


def test_gradients_of_two_halves_average_to_that_of_the_whole():
    x, y = (t.double() if t.is_floating_point() else t for t in blobs(32).tensors)
    rule = build(negatives="given").double()
    wrong = (y + 1) % 3
    whole, _ = gradients(rule, (x, y, wrong))
    halves = [gradients(rule, (x[part], y[part], wrong[part]))[0] for part in (slice(16), slice(16, 32))]
    for a, b, c in zip(whole, *halves, strict=True):
        torch.testing.assert_close(a, (b + c) / 2, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {"negatives": "random"},
        {"negatives": "argmax"},
        {"hard_scope": "all"},
        {"hard_scope": "readout", "readout": "softmax"},
        {"network": NEUTRAL, "hard_scope": "each"},
        {"network": partial(NEUTRAL, batch_norm=True), "hard_scope": "all"},
    ],
)
def test_negatives_are_wrong_and_training_succeeds(options):
    rule = build(**options)
    x, y = blobs().tensors
    for current in rule.contrast((x, y), rule.generators["negatives"]):
        assert torch.equal(current.labels[0], y)
        assert (current.labels[1] != y).all()
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        values = rule.compute_gradients((x, y))
        optimizer.step()
    assert values["pair_accuracy"] > 0.95
    assert (rule.eval()(x).argmax(1) == y).float().mean() > 0.95


def test_each_layer_draws_its_own_hard_labels():
    rule = build(network=NEUTRAL, hard_scope="each", negatives="argmax")
    x, y = blobs().tensors
    for current in rule.contrast((x, y), rule.generators["negatives"]):
        scores = current.drive.goodness(rule.network.all_labels(current.drive))
        expected = scores.scatter(0, y.unsqueeze(0), -torch.inf).argmax(0)
        assert torch.equal(current.labels[1], expected)


def test_negatives_of_ones_own():
    class NextLabel(SymBa):
        def wrong_labels(self, batch, drive, generator):
            return (batch[1] + 1) % self.num_classes

    batch = blobs().tensors
    given = build(SymBa, negatives="given")
    expected = gradients(given, (*batch, (batch[1] + 1) % 3))
    torch.testing.assert_close(gradients(build(NextLabel), batch), expected, rtol=0, atol=0)


def test_each_rank_draws_its_own_negatives(monkeypatch):
    x, y = blobs().tensors
    labels = []
    for rank in (0, 1, 0):
        monkeypatch.setattr("lightning_nobp.rules.random_state.rank", lambda rank=rank: rank)
        rule = build(negatives="random")
        labels.append(next(rule.contrast((x, y), rule.generators["negatives"])).labels[1])
    assert torch.equal(labels[0], labels[2])
    assert not torch.equal(labels[0], labels[1])


def test_given_negatives_are_taken(tmp_path):
    x, y = blobs().tensors
    wrong = (y + 1) % 3
    rule = build(negatives="given")
    assert torch.equal(next(rule.contrast((x, y, wrong), rule.generators["negatives"])).labels[1], wrong)
    data = DataLoader(TensorDataset(x, y, wrong), batch_size=16)
    trainer(tmp_path).fit(rule, data, loader())
    assert trainer(tmp_path).test(rule, data, verbose=False)[0]["test/accuracy"] > 0.3


def test_prediction_sums_the_chosen_layers():
    x, _ = blobs().tensors
    goodness = build().network.candidate_goodness(x)
    assert torch.equal(build()(x), goodness.sum(-1))
    assert torch.equal(build(predict_layers="skip_first")(x), goodness[..., 1])
    assert torch.equal(build(predict_layers=[0])(x), goodness[..., 0])
    assert torch.equal(build().outputs(x)["layer_goodness"], goodness)
    assert (build(predict_top_k=1)(x).argmax(1) == goodness[..., 0].argmax(1)).all()


@pytest.mark.parametrize("goodness", ["mean_square", "sum_square"])
def test_probabilities_are_as_steep_as_the_loss(goodness):
    rule = build(network=partial(ForwardForwardMLP, hidden_dims=(8, 4), goodness=goodness), alpha=3.0)
    x, y = blobs().tensors
    scale = 3.0 / 6 if goodness == "sum_square" else 3.0
    expected = (scale * rule(x)).softmax(-1)
    torch.testing.assert_close(rule.predict_step((x, y)), expected)
    loss = -expected.gather(1, y.unsqueeze(1)).log().mean()
    torch.testing.assert_close(rule.loss_function(rule(x), y), loss)


def test_sum_of_squares_counts_in_units_of_the_mean():
    batch = blobs().tensors
    build_one = [partial(ForwardForwardMLP, hidden_dims=(8, 7), goodness=g) for g in ("mean_square", "sum_square")]
    found = [gradients(build(ForwardForward, network=n, negatives="random", alpha=2.0), batch) for n in build_one]
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1]["loss"], found[1][1]["loss"])


@pytest.mark.parametrize(("layers", "features"), [("all", 15), ("skip_first", 7), ([0], 8)])
def test_readout_learns_beside_the_layers_and_predicts(layers, features):
    rule = build(readout="softmax", readout_layers=layers)
    x, y = blobs().tensors
    assert rule.neutral_readout.linear.in_features == features
    rule.compute_gradients((x, y))
    with torch.enable_grad():
        read = [f for n, f in enumerate(rule.network.neutral_features(x)) if n in rule.neutral_readout.layers]
        linear = rule.neutral_readout.linear
        loss = torch.nn.functional.cross_entropy(linear(torch.cat([f.detach() for f in read], 1)), y)
        expected = torch.autograd.grad(loss, list(linear.parameters()))
    torch.testing.assert_close([linear.weight.grad, linear.bias.grad], list(expected))
    assert torch.equal(rule(x), rule.neutral_readout(rule.network, x))
    # The layers learn as without it.
    with_readout, without = (gradients(build(**o), (x, y))[0] for o in ({"readout": "softmax"}, {}))
    torch.testing.assert_close(with_readout[: len(without)], without, rtol=0, atol=0)


def test_hybrids_train_without_labels(tmp_path):
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=32)
    rule = SymBa(**UNLABELLED | {"network": partial(ForwardForwardMLP, hidden_dims=(100, 100), label="none")})
    run = trainer(tmp_path, max_epochs=5)
    run.fit(rule, data)
    assert run.callback_metrics["train/pair_accuracy_epoch"] > 0.7
    assert run.callback_metrics["val/accuracy"] > 0.85


def test_sequential_schedule_trains_one_layer_after_another(tmp_path):
    rule = build(schedule="sequential", epochs_per_layer=2)
    seen = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append([weights(layer) for layer in pl_module.network.layers])

    trainer(tmp_path, max_epochs=5, callbacks=[Watch()]).fit(rule, loader(), loader())
    moved = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in pairwise(seen)]
    assert moved == [[True, False], [False, True], [False, True], [False, True]]
    with pytest.raises(
        MisconfigurationException, match=r"max_epochs=3 ends before.*epochs_per_layer=2 for 2 layers needs max_epochs=4"
    ):
        trainer(tmp_path, max_epochs=3).fit(build(schedule="sequential", epochs_per_layer=2), loader())


@pytest.mark.parametrize("at", [4, 6, 9])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, at):
    def run(*callbacks, **kwargs):
        options = {"network": partial(NEUTRAL, batch_norm=True), "peer_normalisation": 0.1, "readout": "softmax"}
        options |= {"input_shape": (1, 8, 8), "num_classes": 10}
        rule = build(optimizer=partial(torch.optim.Adam, lr=0.01), **options)
        fit = trainer(tmp_path, max_epochs=2, callbacks=list(callbacks), enable_checkpointing=bool(callbacks))
        torch.manual_seed(0)
        fit.fit(rule, DigitsDataModule(subset=400, val_size=80, batch_size=64), **kwargs)
        return [weights(rule), *rule.buffers()]

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole = run(keep)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(ckpt_path=tmp_path / f"step={at}.ckpt"), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole, run(), strict=True))


def test_measuring_the_alignment_changes_nothing(tmp_path):
    def run(*callbacks):
        rule = build(network=partial(NEUTRAL, batch_norm=True), readout="softmax")
        trainer(tmp_path, max_epochs=2, callbacks=list(callbacks)).fit(rule, loader())
        return [weights(rule), *rule.buffers()]

    measured = run(GradientAlignment(every_n_steps=2))
    assert all(torch.equal(a, b) for a, b in zip(run(), measured, strict=True))


@pytest.mark.parametrize(("num_classes", "batch"), [(2, 5), (100, 7), (3, 1)])
def test_any_number_of_classes_and_samples(num_classes, batch):
    rule = build(input_shape=(1, 12, 12), num_classes=num_classes)
    x, y = torch.randn(batch, 1, 12, 12), torch.arange(batch) % num_classes
    found, values = gradients(rule, (x, y))
    assert values["loss"].isfinite()
    assert any(g.any() for g in found)
    assert rule(x).shape == (batch, num_classes)


def test_reading_does_not_count_in_batch_normalisation():
    network = partial(NEUTRAL, batch_norm=True)
    batch = blobs().tensors
    rules = [build(network=network), build(network=network, readout="softmax")]
    for rule in rules:
        rule.compute_gradients(batch)
    counts = [rule.network.layers[0].batch_norm for rule in rules]
    assert counts[1].num_batches_tracked == 1
    assert torch.equal(counts[0].running_mean, counts[1].running_mean)


def test_layers_that_have_not_learnt_yet_are_not_asked(tmp_path):
    rule = build(schedule="sequential", epochs_per_layer=1)
    x, _ = blobs().tensors
    seen = []

    class Watch(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            goodness = pl_module.network.candidate_goodness(x)
            seen.append([torch.equal(pl_module(x), goodness[..., :n].sum(-1)) for n in (1, 2)])

    run = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0, callbacks=[Watch()])
    run.fit(rule, loader(), loader())
    assert seen == [[True, False], [False, True]]
    run.save_checkpoint(tmp_path / "rule.ckpt")
    assert SymBa.load_from_checkpoint(tmp_path / "rule.ckpt")._trained_layers == 2


@pytest.mark.parametrize("kind", [ForwardForward, SymBa])
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_dims": (8, 7)},
        {"hidden_dims": (8, 7), "input_dim": 6, "input_shape": None},
        {"network": partial(ForwardForwardMLP, hidden_dims=(8, 7), label="icp", pattern_dim=5)},
        {"network": ForwardForwardMLP((1, 2, 3), 3, (8, 7), label="icp", pattern_dim=5)},
        {"network": ForwardForwardMLP, "schedule": "sequential", "epochs_per_layer": 1},
    ],
)
def test_checkpoint_builds_the_rule_again(tmp_path, kind, options):
    rule = build(kind, readout="softmax", **options)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(rule, loader())
    fit.save_checkpoint(tmp_path / "rule.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "rule.ckpt")
    x, _ = blobs().tensors
    assert torch.equal(loaded.eval()(x), rule.eval()(x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"predict_top_k": 2},
        {"readout": "softmax"},
        {"network": partial(ForwardForwardMLP, label="add")},
        {"network": NEUTRAL},
        {"network": partial(ForwardForwardCNN, channels=(4, 5), kernel_sizes=(3, 3), strides=(1, 1), pools=(2, 1))},
    ],
)
def test_export(tmp_path, options):
    rule = build(**options)
    fit = trainer(tmp_path)
    fit.fit(rule, loader())
    fit.save_checkpoint(tmp_path / "rule.ckpt")
    assert export(tmp_path / "rule.ckpt", tmp_path / "net.pt2") < 1e-5
    scores = torch.export.load(tmp_path / "net.pt2").module()(blobs().tensors[0])
    torch.testing.assert_close(scores, rule.eval()(blobs().tensors[0]))


def test_a_rule_that_has_drawn_travels_to_other_processes():
    rule = build(negatives="random")
    batch = blobs().tensors
    rule.compute_gradients(batch)
    other = pickle.loads(pickle.dumps(rule))
    draws = [next(r.contrast(batch, r.generators["negatives"])).labels for r in (rule, other)]
    assert torch.equal(*draws)


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    train_symba(tmp_path, "auto")
    train_symba(tmp_path, "ddp_spawn")
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-5, atol=1e-6)
    names = [n for n in single["metrics"] if n.startswith(("val/", "layer_", "prefix_", "goodness/"))]
    assert len(names) == 16
    for name in names:
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-4), name


def test_flat_inputs_by_their_length():
    rule = ForwardForward(hidden_dims=(9,), input_dim=20, num_classes=4)
    assert rule(torch.randn(3, 20)).shape == (3, 4)


@pytest.mark.parametrize("options", [{"compute_dtype": "bfloat16"}, {}])
def test_half_precision_products_stay_close(tmp_path, options):
    batch = (torch.randn(100, 784), torch.arange(100) % 10)
    exact = build(hidden_dims=(500, 500), input_shape=(784,), num_classes=10, negatives="given")
    half = build(hidden_dims=(500, 500), input_shape=(784,), num_classes=10, negatives="given", **options)
    batch = (*batch, (batch[1] + 1) % 10)
    expected, _ = gradients(exact, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not options):
        actual, _ = gradients(half, batch)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_precisions(tmp_path, precision):
    fit = trainer(tmp_path, precision=precision)
    fit.fit(build(readout="softmax"), loader(), loader())
    assert fit.callback_metrics["val/loss"].isfinite()


def test_global_loss_is_that_of_the_whole_network_with_its_gradients():
    rule = build(network=partial(ForwardForwardMLP, hidden_dims=(8, 7)))
    batch = blobs().tensors
    torch.testing.assert_close(rule.global_loss(batch), rule.loss_function(rule(batch[0]), batch[1]))
    rule.global_loss(batch).backward()
    crossing = rule.network.layers[0].weight.grad.clone()
    rule.zero_grad()
    rule.compute_gradients(batch)
    assert not torch.allclose(crossing, rule.network.layers[0].weight.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' is not one of 'ff', 'symba'"),
        ({"negatives": "soft"}, "negatives='soft' is not one of 'random'"),
        ({"hard_scope": "last"}, "hard_scope='last' is not one of"),
        ({"schedule": "greedy"}, "schedule='greedy' is not one of"),
        ({"readout": "linear"}, "readout='linear' is not one of"),
        ({"engine": "jax"}, "engine='jax' is not one of"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16' is not one of 'bfloat16', or None"),
        ({"alpha": 0.0}, "alpha=0.0 must be positive"),
        ({"alpha": float("nan")}, "alpha=nan must be finite"),
        ({"hard_temperature": -1.0}, "hard_temperature=-1.0 must be positive"),
        ({"threshold": 1.0}, "threshold=1.0 belongs to loss='ff': loss='symba' has none"),
        ({"loss": "ff", "threshold": float("inf")}, "threshold=inf must be finite"),
        ({"loss": "ff", "threshold": -1.0}, "threshold=-1.0 is not among the values of goodness='mean_square'"),
        ({"peer_normalisation": -0.1}, "peer_normalisation=-0.1 must not be negative"),
        ({"peer_momentum": 1.0}, "peer_momentum=1.0 must lie from 0"),
        ({"peer_normalisation": 0.1, "loss": "class_softmax"}, "peer_normalisation=0.1 needs a loss of pairs"),
        ({"schedule": "sequential"}, "schedule='sequential' needs epochs_per_layer=N"),
        ({"epochs_per_layer": 2}, "epochs_per_layer=2 has no effect without schedule='sequential'"),
        ({"schedule": "sequential", "epochs_per_layer": 0}, "epochs_per_layer=0 must be at least 1"),
        ({"hidden_dims": ()}, r"hidden_dims=\(\) must hold at least one width"),
        ({"hidden_dims": (4,), "network": NEUTRAL}, r"hidden_dims=\(4,\) is for network='mlp'"),
        ({"num_classes": 1}, "num_classes=1: a classifier needs at least two"),
        ({"predict_layers": []}, r"predict_layers=\[\] must be 'all', 'skip_first' or a list of layers from 0 to 1"),
        ({"predict_layers": [2]}, r"predict_layers=\[2\] must be"),
        ({"predict_layers": "skip_first", "hidden_dims": (4,)}, "predict_layers='skip_first' leaves none of one layer"),
        ({"predict_top_k": 4}, "predict_top_k=4 must lie from 1 to 3"),
        ({"readout": "softmax", "readout_layers": [5]}, r"readout_layers=\[5\] must be"),
        (
            {"readout": "softmax", "readout_layers": "skip_first", "hidden_dims": (4,)},
            "readout_layers='skip_first' leaves none of one layer",
        ),
        ({"num_classes": 4, "network": ForwardForwardMLP((1, 2, 3), 3)}, "num_classes=4 does not fit the network's, 3"),
        ({"input_dim": 7}, r"input_dim=7 and input_shape=\(1, 2, 3\): give one of them"),
        ({"predict_top_k": 2, "network": NEUTRAL}, "predict_top_k=2 has no effect.*stream='neutral'"),
        ({"predict_top_k": 2, "readout": "softmax"}, "predict_top_k=2 have no effect on readout='softmax'"),
        ({"predict_layers": [0], "readout": "softmax"}, r"predict_layers=\[0\].*no effect on readout"),
        ({"readout_layers": [0]}, r"readout_layers=\[0\] has no effect without readout"),
        ({"hard_scope": "all", "negatives": "random"}, "hard_scope='all' has no effect on negatives='random'"),
        ({"loss": "class_softmax", "negatives": "random"}, "negatives='random' has no effect: loss='class_softmax'"),
        ({"hard_scope": "readout"}, "hard_scope='readout'.*readout='softmax'"),
        ({"hard_scope": "each"}, "hard_scope='each'.*stream='neutral'"),
        ({"negatives": "hybrid"}, "negatives='hybrid' learns without labels"),
        ({"negatives": "hybrid", "readout": "softmax"}, "negatives='hybrid' with label='overlay'.*go together"),
        ({**UNLABELLED, "negatives": "hard"}, "negatives='hard' with label='none'.*go together"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_other_networks_are_refused():
    with pytest.raises(TypeError, match=r"network is a MLP: SymBa trains a ForwardForwardNetwork"):
        build(network=partial(MLP, hidden_dims=(4,)))
    silu = partial(ForwardForwardMLP, hidden_dims=(8, 7), activation="silu")
    with pytest.raises(TypeError, match=r"layers\[0\] has activation='silu'.*engine='autograd'"):
        build(network=silu)
    rule = build(network=silu, engine="autograd")
    assert any(g.any() for g in gradients(rule, blobs().tensors)[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x.to(torch.uint8), y), TypeError, r"inputs of type torch.uint8.*x.float\(\) / 255"),
        (lambda x, y: (x / 0, y), ValueError, "inputs with values that are not finite"),
        (lambda x, y: (x, y + 3), ValueError, "targets from 3 to 5 do not fit num_classes=3"),
        (lambda x, y: (x, y.float()), ValueError, "no class numbers"),
        (lambda x, y: (x[..., :2], y), ValueError, r"inputs of shape .* do not fit"),
    ],
)
def test_bad_batches_are_refused_in_training_and_validation(tmp_path, change, error, message):
    bad = DataLoader(TensorDataset(*change(*blobs().tensors)), batch_size=16)
    with pytest.raises(error, match=message):
        trainer(tmp_path).fit(build(), bad)
    with pytest.raises(error, match=message):
        trainer(tmp_path).validate(build(), bad, verbose=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, r"negatives='given' needs batches \(inputs, class numbers, wrong class numbers\)"),
        (lambda y: y, "a wrong label equals the right one"),
        (lambda y: y + 1, "wrong labels from 1 to 3 do not fit num_classes=3"),
        (lambda y: y.float(), "wrong labels of type torch.float32"),
    ],
)
def test_bad_given_negatives_are_refused(tmp_path, wrong, message):
    x, y = blobs().tensors
    data = TensorDataset(x, y) if wrong is None else TensorDataset(x, y, wrong(y))
    with pytest.raises((ValueError, MisconfigurationException), match=message):
        trainer(tmp_path).fit(build(ForwardForward, negatives="given"), DataLoader(data, batch_size=16))


def test_the_same_label_twice_is_harmless_for_symba():
    x, y = blobs().tensors
    found, values = gradients(build(SymBa, negatives="given"), (x, y, y))
    assert max(g.abs().max() for g in found) < 1e-6
    assert values["loss"].item() == pytest.approx(2 * 0.6931, rel=1e-3)
    found, _ = gradients(build(ForwardForward, negatives="given"), (x, y, y))
    assert max(g.abs().max() for g in found) > 1e-3


def test_precision_that_overflows_squares_is_refused():
    assert "16-mixed" not in SymBa.supported_precisions


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(dtype):
    x, y = blobs().tensors
    expected, _ = gradients(build(readout="softmax"), (x, y))
    found, _ = gradients(build(readout="softmax"), (x, y.to(dtype)))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_size_of_images_is_checked_with_a_network_of_ones_own(tmp_path):
    rule = SymBa(network=ForwardForwardMLP((1, 2, 4), 3, (5,)), num_classes=3)
    with pytest.raises(ValueError, match=r"inputs of shape \(1, 2, 3\) do not fit .*input_shape=\(1, 2, 4\)"):
        trainer(tmp_path).fit(rule, loader())


def test_hybrids_of_an_uneven_last_batch(tmp_path):
    run = trainer(tmp_path)
    run.fit(build(**UNLABELLED), loader(33))
    assert run.global_step == 3
    assert run.callback_metrics["train/loss"].isfinite()


def test_double_networks_are_read_in_double():
    network = ForwardForwardMLP((1, 2, 3), 3, (5,)).double()
    rule = SymBa(network=network, num_classes=3, readout="softmax")
    assert rule(blobs().tensors[0].double()).dtype == torch.float64


def test_hybrids_need_images(tmp_path):
    rule = build(
        network=partial(ForwardForwardMLP, label="none"), **{k: UNLABELLED[k] for k in ("negatives", "readout")}
    )
    x, y = blobs().tensors
    with pytest.raises(ValueError, match="negatives='hybrid' mixes images"):
        trainer(tmp_path).fit(rule, DataLoader(TensorDataset(x.flatten(1), y), batch_size=16))


def test_peer_normalisation_evens_out_the_activity():
    x, y = blobs().tensors
    spread = []
    for weight in (0.0, 3.0):
        rule = build(hidden_dims=(30, 20), peer_normalisation=weight)
        optimizer = torch.optim.Adam(rule.parameters(), lr=0.01)
        for _ in range(100):
            optimizer.zero_grad()
            rule.compute_gradients((x, y))
            optimizer.step()
        means = next(rule.network.activities(x, y)).mean(0).detach()
        spread.append(float(means.std() / means.mean()))
    assert spread[1] < 0.9 * spread[0]


def test_closed_form_is_that_of_the_functions():
    rule = build(ForwardForward, negatives="given", hidden_dims=(5,)).double()
    x, y = blobs(10).tensors
    wrong = (y + 1) % 3
    u = [ff.normalise_activity(ff.overlay_label(x.double(), t, 3, 0.5 * 6**0.5)) for t in (y, wrong)]
    layer = rule.network.layers[0]
    weight = torch.cat([layer.label_weight, layer.weight[:, 3:]], 1)
    h = (torch.cat(u) @ weight.t() + layer.bias).relu()
    g = ff.goodness(h)
    q, loss = ff.loss_coefficients("ff", g[:10], g[10:], alpha=16.0)
    grad_weight, grad_bias = ff.local_gradients(torch.cat(u), h, torch.cat(q))
    values = rule.compute_gradients((x.double(), y, wrong))
    torch.testing.assert_close(values["loss"], loss)
    torch.testing.assert_close(torch.cat([layer.label_weight.grad, layer.weight.grad[:, 3:]], 1), grad_weight)
    torch.testing.assert_close(layer.bias.grad, grad_bias)
