"""A dense layer under a mask trains as a sparse layer does, whatever chooses the mask."""

from functools import partial

import pytest
import torch
from masked import OPTIMIZERS, cnn, fit, layers, masks, mlp, pruned

from lightning_nobp.callbacks import SparsityMask
from lightning_nobp.nn.sparse import SparseLayer

CASES = {
    "one_shot": {},
    "one_shot, later, of all": {"begin": 3, "distribution": "global"},
    "gradual": {"every": 2, "end": 9},
    "gradual, later, linear": {"begin": 2, "every": 3, "schedule": "linear", "distribution": "erk"},
    "gradual, of all": {"every": 1, "end": 12, "distribution": "global"},
    "random": {},
    "random, later": {"begin": 4, "distribution": "uniform", "seed": 5},
    "gradient": {},
    "gradient, later, of all": {"begin": 5, "distribution": "global"},
    "set": {"every": 2, "end": 12},
    "set, later, constant": {"begin": 3, "every": 1, "schedule": "constant", "regrow": True, "drop_fraction": 0.5},
    "rigl": {"every": 2, "end": 12},
    "rigl, later": {"begin": 3, "every": 2, "end": 12, "rescale": False, "distribution": "uniform"},
    "rigl, constant": {"every": 1, "end": 12, "schedule": "constant", "regrow": True, "drop_fraction": 0.5},
    "n_m": {"sparsity": None, "n_m": (1, 2)},
    "fixed": {"sparsity": None},
}


def assert_alike(folder, network, make_mask, **kwargs):
    """Train dense and sparse layers from the same weights; returns the dense ones."""
    sparse = kwargs.pop("sparse", {"threshold": 0.0})
    references = [make_mask(), make_mask()]
    dense = fit(folder, network(), references[0], **kwargs)
    rule = fit(folder, network(), references[1], sparse=sparse, **kwargs)
    assert any(isinstance(m, SparseLayer) for m in layers(rule).values())
    for name, mask in masks(dense, references[0]).items():
        assert torch.equal(mask, masks(rule, references[1])[name])
    expected = dense.network.state_dict()
    for name, weight in rule.network.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected["5.bias"], network().double()[5].bias)
    return dense, references[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_dense_layers_under_a_mask_train_as_sparse_ones(tmp_path, case, optimizer):
    mask = partial(SparsityMask, case.partition(",")[0], **{"sparsity": 0.6} | CASES[case])
    network = pruned if case == "fixed" else mlp
    dense, found = assert_alike(tmp_path, network, mask, optimizer=OPTIMIZERS[optimizer], gradient_clip_val=0.3)
    kept, total = sum(int(mask.sum()) for mask in masks(dense, found).values()), 48 + 48 + 18
    assert kept == {"n_m": total // 2, "fixed": sum(int((pruned()[k].weight != 0).sum()) for k in (1, 3, 5))}.get(
        case, round(0.4 * total)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", ["gradual, of all", "gradient, later, of all", "set", "rigl, constant", "n_m"])
def test_dense_convolutions_under_a_mask_train_as_sparse_ones(tmp_path, case, optimizer):
    mask = partial(SparsityMask, case.partition(",")[0], **{"sparsity": 0.6} | CASES[case])
    only = {"include": ("*.2", "*.5")} if case == "n_m" else {}
    sparse = {"threshold": 0.3, "include": ("2", "5")} if case == "n_m" else {"threshold": 0.3}
    assert_alike(tmp_path, cnn, partial(mask, **only), optimizer=OPTIMIZERS[optimizer], sparse=sparse)


@pytest.mark.parametrize("case", ["gradual", "rigl", "gradient"])
@pytest.mark.parametrize("options", [{"engine": "autograd"}, {"sparse": {"include": ["3"]}}])
def test_other_engines_and_networks_with_some_sparse_layers_train_alike(tmp_path, case, options):
    assert_alike(tmp_path, mlp, partial(SparsityMask, case, 0.6, **CASES[case]), **options)


@pytest.mark.parametrize("case", ["rigl, constant", "gradient"])
@pytest.mark.parametrize("num_samples", [96, 81])
def test_dense_and_sparse_layers_accumulate_alike(tmp_path, case, num_samples):
    # 81 = 5 * 16 + 1: the last step of an epoch joins a batch of 16 samples and one of a single sample.
    options = CASES[case] | {"begin": 2 if case == "gradient" else 0}
    mask = partial(SparsityMask, case.partition(",")[0], 0.6, **options)
    assert_alike(tmp_path, mlp, mask, accumulate_grad_batches=2, num_samples=num_samples)
