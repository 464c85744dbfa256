"""Networks that start from a checkpoint: their masks, what starts anew, which file, and what is refused."""

import os
from functools import partial

import pytest
import torch
from ddp_training import FORKED, load, train_sparse
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import backprop, loader, trainer, weights

from lightning_nobp.callbacks import SparsityMask
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import CNN, MLP
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.rules import SparseProp

NETWORK = partial(MLP, hidden_dims=(8, 6), batch_norm=True)
ADAM = partial(torch.optim.Adam, lr=0.02)


def make(seed=9, **kwargs):
    """Other weights and other masks than those of the pretrained network."""
    torch.manual_seed(seed)
    defaults = {"network": NETWORK, "num_classes": 3, "input_shape": (1, 2, 3), "loss": "cross_entropy"}
    return SparseProp(**defaults | {"sparsity": None, "seed": seed, "optimizer": ADAM} | kwargs)


def fit(folder, rule, *callbacks, **kwargs):
    run = trainer(folder, callbacks=list(callbacks), **{"log_every_n_steps": 100} | kwargs)
    run.fit(rule, loader())
    return run


def start(folder, rule):
    """The rule as it stands before the first step of a fit."""
    fit(folder, rule, limit_train_batches=0)
    return rule


def masks(rule):
    return {n: m.mask.clone() for n, m in rule.network.named_modules() if isinstance(m, SparseLayer)}


def same_state(rule, other):
    """Also of a dense network and a sparse one."""
    state, expected = rule.network.state_dict(), other.network.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.fixture
def sparse(tmp_path):
    """A sparse network, trained by RigL, and its checkpoint."""
    rule = make(seed=0, sparsity=0.6)
    fit(tmp_path, rule, SparsityMask("rigl", every=1, end=5)).save_checkpoint(tmp_path / "sparse.ckpt")
    return rule, str(tmp_path / "sparse.ckpt")


@pytest.fixture
def dense(tmp_path):
    """A dense network, trained, and its checkpoint."""
    rule = backprop(network=NETWORK)
    fit(tmp_path, rule).save_checkpoint(tmp_path / "dense.ckpt")
    return rule, str(tmp_path / "dense.ckpt")


def test_masks_of_a_sparse_checkpoint_are_taken_over_and_stay(tmp_path, sparse):
    pretrained, path = sparse
    rule = start(tmp_path, make(pretrained=path))
    assert same_state(rule, pretrained)
    assert sum(int(mask.sum()) for mask in masks(rule).values()) == 46  # Of 114 weights 45.6.
    fit(tmp_path, rule, max_epochs=2)
    for name, mask in masks(pretrained).items():
        assert torch.equal(masks(rule)[name], mask)
        assert not torch.equal(rule.network.get_submodule(name).values, pretrained.network.get_submodule(name).values)


def test_a_weight_that_is_there_and_zero_is_still_there_afterwards(tmp_path, sparse):
    pretrained, path = sparse
    layer = pretrained.network[1]
    layer.values.data[::3] = 0
    run = trainer(tmp_path)
    run.strategy.connect(pretrained)
    run.save_checkpoint(path)
    assert torch.equal(start(tmp_path, make(pretrained=path)).network[1].mask, layer.mask)


@pytest.mark.parametrize("plain", [False, True])
def test_minus_zeros_of_a_pruned_dense_network_are_absent(tmp_path, dense, plain):
    pretrained, path = dense
    weight = pretrained.network[1].weight
    weight.data *= weight > 0.1
    assert ((weight == 0) & weight.signbit()).any()
    run = trainer(tmp_path)
    run.strategy.connect(pretrained)
    torch.save(pretrained.network.state_dict(), path) if plain else run.save_checkpoint(path)
    assert torch.equal(start(tmp_path, make(pretrained=path)).network[1].mask, weight > 0.1)


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_a_dense_checkpoint_is_pruned_by_magnitude(tmp_path, dense, distribution):
    pretrained, path = dense
    rule = start(tmp_path, make(pretrained=path, sparsity=0.75, distribution=distribution))
    pool = torch.cat([pretrained.network[k].weight.abs().flatten() for k in (1, 4, 7)])
    assert sum(int(mask.sum()) for mask in masks(rule).values()) == 28  # A half is rounded to the even number.
    for name, mask in masks(rule).items():
        weight = pretrained.network.get_submodule(name).weight
        assert torch.equal(rule.network.get_submodule(name).weight, weight * mask)
        limit = pool.sort(descending=True).values[27] if distribution == "global" else weight[~mask].abs().max()
        assert weight[mask].abs().min() >= limit
    for buffer, expected in zip(rule.network.buffers(), pretrained.network.buffers(), strict=True):
        assert torch.equal(buffer, expected)


