"""Rasters of spikes."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import SpikeRaster
from lightning_nobp.callbacks.spike_raster import raster_figure
from lightning_nobp.nn import SpikingMLP
from lightning_nobp.rules import SpikeTimingBackprop

INF = float("inf")


def fit(folder, callback, rule=None, **kwargs):
    if rule is None:
        torch.manual_seed(0)
        rule = SpikeTimingBackprop(network=SpikingMLP((1, 2, 3), 3, (8,)), num_classes=3)
    run = trainer(folder, callbacks=[callback], logger=CSVLogger(folder), **kwargs)
    run.fit(rule, loader(), loader())
    return rule


def test_a_figure_comes_every_so_many_epochs(tmp_path):
    fit(tmp_path, SpikeRaster(every_n_epochs=2), max_epochs=4)
    assert len(list(tmp_path.rglob("val_spikes-step=*.png"))) == 2


def test_what_is_drawn_are_the_samples_spikes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "lightning_nobp.callbacks.spike_raster.raster_figure",
        lambda layers, label, most, names: drawn.append((layers, label)) or raster_figure(layers, label, most, names),
    )
    rule = fit(tmp_path, SpikeRaster(sample=3))
    [(layers, label)] = drawn
    x, target = next(iter(loader()))
    with torch.no_grad():
        outputs = rule.eval().outputs(x)
    assert label == target[3]
    assert len(layers) == 3
    for n, spikes in enumerate(layers):
        assert torch.equal(spikes, outputs[f"spikes/{n}"][3])


def test_the_last_layer_of_a_network_without_output_neurons_is_a_hidden_one():
    layers = [torch.tensor([[0.1]])] * 3
    names = ["inputs", "hidden 1", "hidden 2"]
    labels = [a.get_ylabel().split("\n")[0] for a in raster_figure(layers, names=names).axes]
    assert labels == names[::-1]


def test_a_panel_for_each_layer_with_a_row_for_each_of_the_most_active_neurons():
    layers = [
        torch.tensor([[0.1, 0.2], [INF, INF], [0.3, INF], [INF, INF]]),
        torch.tensor([[INF, INF]]),
        torch.tensor([[0.5], [0.4]]),
    ]
    outputs, hidden, inputs = raster_figure(layers, label=1, most_neurons=3).axes
    assert [a.get_ylabel() for a in (outputs, hidden, inputs)] == [
        "outputs\n2 of 2",
        "hidden 1\n1 of 1",
        "inputs\n2 of 4",
    ]
    assert [a.get_title(loc="right") for a in (outputs, inputs)] == ["2 of 2 spikes", "3 of 3 spikes"]
    assert [c.get_positions() for c in inputs.collections] == [pytest.approx([0.1, 0.2]), pytest.approx([0.3])]
    # By their numbers, the right class apart.
    assert [c.get_lineoffset() for c in inputs.collections] == [0, 2]
    first, second = (c.get_color().ravel().tolist() for c in outputs.collections)
    assert first != second


def test_bad_use_is_named(tmp_path):
    for name in ("every_n_epochs", "most_neurons"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            SpikeRaster(**{name: 0})
    with pytest.raises(ValueError, match="sample=-1 must be at least 0"):
        SpikeRaster(sample=-1)
    with pytest.raises(ValueError, match="sample=99: the first validation batch has 16 samples"):
        fit(tmp_path, SpikeRaster(sample=99))
    with pytest.raises(TypeError, match=r"SpikeRaster needs a rule that hands on spikes.* not a Backprop"):
        fit(tmp_path, SpikeRaster(), backprop(), limit_train_batches=0)


def test_a_layer_of_many_neurons_that_are_all_silent_is_an_empty_panel():
    figure = raster_figure([torch.full((5, 2), INF), torch.tensor([[0.1, 0.2]])], most_neurons=3, names=["a", "b"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["b\n1 of 1", "a\n0 of 5"]
