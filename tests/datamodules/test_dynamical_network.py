"""Windows of simulated networks: layout, normalisation, splits and order."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.functional.dynamics import rollout

SMALL = {
    **{"num_nodes": 4, "num_steps": 121, "num_trajectories": 2, "num_val": 1, "num_test": 1},
    **{"transient": 200, "window": 10, "horizon": 40, "batch_size": 5},
}


def set_up(**kwargs):
    data = CoupledOscillatorsDataModule(**SMALL | kwargs)
    data.setup("fit")
    return data


def windows(loader):
    return torch.cat([batch[0] for batch in loader])


def test_batches_have_the_documented_layout():
    data = set_up()
    [first, *_] = data.train_dataloader()
    assert len(first) == 1
    assert (first[0].shape, first[0].dtype) == ((5, 11, 4, 3), torch.float64)
    assert windows(data.train_dataloader()).shape == (2 * 12, 11, 4, 3)
    assert windows(data.val_dataloader()).shape == (12, 11, 4, 3)
    assert windows(data.test_dataloader()).shape == (3, 41, 4, 3)
    assert (data.num_nodes, data.components, data.dt, data.lyapunov_exponent) == (4, 3, 0.02, 0.906)
    assert data.input_shape == (4, 3)


def test_windows_follow_each_other_by_the_equations():
    data = set_up(shuffle=False, heterogeneity=0.1, directed=True, density=0.8)
    x = windows(data.train_dataloader()) * data.normalisation.scale + data.normalisation.mean
    expected = rollout(data.field, x[:, 0], data.true_weights, 10, data.dt).movedim(0, 1)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
    # Without a stride each step is in one window, of two trajectories.
    assert torch.equal(x[:11, -1], x[1:12, 0])
    assert not torch.equal(x[11, -1], x[12, 0])


def test_strides_and_windows_are_those_asked_for():
    data = set_up(stride=7, shuffle=False)
    x = windows(data.train_dataloader())
    assert len(x) == 2 * 16
    assert torch.equal(x[0, 7:], x[1, :4])
    assert len(windows(data.val_dataloader())) == 12


def test_training_series_have_mean_0_and_variance_1_over_all_nodes():
    x = set_up(shuffle=False).batches("train").samples
    torch.testing.assert_close(x.flatten(0, 1).mean(dim=0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.flatten(0, 1).std(dim=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_splits_share_no_trajectory():
    data = set_up()
    starts = torch.cat([data.batches(split).samples[:, 0, 0] for split in ("train", "val", "test")])
    assert len(starts.unique()) == 4 * 121


def test_no_validation():
    assert set_up(num_val=0).val_dataloader() == []


def test_noise_is_of_the_size_asked_for():
    clean, noisy = (set_up(observation_noise=noise, num_steps=1000) for noise in (0.0, 0.1))
    back = noisy.batches("train").samples * noisy.normalisation.scale + noisy.normalisation.mean
    error = back - clean.batches("train").samples * clean.normalisation.scale - clean.normalisation.mean
    torch.testing.assert_close(
        error.flatten(0, 1).std(dim=0) / clean.normalisation.scale, torch.full((3,), 0.1).double(), rtol=0.1, atol=0
    )
    driven = set_up(dynamical_noise=0.1)
    assert not torch.equal(driven.batches("train").samples, set_up().batches("train").samples)


def test_the_seed_draws_network_and_series():
    first, again, other = (set_up(seed=seed, num_nodes=10) for seed in (1, 1, 2))
    assert torch.equal(first.true_weights, again.true_weights)
    assert torch.equal(first.batches("test").samples, again.batches("test").samples)
    assert not torch.equal(first.true_weights, other.true_weights)


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    list(set_up(observation_noise=0.1, dynamical_noise=0.1, heterogeneity=0.1).train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("system", ["lorenz", "chua", "fitzhugh_nagumo", "roessler"])
def test_every_system_has_couplings_and_steps_of_its_own(system):
    data = set_up(system=system)
    assert data.coupling_mean > 0
    assert windows(data.train_dataloader()).isfinite().all()


def test_networks_are_those_asked_for():
    directed = set_up(directed=True, negative_fraction=0.5, num_nodes=20).true_weights
    assert not torch.equal(directed, directed.T)
    assert (directed < 0).any()
    undirected = set_up(num_nodes=20, topology="scale_free", coupling_mean=0.5, coupling_std=0.0).true_weights
    assert torch.equal(undirected, undirected.T)
    assert set(undirected.flatten().tolist()) == {0.0, 0.5}


@pytest.mark.parametrize("kind", ["list", "npy", "csv"])
def test_matrices_are_taken_as_they_are_but_for_the_diagonal(kind, tmp_path):
    matrix = np.array([[5.0, 0.1, 0.0], [0.2, 0.0, 0.0], [0.0, -0.1, 0.0]])
    topology = matrix.tolist()
    if kind == "npy":
        topology = str(tmp_path / "w.npy")
        np.save(topology, matrix)
    if kind == "csv":
        topology = str(tmp_path / "w.csv")
        np.savetxt(topology, matrix, delimiter=",")
    data = set_up(topology=topology, num_nodes=99)
    assert data.num_nodes == 3
    np.testing.assert_array_equal(data.true_weights.numpy(), matrix - np.diag([5.0, 0, 0]))
    assert windows(data.train_dataloader()).shape[2] == 3


def test_goes_on_in_the_middle_of_an_epoch():
    whole, stopped, fresh = (set_up().train_dataloader() for _ in range(3))
    expected = list(whole)
    batches = iter(stopped)
    got = [next(batches) for _ in range(2)]
    fresh.load_state_dict(stopped.state_dict())
    got += list(fresh)
    assert len(got) == len(expected) == 5
    assert all(torch.equal(a, b) for (a,), (b,) in zip(got, expected, strict=True))


def test_two_ranks_see_disjoint_halves():
    parts = []
    for rank in (0, 1):
        data = set_up()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0)
        parts.append(windows(data.train_dataloader()))
    assert len(torch.cat(parts).flatten(1).unique(dim=0)) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "henon"}, "system='henon' is not one of 'lorenz', 'chua'"),
        ({"topology": "star"}, "topology='star' is not one of 'random', 'small_world', 'scale_free', nor a matrix"),
        ({"topology": "none.npy"}, "topology='none.npy': there is no such file"),
        ({"topology": [[0.0, 1.0]]}, "topology of shape (1, 2): give a matrix of weights (nodes, nodes)"),
        ({"num_nodes": 1}, "num_nodes=1: a network has at least two"),
        ({"density": -1.0}, "density=-1.0 must be above 0 and at most 1"),
        ({"coupling_mean": float("nan")}, "coupling_mean=nan must be finite"),
        ({"coupling_std": -0.1}, "coupling_std=-0.1 is a standard deviation"),
        ({"negative_fraction": 2.0}, "negative_fraction=2.0 must lie between 0 and 1"),
        ({"heterogeneity": -0.1}, "heterogeneity=-0.1 is a standard deviation"),
        ({"observation_noise": -0.1}, "observation_noise=-0.1 is a standard deviation"),
        ({"dynamical_noise": float("inf")}, "dynamical_noise=inf is a standard deviation"),
        ({"num_trajectories": 0}, "num_trajectories=0 must be at least 1"),
        ({"num_val": -1}, "num_val=-1 must be at least 0"),
        ({"num_test": 0}, "num_test=0 must be at least 1"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"horizon": 0}, "horizon=0 must be at least 1"),
        ({"dt": -0.1}, "dt=-0.1 must be positive"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"window": 121}, "window=121 steps are longer than a trajectory of the train split, which has 121 samples"),
        ({"horizon": 200}, "horizon=200 steps are longer than a trajectory of the test split, which has 121 samples"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        set_up(**arguments)


def test_a_network_that_synchronises_is_named():
    with pytest.raises(ValueError, match=r"nodes \d and \d move together \(correlation 1.000000\)"):
        set_up(coupling_mean=20.0, density=1.0, transient=5000, dt=0.01)


def test_a_network_that_diverges_is_named():
    with pytest.raises(FloatingPointError, match="the network is not finite at step"):
        set_up(coupling_mean=1000.0, density=1.0)