def test_random_weights_of_a_dense_checkpoint_can_be_kept(tmp_path, dense):
    pretrained, path = dense
    rule = make(pretrained=path, sparsity=0.75, method="random")
    drawn = masks(rule)
    start(tmp_path, rule)
    for name, mask in masks(rule).items():
        assert torch.equal(mask, drawn[name])
        assert torch.equal(
            rule.network.get_submodule(name).weight, pretrained.network.get_submodule(name).weight * mask
        )


def test_excluded_layers_are_filled_and_stay_dense(tmp_path, dense):
    pretrained, path = dense
    rule = start(tmp_path, make(pretrained=path, sparsity=0.75, exclude=["7"]))
    assert torch.equal(rule.network[7].weight, pretrained.network[7].weight)
    assert masks(rule).keys() == {"1", "4"}


@pytest.mark.parametrize("sparsity", [None, 0.75])
def test_fresh_layers_start_anew(tmp_path, sparse, sparsity):
    pretrained, path = sparse
    settings = {"num_classes": 2, "sparsity": sparsity}
    rule, plain = make(pretrained=path, fresh=["7"], **settings), make(method="magnitude", **settings)
    rule.load_pretrained(path)
    assert torch.equal(rule.network[7].weight, plain.network[7].weight)
    assert torch.equal(rule.network[7].bias, plain.network[7].bias)
    for k in (1, 2, 4, 5):
        kept = rule.network[k].weight
        assert torch.equal(kept, pretrained.network[k].weight * (kept != 0))
    if sparsity is None:
        assert masks(rule)["7"].all()
        assert all(torch.equal(masks(rule)[k], masks(pretrained)[k]) for k in ("1", "4"))
    # The pattern may name more than one layer, and only layers with weights count.
    other = make(pretrained=path, fresh=["4", "5", "7"])
    other.load_pretrained(path)
    assert torch.equal(other.network[4].weight, make().network[4].weight)


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
def test_with_fresh_layers_the_network_is_as_sparse_as_was_asked(dense, distribution):
    rule = make(pretrained=dense[1], fresh=["7"], num_classes=2, sparsity=0.75, distribution=distribution)
    rule.load_pretrained(rule.pretrained)
    assert sum(int(mask.sum()) for mask in masks(rule).values()) == (48 + 48 + 12) // 4


def test_of_several_files_the_newest_is_taken(tmp_path, sparse, dense):
    (tmp_path / "runs").mkdir()
    os.replace(sparse[1], tmp_path / "runs" / "a.ckpt")
    os.replace(dense[1], tmp_path / "runs" / "c.ckpt")
    torch.save(dense[0].network.state_dict(), tmp_path / "runs" / "b.ckpt")
    for name, age in (("a", 100), ("b", 300), ("c", 200)):
        os.utime(tmp_path / "runs" / f"{name}.ckpt", (1e9 - age, 1e9 - age))
    rule = make(pretrained=str(tmp_path / "runs" / "*.ckpt"))
    rule.load_pretrained(rule.pretrained)
    assert same_state(rule, sparse[0])
    # Among them is a file that holds a network's state_dict and nothing else.
    rule.load_pretrained(tmp_path / "runs" / "b.ckpt")
    assert same_state(rule, dense[0])


