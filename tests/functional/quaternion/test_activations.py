"""Activations of whole quaternions: polar form, gradients against autograd, and 0 and the real line."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from lightning_nobp.functional.quaternion import exp, hamilton_product, norm
from lightning_nobp.functional.quaternion.activations import (
    cardioid,
    cardioid_vjp,
    magnitude_tanh,
    magnitude_tanh_vjp,
    mod_relu,
    mod_relu_vjp,
    norm_gate,
    norm_gate_vjp,
    phase_sin,
    phase_sin_vjp,
    phase_tanh,
    phase_tanh_vjp,
)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


BIAS = draw(1, 3, seed=8) - 0.5
SLOPE, SHIFT = draw(1, 3, seed=9), draw(1, 3, seed=10)
FORWARD = {
    "magnitude_tanh": magnitude_tanh,
    "cardioid": cardioid,
    "phase_tanh": phase_tanh,
    "phase_sin": phase_sin,
    "mod_relu": lambda q, dim: mod_relu(q, BIAS.unsqueeze(dim), dim),
    "norm_gate": lambda q, dim: norm_gate(q, SLOPE.unsqueeze(dim), SHIFT.unsqueeze(dim), dim),
}
BACKWARD = {
    "magnitude_tanh": magnitude_tanh_vjp,
    "cardioid": cardioid_vjp,
    "phase_tanh": phase_tanh_vjp,
    "phase_sin": phase_sin_vjp,
    "mod_relu": lambda g, q, dim: mod_relu_vjp(g, q, BIAS.unsqueeze(dim), dim)[0],
    "norm_gate": lambda g, q, dim: norm_gate_vjp(g, q, SLOPE.unsqueeze(dim), SHIFT.unsqueeze(dim), dim)[0],
}
NEW_ANGLES = {
    phase_tanh: lambda t: math.pi / 2 * (1 - torch.tanh(1 / torch.tan(t))),
    phase_sin: lambda t: t - torch.sin(2 * t) / 2,
}


def with_special_values(shape=(9, 3)):
    """Quaternions (rows, 3, 4) among which are 0, real ones of both signs and purely imaginary ones."""
    q = draw(*shape, 4, seed=1)
    q[0] = 0
    q[1, :, 1:] = 0
    q[2, :, 1:] = 0
    q[1, :, 0], q[2, :, 0] = 0.7, -0.7
    q[3, :, 0] = 0
    return q


def polar(length, angle, axis):
    """``r e^(n t)`` by the exponential."""
    return length * exp(torch.cat([torch.zeros_like(angle), axis * angle], -1))


@pytest.fixture
def axis():
    return torch.nn.functional.normalize(draw(50, 3, seed=2), dim=-1)


@pytest.fixture
def length():
    return draw(50, 1, seed=3).exp()


@pytest.fixture
def angle():
    return torch.linspace(0.01, math.pi - 0.01, 50, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dim", [1, 2])
def test_gradients_are_those_of_autograd(name, dim):
    q = with_special_values().movedim(-1, dim).requires_grad_()
    y = FORWARD[name](q, dim)
    grad = draw(*y.shape, seed=4)
    y.backward(grad)
    found = BACKWARD[name](grad, q.detach(), dim)
    assert q.grad.isfinite().all()
    assert (found - q.grad).abs().max() < 1e-12


@pytest.mark.parametrize("name", FORWARD)
def test_autograd_agrees_with_finite_differences(name):
    assert gradcheck(lambda q: FORWARD[name](q, -1), draw(4, 3, 4, seed=5).requires_grad_())


@pytest.mark.parametrize("act", NEW_ANGLES)
def test_phases_are_differentiable_on_the_real_line(act):
    q = torch.tensor([[0.7, 0, 0, 0], [-0.7, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(act, q)


@pytest.mark.parametrize("name", ["magnitude_tanh", "norm_gate"])
def test_what_is_differentiable_at_0_has_its_derivative_there(name):
    q = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda q: FORWARD[name](q, -1), q)


@pytest.mark.parametrize(("name", "share"), [("cardioid", 0.5), ("phase_tanh", 0), ("phase_sin", 0), ("mod_relu", 0)])
def test_what_has_no_derivative_at_0_has_the_documented_gradient_there(name, share):
    q, grad = torch.zeros(1, 3, 4, dtype=torch.float64), draw(1, 3, 4)
    assert torch.equal(FORWARD[name](q, -1), q)
    assert torch.equal(BACKWARD[name](grad, q, -1), share * grad)


@pytest.mark.parametrize("act", NEW_ANGLES)
def test_phases_turn_the_angle_and_keep_length_and_axis(act, length, angle, axis):
    expected = polar(length, NEW_ANGLES[act](angle), axis)
    assert (act(polar(length, angle, axis)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("act", NEW_ANGLES)
def test_phases_are_odd_about_both_ends_so_that_the_axis_may_flip(act, length, axis):
    """Across the real line the direction derivative is the same from both sides: smooth, not a kink."""
    for end in (0.0, math.pi):
        near = torch.full_like(length, 1e-3)
        ahead = act(polar(length, end - near, axis))
        behind = act(polar(length, end + near, axis))
        assert (ahead[:, 1:] + behind[:, 1:]).abs().max() < 1e-12
        assert (ahead[:, :1] - behind[:, :1]).abs().max() < 1e-12


@pytest.mark.parametrize("act", [phase_tanh, phase_sin])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10])
def test_phases_do_not_depend_on_the_length(act, scale):
    q = draw(20, 4)
    assert (act(q * scale) / scale - act(q)).abs().max() < 1e-14


@pytest.mark.parametrize("act", [phase_tanh, phase_sin])
def test_gradients_of_phases_stay_finite_close_to_the_real_line(act):
    backward = {phase_tanh: phase_tanh_vjp, phase_sin: phase_sin_vjp}[act]
    offsets = 10.0 ** torch.arange(-40, 0.0)
    for real in (1.0, -1.0):
        q = torch.zeros(40, 4)
        q[:, 0], q[:, 2] = real, offsets
        q.requires_grad_()
        y = act(q)
        y.backward(torch.ones_like(y))
        assert q.grad.isfinite().all()
        wide = backward(torch.ones(40, 4, dtype=torch.float64), q.detach().double())
        assert (q.grad - wide).abs().max() < 1e-5
        assert (backward(torch.ones(40, 4), q.detach()) - wide).abs().max() < 1e-5


def test_magnitude_tanh_squeezes_lengths_and_keeps_directions():
    q = draw(50, 4)
    y = magnitude_tanh(q)
    assert (norm(y) - norm(q).tanh()).abs().max() < 1e-15
    assert (y / norm(y, keepdim=True) - q / norm(q, keepdim=True)).abs().max() < 1e-14


def test_cardioid_weighs_by_the_cosine_of_the_angle(length, angle, axis):
    q = polar(length, angle, axis)
    assert (cardioid(q) - (1 + angle.cos()) / 2 * q).abs().max() < 1e-13
    real = torch.tensor([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]])
    assert torch.equal(cardioid(real), torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]]))


def test_mod_relu_shortens_by_the_bias_and_drops_what_is_shorter():
    q = draw(50, 1, 4)
    bias = torch.tensor([[-1.5]], dtype=torch.float64)
    y, length = mod_relu(q, bias), norm(q)
    assert ((length < 1.5).any(), (length > 1.5).any()) == (True, True)
    assert (norm(y) - (length - 1.5).clamp(min=0)).abs().max() < 1e-14
    assert (mod_relu(q, 0 * bias) - q).abs().max() < 1e-15


@pytest.mark.parametrize("side", ["left", "right"])
def test_norm_gate_commutes_with_unit_quaternions(side):
    q, unit = draw(50, 3, 4), torch.nn.functional.normalize(draw(4, seed=6), dim=0)

    def turned(x):
        return hamilton_product(unit, x) if side == "left" else hamilton_product(x, unit)

    assert (FORWARD["norm_gate"](turned(q), -1) - turned(FORWARD["norm_gate"](q, -1))).abs().max() < 1e-14


def test_gradients_of_parameters_are_those_of_autograd():
    q, grad = with_special_values(), draw(9, 3, 4, seed=7)
    bias, slope, shift = (p.unsqueeze(-1).clone().requires_grad_() for p in (BIAS, SLOPE, SHIFT))
    mod_relu(q, bias).backward(grad)
    norm_gate(q, slope, shift).backward(grad)
    of_bias = mod_relu_vjp(grad, q, bias.detach())[1]
    _, of_slope, of_shift = norm_gate_vjp(grad, q, slope.detach(), shift.detach())
    for parameter, each in ((bias, of_bias), (slope, of_slope), (shift, of_shift)):
        assert each.shape == (9, 3, 1)
        assert (each.sum(0, keepdim=True) - parameter.grad).abs().max() < 1e-12


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(name, dtype):
    q = draw(50, 3, 4).to(dtype)
    y = FORWARD[name](q, -1)
    expected = FORWARD[name](q.double(), -1)
    assert y.dtype == dtype
    assert (y - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("name", FORWARD)
def test_other_than_four_components_are_refused(name):
    with pytest.raises(ValueError, match=r"\(5, 3, 3\) has not 4 components"):
        FORWARD[name](draw(5, 3, 3), -1)
