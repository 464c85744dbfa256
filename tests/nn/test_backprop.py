"""Pullbacks of layers and networks against autograd, in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_nobp.nn import CNN, MLP, Residual, TwoClasses, accumulate_grad, check_supported, register_vjp, vjp

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "linear without bias": (nn.Linear(6, 4, bias=False), (5, 6)),
    "linear on sequences": (nn.Linear(6, 4), (5, 3, 6)),
    "conv": (nn.Conv2d(2, 4, 3, padding=1), (3, 2, 6, 5)),
    "conv, strided, grouped": (nn.Conv2d(4, 4, (3, 2), stride=2, groups=2, bias=False), (3, 4, 6, 5)),
    "conv, same": (nn.Conv2d(2, 3, 3, padding="same", dilation=2), (3, 2, 6, 5)),
    "conv, valid": (nn.Conv2d(2, 3, 3, padding="valid"), (3, 2, 6, 5)),
    "batch norm 1d": (nn.BatchNorm1d(6), (5, 6)),
    "batch norm 1d, sequences": (nn.BatchNorm1d(6), (5, 6, 3)),
    "batch norm 2d": (nn.BatchNorm2d(2), (5, 2, 3, 4)),
    "batch norm 2d, not affine": (nn.BatchNorm2d(2, affine=False), (5, 2, 3, 4)),
    "batch norm 2d, no running statistics": (nn.BatchNorm2d(2, track_running_stats=False), (5, 2, 3, 4)),
    "layer norm": (nn.LayerNorm((3, 4)), (5, 3, 4)),
    "layer norm, not affine": (nn.LayerNorm(4, elementwise_affine=False), (5, 3, 4)),
    "relu": (nn.ReLU(), (5, 6)),
    "relu, in place": (nn.ReLU(inplace=True), (5, 6)),
    "sigmoid": (nn.Sigmoid(), (5, 6)),
    "tanh": (nn.Tanh(), (5, 6)),
    "two classes": (TwoClasses(), (5, 1)),
    "gelu": (nn.GELU(), (5, 6)),
    "gelu, tanh": (nn.GELU("tanh"), (5, 6)),
    "max pool": (nn.MaxPool2d(2), (3, 2, 6, 5)),
    "max pool, overlapping": (nn.MaxPool2d(3, stride=1, padding=1), (3, 2, 6, 5)),
    "max pool, ceil": (nn.MaxPool2d(2, ceil_mode=True), (3, 2, 5, 5)),
    "avg pool": (nn.AvgPool2d(2), (3, 2, 6, 5)),
    "avg pool, overlapping": (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (3, 2, 6, 5)),
    "flatten": (nn.Flatten(), (3, 2, 6, 5)),
    "dropout": (nn.Dropout(0.4), (50, 6)),
    "dropout of everything": (nn.Dropout(1.0), (5, 6)),
    "identity": (nn.Identity(), (5, 6)),
    "batch norm 2d, cumulative": (nn.BatchNorm2d(2, momentum=None), (5, 2, 3, 4)),
    "relu before a maximum": (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2)), (3, 2, 8, 9)),
    "residual of in-place pullbacks": (Residual(nn.ReLU(), nn.GELU()), (5, 6)),
    "residual": (Residual(nn.Sequential(nn.Linear(6, 6), nn.Tanh())), (5, 6)),
    "residual with shortcut": (Residual(nn.Linear(6, 4), nn.Linear(6, 4)), (5, 6)),
    "nested": (nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(5, 4)))), (5, 6)),
}

NETWORKS = {
    "mlp": lambda: MLP((1, 8, 8), 10, (20, 20)),
    "mlp, everything": lambda: MLP((1, 8, 8), 10, (20, 20), activation="gelu", batch_norm=True, dropout=0.3),
    "cnn": lambda: CNN((1, 8, 8), 10, (4, 6), hidden_dim=16),
    "cnn, everything": lambda: CNN((1, 8, 8), 10, (4, 6), 16, activation="tanh", batch_norm=True, dropout=0.3),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Residual(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))),
        Residual(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 8, 1))),
        nn.Flatten(),
        nn.LayerNorm(128),
        nn.Linear(128, 10),
    ),
}


def assert_same_gradients(module: nn.Module, x: torch.Tensor, tolerance: float = 1e-12) -> None:
    """Output, parameter gradients, input gradient and buffers equal autograd's from the same random state."""
    module = module.double()
    twin = copy.deepcopy(module)
    leaf = x.clone().requires_grad_()
    torch.manual_seed(1)
    expected = twin(leaf * 1)
    probe = torch.randn(expected.shape, dtype=torch.float64)
    (expected * probe).sum().backward()

    torch.manual_seed(1)
    y, pullback = vjp(module, x, needs_input_grad=True)
    assert not y.requires_grad
    grad_x = pullback(probe.clone())

    # Relative to the largest gradient: that of a bias before a batch norm is nothing but rounding.
    scale = max(g.abs().max().item() for g in [leaf.grad, *(p.grad for p in twin.parameters())])

    def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
        assert not actual.requires_grad
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance * scale)

    close(y, expected.detach())
    close(grad_x, leaf.grad)
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        close(p.grad, q.grad)
    for a, b in zip(module.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_layer(name, training):
    module, shape = LAYERS[name]
    assert_same_gradients(copy.deepcopy(module).train(training), torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_network(name, training):
    network = NETWORKS[name]().train(training)
    assert_same_gradients(network, torch.randn(7, 1, 8, 8, dtype=torch.float64))


def test_gradients_add_up_over_calls_as_backward_does():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    for _ in range(2):
        y, pullback = vjp(layer, x)
        pullback(torch.ones_like(y))
    twin = copy.deepcopy(layer)
    twin.zero_grad()
    (2 * twin(x)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


def test_shared_layer_gets_the_sum_of_its_gradients():
    shared = nn.Linear(4, 4)
    assert_same_gradients(nn.Sequential(shared, nn.Tanh(), shared), torch.randn(5, 4, dtype=torch.float64))


def test_frozen_parameters_get_no_gradient_and_others_the_right_one():
    network = NETWORKS["cnn"]()
    for p in network[0].parameters():
        p.requires_grad_(False)
    network[3].weight.requires_grad_(False)
    x = torch.randn(3, 1, 8, 8)
    twin = copy.deepcopy(network)
    twin(x).square().sum().backward()
    y, pullback = vjp(network, x)
    assert pullback(2 * y) is None
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, q.grad)


def test_unknown_layer_is_named_with_the_way_out():
    network = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.PReLU()))
    with pytest.raises(TypeError, match=r"network\.1\.1.*PReLU.*register_vjp\(PReLU\).*engine='autograd'"):
        check_supported(network)