def test_files_and_networks_that_do_not_fit_are_refused(tmp_path, sparse):
    missing = str(tmp_path / "none" / "*.ckpt")
    with pytest.raises(FileNotFoundError, match=r"pretrained='.*none/\*\.ckpt': there is no such file. Train first"):
        fit(tmp_path, make(pretrained=missing))
    for changes, names in (
        ({"num_classes": 4}, r"7\.(weight|bias), 7\.(weight|bias)\."),
        ({"network": partial(MLP, hidden_dims=(8, 6, 5), batch_norm=True)}, r"7\.weight.*10\.weight"),
        ({"network": CNN, "input_shape": (1, 8, 8)}, r"1\.weight"),
    ):
        rule = make(pretrained=sparse[1], **changes)
        state = weights(rule)
        with pytest.raises(ValueError, match=rf"pretrained='.*sparse.ckpt' is of another network: .*{names}.*fresh"):
            rule.load_pretrained(rule.pretrained)
        assert torch.equal(weights(rule), state)


def test_fresh_patterns_without_a_layer_are_refused_by_their_own_name(sparse):
    rule = make(pretrained=sparse[1], fresh=["7", "head"])
    with pytest.raises(ValueError, match=r"fresh='head' matches no layer"):
        rule.load_pretrained(rule.pretrained)


@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_run_goes_on_from_its_own_checkpoint_when_the_pretrained_file_is_gone(tmp_path, step):
    def run(folder, ckpt_path=None, **kwargs):
        torch.manual_seed(0 if ckpt_path is None else 1)
        network = partial(MLP, hidden_dims=(16,), dropout=0.2)
        rule = SparseProp(network=network, loss="cross_entropy", optimizer=ADAM, **kwargs)
        saved = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        run = trainer(folder, max_epochs=2, callbacks=[saved], enable_checkpointing=True)
        run.fit(rule, datamodule=DigitsDataModule(batch_size=64, subset=300, val_size=50), ckpt_path=ckpt_path)
        return rule

    run(tmp_path / "first", sparsity=0.8)
    [path] = (tmp_path / "first").glob(f"step={step}.ckpt")
    settings = {"sparsity": None, "pretrained": str(path)}
    whole = run(tmp_path / "second", **settings)
    path.unlink()
    resumed = run(tmp_path / "third", tmp_path / "second" / f"step={step}.ckpt", **settings)
    assert same_state(resumed, whole)
    assert 0 < sum(int(mask.sum()) for mask in masks(whole).values()) < 0.25 * (64 * 16 + 16 * 10)
    # Nor is it needed to look at the network.
    again = SparseProp.load_from_checkpoint(tmp_path / "second" / f"step={step}.ckpt")
    assert masks(again).keys() == masks(whole).keys()
    assert all(torch.equal(mask, masks(again)[name]) for name, mask in masks(whole).items())


def test_a_fine_tuned_network_that_is_loaded_and_trained_again_is_not_the_pretrained_one(tmp_path, sparse):
    tuned = make(pretrained=sparse[1])
    fit(tmp_path, tuned, max_epochs=2).save_checkpoint(tmp_path / "tuned.ckpt")
    again = start(tmp_path, SparseProp.load_from_checkpoint(tmp_path / "tuned.ckpt"))
    assert same_state(again, tuned)
    assert same_state(start(tmp_path, tuned), again)


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_two_processes_fine_tune_as_one(tmp_path, engine):
    torch.save({f"network.{k}": v for k, v in trained(tmp_path).items()}, tmp_path / "first.pt")
    for strategy in ("auto", FORKED):
        train_sparse(tmp_path, strategy, None, sparsity=None, engine=engine, pretrained=str(tmp_path / "first.pt"))
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert len(single["weights"]) == 40 + 3 + 108
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-12, atol=1e-12)


def trained(folder):
    """A sparse network for the two processes: 30 % of 240 + 120 weights."""
    rule = make(seed=0, network=partial(MLP, hidden_dims=(40,)), sparsity=0.7)
    fit(folder, rule)
    return rule.network.state_dict()
