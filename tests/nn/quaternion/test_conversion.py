"""Networks and checkpoints turned into quaternions: which layers, and with which weights."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_nobp.functional.quaternion import hamilton_block
from lightning_nobp.nn.quaternion.conversion import from_component_weights, to_quaternion
from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConv3d,
    QuaternionConvTranspose2d,
)
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, QuaternionLinear

SIDES = ["left", "right"]


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8), nn.Linear(8, 3))


def kinds(model):
    return [type(layer).__name__ for layer in model]


def quaternion_layers(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, QuaternionLayer)]


# Which layers


def test_layers_that_hold_whole_quaternions_are_replaced():
    model = mlp()
    assert to_quaternion(model) is model
    assert kinds(model) == ["Linear", "ReLU", "QuaternionLinear", "ReLU", "QuaternionLinear", "Linear"]
    assert (model[2].in_features, model[2].out_features, model[2].bias.numel()) == (8, 12, 12)
    assert model(torch.randn(5, 6)).shape == (5, 3)


def test_only_layers_that_are_included_and_not_excluded_are_replaced():
    assert quaternion_layers(to_quaternion(mlp(), include=["2"])) == ["2"]
    assert quaternion_layers(to_quaternion(mlp(), exclude=["2"])) == ["4"]
    nested = nn.ModuleDict({"body": mlp(), "head": nn.Linear(8, 8)})
    assert quaternion_layers(to_quaternion(nested, include=["body.*"], exclude=["*.4"])) == ["body.2"]


def test_a_single_layer_is_returned_replaced():
    layer = to_quaternion(nn.Linear(8, 12, bias=False))
    assert isinstance(layer, QuaternionLinear)
    assert layer.bias is None
    assert isinstance(to_quaternion(nn.Conv3d(8, 12, 3)), QuaternionConv3d)


def test_a_layer_that_stands_twice_is_replaced_by_one():
    shared = nn.Linear(8, 8)
    model = to_quaternion(nn.Sequential(shared, nn.ReLU(), shared))
    assert isinstance(model[0], QuaternionLinear)
    assert model[0] is model[2]


def test_a_resnet_keeps_its_shapes_and_a_quarter_of_its_inner_weights():
    model = torchvision.models.resnet18(weights=None).eval()
    before = sum(p.numel() for p in model.parameters())
    whole = sum(p.numel() for name, p in model.named_parameters() if name.startswith("layer") and p.dim() == 4)
    readout = model.fc.weight.numel()
    to_quaternion(model)
    assert type(model.conv1) is nn.Conv2d
    assert len(quaternion_layers(model)) == 20
    assert isinstance(model.fc, QuaternionLinear)
    assert sum(p.numel() for p in model.parameters()) == before - 3 * (whole + readout) // 4
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 1000)
    assert not any(layer.training for layer in model.modules())


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_convolution_keeps_its_geometry(padding_mode):
    layer = nn.Conv2d(8, 16, (3, 1), 2, (1, 0), (1, 2), 2, padding_mode=padding_mode, dtype=torch.float64)
    found = to_quaternion(layer, side="right", algorithm="block", init="unitary", criterion="glorot")
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(found, name) == getattr(layer, name)
    assert (found.padding_mode, found.side, found.algorithm) == (padding_mode, "right", "block")
    assert (found.init, found.criterion, found.weight.dtype) == ("unitary", "glorot", torch.float64)
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    assert found(x).shape == layer(x).shape


def test_named_padding_is_taken_over():
    found = to_quaternion(nn.Conv1d(8, 8, 3, padding="same", dilation=2))
    assert found(torch.zeros(2, 8, 9)).shape == (2, 8, 9)


def test_models_on_the_meta_device_stay_there():
    with torch.device("meta"):
        model = mlp()
    assert all(p.is_meta for p in to_quaternion(model).parameters())


def test_layers_of_other_classes_are_left_alone():
    class Mine(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    model = to_quaternion(nn.Sequential(Mine(8, 8), nn.Linear(8, 8), nn.Conv1d(8, 12, 1, groups=4)))
    assert kinds(model) == ["Mine", "QuaternionLinear", "Conv1d"]


# With which weights


@pytest.mark.parametrize("side", SIDES)
def test_the_projection_is_the_solution_of_least_squares(side):
    layer = nn.Linear(8, 12, dtype=torch.float64)
    found = to_quaternion(layer, weights="project", side=side)
    # The block matrix is linear in the weight: its matrix, column by column.
    units = torch.eye(found.weight.numel(), dtype=torch.float64).view(-1, *found.weight.shape)
    design = torch.stack([hamilton_block(unit, side).flatten() for unit in units], dim=1)
    best = torch.linalg.lstsq(design, layer.weight.detach().flatten().unsqueeze(1)).solution
    assert torch.allclose(found.weight.flatten(), best.flatten(), rtol=0, atol=1e-14)
    assert torch.equal(found.bias, layer.bias)


@pytest.mark.parametrize("side", SIDES)
def test_a_projected_convolution_cannot_be_brought_closer(side):
    layer = nn.Conv2d(8, 12, 3, dtype=torch.float64)
    found = to_quaternion(layer, weights="project", side=side)
    distance = lambda weight: (hamilton_block(weight, side) - layer.weight).square().sum()  # noqa: E731
    (slope,) = torch.autograd.grad(distance(found.weight), found.weight)
    # The distance is convex: where it is flat, it is least.
    assert slope.abs().max() < 1e-13
    assert distance(found.weight) > 0.1


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 12), (5, 8)),
        (nn.Conv1d(8, 12, 3), (2, 8, 7)),
        (nn.Conv2d(8, 12, 3, 2, 1), (2, 8, 7, 6)),
        (nn.Conv3d(8, 12, 2), (2, 8, 4, 3, 5)),
    ],
)
def test_a_layer_of_quaternions_in_real_numbers_is_found_exactly(layer, shape, side):
    layer = copy.deepcopy(layer).double()
    weight = torch.randn(4, 3, 2, *layer.weight.shape[2:], dtype=torch.float64)
    layer.weight.data = hamilton_block(weight, side)
    found = to_quaternion(layer, weights="project", side=side)
    assert torch.allclose(found.weight, weight, rtol=0, atol=1e-15)
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(found(x), layer(x), rtol=0, atol=1e-12)


def test_new_weights_are_drawn():
    torch.manual_seed(0)
    layer = nn.Linear(8, 12)
    torch.manual_seed(1)
    found = to_quaternion(layer)
    torch.manual_seed(1)
    assert torch.equal(found.weight, QuaternionLinear(8, 12).weight)
    assert torch.equal(found.bias, torch.zeros(12))


def test_what_was_frozen_stays_so_if_it_is_projected():
    layer = nn.Linear(8, 12)
    layer.weight.requires_grad_(False)
    found = to_quaternion(layer, weights="project")
    assert (found.weight.requires_grad, found.bias.requires_grad) == (False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "old"}, "weights='old' is not one of 'new', 'project'"),
        ({"include": ["conv*"]}, r"include='conv\*' matches no layer with weights; there are '2', '4'"),
        ({"exclude": ["9"]}, "exclude='9' matches no layer"),
        ({"exclude": ["*"]}, "leave no layer"),
        ({"side": "up"}, "side='up' is not one of"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_quaternion(mlp(), **options)


def test_a_model_without_a_layer_to_replace_is_refused():
    with pytest.raises(ValueError, match="model: no layer can be replaced"):
        to_quaternion(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), "weights='project' has no meaning for grouped convolutions"),
        (nn.Conv2d(8, 8, 2, padding="same"), "padding='same' needs stride 1 and an odd kernel"),
    ],
)
def test_a_model_that_cannot_be_converted_is_left_whole(layer, message):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), layer)
    with pytest.raises(ValueError, match=message):
        to_quaternion(model, weights="project")
    assert kinds(model) == ["Conv2d", "Conv2d"]


# Checkpoints with a tensor a component


def products(parts, x, product):
    """``w x``, from the table of the units."""
    (r, i, j, k), (a, b, c, d) = parts, x
    return torch.cat(
        [
            product(a, r) - product(b, i) - product(c, j) - product(d, k),
            product(b, r) + product(a, i) + product(d, j) - product(c, k),
            product(c, r) - product(d, i) + product(a, j) + product(b, k),
            product(d, r) + product(c, i) - product(b, j) + product(a, k),
        ],
        dim=1,
    )


class Other(nn.Module):
    """A layer as other libraries have them: ``r_weight`` to ``k_weight``, and the product written out."""

    def __init__(self, shape, outputs, product, conjugates=False):
        super().__init__()
        for name in "rijk":
            setattr(self, f"{name}_weight", nn.Parameter(torch.randn(shape, dtype=torch.float64)))
        self.bias = nn.Parameter(torch.randn(outputs, dtype=torch.float64))
        self.product, self.sign = product, -1 if conjugates else 1

    def forward(self, x):
        imaginary = [self.sign * part for part in (self.i_weight, self.j_weight, self.k_weight)]
        y = products([self.r_weight, *imaginary], x.chunk(4, dim=1), self.product)
        return y + self.bias.view(-1, *(1,) * (x.dim() - 2))


def test_linear_layers_are_taken_over():
    other = nn.Sequential(Other((5, 3), 12, torch.matmul), nn.Tanh(), Other((3, 2), 8, torch.matmul))
    mine = nn.Sequential(QuaternionLinear(20, 12), nn.Tanh(), QuaternionLinear(12, 8)).double()
    mine.load_state_dict(from_component_weights(other.state_dict()))
    x = torch.randn(7, 20, dtype=torch.float64)
    assert torch.allclose(mine(x), other(x), rtol=0, atol=1e-13)


def test_a_layer_by_itself_is_taken_over():
    other, mine = Other((5, 3), 12, torch.matmul), QuaternionLinear(20, 12, dtype=torch.float64)
    mine.load_state_dict(from_component_weights(other.state_dict()))
    x = torch.randn(7, 20, dtype=torch.float64)
    assert torch.allclose(mine(x), other(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("layer", "product"), [(QuaternionConv1d, F.conv1d), (QuaternionConv2d, F.conv2d), (QuaternionConv3d, F.conv3d)]
)
def test_convolutions_are_taken_over(layer, product):
    other, mine = Other((3, 2, *(3,) * layer.dims), 12, product), layer(8, 12, 3, dtype=torch.float64)
    mine.load_state_dict(from_component_weights(other.state_dict()))
    x = torch.randn(2, 8, *(4,) * layer.dims, dtype=torch.float64)
    assert torch.allclose(mine(x), other(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("conjugates", [False, True])
def test_transposed_convolutions_that_multiply_by_the_conjugate_are_named(conjugates):
    other = nn.Sequential(
        Other((3, 2, 3, 3), 12, F.conv2d), Other((3, 2, 3, 3), 8, F.conv_transpose2d, conjugates=conjugates)
    )
    mine = nn.Sequential(QuaternionConv2d(8, 12, 3), QuaternionConvTranspose2d(12, 8, 3)).double()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    mine.load_state_dict(from_component_weights(other.state_dict(), transposed=["1"] if conjugates else []))
    assert torch.allclose(mine(x), other(x), rtol=0, atol=1e-12)


def test_other_entries_are_taken_over():
    state = nn.Sequential(Other((5, 3), 12, torch.matmul), nn.BatchNorm1d(12)).state_dict()
    found = from_component_weights(state)
    assert set(found) == {"0.weight", *(key for key in state if not key.endswith("_weight"))}
    assert all(found[key] is state[key] for key in found if key != "0.weight")


def changed(name=None, value=None):
    """A checkpoint of one layer with an entry replaced, or left out."""
    state = nn.Sequential(Other((5, 3), 12, torch.matmul)).state_dict() | {f"0.{name}": value}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("j_weight", None, "state: layer '0.' has no j_weight"),
        ("r_weight", None, "state: layer '0.' has no r_weight"),
        ("i_weight", torch.zeros(5, 2), r"state: components of '0.' have shapes \[\(5, 3\), \(5, 2\)"),
        ("zero_kernel", torch.zeros(5, 3), "'0.zero_kernel' belongs to a layer of rotations"),
        ("scale_param", torch.zeros(5, 3), "'0.scale_param' belongs to a layer of rotations"),
    ],
)
def test_checkpoints_that_are_not_whole_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        from_component_weights(changed(name, value))


def test_transposed_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="transposed='decoder' matches no layer"):
        from_component_weights(changed(), transposed=["decoder"])
