"""Checkpoints of sparse networks are those of ordinary ones, and the other way round."""

import copy
import io

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from lightning_nobp.nn import SparseConv2d, SparseLinear, sparsify

KINDS = {
    "linear": (lambda **a: SparseLinear(6, 4, **a), lambda: nn.Linear(6, 4), (5, 6)),
    "conv": (lambda **a: SparseConv2d(3, 4, 2, **a), lambda: nn.Conv2d(3, 4, 2), (2, 3, 5, 4)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def sparse_layer(kind, density=0.5, **arguments):
    return kind[0](mask=torch.rand(kind[1]().weight.shape) < density, **arguments)


def with_zeros(kind, density=0.5):
    """A dense layer with zeros."""
    dense = kind[1]()
    with torch.no_grad():
        dense.weight.masked_fill_(torch.rand(dense.weight.shape) >= density, 0)
    return dense


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_sparse_resnet_loads_strictly_into_an_ordinary_one_and_back():
    dense = torchvision.models.resnet18(num_classes=10)
    sparse = sparsify(copy.deepcopy(dense), 0.9, exclude=["conv1"])
    state = through_a_file(sparse.state_dict())
    assert state.keys() == dense.state_dict().keys()
    dense.load_state_dict(state)
    other = sparsify(torchvision.models.resnet18(num_classes=10), 0.5, method="random", exclude=["conv1"])
    other.load_state_dict(dense.state_dict())
    x = torch.randn(2, 3, 32, 32)
    expected = sparse.eval()(x)
    torch.testing.assert_close(dense.eval()(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(other.eval()(x), expected)
    assert [layer.mask.sum() for layer in other.modules() if hasattr(layer, "mask")] == [
        layer.mask.sum() for layer in sparse.modules() if hasattr(layer, "mask")
    ]


def test_a_checkpoint_holds_what_a_dense_layers_does(kind):
    layer, dense = sparse_layer(kind), kind[1]()
    state = layer.state_dict()
    assert {name: entry.shape for name, entry in state.items()} == {n: e.shape for n, e in dense.state_dict().items()}
    assert torch.equal(state["weight"], layer.weight)
    dense.load_state_dict(state)
    x = torch.randn(kind[2])
    torch.testing.assert_close(dense(x), layer(x))


def test_the_zeros_of_a_dense_checkpoint_become_the_mask(kind):
    dense, layer = with_zeros(kind), sparse_layer(kind)
    parameter = layer.values
    layer.load_state_dict(dense.state_dict())
    assert layer.values is parameter
    assert torch.equal(layer.mask, dense.weight != 0)
    assert torch.equal(layer.weight, dense.weight)
    x = torch.randn(kind[2])
    torch.testing.assert_close(layer(x), dense(x))


def test_the_mask_of_a_pruned_checkpoint_is_taken_over(kind):
    # Weights times mask: zeros in the place of negative weights are negative.
    dense = kind[1]()
    prune.l1_unstructured(dense, "weight", 0.5)
    prune.remove(dense, "weight")
    assert dense.weight[dense.weight == 0].signbit().any()
    layer = kind[0]()
    layer.load_state_dict(dense.state_dict())
    assert layer.sparsity == 0.5
    assert torch.equal(layer.mask, sparsify(dense).mask)


def test_a_dense_checkpoint_without_zeros_leaves_the_mask(kind):
    dense, layer = kind[1](), sparse_layer(kind)
    mask = layer.mask
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.values, dense.weight[mask])


@pytest.mark.parametrize("zeros", [False, True])
def test_a_mask_in_the_checkpoint_wins(kind, zeros):
    dense = with_zeros(kind) if zeros else kind[1]()
    mask = torch.rand(dense.weight.shape) < 0.5
    layer = sparse_layer(kind)
    layer.load_state_dict({**dense.state_dict(), "mask": mask})
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.values, dense.weight[mask])


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_a_weight_that_happens_to_be_zero_stays_a_weight(kind, density):
    layer, other = sparse_layer(kind, density), kind[0]()
    with torch.no_grad():
        layer.values[::3] = 0
        layer.values[1] = -0.0
    mask = layer.mask
    assert torch.equal(layer.state_dict()["weight"], layer.to_dense().weight)
    other.load_state_dict(through_a_file(layer.state_dict()))
    assert torch.equal(other.mask, mask)
    assert torch.equal(other.values, layer.values)


def test_nothing_but_zeros_is_a_mask_too(kind):
    layer, dense = sparse_layer(kind), with_zeros(kind, density=0)
    layer.load_state_dict(dense.state_dict())
    assert layer.sparsity == 1
    assert layer.values.numel() == 0
    x = torch.randn(kind[2])
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 5)}, r"weight has shape \(5, 5\)"),
        ({"weight": None}, 'Missing key.*"layer.weight"'),
        ({"bias": None}, 'Missing key.*"layer.bias"'),
        ({"scale": torch.zeros(1)}, 'Unexpected key.*"layer.scale"'),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, "mask"),
        # As many entries, so that nothing but the shape tells.
        ({"mask": torch.ones(24, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(6, 4, dtype=torch.bool).triu()}, "mask"),
        ({"mask": torch.ones(4, 6)}, "mask"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change, message):
    model = nn.ModuleDict({"layer": sparse_layer(KINDS["linear"])})
    state = nn.ModuleDict({"layer": nn.Linear(6, 4)}).state_dict() | {f"layer.{k}": v for k, v in change.items()}
    before, structure = model["layer"].weight.clone(), model["layer"].structure
    with pytest.raises(RuntimeError, match=rf"(?s)Error\(s\) in loading state_dict for ModuleDict.*{message}"):
        model.load_state_dict({name: entry for name, entry in state.items() if entry is not None})
    if "weight" in change or "mask" in change:
        assert model["layer"].structure is structure
        assert torch.equal(model["layer"].weight, before)


def test_missing_weights_are_told_and_left_alone_where_loading_is_not_strict(kind):
    layer = sparse_layer(kind)
    before = layer.weight.clone()
    missing, unexpected = layer.load_state_dict({"bias": torch.ones(4), "other": torch.ones(1)}, strict=False)
    assert missing == ["weight"]
    assert unexpected == ["other"]
    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.bias, torch.ones(4))


def test_training_goes_on_under_a_mask_that_was_loaded(kind):
    layer, x = sparse_layer(kind, 0.8), torch.randn(kind[2])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).sum().backward()
    layer.load_state_dict(with_zeros(kind, 0.4).state_dict())
    for _ in range(2):
        layer(x).sum().backward()
        optimizer.step()
    assert layer.values.grad.shape == layer.values.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_take_the_layers_type(kind, dtype):
    dense, layer = with_zeros(kind), sparse_layer(kind, dtype=dtype)
    layer.load_state_dict(dense.state_dict())
    assert layer.values.dtype is dtype
    assert torch.equal(layer.weight, dense.weight.to(dtype))


def test_a_layer_without_memory_takes_over_a_checkpoint(kind):
    trained, x = sparse_layer(kind), torch.randn(kind[2])
    layer = sparse_layer(kind, device="meta")
    layer.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(layer.mask, trained.mask)
    assert torch.equal(layer(x), trained(x))
