"""Networks that were found: in files, and in pictures."""

import csv

import networkx as nx
import pytest
import torch
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import NetworkFigures, NetworkWriter, network_figures
from lightning_nobp.callbacks.network_figures import couplings_figure, errors_figure, free_run_figure
from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.rules import DynamicalNetworkBackprop


def data(**kwargs):
    options = {"num_nodes": 5, "num_steps": 400, "num_trajectories": 2, "transient": 300, "batch_size": 16}
    return CoupledOscillatorsDataModule(**options | {"horizon": 100, "stride": 17, "shuffle": False} | kwargs)


def fit(folder, *callbacks, rule=None, module=None):
    rule, module = rule or DynamicalNetworkBackprop(), module or data()
    trainer(folder, callbacks=list(callbacks)).fit(rule, datamodule=module)
    return rule, module


def read(folder):
    return list(csv.DictReader((folder / "links.csv").open()))


def test_links_and_graph_hold_the_weights_that_were_found(tmp_path):
    rule, _ = fit(tmp_path, NetworkWriter())
    weights = rule.network.weights.detach()
    rows = read(tmp_path)
    graph = nx.read_graphml(tmp_path / "network.graphml")
    assert len(rows) == graph.number_of_edges() == 20
    assert sorted(graph.nodes) == ["0", "1", "2", "3", "4"]
    sizes = [abs(float(row["weight"])) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in rows:
        weight = weights[int(row["target"]), int(row["source"])]
        assert float(row["weight"]) == weight
        assert row["standard_error"] == ""
        assert graph.edges[row["source"], row["target"]] == {"weight": pytest.approx(float(weight))}


def test_weak_links_are_left_out_and_nodes_stay(tmp_path):
    _, module = fit(tmp_path, NetworkWriter(least=0.05))
    graph = nx.read_graphml(tmp_path / "network.graphml")
    assert graph.number_of_edges() == int((module.true_weights != 0).sum())
    assert graph.number_of_nodes() == 5


def test_standard_errors_are_of_the_size_of_the_errors(tmp_path):
    _, module = fit(tmp_path, NetworkWriter(num_bootstrap=20), module=data(observation_noise=1e-3))
    rows = read(tmp_path)
    assert len(rows) == 20
    errors = torch.tensor([float(row["standard_error"]) for row in rows])
    true = torch.tensor([float(module.true_weights[int(r["target"]), int(r["source"])]) for r in rows])
    found = torch.tensor([float(row["weight"]) for row in rows])
    ratio = (found - true).square().mean().sqrt() / errors.mean()
    assert 0.2 < ratio < 5
    edges = nx.read_graphml(tmp_path / "network.graphml").edges(data="standard_error")
    assert all(error > 0 for *_, error in edges)


def test_standard_errors_are_those_of_constrained_couplings(tmp_path):
    rule = DynamicalNetworkBackprop(symmetric=True, non_negative=True)
    _, module = fit(tmp_path, NetworkWriter(num_bootstrap=10), rule=rule, module=data(coupling_mean=-0.1))
    error = {(row["source"], row["target"]): row["standard_error"] for row in read(tmp_path)}
    assert all(value == error[target, source] for (source, target), value in error.items())
    # What is negative is zero in every resampling.
    assert len(error) < int((module.true_weights == 0).sum())


def test_series_of_fewer_windows_than_parts_have_standard_errors(tmp_path):
    module = data(num_steps=120, num_trajectories=1, coupling_mean=0.3, horizon=10)
    fit(tmp_path, NetworkWriter(num_bootstrap=5, num_windows=100), module=module)
    assert all(float(row["standard_error"]) > 0 for row in read(tmp_path))


def test_an_alternation_has_standard_errors_too(tmp_path):
    rule = DynamicalNetworkBackprop(method="alternation", initial_epochs=0, num_steps=5)
    fit(tmp_path, NetworkWriter(num_bootstrap=3), rule=rule)
    rows = read(tmp_path)
    assert all(float(row["standard_error"]) > 0 for row in rows)


def test_figures_are_drawn_after_every_epoch(tmp_path):
    figures = NetworkFigures()
    fit(tmp_path, figures)
    drawn = {path.name.partition("-")[0] for path in tmp_path.rglob("*.png")}
    assert drawn == {"val_couplings", "val_free_run", "val_errors"}
    assert set(figures.errors) == {"val/loss", "val/weight_error"}
    assert [epoch for epoch, _ in figures.errors["val/loss"]] == [1]


def test_true_and_found_couplings_are_drawn_beside_each_other():
    true, found = torch.tensor([[0.0, 0.2], [0.1, 0.0]]), torch.tensor([[0.0, 0.3], [-0.1, 0.0]])
    figure = couplings_figure(found, true)
    first, second, third = figure.axes[:3]
    assert torch.equal(torch.tensor(first.images[0].get_array()), true)
    assert torch.equal(torch.tensor(second.images[0].get_array()), found)
    points = third.lines[1].get_xydata()
    assert sorted(map(tuple, points.round(6).tolist())) == [(0.1, -0.1), (0.2, 0.3)]
    assert len([axes for axes in couplings_figure(found).axes if axes.images]) == 1


def test_free_runs_and_errors_are_drawn_as_they_are():
    predicted, true = torch.randn(2, 6, 3, 2)
    figure = free_run_figure(predicted, true, 0.5, most_nodes=2)
    assert len(figure.axes) == 2
    lines = figure.axes[1].lines
    assert lines[0].get_xdata()[-1] == 2.5
    assert lines[1].get_ydata() == pytest.approx(predicted[:, 1, 0].tolist())
    [line] = errors_figure({"val/loss": [(1, 0.5), (2, 0.25)]}).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 0.5], [2, 0.25]]


