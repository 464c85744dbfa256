"""What the callbacks say of each layer, against the goodness itself."""

from functools import partial

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from toys import backprop, blobs, loader, trainer

from lightning_nobp.callbacks import LayerAccuracy, LayerGoodness, run_folder
from lightning_nobp.callbacks.layer_goodness import goodness_figure
from lightning_nobp.nn import ForwardForwardMLP
from lightning_nobp.rules import ForwardForward, SymBa


def build(rule=SymBa, **kwargs):
    torch.manual_seed(0)
    defaults = {"network": partial(ForwardForwardMLP, hidden_dims=(8, 7)), "num_classes": 3, "input_shape": (1, 2, 3)}
    return rule(**defaults | kwargs)


def validate(folder, rule, callback):
    run = trainer(folder, callbacks=[callback], logger=CSVLogger(folder))
    run.validate(rule, loader(batch_size=40), verbose=False)
    return run, {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("readout", ["none", "softmax"])
def test_accuracy_of_each_layer_and_of_prefixes(tmp_path, readout):
    rule = build(readout=readout)
    _, found = validate(tmp_path, rule, LayerAccuracy())
    x, y = blobs().tensors
    goodness = rule.network.candidate_goodness(x)
    for layer in (0, 1):
        alone = (goodness[..., layer].argmax(1) == y).float().mean()
        prefix = (goodness[..., : layer + 1].sum(-1).argmax(1) == y).float().mean()
        assert found[f"layer_accuracy/{layer}"] == pytest.approx(float(alone))
        assert found[f"prefix_accuracy/{layer}"] == pytest.approx(float(prefix))
    if readout == "none":
        assert found["prefix_accuracy/1"] == pytest.approx(found["val/accuracy"])


def test_goodness_of_positives_and_negatives(tmp_path):
    rule = build(ForwardForward, negatives="argmax")
    with torch.no_grad():
        rule.network.layers[0].bias[:2] = -100
    run, found = validate(tmp_path, rule, LayerGoodness())
    x, y = blobs().tensors
    goodness = rule.network.candidate_goodness(x).detach()
    wrong = goodness[..., 0].scatter(1, y.unsqueeze(1), -torch.inf).argmax(1)
    for layer in (0, 1):
        positive, negative = (goodness[range(96), t, layer] for t in (y, wrong))
        assert found[f"goodness/{layer}/positive"] == pytest.approx(float(positive.mean()), rel=1e-5)
        assert found[f"goodness/{layer}/negative"] == pytest.approx(float(negative.mean()), rel=1e-5)
        assert found[f"goodness/{layer}/margin"] == pytest.approx(float((positive - negative).mean()), abs=1e-6)
        assert found[f"goodness/{layer}/pair_accuracy"] == pytest.approx(float((positive > negative).float().mean()))
    assert found["goodness/0/dead_units"] >= 2 / 8
    assert [p.name for p in (run_folder(run) / "figures").iterdir()] == ["val_goodness-step=0.png"]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_goodness_of_all_labels(tmp_path, num_classes):
    rule = build(loss="class_softmax", num_classes=num_classes)
    x, y = blobs().tensors
    x, y = x[y < num_classes], y[y < num_classes]
    run = trainer(tmp_path, callbacks=[LayerGoodness(figure=False)])
    run.validate(rule, DataLoader(TensorDataset(x, y), batch_size=40), verbose=False)
    found = run.callback_metrics
    goodness = rule.network.candidate_goodness(x)[..., 0]
    expected = (goodness.argmax(1) == y).float().mean()
    assert float(found["goodness/0/pair_accuracy"]) == pytest.approx(float(expected))


def test_pruning_is_not_counted_against_a_layer(tmp_path):
    rule, pruned = build(), build(predict_top_k=1)
    expected, found = (validate(tmp_path, r, LayerAccuracy())[1]["layer_accuracy/1"] for r in (rule, pruned))
    assert found == expected


def test_watching_does_not_change_the_training(tmp_path):
    def train(*callbacks):
        rule = build(optimizer=partial(torch.optim.SGD, lr=0.1))
        trainer(tmp_path, max_epochs=2, callbacks=list(callbacks)).fit(rule, loader(), loader())
        return torch.nn.utils.parameters_to_vector(rule.parameters())

    assert torch.equal(train(), train(LayerGoodness(), LayerAccuracy()))


def test_hybrids_have_goodness_but_no_labels(tmp_path):
    network = partial(ForwardForwardMLP, hidden_dims=(8, 7), label="none")
    rule = build(network=network, negatives="hybrid", readout="softmax")
    _, found = validate(tmp_path, rule, LayerGoodness(figure=False))
    assert 0 <= found["goodness/1/pair_accuracy"] <= 1
    with pytest.raises(ValueError, match="the layers know none"):
        validate(tmp_path, rule, LayerAccuracy())


def test_only_every_so_many_epochs(tmp_path):
    rule = build()
    run = trainer(tmp_path, max_epochs=1, callbacks=[LayerGoodness(every_n_epochs=2), LayerAccuracy(every_n_epochs=2)])
    run.fit(rule, loader(), loader())
    assert not [name for name in run.callback_metrics if name.startswith(("goodness", "layer_accuracy"))]


def test_figure_has_a_panel_for_each_layer():
    figure = goodness_figure([torch.randn(2, 50), torch.randn(2, 50) + 3])
    assert [axes.get_title() for axes in figure.axes] == ["layer 0", "layer 1"]
    assert len(figure.axes[0].containers) == 2


@pytest.mark.parametrize("callback", [LayerAccuracy, LayerGoodness])
def test_other_rules_and_numbers_are_refused(tmp_path, callback):
    with pytest.raises(ValueError, match="every_n_epochs=0 must be at least 1"):
        callback(every_n_epochs=0)
    with pytest.raises(TypeError, match=f"{callback.__name__} watches a ForwardForward rule, not a Backprop"):
        validate(tmp_path, backprop(), callback())
