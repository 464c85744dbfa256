"""How nodes move alone: polynomials and multilayer perceptrons, with their pullbacks written out."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_nobp.functional.dynamics import FieldVjp
from lightning_nobp.functional.network_inference import polynomial_exponents, polynomial_features
from lightning_nobp.typed import Typed

DynamicsFactory = Callable[[int, int], nn.Module]
"""Called with the number of nodes and of their components."""


class NodeDynamics(Typed, nn.Module):
    """The velocity of each node without the others, linear in its last coefficients.

    Called with states ``(..., nodes, components)`` it gives velocities of that shape: ``features(x) @ coefficients``.

    Args:
        num_nodes: How many.
        components: Numbers in the state of a node.
        shared: Whether all nodes move alike; otherwise each has parameters of its own.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(self, num_nodes: int, components: int, shared: bool) -> None:
        super().__init__()
        if num_nodes < 2:
            raise ValueError(f"num_nodes={num_nodes}: a network has at least two")
        if components < 1:
            raise ValueError(f"components={components} must be at least 1")
        self.num_nodes, self.components, self.shared = num_nodes, components, shared

    @property
    @abstractmethod
    def num_terms(self) -> int:
        """How many :meth:`features` a node has."""
        raise NotImplementedError

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """What velocities are linear in, ``(..., nodes, terms)``; a constant is among them."""
        raise NotImplementedError

    @abstractmethod
    def set_coefficients(self, coefficients: Tensor) -> None:
        """Set what features are multiplied with, ``(1 or nodes, terms, components)``."""
        raise NotImplementedError

    @abstractmethod
    def vjp(self, x: Tensor, train: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Velocities, and what takes their gradient back to the states.

        Args:
            x: States ``(..., nodes, components)``.
            train: Whether the pullback adds to ``p.grad`` of the parameters.
        """
        raise NotImplementedError


def field_vjp(local: nn.Module, train: bool) -> FieldVjp:
    """A local motion with its pullback: its own if it is a :class:`NodeDynamics`, autograd's for any other module.

    Args:
        local: From states ``(..., nodes, components)`` to velocities of that shape.
        train: Whether the pullback adds to ``p.grad`` of its parameters.
    """
    if isinstance(local, NodeDynamics):
        return lambda x: local.vjp(x, train)

    def run(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        parameters = [p for p in local.parameters() if p.requires_grad] if train else []
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = local(x)

        def pullback(grad: Tensor) -> Tensor:
            found = torch.autograd.grad(y, [x, *parameters], grad)
            for parameter, share in zip(parameters, found[1:], strict=True):
                add_grad(parameter, share)
            return found[0]

        return y.detach(), pullback

    return run


class PolynomialDynamics(NodeDynamics):
    """Polynomials of a node's own state, such as most textbook oscillators move by.

    Args:
        num_nodes: How many.
        components: Numbers in the state of a node.
        degree: Of the polynomials: 2 for Lorenz's and Roessler's equations, 3 for Chua's and FitzHugh's.
        shared: Whether all nodes move alike; otherwise each has a polynomial of its own.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(self, num_nodes: int, components: int, degree: int = 2, shared: bool = True) -> None:
        super().__init__(num_nodes, components, shared)
        if degree < 1:
            raise ValueError(f"degree={degree} must be at least 1")
        self.degree = degree
        # Numbers for indexing, wherever the parameters lie.
        with torch.device("cpu"):
            self.exponents = polynomial_exponents(components, degree)
            rows = [tuple(row) for row in self.exponents.tolist()]
            # Where the derivative of each monomial by each component lies among the monomials.
            self._lower = torch.tensor([[rows.index(_lowered(row, c)) for c in range(components)] for row in rows])
        self.coefficients = nn.Parameter(torch.zeros(1 if shared else num_nodes, len(rows), components))

    @property
    def num_terms(self) -> int:
        """How many monomials."""
        return len(self.exponents)

    def features(self, x: Tensor) -> Tensor:
        """Monomials ``(..., nodes, terms)``, the constant first."""
        return polynomial_features(x, self.exponents, self.degree)

    @torch.no_grad()
    def set_coefficients(self, coefficients: Tensor) -> None:
        """Set :attr:`coefficients`."""
        self.coefficients.copy_(coefficients)

    def forward(self, x: Tensor) -> Tensor:
        """Velocities."""
        return self._combine(self.features(x))

    def vjp(self, x: Tensor, train: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Velocities, and what takes their gradient back to the states."""
        features = self.features(x)

        def pullback(grad: Tensor) -> Tensor:
            if train and self.coefficients.requires_grad:
                by_node = torch.einsum("bnk,bnc->nkc", features.flatten(0, -3), grad.flatten(0, -3))
                add_grad(self.coefficients, by_node.sum(dim=0, keepdim=True) if self.shared else by_node)
            by_features = torch.einsum("...nc,nkc->...nk", grad, self._each())
            slopes = features[..., self._lower] * self.exponents.to(features)
            return (by_features.unsqueeze(-1) * slopes).sum(dim=-2)

        return self._combine(features), pullback

    def _combine(self, features: Tensor) -> Tensor:
        return torch.einsum("...nk,nkc->...nc", features, self._each())

    def _each(self) -> Tensor:
        """Coefficients of every node."""
        return self.coefficients.expand(self.num_nodes, -1, -1)


class LocalDynamics(NodeDynamics):
    """A multilayer perceptron of a node's own state, for motion whose form is not known.

    Args:
        num_nodes: How many.
        components: Numbers in the state of a node.
        hidden_dims: Width of each hidden layer, whose activation is tanh.
        shared: Whether all nodes move alike; otherwise each has a perceptron of its own.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(
        self, num_nodes: int, components: int, hidden_dims: Sequence[int] = (128, 128), shared: bool = True
    ) -> None:
        super().__init__(num_nodes, components, shared)
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims={tuple(hidden_dims)}: give a width of at least 1 for one layer or more")
        self.hidden_dims = tuple(hidden_dims)
        widths = (components, *hidden_dims, components)
        copies = 1 if shared else num_nodes
        self.weights = nn.ParameterList(torch.empty(copies, n, m) for n, m in pairwise(widths))
        self.biases = nn.ParameterList(torch.empty(copies, 1, m) for m in widths[1:])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as ``nn.Linear`` does."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    @property
    def num_terms(self) -> int:
        """Width of the last hidden layer, and a constant."""
        return self.hidden_dims[-1] + 1

    def features(self, x: Tensor) -> Tensor:
        """Outputs of the last hidden layer and a constant, ``(..., nodes, terms)``."""
        hidden = self._unfold(self._hidden(self._fold(x.to(self.weights[0])))[-1], x)
        return torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=-1)

    @torch.no_grad()
    def set_coefficients(self, coefficients: Tensor) -> None:
        """Set weights and biases of the last layer."""
        self.weights[-1].copy_(coefficients[:, :-1])
        self.biases[-1].copy_(coefficients[:, -1:])

    def forward(self, x: Tensor) -> Tensor:
        """Velocities."""
        return self._unfold(torch.baddbmm(self.biases[-1], self._hidden(self._fold(x))[-1], self.weights[-1]), x)

    def vjp(self, x: Tensor, train: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Velocities, and what takes their gradient back to the states."""
        inputs = self._hidden(self._fold(x))
        y = torch.baddbmm(self.biases[-1], inputs[-1], self.weights[-1])

        def pullback(grad: Tensor) -> Tensor:
            back = self._fold(grad)
            for layer in reversed(range(len(inputs))):
                weight, bias = self.weights[layer], self.biases[layer]
                if train and weight.requires_grad:
                    add_grad(weight, inputs[layer].transpose(1, 2) @ back)
                    add_grad(bias, back.sum(dim=1, keepdim=True))
                back = back @ weight.transpose(1, 2)
                if layer:
                    back = back * (1 - inputs[layer].square())
            return self._unfold(back, x)

        return self._unfold(y, x), pullback

    def _hidden(self, x: Tensor) -> list[Tensor]:
        """What goes into each layer."""
        found = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            found.append(torch.baddbmm(bias, found[-1], weight).tanh())
        return found

    def _fold(self, x: Tensor) -> Tensor:
        """States ``(..., nodes, components)`` as ``(1 or nodes, samples, components)``."""
        if self.shared:
            return x.reshape(1, -1, x.shape[-1])
        return x.reshape(-1, *x.shape[-2:]).transpose(0, 1)

    def _unfold(self, y: Tensor, x: Tensor) -> Tensor:
        """The inverse of :meth:`_fold`, for the states ``x``."""
        rows = y if self.shared else y.transpose(0, 1)
        return rows.reshape(*x.shape[:-1], y.shape[-1])


def add_grad(parameter: Tensor, grad: Tensor) -> None:
    """Add to ``parameter.grad``."""
    parameter.grad = grad.clone() if parameter.grad is None else parameter.grad + grad


def _lowered(row: tuple[int, ...], component: int) -> tuple[int, ...]:
    """Exponents of a monomial's derivative, but for the factor; those of the constant where that is 0."""
    if not row[component]:
        return (0,) * len(row)
    return tuple(power - (place == component) for place, power in enumerate(row))
