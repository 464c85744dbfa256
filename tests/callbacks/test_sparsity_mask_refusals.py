"""What masks refuse, at the door or when training starts, what they warn of, and what they put up with."""

import warnings
from functools import partial

import lightning as L
import pytest
import torch
from imperfect import Ordinary
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import SparsityMask
from lightning_nobp.nn import MLP, ForwardForwardMLP
from lightning_nobp.rules import ForwardForward, ResidualCompensation, SparseProp


def fit(folder, module, *callbacks, max_epochs=2, **kwargs):
    run = trainer(folder, callbacks=list(callbacks), max_epochs=max_epochs, **kwargs)
    run.fit(module, loader())
    return run


def rule(sparse, **kwargs):
    """The toys' rule, or one with sparse layers in the place of the dense ones."""
    dense = backprop(**kwargs)
    if not sparse:
        return dense
    settings = {"num_classes": 3, "input_shape": (1, 2, 3), "loss": "cross_entropy", "sparsity": None}
    return SparseProp(network=dense.network, **settings | kwargs)


HALF = {"sparsity": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "prune"}, "method='prune' is not one of 'one_shot', 'gradual', .*'fixed'"),
        ({"method": "random", "sparsity": 1.0}, r"sparsity=1.0 is not in \[0, 1\)"),
        ({"method": "set", "sparsity": -0.1}, r"sparsity=-0.1 is not in \[0, 1\)"),
        *(
            ({"method": method}, f"sparsity=None: method='{method}' needs one")
            for method in ("one_shot", "gradual", "random", "gradient")
        ),
        *(({"method": method, "sparsity": 0.5}, f"method='{method}' knows none") for method in ("fixed", "n_m")),
        (HALF | {"schedule": "cosine"}, "schedule='cosine': method='gradual' knows 'cubic', 'linear'"),
        (HALF | {"schedule": "cubic", "method": "rigl"}, "schedule='cubic': method='rigl' knows 'cosine', 'constant'"),
        (HALF | {"schedule": "linear", "method": "set"}, "schedule='linear': method='set' knows 'cosine', 'constant'"),
        (HALF | {"schedule": "constant", "method": "random"}, "schedule='constant': method='random' knows none"),
        (HALF | {"begin": -1}, "begin=-1, end=None, every=100: they count steps"),
        (HALF | {"every": 0}, "begin=0, end=None, every=0: they count steps"),
        (HALF | {"begin": 5, "end": 4}, "begin=5, end=4, every=100: .* the end is not before the begin"),
        ({"method": "rigl", "drop_fraction": 1.1}, r"drop_fraction=1.1 is not in \[0, 1\]"),
        ({"method": "rigl", "drop_fraction": -0.1}, r"drop_fraction=-0.1 is not in \[0, 1\]"),
        (HALF | {"distribution": "even"}, "distribution='even' is not one of 'uniform', 'global', 'erk'"),
        ({"method": "n_m", "n_m": (5, 4)}, "n=5 of m=4|n_m="),
        ({"method": "n_m", "n_m": (0, 4)}, "n=0 of m=4|n_m="),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparsityMask(**arguments)


def test_bounds_of_the_ranges_are_taken(tmp_path):
    SparsityMask("rigl", 0.5, drop_fraction=1.0, begin=3, end=3, every=1)
    module = backprop()
    fit(tmp_path, module, SparsityMask("one_shot", 0.0))
    assert all((module.network[k].weight != 0).all() for k in (1, 3))


def test_closed_forms_are_refused(tmp_path):
    module = ResidualCompensation(num_classes=3, input_shape=(1, 8, 8))
    with pytest.raises(MisconfigurationException, match="a ResidualCompensation solves for its weights: train with"):
        fit(tmp_path, module, SparsityMask("random", 0.5), max_epochs=-1)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"include": ["network.1", "encoder.*"]},
            r"include='encoder\.\*' matches no layer .*'network.1', 'network.3'",
        ),
        ({"exclude": ["head"]}, "exclude='head' matches no layer"),
        ({"exclude": ["network.*"]}, "leave no layer with weights"),
    ],
)
def test_patterns_without_a_layer_are_refused(tmp_path, patterns, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, backprop(), SparsityMask("random", 0.5, **patterns))


def test_layers_that_share_their_weight_are_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    network[3].weight = network[1].weight
    with pytest.raises(MisconfigurationException, match=r"'network\.1' and 'network\.3' share"):
        fit(tmp_path, backprop(network=network), SparsityMask("random", 0.5))


