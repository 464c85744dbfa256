"""Checkpoints of other libraries: each layer, written out as it is there, gives what ours gives with its weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConv3d,
    QuaternionConvTranspose2d,
)
from lightning_nobp.nn.quaternion.hypercomplex import PHMConv1d, PHMConv2d, PHMLinear
from lightning_nobp.nn.quaternion.linear import QuaternionLinear
from lightning_nobp.nn.quaternion.peers import from_component_weights, from_hypercomplex_weights
from lightning_nobp.nn.quaternion.recurrent import QuaternionLSTM

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


class GatedByLayers(nn.Module):
    """A long short-term memory as Orkis has it: a layer a gate and source, a readout beside them."""

    def __init__(self):
        super().__init__()
        for gate in "fioc":
            setattr(self, f"w{gate}x", Other((3, 2), 8, torch.matmul))
            setattr(self, f"u{gate}h", Other((2, 2), 8, torch.matmul))
            del self.get_submodule(f"u{gate}h").bias
            self.get_submodule(f"u{gate}h").bias = torch.zeros(8, dtype=torch.float64)
        self.fco = nn.Linear(8, 5, dtype=torch.float64)

    def forward(self, x):
        h = c = torch.zeros(x.shape[1], 8, dtype=torch.float64)
        states = []
        for step in x:
            f, i, o = ((getattr(self, f"w{g}x")(step) + getattr(self, f"u{g}h")(h)).sigmoid() for g in "fio")
            c = i * (self.wcx(step) + self.uch(h)).tanh() + f * c
            h = o * c.tanh()
            states.append(h)
        return torch.stack(states)


@pytest.mark.parametrize("name", ["", "net."])
def test_gates_that_are_layers_become_one_recurrent_layer(name):
    other, mine = GatedByLayers(), QuaternionLSTM(12, 8, dtype=torch.float64)
    found = from_component_weights({name + key: value for key, value in other.state_dict().items()})
    readout = {f"{name}fco.weight", f"{name}fco.bias"}
    mine.load_state_dict({key.removeprefix(name): value for key, value in found.items() if key not in readout})
    assert readout < set(found)
    x = torch.randn(6, 4, 12, dtype=torch.float64)
    assert torch.allclose(mine(x)[0], other(x), rtol=0, atol=1e-13)


def test_layers_that_are_no_whole_memory_stay_layers():
    state = GatedByLayers().state_dict()
    found = from_component_weights({key: value for key, value in state.items() if not key.startswith("uch")})
    assert {key for key in found if key.endswith(".weight")} == {
        *(f"w{gate}x.weight" for gate in "fioc"),
        *(f"u{gate}h.weight" for gate in "fio"),
        "fco.weight",
    }


# Checkpoints of hypercomplex layers


class Hypercomplex(nn.Module):
    """A layer as HyperNets has it: a sum of Kronecker products, and a bias that convolutions do not add."""

    def __init__(self, names, *kernel):
        super().__init__()
        self.names, self.kernel = names, kernel
        for name, shape in zip(names, [(3, 3, 3), (3, 4, 2, *kernel)], strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))
        self.bias = nn.Parameter(torch.randn(12, dtype=torch.float64))

    def forward(self, x, adds_bias=False):
        rules, weights = (getattr(self, name) for name in self.names)
        ones = (1,) * len(self.kernel)
        weight = sum(torch.kron(a.view(3, 3, *ones), s.contiguous()) for a, s in zip(rules, weights, strict=True))
        if not self.kernel:
            return F.linear(x, weight, self.bias)
        convolve = F.conv1d if len(self.kernel) == 1 else F.conv2d
        return convolve(x, weight, self.bias if adds_bias else None)


@pytest.mark.parametrize("names", [("A", "S"), ("a", "s")])
def test_linear_hypercomplex_layers_are_taken_over(names):
    other = nn.Sequential(Hypercomplex(names), nn.BatchNorm1d(12))
    mine = nn.Sequential(PHMLinear(3, 6, 12), nn.BatchNorm1d(12)).double()
    found = from_hypercomplex_weights(other.state_dict())
    mine.load_state_dict(found)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert torch.allclose(mine[0](x), other[0](x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("names", [("A", "F"), ("a", "s")])
@pytest.mark.parametrize(("kind", "kernel"), [(PHMConv1d, (2,)), (PHMConv2d, (2, 2))])
@pytest.mark.parametrize("adds_bias", [False, True])
def test_hypercomplex_convolutions_are_taken_over(names, kind, kernel, adds_bias):
    other, mine = Hypercomplex(names, *kernel), kind(3, 6, 12, 2, dtype=torch.float64)
    mine.load_state_dict(from_hypercomplex_weights(other.state_dict(), adds_bias=adds_bias))
    x = torch.randn(2, 6, *(4 for _ in kernel), dtype=torch.float64)
    assert torch.allclose(mine(x), other(x, adds_bias), rtol=0, atol=1e-13)


def test_checkpoints_without_hypercomplex_layers_are_refused():
    with pytest.raises(ValueError, match="state: no layer holds a rule and a weight, A and S or F, or a and s"):
        from_hypercomplex_weights(nn.Linear(4, 4).state_dict())
    with pytest.raises(ValueError, match="state: no layer"):
        from_hypercomplex_weights({"0.A": torch.zeros(3, 3, 3), "1.S": torch.zeros(3, 4, 2)})