class Doubled(nn.Linear):
    """A subclass that computes something else than its base."""

    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    """A subclass that computes what its base does."""


def test_subclass_with_its_own_forward_is_not_mistaken_for_its_base():
    check_supported(Renamed(3, 3))
    with pytest.raises(TypeError, match="Doubled"):
        check_supported(Doubled(3, 3))


def test_parametrized_layer_is_refused():
    with pytest.raises(TypeError, match="parametrization"):
        check_supported(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))))


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 3, padding_mode="circular"), nn.Conv2d(1, 1, 2, padding="same")])
def test_convolution_with_other_padding_is_refused_before_it_runs(layer):
    with pytest.raises(TypeError, match="padding"):
        check_supported(nn.Sequential(layer))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.factor * x


def test_registered_layer_joins_in():
    @register_vjp(Scale)
    def scale_vjp(layer, x, needs_input_grad):
        def pullback(grad):
            accumulate_grad(layer.factor, (grad * x).sum())
            return grad * layer.factor

        return layer(x), pullback

    network = nn.Sequential(nn.Linear(3, 3), Scale(), nn.Linear(3, 2))
    check_supported(network)
    assert_same_gradients(network, torch.randn(4, 3, dtype=torch.float64))


def test_forward_hooks_still_run():
    seen = []
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    vjp(nn.Sequential(layer, nn.ReLU()), torch.randn(2, 3))
    assert seen == [(2, 3)]


HALF = {
    "mlp": (lambda: MLP((1, 8, 8), 10, (20,), batch_norm=True, activation="gelu"), (1, 8, 8)),
    "cnn": (lambda: CNN((1, 8, 8), 10, (4, 6), 16, batch_norm=True), (1, 8, 8)),
    "normalised input": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), (6,)),
    "single precision shortcut": (
        lambda: nn.Sequential(
            Residual(nn.Conv2d(2, 2, 3, padding=1)), nn.BatchNorm2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
        ),
        (2, 4, 4),
    ),
}


@pytest.mark.parametrize("name", HALF)
def test_gradients_under_autocast_follow_autograd(name):
    build, shape = HALF[name]
    network, x = build(), torch.randn(16, *shape)
    twin = copy.deepcopy(network)
    with torch.autocast("cpu", torch.bfloat16):
        expected = twin(x)
        probe = torch.randn_like(expected)
        y, pullback = vjp(network, x)
    (expected * probe).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        pullback(probe.clone())
    assert y.dtype == expected.dtype
    ours, theirs = (torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (network, twin))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999


class GlobalAverage(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_gradient_that_shares_memory_is_not_written_over():
    @register_vjp(GlobalAverage)
    def average_vjp(layer, x, needs_input_grad):
        return layer(x), lambda grad: (grad / x[0, 0].numel())[:, :, None, None].expand_as(x)

    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), GlobalAverage(), nn.Linear(3, 2))
    assert_same_gradients(network, torch.randn(4, 2, 6, 6, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.random_unstructured(m, "weight", amount=0.5)],
)
def test_weights_computed_by_a_hook_are_refused(change):
    with pytest.raises(TypeError, match=r"network\.0.*Linear with a parametrization"):
        check_supported(nn.Sequential(change(nn.Linear(3, 3))))


def test_maximum_that_returns_its_indices_is_refused():
    with pytest.raises(TypeError, match=r"network\.0 is a MaxPool2d\(return_indices=True\)"):
        check_supported(nn.Sequential(nn.MaxPool2d(2, return_indices=True)))


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm1d(3), (1, 3)), (nn.BatchNorm2d(3), (1, 3, 1, 1))])
def test_statistics_of_one_value_are_refused_and_leave_the_running_ones(layer, shape):
    with pytest.raises(ValueError, match=r"one value a channel.*drop_last=True"):
        vjp(layer, torch.randn(shape))
    assert layer.running_var.isfinite().all()
    with pytest.raises(ValueError, match="expected"):
        vjp(nn.BatchNorm1d(3), torch.randn(2, 3, 4, 5))


class Wrapped(nn.Sequential):
    """A sequence that computes something else, with layers that have no rule."""

    def forward(self, x):
        return 2 * x


def test_registered_rule_answers_for_what_is_inside():
    register_vjp(Wrapped)(lambda layer, x, needs_input_grad: (layer(x), lambda grad: 2 * grad))
    check_supported(nn.Sequential(Wrapped(nn.PReLU())))
