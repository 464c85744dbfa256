"""Networks turned into quaternions and back: which layers, and with which weights."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_nobp.functional.quaternion import hamilton_block
from lightning_nobp.nn.quaternion.conversion import to_quaternion, to_real
from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConv3d,
    QuaternionConvTranspose1d,
    QuaternionConvTranspose2d,
    QuaternionConvTranspose3d,
)
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv2d, PHMLinear
from lightning_nobp.nn.quaternion.linear import QuaternionLayer, QuaternionLinear
from lightning_nobp.nn.quaternion.recurrent import QuaternionGRU, QuaternionLSTM, QuaternionRNN

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


TRANSPOSED = {
    nn.ConvTranspose1d: QuaternionConvTranspose1d,
    nn.ConvTranspose2d: QuaternionConvTranspose2d,
    nn.ConvTranspose3d: QuaternionConvTranspose3d,
}


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_a_transposed_convolution_keeps_its_geometry(kind):
    layer = kind(8, 16, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2, dtype=torch.float64)
    found = to_quaternion(layer)
    assert type(found) is TRANSPOSED[kind]
    for name in ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups"):
        assert getattr(found, name) == getattr(layer, name)
    x = torch.randn(2, 8, *(3,) * found.dims, dtype=torch.float64)
    assert found(x).shape == layer(x).shape


RECURRENT = {nn.LSTM: QuaternionLSTM, nn.GRU: QuaternionGRU, nn.RNN: QuaternionRNN}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}, {"bias": False}],
    ids=str,
)
def test_a_recurrent_layer_keeps_its_options_and_shapes(kind, options):
    layer = kind(8, 12, **options, dtype=torch.float64).eval()
    found = to_quaternion(layer, side="right")
    assert type(found) is RECURRENT[kind]
    assert not found.training
    for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
        assert getattr(found, name) == getattr(layer, name)
    assert found.side == "right"
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    assert found(x)[0].shape == layer(x)[0].shape
    found.flatten_parameters()


def test_the_nonlinearity_of_a_recurrent_layer_is_kept():
    assert to_quaternion(nn.RNN(8, 8, nonlinearity="relu")).nonlinearity == "relu"


def test_recurrent_layers_without_a_counterpart_are_left_alone():
    model = to_quaternion(nn.ModuleList([nn.LSTM(8, 8, proj_size=4), nn.GRU(6, 8), nn.RNN(8, 6), nn.Linear(8, 8)]))
    assert kinds(model) == ["LSTM", "GRU", "RNN", "QuaternionLinear"]


def encoders():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return {"layer": layer, "encoder": nn.TransformerEncoder(layer, 2)}


@pytest.mark.parametrize("name", ["layer", "encoder"])
@pytest.mark.parametrize("include", ["*", "*linear2"])
def test_transformers_give_the_same_in_evaluation_as_in_training(name, include):
    model = to_quaternion(encoders()[name], include=[include])
    x, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    expected = model.train()(x), model(x, src_key_padding_mask=padding)
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        found = model(x), model(x, src_key_padding_mask=padding)
    assert torch.allclose(found[0], expected[0], rtol=0, atol=1e-6)
    assert torch.allclose(found[1][~padding], expected[1][~padding], rtol=0, atol=1e-6)


def test_attention_and_transformers_that_stay_real_are_left_alone():
    model = nn.ModuleDict({**encoders(), "readout": nn.Linear(16, 4)})
    to_quaternion(model, include=["readout"])
    assert model["layer"].activation_relu_or_gelu
    assert model["encoder"].use_nested_tensor
    assert quaternion_layers(to_quaternion(model)) == [
        name for name, _ in model.named_modules() if name.endswith(("linear1", "linear2", "readout"))
    ]


# What would be lost


def normalised(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def hooked(name):
    def mark(layer):
        getattr(layer, name)(lambda *_: None)
        return layer

    return mark


@pytest.mark.parametrize(
    "mark",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        normalised,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        hooked("register_forward_hook"),
        hooked("register_forward_pre_hook"),
        hooked("register_full_backward_hook"),
        hooked("register_full_backward_pre_hook"),
    ],
)
def test_layers_with_hooks_or_parametrizations_are_refused(mark):
    model = nn.Sequential(nn.Linear(8, 8), mark(nn.Linear(8, 8)))
    with pytest.raises(ValueError, match=r"layer '1' has hooks or parametrizations.*exclude=\['1'\]"):
        to_quaternion(model)
    assert quaternion_layers(model) == []
    assert quaternion_layers(to_quaternion(model, exclude=["1"])) == ["0"]


def test_weights_that_two_layers_share_are_refused():
    model = nn.ModuleDict({"embedding": nn.Embedding(12, 8), "readout": nn.Linear(8, 12), "body": nn.Linear(8, 8)})
    model["readout"].weight = model["embedding"].weight
    with pytest.raises(ValueError, match=r"'embedding' and 'readout' share a weight.*exclude=\['readout'\]"):
        to_quaternion(model)
    assert quaternion_layers(to_quaternion(model, exclude=["readout"])) == ["body"]
    assert model["readout"].weight is model["embedding"].weight


def test_a_layer_that_stands_twice_is_replaced_in_both_places_or_refused():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ValueError, match="layer '2' stands elsewhere too, where it would be replaced"):
        to_quaternion(model, exclude=["2"])
    assert model[0] is model[2] is shared


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


@pytest.mark.parametrize("weights", ["new", "project"])
def test_what_was_frozen_stays_so(weights):
    layer = nn.Linear(8, 12)
    layer.weight.requires_grad_(False)
    found = to_quaternion(layer, weights=weights)
    assert (found.weight.requires_grad, found.bias.requires_grad) == (False, True)


def test_what_was_frozen_of_a_recurrent_layer_stays_so():
    layer = nn.GRU(8, 8, 2, bidirectional=True)
    for name in ("weight_hh_l1", "bias_ih_l0_reverse", "bias_hh_l0_reverse"):
        getattr(layer, name).requires_grad_(False)
    found = to_quaternion(layer)
    frozen = {name for name, parameter in found.named_parameters() if not parameter.requires_grad}
    assert frozen == {"recurrent.2.weight", "inputs.1.bias", "recurrent.1.bias"}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_are_not_projected(kind):
    model = nn.ModuleDict({"head": nn.Linear(8, 8), "rnn": kind(8, 8)})
    message = rf"'rnn' is a {kind.__name__}: exclude=\['rnn'\], or draw all weights, weights='new'"
    with pytest.raises(ValueError, match=message):
        to_quaternion(model, weights="project")
    assert quaternion_layers(to_quaternion(model, weights="project", exclude=["rnn"])) == ["head"]


@pytest.mark.parametrize("side", SIDES)
def test_a_transposed_convolution_of_quaternions_in_real_numbers_is_found_exactly(side):
    layer = nn.ConvTranspose2d(8, 12, 3, 2, 1, dtype=torch.float64)
    weight = torch.randn(4, 2, 3, 3, 3, dtype=torch.float64)
    layer.weight.data = hamilton_block(weight.transpose(1, 2), side).transpose(0, 1)
    found = to_quaternion(layer, weights="project", side=side)
    assert torch.allclose(found.weight, weight, rtol=0, atol=1e-15)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    assert torch.allclose(found(x), layer(x), rtol=0, atol=1e-12)


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


# Back to real layers

BACK = {
    "linear": (QuaternionLinear(8, 12), (5, 8)),
    "linear, right": (QuaternionLinear(8, 12, False, side="right"), (5, 8)),
    "1d": (QuaternionConv1d(8, 12, 3, padding="same", dilation=2), (2, 8, 7)),
    "2d": (QuaternionConv2d(8, 16, (3, 1), 2, (1, 0), (1, 2), padding_mode="circular"), (2, 8, 7, 6)),
    "3d": (QuaternionConv3d(8, 12, 2, side="right"), (2, 8, 4, 3, 5)),
    "1d, transposed": (QuaternionConvTranspose1d(8, 12, 3), (2, 8, 7)),
    "2d, transposed": (QuaternionConvTranspose2d(8, 16, 3, 2, 1, (1, 0), side="right"), (2, 8, 4, 5)),
    "hypercomplex": (PHMLinear(3, 6, 9), (5, 6)),
    "hypercomplex, 2d": (PHMConv2d(2, 4, 6, 3, 2, 1), (2, 4, 7, 6)),
}


@pytest.mark.parametrize("name", BACK)
def test_real_layers_give_what_the_quaternions_gave(name):
    layer, shape = copy.deepcopy(BACK[name][0]).double(), BACK[name][1]
    x = torch.randn(shape, dtype=torch.float64)
    expected, real = layer(x), to_real(nn.Sequential(layer))[0]
    assert type(real) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    assert (real(x) - expected).abs().max() < 1e-12
    assert {p.dtype for p in real.parameters()} == {torch.float64}


def test_a_network_goes_to_quaternions_and_back():
    model = to_quaternion(torchvision.models.resnet18(num_classes=10)).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert to_real(model) is model
    assert not quaternion_layers(model)
    assert not model.training
    assert not model.layer1[0].conv1.training
    assert torch.allclose(model(x), expected, atol=1e-4)


def test_a_layer_that_stands_twice_becomes_one_real_layer_and_what_is_frozen_stays_so():
    layer = QuaternionLinear(8, 8).requires_grad_(False)
    model = to_real(nn.Sequential(layer, nn.ReLU(), layer))
    assert model[0] is model[2]
    assert not any(p.requires_grad for p in model.parameters())


def test_what_has_no_real_layer_is_refused_and_the_model_left_whole():
    model = nn.Sequential(QuaternionLinear(16, 16), QuaternionConv2d(16, 16, 3, groups=2))
    with pytest.raises(ValueError, match="layer '1' has groups=2, whose channels"):
        to_real(model)
    assert kinds(model) == ["QuaternionLinear", "QuaternionConv2d"]
    with pytest.raises(ValueError, match="model: there is no layer of quaternions"):
        to_real(nn.Linear(8, 8))


@pytest.mark.parametrize("mark", ["hook", "parametrization", "shared"])
def test_real_layers_that_would_lose_something_are_refused(mark):
    model = nn.Sequential(QuaternionLinear(8, 8), QuaternionLinear(8, 8))
    if mark == "hook":
        model[1].register_forward_hook(lambda *_: None)
    elif mark == "parametrization":
        parametrizations.weight_norm(model[1])
    else:
        model[1].weight = model[0].weight
    message = "share a weight" if mark == "shared" else "layer '1' has hooks or parametrizations"
    with pytest.raises(ValueError, match=message):
        to_real(model)
    assert len(quaternion_layers(model)) == 2


def test_subclasses_that_may_compute_something_else_stay():
    class Doubled(QuaternionLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert quaternion_layers(to_real(nn.Sequential(QuaternionLinear(8, 8), Doubled(8, 8)))) == ["1"]


@pytest.mark.parametrize("convert", [to_quaternion, to_real])
def test_what_is_no_network_is_refused(convert):
    with pytest.raises(TypeError, match="model='resnet18' is a str: give a network"):
        convert("resnet18")
