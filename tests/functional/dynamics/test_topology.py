"""Networks drawn at random: what their links and weights are like."""

import pytest
import torch

from lightning_nobp.functional.dynamics import TOPOLOGIES, draw_links, draw_weights


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("num_nodes", [2, 3, 40])
def test_no_node_is_linked_to_itself_and_undirected_links_go_both_ways(topology, directed, num_nodes):
    links = draw_links(topology, num_nodes, drawn(), directed=directed)
    assert links.shape == (num_nodes, num_nodes)
    assert links.dtype == torch.bool
    assert not links.diagonal().any()
    if not directed:
        assert torch.equal(links, links.T)
    elif num_nodes == 40:
        assert not torch.equal(links, links.T)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("directed", [False, True])
def test_there_are_about_as_many_links_as_asked_for(topology, directed):
    links = draw_links(topology, 100, drawn(), density=0.1, directed=directed)
    assert 0.08 < float(links.sum()) / (100 * 99) < 0.12


def test_a_small_world_is_a_ring_with_some_links_elsewhere():
    links = draw_links("small_world", 100, drawn(), density=0.04)
    steps = (torch.arange(100).unsqueeze(0) - torch.arange(100).unsqueeze(1)).abs()
    near = links & ((steps <= 2) | (steps >= 98))
    assert 0.8 < float(near.sum() / links.sum()) < 1


def test_a_scale_free_network_has_hubs_and_a_random_one_has_none():
    hub, none = (int(draw_links(name, 200, drawn(), density=0.02).sum(1).max()) for name in ("scale_free", "random"))
    assert hub > 2 * none


def test_every_node_of_a_ring_or_a_scale_free_network_is_linked():
    for name in ("small_world", "scale_free"):
        assert draw_links(name, 50, drawn(), density=0.04).sum(dim=1).min() >= 1


def test_weights_have_the_mean_and_spread_asked_for():
    links = draw_links("random", 200, drawn(), density=0.3, directed=True)
    weights = draw_weights(links, 0.15, 0.02, drawn(), negative_fraction=0.25, directed=True)
    assert ((weights != 0) == links).all()
    found = weights[links]
    assert float(found.abs().mean()) == pytest.approx(0.15, rel=0.01)
    assert float(found.abs().std()) == pytest.approx(0.02, rel=0.05)
    assert float((found < 0).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_undirected_weights_are_symmetric():
    weights = draw_weights(draw_links("random", 30, drawn()), 0.1, 0.05, drawn(), negative_fraction=0.5)
    assert torch.equal(weights, weights.T)


def test_the_seed_draws_the_network():
    first, again, other = (draw_links("random", 30, drawn(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topology": "star"}, "topology='star' is not one of 'random', 'small_world', 'scale_free', nor a matrix"),
        ({"num_nodes": 1}, "num_nodes=1: a network has at least two"),
        ({"density": 0.0}, "density=0.0 must be above 0 and at most 1"),
        ({"density": 1.5}, "density=1.5 must be above 0 and at most 1"),
    ],
)
def test_bad_links_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_links(**{"topology": "random", "num_nodes": 5, "generator": drawn()} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": -1.0}, "coupling_std=-1.0 is a standard deviation"),
        ({"negative_fraction": 1.1}, "negative_fraction=1.1 must lie between 0 and 1"),
    ],
)
def test_bad_weights_are_named(arguments, message):
    links = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        draw_weights(**{"links": links, "mean": 1.0, "std": 0.1, "generator": drawn()} | arguments)
