"""The GHR derivative obeys the product and chain rules; the naive one does not, by exactly the factors derived."""

import pytest
import torch

from lightning_nobp.functional.quaternion import (
    conjugate,
    ghr_derivative,
    hamilton_product,
    inverse,
    naive_derivative,
    norm,
    rotate,
)

ONE, EI, EJ, EK = torch.eye(4, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(*shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


A, B = draw(seed=10), draw(seed=11)


def f(q):
    """No analytic function: components pass through functions of their own."""
    return hamilton_product(torch.tanh(q), A) + hamilton_product(conjugate(q), q)


def g(q):
    return torch.sin(q) + hamilton_product(B, hamilton_product(q, q))


def real(q):
    return (q.square() * A).sum(-1).tanh()


@pytest.fixture
def q():
    return draw(20, seed=1) / 2


@pytest.fixture
def mu():
    return draw(20, seed=2)


def close(a, b, tolerance=3e-14):
    return (a - b).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("function", "plain", "conjugated"),
    [
        (lambda q: q, ONE, -ONE / 2),
        (conjugate, -ONE / 2, ONE),
        (lambda q: hamilton_product(A, q), A, -A / 2),
        (lambda q: hamilton_product(q, A), A[0] * ONE, -conjugate(A) / 2),
    ],
)
def test_the_table_of_simple_derivatives(q, function, plain, conjugated):
    assert close(ghr_derivative(function, q), plain.expand_as(q))
    assert close(ghr_derivative(function, q, conjugate=True), conjugated.expand_as(q))


def test_the_squared_length_goes_with_half_the_conjugate(q):
    square = lambda q: q.square().sum(-1)  # noqa: E731
    assert close(ghr_derivative(square, q), conjugate(q) / 2)
    assert close(ghr_derivative(square, q, conjugate=True), q / 2)


@pytest.mark.parametrize("conj", [False, True])
def test_left_product_rule(q, mu, conj):
    product = lambda q: hamilton_product(f(q), g(q))  # noqa: E731
    whole = ghr_derivative(product, q, mu, conjugate=conj)
    first = hamilton_product(f(q), ghr_derivative(g, q, mu, conjugate=conj))
    turned = hamilton_product(g(q), mu)
    second = hamilton_product(ghr_derivative(f, q, turned, conjugate=conj), g(q))
    assert close(whole, first + second)


@pytest.mark.parametrize("conj", [False, True])
def test_right_product_rule(q, mu, conj):
    product = lambda q: hamilton_product(f(q), g(q))  # noqa: E731
    whole = ghr_derivative(product, q, mu, conjugate=conj, side="right")
    first = hamilton_product(ghr_derivative(f, q, mu, conjugate=conj, side="right"), g(q))
    turned = hamilton_product(inverse(f(q)), mu)
    second = hamilton_product(f(q), ghr_derivative(g, q, turned, conjugate=conj, side="right"))
    assert close(whole, first + second, 1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_chain_rule_of_four_terms(q, mu, side):
    composed = ghr_derivative(lambda q: f(g(q)), q, mu, side=side)
    total, terms = torch.zeros_like(q), []
    for nu in (ONE, EI, EJ, EK):
        outer = ghr_derivative(f, g(q), nu, side=side)
        inner = ghr_derivative(lambda q, nu=nu: rotate(g(q), nu), q, mu, side=side)
        terms.append(hamilton_product(outer, inner) if side == "left" else hamilton_product(inner, outer))
        total = total + terms[-1]
    assert close(composed, total, 1e-12)
    # One term does not do.
    assert (composed - terms[0]).abs().max() > 0.1


def test_of_a_real_function_left_and_right_agree_and_autograd_is_four_times(q):
    left = ghr_derivative(real, q)
    assert torch.equal(left, ghr_derivative(real, q, side="right"))
    leaf = q.clone().requires_grad_()
    (grad,) = torch.autograd.grad(real(leaf).sum(), leaf)
    assert close(4 * ghr_derivative(real, q, conjugate=True), grad, 1e-15)
    assert close(ghr_derivative(real, q, conjugate=True), conjugate(left), 1e-16)


def test_of_a_real_function_the_derivative_turns_with_mu(q, mu):
    assert close(ghr_derivative(real, q, mu), rotate(ghr_derivative(real, q), mu), 1e-15)


def test_the_length_of_mu_does_not_matter(q, mu):
    assert close(ghr_derivative(f, q, 7 * mu), ghr_derivative(f, q, mu))


def test_the_naive_derivative_of_simple_functions(q):
    assert close(naive_derivative(lambda q: q, q), (-2 * ONE).expand_as(q))
    assert close(naive_derivative(conjugate, q), (4 * ONE).expand_as(q))


def test_the_naive_derivative_has_no_product_rule(q):
    square = lambda q: hamilton_product(q, conjugate(q))  # noqa: E731
    by_rule = hamilton_product(q, naive_derivative(conjugate, q))
    by_rule = by_rule + hamilton_product(naive_derivative(lambda q: q, q), conjugate(q))
    assert close(naive_derivative(square, q), 2 * q)
    assert close(by_rule, 4 * q - 2 * conjugate(q))


def test_the_naive_chain_rule_ascends(q):
    y = draw(seed=3)
    z = lambda q: hamilton_product(q, y)  # noqa: E731
    loss = lambda q: hamilton_product(z(q), conjugate(z(q)))  # noqa: E731
    truth = 2 * q * norm(y).square()
    by_rule = hamilton_product(2 * z(q), naive_derivative(z, q))
    assert close(naive_derivative(loss, q), truth, 1e-12)
    assert close(by_rule, -2 * truth, 1e-12)


def test_what_is_no_function_of_quaternions_is_refused(q):
    with pytest.raises(ValueError, match=r"f gives \(20, 3\) for q of shape \(20, 4\)"):
        ghr_derivative(lambda q: q[..., 1:], q)
    with pytest.raises(ValueError, match="q of shape"):
        ghr_derivative(f, torch.zeros(3))
    with pytest.raises(ValueError, match=r"q is torch.int64: .*q.double\(\)"):
        ghr_derivative(f, torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mu of shape \(3,\) has not 4 components"):
        ghr_derivative(f, q, torch.ones(3))
    for mu in (torch.zeros(4), torch.cat([torch.ones(19, 4), torch.zeros(1, 4)])):
        with pytest.raises(ValueError, match=r"mu of shape .* holds a quaternion 0"):
            ghr_derivative(f, q, mu.double())
    with pytest.raises(ValueError, match="side='up' is not one of 'left', 'right'"):
        ghr_derivative(f, q, side="up")


def test_derivatives_are_mapped_over_directions(q):
    mu = draw(3)
    found = torch.vmap(lambda mu: ghr_derivative(f, q, mu))(mu)
    assert close(found, torch.stack([ghr_derivative(f, q, one) for one in mu]))
