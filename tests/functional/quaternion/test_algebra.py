"""The quaternions obey the laws of a division algebra, and every change of layout can be undone."""

import math

import pytest
import torch

from lightning_nobp.functional.quaternion import (
    conjugate,
    exp,
    from_complex,
    hamilton_product,
    inverse,
    log,
    norm,
    normalize,
    pack,
    rotate,
    to_complex,
    unpack,
)

ONE, EI, EJ, EK = torch.eye(4, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def p():
    return draw(50, seed=1)


@pytest.fixture
def q():
    return draw(50, seed=2)


def close(a, b, tolerance=1e-14):
    return (a - b).abs().max() <= tolerance


@pytest.mark.parametrize(("first", "second", "product"), [(EI, EJ, EK), (EJ, EK, EI), (EK, EI, EJ)])
def test_the_units_multiply_as_hamilton_carved(first, second, product):
    assert torch.equal(hamilton_product(first, second), product)
    assert torch.equal(hamilton_product(second, first), -product)
    assert torch.equal(hamilton_product(first, first), -ONE)


def test_the_product_is_associative_and_distributes(p, q):
    r = draw(50, seed=3)
    assert close(hamilton_product(hamilton_product(p, q), r), hamilton_product(p, hamilton_product(q, r)), 1e-13)
    assert close(hamilton_product(p, q + r), hamilton_product(p, q) + hamilton_product(p, r))


def test_lengths_multiply(p, q):
    assert close(norm(hamilton_product(p, q)), norm(p) * norm(q))


def test_the_conjugate_turns_the_order_around(p, q):
    assert close(conjugate(hamilton_product(p, q)), hamilton_product(conjugate(q), conjugate(p)))


def test_a_quaternion_times_its_inverse_is_one_from_either_side(q):
    assert close(hamilton_product(q, inverse(q)), ONE)
    assert close(hamilton_product(inverse(q), q), ONE)


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_components_may_lie_along_any_dimension(p, q, dim):
    moved = hamilton_product(p.view(5, 10, 4).movedim(-1, dim), q.view(5, 10, 4).movedim(-1, dim), dim)
    assert torch.equal(moved.movedim(dim, -1).flatten(0, 1), hamilton_product(p, q))


def test_products_broadcast(p):
    assert torch.equal(hamilton_product(EI, p), hamilton_product(EI.expand(50, 4), p))


def test_exp_is_its_power_series(q):
    q = q / 2
    term, total = ONE.expand(50, 4), ONE.expand(50, 4)
    for n in range(1, 40):
        term = hamilton_product(term, q) / n
        total = total + term
    assert close(exp(q), total)


def test_log_undoes_exp_while_the_angle_is_below_pi(q):
    q = torch.cat([q[:, :1], q[:, 1:] / norm(q).unsqueeze(-1) * 3], dim=-1)
    assert close(log(exp(q)), q, 1e-13)


def test_exp_undoes_log(q):
    assert close(exp(log(q)), q)


def test_log_is_exact_beside_the_real_axis():
    tiny = torch.tensor([1.0, 1e-12, -2e-12, 0.0], dtype=torch.float64)
    assert close(log(tiny)[1:], tiny[1:], 1e-24)
    assert close(log(torch.tensor([-2.0, 0.0, 0.0, 0.0], dtype=torch.float64)), math.log(2) * ONE + math.pi * EI)


@pytest.mark.parametrize("function", [exp, log, normalize, inverse])
def test_derivatives_are_autograds(function, q):
    assert torch.autograd.gradcheck(function, q[:5].clone().requires_grad_())


@pytest.mark.parametrize(
    ("function", "value", "gradient"),
    [(exp, ONE, torch.ones(4)), (normalize, torch.zeros(4), torch.zeros(4)), (norm, torch.zeros(()), torch.zeros(4))],
)
def test_nothing_is_undefined_at_zero(function, value, gradient):
    q = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    y = function(q)
    y.sum().backward()
    assert torch.equal(y.detach(), value.double())
    assert torch.equal(q.grad, gradient.double())


def test_log_has_finite_gradients_on_the_positive_real_axis():
    q = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    log(q).sum().backward()
    assert torch.equal(q.grad, torch.full((4,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("function", [exp, log])
def test_second_derivatives_on_the_positive_real_axis_are_those_of_finite_differences(function):
    q = torch.tensor([[0.3, 0, 0, 0], [2, 0, 0, 0], [1, 2, 3, 4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, q)
    assert torch.autograd.gradgradcheck(function, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 1e-12, 1e-8, 1e-6, 1e-4])
def test_second_derivatives_of_exp_are_smooth_close_to_the_real_axis(dtype, length):
    weights = torch.tensor([1.0, 2, 3, 4], dtype=dtype)
    hessian = lambda q: torch.autograd.functional.hessian(lambda q: (exp(q) * weights).sum(), q)  # noqa: E731
    near = torch.tensor([0.3, length, -length, length / 2], dtype=dtype)
    assert close(hessian(near), hessian(torch.tensor([0.3, 0, 0, 0], dtype=dtype)), 1e-6 + 10 * length)


def test_log_of_zero_is_minus_infinity_and_leaves_the_other_gradients_alone():
    q = torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4], [0, 1, 0, 0], [-2, 0, 0, 0]], dtype=torch.float64)
    q.requires_grad_()
    y = log(q)
    assert y[0].tolist() == [-math.inf, 0, 0, 0]
    [grad] = torch.autograd.grad(y.sum(), q)
    [alone] = torch.autograd.grad(log(q[1:]).sum(), q)
    assert torch.equal(grad, alone)
    assert grad.isfinite().all()


def test_log_of_an_imaginary_quaternion_has_a_derivative():
    assert torch.autograd.gradcheck(log, torch.tensor([[0.0, 1, 0, 0], [0, 1, 2, 3]]).double().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [norm, normalize, inverse, exp, log])
def test_half_precision_is_rounded_once(function, dtype):
    q = draw(50).to(dtype)
    q[:10, 1:] *= 300 / q[:10, 1:].abs().amax()
    found = function(q)
    assert found.dtype == dtype
    assert torch.equal(found, function(q.float()).to(dtype))


@pytest.mark.parametrize(("dtype", "exponents"), [(torch.float32, (-140, -100, 126)), (torch.float64, (-1000, 1020))])
def test_lengths_may_be_as_large_and_as_small_as_the_type_holds(dtype, exponents):
    q = draw(50).clamp(-2, 2).to(dtype)
    for exponent in exponents:
        # A power of two, in two steps since one may be too large; what is rounded is what the type cannot hold.
        scaled = q * 2.0 ** (exponent / 2) * 2.0 ** (exponent / 2)
        tolerance = 4 * torch.finfo(dtype).eps * (1 + torch.finfo(dtype).smallest_normal / 2.0**exponent)
        assert close(norm(scaled / 2) / 2.0 ** (exponent / 2) / 2.0 ** (exponent / 2), norm(q) / 2, tolerance)
        assert close(normalize(scaled), normalize(q), tolerance)
        assert close(log(scaled)[:, 1:], log(q)[:, 1:], 4 * tolerance)
        assert close(log(scaled)[:, 0] - exponent * math.log(2), log(q)[:, 0], 1e3 * tolerance)
    assert close(inverse(q * 2.0**100) * 2.0**100, inverse(q), 0)


@pytest.mark.parametrize("function", [norm, normalize, inverse, exp, log])
def test_functions_are_mapped_and_compiled(function, q):
    assert close(torch.vmap(function)(q), function(q), 1e-13)
    assert close(torch.compile(function, fullgraph=True, backend="aot_eager")(q), function(q), 1e-13)
    assert function(q.to("meta")).shape == function(q).shape


def test_a_rotation_turns_the_imaginary_part_by_twice_the_angle():
    mu = torch.tensor([math.cos(0.3), 0, 0, math.sin(0.3)], dtype=torch.float64)
    turned = torch.tensor([0, math.cos(0.6), math.sin(0.6), 0], dtype=torch.float64)
    assert close(rotate(EI, 5 * mu), turned)


def test_a_rotation_keeps_products(p, q):
    mu = draw(seed=4)
    product = hamilton_product(rotate(p, mu), rotate(q, mu))
    assert close(rotate(hamilton_product(p, q), mu), product, 1e-13)


def test_features_are_component_major():
    q = torch.tensor([[[0, 10, 20, 30], [1, 11, 21, 31]]])
    assert pack(q).tolist() == [[0, 1, 10, 11, 20, 21, 30, 31]]
    assert torch.equal(unpack(pack(q)), q)


def test_images_are_packed_along_their_channels():
    q = draw(2, 5, 6, 3)
    x = pack(q, channel_dim=1)
    assert x.shape == (2, 12, 5, 6)
    assert torch.equal(x[:, 3:6], q[..., 1].movedim(-1, 1))
    assert torch.equal(unpack(x, channel_dim=1), q)


def test_a_pair_of_complex_numbers_multiplies_by_cayley_and_dickson(p, q):
    (a, b), (c, d) = to_complex(p), to_complex(q)
    assert close(from_complex(a * c - b * d.conj(), a * d + b * c.conj()), hamilton_product(p, q))
    assert torch.equal(from_complex(a, b), p)


@pytest.mark.parametrize("function", [conjugate, norm, inverse, normalize, exp, log, pack])
def test_other_numbers_of_components_are_refused(function):
    with pytest.raises(ValueError, match=r"q of shape \(2, 3\) has not 4 components along dim=-1"):
        function(torch.zeros(2, 3))


def test_both_factors_are_named():
    with pytest.raises(ValueError, match="q of shape"):
        hamilton_product(torch.zeros(4), torch.zeros(3))
    with pytest.raises(ValueError, match="p of shape"):
        hamilton_product(torch.zeros(()), torch.zeros(4))


def test_features_that_hold_no_whole_quaternions_are_refused():
    with pytest.raises(ValueError, match="x has 6 features: quaternions take four each"):
        unpack(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"q.unsqueeze\(-2\)"):
        pack(torch.zeros(4))
    with pytest.raises(ValueError, match=r"x of shape \(\) has no dimension channel_dim=-1"):
        unpack(torch.zeros(()))
    with pytest.raises(ValueError, match=r"x of shape \(2, 8\) has no dimension channel_dim=2"):
        unpack(torch.zeros(2, 8), channel_dim=2)


def test_real_tensors_are_no_complex_pair():
    with pytest.raises(ValueError, match="two complex tensors"):
        from_complex(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"u of shape \(2,\) and v of shape \(3,\): give two of one shape"):
        from_complex(torch.zeros(2) + 0j, torch.zeros(3) + 0j)


@pytest.mark.parametrize("run", [norm, inverse, normalize])
def test_complex_numbers_are_no_components(run):
    with pytest.raises(TypeError, match=r"quaternions of type torch\.complex64: give real components"):
        run(torch.randn(3, 4, dtype=torch.complex64))