def test_nodes_have_their_names():
    figure = couplings_figure(torch.eye(2), names=("anna", "bert"))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["anna", "bert"]
    figure = free_run_figure(*torch.randn(2, 6, 2, 1), 0.5, names=("anna", "bert"))
    assert [axes.get_ylabel() for axes in figure.axes] == ["anna", "bert"]


def test_a_run_that_diverges_leaves_the_truth_in_sight():
    true = torch.linspace(-1, 1, 6).view(6, 1, 1)
    [axes] = free_run_figure(true * 1e30, true, 0.5).axes
    assert axes.get_ylim() == pytest.approx((-2, 2))


def test_free_runs_go_along_the_first_validation_trajectory(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(network_figures, "free_run_figure", lambda *args: drawn.append(args) or free_run_figure(*args))
    rule, module = fit(tmp_path, NetworkFigures(most_steps=60), module=data(num_val=2))
    predicted, true = drawn[0][:2]
    torch.testing.assert_close(true.double(), module.batches("val").samples[:61], rtol=0, atol=1e-6)
    torch.testing.assert_close(predicted, rule.network.rollout(true[:1], 60)[0].detach(), rtol=0, atol=1e-4)


def test_errors_go_on_behind_those_of_a_run_that_is_resumed():
    figures, again = NetworkFigures(), NetworkFigures()
    figures.errors = {"val/loss": [(1, 0.5), (2, 0.25)]}
    again.load_state_dict(figures.state_dict())
    assert again.errors == figures.errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkWriter(least=-1.0), "least=-1.0 must be at least 0"),
        (lambda: NetworkWriter(num_bootstrap=1), "num_bootstrap=1, num_windows=20"),
        (lambda: NetworkFigures(every_n_epochs=0), "every_n_epochs=0 must be at least 1"),
        (lambda: NetworkFigures(most_nodes=0), "most_nodes=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("callback", [NetworkWriter(), NetworkFigures(), NetworkWriter(num_bootstrap=5)])
def test_a_rule_without_a_network_of_nodes_is_refused(tmp_path, callback):
    with pytest.raises(TypeError, match=r"goes with a .*not with a Backprop"):
        trainer(tmp_path, callbacks=[callback]).fit(backprop(), loader())


def test_a_bootstrap_needs_series_to_draw_from(tmp_path):
    module = data()
    module.setup("fit")
    rule = DynamicalNetworkBackprop(num_nodes=5, components=3, dt=module.dt)
    with pytest.raises(TypeError, match="num_bootstrap=5 draws windows of a SeriesDataModule"):
        trainer(tmp_path, callbacks=[NetworkWriter(num_bootstrap=5)]).fit(rule, module.train_dataloader())
