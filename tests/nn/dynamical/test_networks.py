"""Local motions and networks: values, pullbacks, checkpoints; and steps of fixed length."""

import copy
import re

import pytest
import torch
from torch import nn

from lightning_nobp.functional.dynamics import Lorenz, rollout
from lightning_nobp.functional.network_inference import Normalisation, polynomial_exponents, polynomial_features
from lightning_nobp.nn import DynamicalNetwork, LocalDynamics, NetworkDescent, PolynomialDynamics
from lightning_nobp.nn.dynamical.local import field_vjp

NODES, COMPONENTS = 5, 3


class Own(nn.Module):
    """A local motion of a user's own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(COMPONENTS, COMPONENTS)
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x):
        return self.fixed * self.layer(x).sin()


def make(kind, shared=True):
    torch.manual_seed(0)
    if kind == "own":
        return Own().double()
    if kind == "polynomial":
        local = PolynomialDynamics(NODES, COMPONENTS, degree=3, shared=shared)
        nn.init.normal_(local.coefficients)
        return local.double()
    return LocalDynamics(NODES, COMPONENTS, (7, 6), shared=shared).double()


ALL = [("polynomial", True), ("polynomial", False), ("mlp", True), ("mlp", False), ("own", True)]


@pytest.mark.parametrize(("kind", "shared"), ALL)
@pytest.mark.parametrize("shape", [(NODES, COMPONENTS), (4, NODES, COMPONENTS), (2, 3, NODES, COMPONENTS)])
def test_pullbacks_are_autograds(kind, shared, shape):
    local = make(kind, shared)
    x = torch.randn(shape, dtype=torch.float64)
    grad = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 2 and kind != "own":
        x, grad = x.unsqueeze(0), grad.unsqueeze(0)
    wanted = x.clone().requires_grad_()
    y = local(wanted)
    y.backward(grad)
    expected = {n: p.grad for n, p in local.named_parameters()}
    local.zero_grad()
    found, pullback = field_vjp(local, train=True)(x)
    torch.testing.assert_close(found, y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pullback(grad), wanted.grad, rtol=1e-11, atol=1e-12)
    for name, p in local.named_parameters():
        if expected[name] is None:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-11, atol=1e-12)
    pullback_again = field_vjp(local, train=True)(x)[1]
    pullback_again(grad)
    for name, p in local.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, 2 * expected[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("kind", "shared"), ALL)
def test_without_training_parameters_get_no_gradient(kind, shared):
    local = make(kind, shared)
    x = torch.randn(2, NODES, COMPONENTS, dtype=torch.float64)
    field_vjp(local, train=False)(x)[1](x)
    assert all(p.grad is None for p in local.parameters())


@pytest.mark.parametrize(("kind", "shared"), ALL[:4])
def test_motion_is_linear_in_its_features(kind, shared):
    local = make(kind, shared)
    x = torch.randn(4, NODES, COMPONENTS, dtype=torch.float64)
    features = local.features(x)
    assert features.shape == (4, NODES, local.num_terms)
    coefficients = torch.randn(1 if shared else NODES, local.num_terms, COMPONENTS, dtype=torch.float64)
    local.set_coefficients(coefficients)
    expected = torch.einsum("bnk,nkc->bnc", features, coefficients.expand(NODES, -1, -1))
    torch.testing.assert_close(local(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["polynomial", "mlp"])
def test_nodes_move_alike_only_if_they_share(kind):
    x = torch.randn(1, 1, COMPONENTS, dtype=torch.float64).expand(4, NODES, COMPONENTS)
    for shared in (True, False):
        y = make(kind, shared)(x)
        assert bool((y[:, 0] == y[:, 1]).all()) == shared


def test_polynomials_have_the_documented_order():
    local = make("polynomial")
    x = torch.randn(4, NODES, COMPONENTS, dtype=torch.float64)
    torch.testing.assert_close(local.features(x), polynomial_features(x, polynomial_exponents(COMPONENTS, 3)))


def lorenz_network(integrator="rk4"):
    local = PolynomialDynamics(NODES, COMPONENTS)
    network = DynamicalNetwork(local, NODES, COMPONENTS, 0.02, integrator).double()
    normalisation = Normalisation(torch.tensor([0.0, 1, 23]).double(), torch.tensor([8.0, 9, 8.5]).double())
    network.normalise_by(normalisation)
    x = torch.randn(400, NODES, COMPONENTS, dtype=torch.float64)
    moved = Lorenz()(x * normalisation.scale + normalisation.mean) / normalisation.scale
    solution = torch.linalg.lstsq(local.features(x).flatten(0, 1), moved.flatten(0, 1)).solution
    local.set_coefficients(solution.unsqueeze(0))
    with torch.no_grad():
        network.weights.copy_(0.3 * torch.rand(NODES, NODES).fill_diagonal_(0))
    return network


@pytest.mark.parametrize("integrator", ["rk4", "split", "euler"])
def test_networks_step_and_run_as_the_equations_do(integrator):
    network = lorenz_network(integrator)
    x = Lorenz().start((4, NODES), torch.Generator().manual_seed(0))
    expected = rollout(Lorenz(), x, network.weights.detach(), 30, 0.02, integrator=integrator).movedim(0, 1)
    torch.testing.assert_close(network.simulate(x, 30), expected, rtol=1e-8, atol=1e-8)
    normal = (expected - network.mean) / network.scale
    torch.testing.assert_close(network(normal[:, 0]), normal[:, 1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.rollout(normal[:, 0], 30), normal, rtol=1e-8, atol=1e-8)


def test_the_velocity_is_what_a_step_of_euler_goes():
    network = lorenz_network("euler")
    x = torch.randn(2, NODES, COMPONENTS, dtype=torch.float64)
    torch.testing.assert_close(network(x), x + 0.02 * network.velocity(x))


def test_networks_differentiate_through_autograd_too():
    network = lorenz_network()
    network.rollout(torch.randn(2, NODES, COMPONENTS, dtype=torch.float64), 3).square().mean().backward()
    assert network.weights.grad.abs().max() > 0
    assert network.local.coefficients.grad.abs().max() > 0


def test_constraints_give_the_nearest_couplings():
    network = lorenz_network()
    with torch.no_grad():
        network.weights.sub_(0.15).fill_diagonal_(0)
    before = network.weights.detach().clone()
    network.constrain_(symmetric=True, non_negative=False)
    torch.testing.assert_close(network.weights.detach(), (before + before.T) / 2)
    network.constrain_(symmetric=False, non_negative=True)
    torch.testing.assert_close(network.weights.detach(), ((before + before.T) / 2).clamp(min=0))
    assert (network.weights.diagonal() == 0).all()


def test_mean_and_scale_are_part_of_the_state():
    network = lorenz_network()
    again = DynamicalNetwork(PolynomialDynamics(NODES, COMPONENTS), NODES, COMPONENTS, 0.02).double()
    again.load_state_dict(network.state_dict())
    x = Lorenz().start((1, NODES), torch.Generator().manual_seed(0))
    assert torch.equal(again.simulate(x, 5), network.simulate(x, 5))


def test_a_run_that_diverges_is_named():
    network = lorenz_network("euler")
    with torch.no_grad():
        network.weights.fill_(1000.0).fill_diagonal_(0)
    with pytest.raises(FloatingPointError, match=r"the network is not finite at step \d+, first at node \d"):
        network.rollout(torch.randn(1, NODES, COMPONENTS, dtype=torch.float64), 2000)


@pytest.mark.parametrize("kind", [PolynomialDynamics, LocalDynamics])
def test_networks_build_on_the_meta_device(kind):
    with torch.device("meta"):
        network = DynamicalNetwork(kind(NODES, COMPONENTS), NODES, COMPONENTS, 0.02)
    assert all(p.is_meta for p in network.parameters())
    network.to_empty(device="cpu")
    assert network(torch.zeros(2, NODES, COMPONENTS)).shape == (2, NODES, COMPONENTS)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PolynomialDynamics(1, 3), "num_nodes=1: a network has at least two"),
        (lambda: PolynomialDynamics(3, 0), "components=0 must be at least 1"),
        (lambda: PolynomialDynamics(3, 3, degree=0), "degree=0 must be at least 1"),
        (lambda: LocalDynamics(3, 3, ()), "hidden_dims=(): give a width of at least 1"),
        (lambda: LocalDynamics(3, 3, (5, 0)), "hidden_dims=(5, 0): give a width of at least 1"),
        (lambda: DynamicalNetwork(nn.Identity(), 1, 3, 0.1), "num_nodes=1: a network has at least two"),
        (lambda: DynamicalNetwork(nn.Identity(), 3, 3, -0.1), "dt=-0.1 must be positive"),
        (lambda: DynamicalNetwork(nn.Identity(), 3, 3, 0.1, "leapfrog"), "integrator='leapfrog' is not one of"),
        (lambda: NetworkDescent([torch.zeros(2)], coupling_step=-1.0), "coupling_step=-1.0 must not be negative"),
        (lambda: NetworkDescent([torch.zeros(2)], momentum=1.0), "momentum=1.0 must be in [0, 1)"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def with_gradients(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    network.weights.grad.fill_diagonal_(0)


def test_couplings_go_a_fixed_length_along_the_mean_gradient_and_the_rest_as_adam_goes():
    network = lorenz_network()
    twin = copy.deepcopy(network)
    optimizer = NetworkDescent(network.parameter_groups(), lr=0.01, coupling_step=0.002, momentum=0.8)
    adam = torch.optim.Adam(twin.local.parameters(), lr=0.01)
    mean = torch.zeros(NODES, NODES, dtype=torch.float64)
    for seed in range(4):
        before = network.weights.detach().clone()
        for each in (network, twin):
            with_gradients(each, seed)
        grad = network.weights.grad.clone()
        optimizer.step()
        adam.step()
        mean = 0.8 * mean + 0.2 * grad
        step = network.weights.detach() - before
        torch.testing.assert_close(step, -0.002 * (NODES * (NODES - 1)) ** 0.5 * mean / mean.norm())
        assert torch.equal(network.weights.grad, grad)
        assert torch.equal(network.local.coefficients, twin.local.coefficients)
    assert (network.weights.diagonal() == 0).all()


def test_an_optimizer_goes_on_from_its_state():
    network = lorenz_network()
    optimizer = NetworkDescent(network.parameter_groups())
    with_gradients(network, 0)
    optimizer.step()
    twin = copy.deepcopy(network)
    again = NetworkDescent(twin.parameter_groups())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, its in ((network, optimizer), (twin, again)):
        with_gradients(each, 1)
        assert its.step(lambda: 5.0) == 5.0
    assert torch.equal(network.weights, twin.weights)
    assert torch.equal(network.local.coefficients, twin.local.coefficients)


def test_couplings_without_a_gradient_stay():
    network = lorenz_network()
    before = network.weights.detach().clone()
    with_gradients(network, 0)
    network.weights.grad = None
    NetworkDescent(network.parameter_groups()).step()
    assert torch.equal(network.weights, before)
    network.weights.grad = torch.zeros_like(network.weights)
    NetworkDescent(network.parameter_groups()).step()
    assert torch.equal(network.weights, before)
