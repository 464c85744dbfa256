"""Sparse layers against torch's dense ones under the mask, in float64."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lightning_nobp.nn import SparseConv2d, SparseLinear, check_supported, vjp

LAYERS = {
    "linear": (nn.Linear(12, 7), (5, 12)),
    "linear without bias": (nn.Linear(12, 7, bias=False), (5, 12)),
    "linear on sequences": (nn.Linear(12, 7), (5, 3, 12)),
    "conv": (nn.Conv2d(3, 5, 3, padding=1), (4, 3, 8, 9)),
    "conv, strided, grouped": (nn.Conv2d(4, 6, (3, 2), (2, 1), (0, 2), groups=2, bias=False), (4, 4, 8, 9)),
    "conv, valid": (nn.Conv2d(3, 5, 3, stride=2, padding="valid"), (4, 3, 8, 9)),
    "conv, same": (nn.Conv2d(3, 5, (3, 5), padding="same", dilation=2), (4, 3, 12, 9)),
    "conv, uneven same": (nn.Conv2d(3, 5, (2, 4), padding="same"), (4, 3, 8, 9)),
    "conv, reflect": (nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="reflect"), (4, 3, 8, 9)),
    "conv, replicate": (nn.Conv2d(3, 5, 3, stride=2, padding=2, padding_mode="replicate"), (4, 3, 8, 9)),
    "conv, circular": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (4, 3, 8, 9)),
    "conv, uneven circular same": (nn.Conv2d(3, 5, (4, 2), padding="same", padding_mode="circular"), (4, 3, 8, 9)),
}
PADS_ITSELF = [name for name in LAYERS if not name.endswith(("uneven same", "reflect", "replicate", "circular"))][:-1]
KINDS = {"linear": lambda **a: SparseLinear(6, 4, **a), "conv": lambda **a: SparseConv2d(3, 4, 2, **a)}
X = {"linear": (5, 6), "conv": (2, 3, 5, 4)}


def twins(name, density=0.3):
    """A dense layer with zeros, the sparse layer of the same weights, an input and the mask."""
    layer, shape = LAYERS[name]
    dense = copy.deepcopy(layer).double()
    mask = torch.rand(dense.weight.shape) < density
    with torch.no_grad():
        dense.weight[~mask] = 0
    kind = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
    # The bias is the dense layer's own.
    return dense, kind.from_dense(copy.deepcopy(dense), mask), torch.randn(shape, dtype=torch.float64), mask


def sparse_layer(kind="linear", density=0.5, **arguments):
    shape = KINDS[kind]().weight.shape
    return KINDS[kind](mask=torch.rand(shape) < density, **arguments)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-12 * expected.norm()


# Products


@pytest.mark.parametrize("threshold", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_dense_one_under_the_mask(name, threshold):
    dense, sparse, x, mask = twins(name)
    sparse.threshold = threshold
    assert sparse.backend == ("torch" if threshold else "auto")
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    actual, expected = sparse(leaves[0]), dense(leaves[1])
    grad = torch.randn_like(expected)
    actual.backward(grad)
    expected.backward(grad)
    assert_close(actual, expected)
    assert_close(leaves[0].grad, leaves[1].grad)
    assert_close(sparse.values.grad, dense.weight.grad[mask])
    if dense.bias is not None:
        assert_close(sparse.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("name", PADS_ITSELF)
@pytest.mark.parametrize("frozen", ["", "values", "bias"])
def test_written_out_gradients_are_those_of_autograd(name, frozen):
    _, layer, x, _ = twins(name)
    network = nn.Sequential(layer, nn.Tanh(), nn.Flatten())
    parameters = dict(layer.named_parameters())
    for parameter in parameters:
        parameters[parameter].requires_grad_(parameter != frozen)
    leaf = x.clone().requires_grad_()
    expected = network(leaf)
    probe = torch.randn_like(expected)
    expected.backward(probe)
    wanted = {n: p.grad for n, p in parameters.items()}
    network.zero_grad()
    y, pullback = vjp(network, x, needs_input_grad=True)
    grad_x = pullback(probe.clone())
    assert torch.equal(y, expected)
    assert_close(grad_x, leaf.grad)
    for n, p in parameters.items():
        assert (p.grad is None) == (n == frozen)
        assert n == frozen or (p.grad - wanted[n]).norm() <= 1e-12 * wanted[n].norm()


@pytest.mark.parametrize("name", sorted(set(LAYERS) - set(PADS_ITSELF)))
def test_padding_without_a_written_backward_pass_is_refused(name):
    with pytest.raises(TypeError, match=r"network\.0 is a SparseConv2d with padding_mode=.*engine='autograd'"):
        check_supported(nn.Sequential(twins(name)[1]))


@pytest.mark.parametrize("way", ["autograd", "vjp"])
@pytest.mark.parametrize("name", ["linear", "linear on sequences", "conv", "conv, strided, grouped"])
def test_the_gradient_of_the_dense_weight_is_recorded_where_it_is_wanted(name, way):
    dense, sparse, x, mask = twins(name)

    def backward():
        if way == "autograd":
            sparse(x).square().sum().backward()
        else:
            y, pullback = vjp(sparse, x)
            pullback(2 * y)

    backward()
    assert sparse.dense_grad is None
    dense(x).square().sum().backward()
    sparse.values.grad, sparse.records_dense_grad = None, True
    for passes in (1, 2):
        backward()
        assert_close(sparse.dense_grad, passes * dense.weight.grad)
        assert_close(sparse.values.grad, passes * dense.weight.grad[mask])
    sparse.values.requires_grad_(False)
    sparse.dense_grad = None
    if sparse.bias is not None:
        backward()
        assert sparse.dense_grad is None


def test_the_threshold_says_which_product_is_taken():
    layer = SparseLinear(10, 10, mask=torch.arange(100).view(10, 10) >= 70)
    x = torch.randn(3, 10, requires_grad=True)
    for threshold, native in ((0.7, True), (0.71, False), (0.0, True), (1.0, False)):
        layer.threshold = threshold
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        if native:
            # Of the kernels no second derivative is known.
            with pytest.raises(RuntimeError, match="can be differentiated once"):
                grad.sum().backward()
        else:
            grad.sum().backward()
    layer.set_mask(torch.arange(100).view(10, 10) >= 50)
    for threshold, backend in ((0.5, "auto"), (0.6, "torch")):
        layer.threshold = threshold
        assert layer.backend == backend


def test_small_layers_and_sparse_ones_use_the_kernels_from_the_start():
    half = (torch.arange(128) % 2 == 0).expand(128, 128)
    more = half & (torch.arange(128) < 126)
    for mask, backend in (
        (half, "auto"),
        (more, "auto"),
        (~more, "torch"),
        (~more[1:], "auto"),
        (half | True, "torch"),
    ):
        assert SparseLinear(128, len(mask), mask=mask).backend == backend


# From dense layers, to dense layers, and the start


@pytest.mark.parametrize("name", LAYERS)
def test_to_dense_gives_back_the_very_layer(name):
    dense, _, x, _ = twins(name)
    dense.eval().weight.requires_grad_(False)
    sparse = type(twins(name)[1]).from_dense(dense)
    back = sparse.to_dense()
    assert torch.equal(sparse.mask, dense.weight != 0)
    assert sparse.bias is back.bias is dense.bias
    assert repr(back) == repr(dense)
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back(x), dense(x))
    for layer in (sparse.values, back.weight, sparse, back):
        assert not (layer.training if isinstance(layer, nn.Module) else layer.requires_grad)


@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize("name", LAYERS)
def test_a_new_layer_starts_as_a_dense_one_of_as_many_inputs(name, density):
    dense, _ = LAYERS[name]
    mask = (torch.arange(dense.weight.numel()).view(dense.weight.shape) % 4 == 0) | (density == 1)
    arguments = [dense.in_features, dense.out_features] if isinstance(dense, nn.Linear) else []
    if not arguments:
        arguments = [dense.in_channels, dense.out_channels, dense.kernel_size, dense.stride, dense.padding]
        arguments += [dense.dilation, dense.groups]
    arguments.append(dense.bias is not None)
    torch.manual_seed(3)
    expected = type(dense)(*arguments)
    torch.manual_seed(3)
    sparse = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}[type(dense)](*arguments, mask=mask)
    torch.testing.assert_close(sparse.values, expected.weight[mask] / math.sqrt(mask.double().mean()))
    assert dense.bias is None or torch.equal(sparse.bias, expected.bias)
    assert f"sparsity={1 - mask.double().mean():.4g}" in repr(sparse)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_mask_is_named(kind):
    layer, other = KINDS[kind](), torch.ones(2, 2, dtype=torch.bool)
    for use in (lambda mask: KINDS[kind](mask=mask), layer.set_mask):
        with pytest.raises(TypeError, match=r"mask of type torch\.float32: give a bool mask"):
            use(torch.ones_like(layer.weight))
        with pytest.raises(ValueError, match=r"mask of shape \(2, 2\): the weight's shape is \(4, "):
            use(other)


# Copies, types and devices


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_equal_and_independent(kind, clone):
    layer, x = sparse_layer(kind), torch.randn(X[kind])
    before, twin = layer(x), clone(layer)
    assert torch.equal(twin(x), before)
    twin.set_mask(~twin.mask)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_layer_goes_to_another_type(kind, dtype):
    layer, x = sparse_layer(kind), torch.randn(X[kind])
    expected = layer.to_dense().to(dtype)(x.to(dtype))
    y = layer.to(dtype)(x.to(dtype))
    torch.testing.assert_close(y, expected)
    assert layer.structure.column.dtype is torch.int32
    y.sum().backward()
    assert layer.values.grad.dtype is dtype


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_without_memory_knows_its_mask_and_shapes(kind):
    mask = torch.rand(KINDS[kind]().weight.shape) < 0.5
    layer = KINDS[kind](mask=mask, device="meta")
    assert layer.values.is_meta
    assert layer.bias.is_meta
    assert torch.equal(layer.mask, mask)
    assert layer(torch.empty(X[kind], device="meta")).shape == KINDS[kind]()(torch.empty(X[kind])).shape


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_keeps_its_mask_when_it_gets_memory(kind):
    layer = sparse_layer(kind, device="meta")
    expected = [index.clone() for index in layer.structure.tensors()]
    layer.to_empty(device="cpu")
    assert all(map(torch.equal, layer.structure.tensors(), expected))


# Other masks


def moved(entries, old, new):
    """By way of the dense tensor."""
    return torch.zeros(old.shape, dtype=entries.dtype).masked_scatter(old, entries)[new]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(0.5, 0.5), (0.0, 0.4), (0.4, 0.0), (1.0, 0.3), (0.3, 1.0)])
@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), []),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), ["momentum_buffer"]),
        (lambda p: torch.optim.Adam(p, amsgrad=True), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    ],
)
def test_another_mask_takes_value_gradient_and_optimizer_state_along(kind, before, after, optimizer, names):
    layer = sparse_layer(kind, before)
    optimizer, other = optimizer(layer.parameters()), torch.optim.SGD([layer.bias], lr=0.1)
    for _ in range(2):
        layer(torch.randn(X[kind])).square().sum().backward()
        optimizer.step()
    old, new, parameter = layer.mask, torch.rand(layer.mask.shape) < after, layer.values
    state = optimizer.state[parameter]
    entries = {"values": parameter.detach().clone(), "grad": parameter.grad, **{name: state[name] for name in names}}
    steps = state.get("step")
    layer.set_mask(new, optimizer if kind == "linear" else [other, optimizer])
    assert layer.values is parameter
    assert torch.equal(layer.mask, new)
    assert layer.sparsity == pytest.approx(1 - new.double().mean().item())
    found = {"values": parameter.detach(), "grad": parameter.grad, **{name: state[name] for name in names}}
    for name, entry in entries.items():
        assert torch.equal(found[name], moved(entry, old, new)), name
    assert state.get("step") is steps
    layer(torch.randn(X[kind])).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("threshold", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_another_mask_between_forward_and_backward_pass_is_refused(kind, threshold, records):
    for way in ("autograd", "vjp"):
        layer, x = sparse_layer(kind), torch.randn(X[kind])
        layer.threshold, layer.records_dense_grad = threshold, records
        y, pullback = vjp(layer, x) if way == "vjp" else (layer(x), None)
        # As many weights at other places: no shape gives it away.
        layer.set_mask(layer.mask.flatten().roll(1).view_as(layer.mask))
        if way == "vjp":
            with pytest.raises(
                RuntimeError, match=r"mask of a Sparse\w+ was changed between its forward and its backw"
            ):
                pullback(torch.ones_like(y))
        else:
            with pytest.raises(RuntimeError, match=r"modified by an inplace operation|mask of a Sparse.* was changed"):
                y.sum().backward()