def test_groups_that_do_not_divide_a_layers_inputs_are_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"n_m=\(2, 4\)\), layer 'network.1': m=4 .* the 6 inputs"):
        fit(tmp_path, backprop(), SparsityMask("n_m"))
    fit(tmp_path, backprop(), SparsityMask("n_m", include=["*.3"]))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_dense_networks_need_a_sparsity(tmp_path, method, sparse):
    with pytest.raises(MisconfigurationException, match=rf"method='{method}', sparsity=None\): .* give a sparsity"):
        fit(tmp_path, rule(sparse), SparsityMask(method))


def test_sparse_networks_need_none_and_keep_theirs(tmp_path):
    module = SparseProp(
        network=MLP((1, 2, 3), 3, (8, 6)), num_classes=3, sparsity=0.6, distribution="uniform", exclude=["1"]
    )
    before = {k: module.network[k].mask.clone() for k in (3, 5)}
    fit(tmp_path, module, SparsityMask("set", every=1, end=9))
    for k, mask in before.items():
        assert module.network[k].mask.sum() == mask.sum() < mask.numel()
        assert not torch.equal(module.network[k].mask, mask)
    assert (module.network[1].weight != 0).all()


@pytest.mark.parametrize("method", ["gradual", "rigl"])
def test_endless_trainings_need_an_end(tmp_path, method):
    with pytest.raises(MisconfigurationException, match=r"end=None\): a training without an end"):
        fit(tmp_path, backprop(), SparsityMask(method, 0.5), max_epochs=-1)

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 8

    module = backprop()
    fit(tmp_path, module, SparsityMask(method, 0.5, end=6, every=2), Stop(), max_epochs=-1)
    assert sum(int((module.network[k].weight != 0).sum()) for k in (1, 3)) == 36


@pytest.mark.parametrize(
    ("options", "warns"),
    [({"end": 13}, True), ({"end": 12}, False), ({"begin": 13}, True), ({"end": 7, "accumulate": 2}, True)],
)
def test_pruning_that_will_not_be_finished_is_warned_of(tmp_path, options, warns):
    module = backprop(accumulate_grad_batches=options.pop("accumulate", 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, module, SparsityMask("gradual", 0.5, schedule="linear", every=2, **options))
    said = [str(w.message) for w in caught if "SparsityMask" in str(w.message)]
    reached = sum(int((module.network[k].weight != 0).sum()) for k in (1, 3)) == 36
    assert reached is not warns
    assert bool(said) is warns
    assert all("will not reach sparsity=0.5" in line for line in said)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("method", ["rigl", "gradient"])
def test_frozen_layers_have_no_gradient_to_choose_by(tmp_path, method, sparse):
    options = {"every": 2, "end": 8} if method == "rigl" else {}
    for exclude, refused in ((["network.3"], True), (["network.1"], False)):
        module = rule(sparse)
        module.network[1].requires_grad_(False)
        mask = SparsityMask(method, 0.5, exclude=exclude, **options)
        if refused:
            message = rf"method='{method}'\) needs the gradient of all weights of 'network.1'.*exclude the layer"
            with pytest.raises(MisconfigurationException, match=message):
                fit(tmp_path, module, mask)
        else:
            fit(tmp_path, module, mask)
            assert (module.network[3].weight != 0).sum() == 12


def test_unused_layers_and_layers_whose_turn_has_not_come_have_none_either(tmp_path):
    unused = Ordinary()
    unused.spare = nn.Linear(4, 4)
    network = partial(ForwardForwardMLP, hidden_dims=(8, 6))
    settings = {"num_classes": 3, "input_shape": (1, 2, 3), "schedule": "sequential", "epochs_per_layer": 1}
    for module, name in ((unused, "spare"), (ForwardForward(network=network, **settings), "network.layers.1")):
        with pytest.raises(MisconfigurationException, match=f"needs the gradient of all weights of '{name}'"):
            fit(tmp_path, module, SparsityMask("rigl", 0.5, every=2, end=8))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("method", ["rigl", "gradient"])
def test_a_step_that_is_skipped_chooses_nothing(tmp_path, method, sparse):
    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 1:
                batch[0].fill_(float("nan"))

    module = rule(sparse, on_nonfinite="skip")
    options = {"every": 2, "end": 8} if method == "rigl" else {"begin": 1}
    run = fit(tmp_path, module, SparsityMask(method, 0.5, **options), Spoil())
    assert run.callback_metrics["train/skipped_steps"] == 1
    assert sum(int((module.network[k].weight != 0).sum()) for k in (1, 3)) == 36
    assert all(p.isfinite().all() for p in module.parameters())
