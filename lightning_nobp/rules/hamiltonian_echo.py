"""Hamiltonian echo backpropagation."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.hamiltonian.nudge import check_nudge
from lightning_nobp.nn.hamiltonian.echo_layer import EchoLayer, EchoNudge, GradientEngine
from lightning_nobp.nn.hamiltonian.networks import DuffingClassifier, LogCoshClassifier
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.rules.classification import ClassificationRule, accuracy, loss_of_module

_LOSSES = {"classification": ("cross_entropy", "mse"), "regression": ("mse",)}


class HamiltonianEcho(ClassificationRule):
    r"""Gradients from the echo of a physical simulation: it is nudged at its end, reversed in time, and runs back.

    A nudge along :math:`J \nabla C`, the flow of the cost, comes back as :math:`J \nabla (C \circ \Phi_T)`: the
    difference of two echoes tells the gradients by the start, and what parameters felt on the way those by the
    parameters. They are exact for the simulation as it is, whatever its time step, up to the size of the nudge. Nothing
    of the way there is stored: memory does not grow with the number of time steps. Encoders and read-outs around the
    simulation are trained by autograd.

    Args:
        network: A preset (``'duffing'``, ``'log_cosh'``), or any module with a
            :class:`~lightning_nobp.nn.HamiltonianLayer` or another :class:`~lightning_nobp.nn.EchoLayer` in it, such as
            a :class:`~lightning_nobp.nn.HamiltonianNetwork`. Its layers take the next four options from here.
        gradient_engine: ``'echo'``; ``'adjoint'``, the limit of a nudge of no size; or ``'autograd'``, for comparison,
            with a graph through all time steps.
        eta: Size of the nudge, as a fraction of each sample's state; None for 1e-2 in float32 and 1e-5 in float64.
        nudge: ``'symmetric'``, two echoes, an error of the order ``eta ** 2``; ``'one_sided'``, one echo against one
            without a nudge, ``eta``; ``'richardson'``, four echoes, ``eta ** 4``.
        relative_eta: Whether samples have nudges of their own size. With False a nudge is ``eta`` times the gradient of
            the batch's mean loss, and drowns in rounding once that gets small.
        loss: ``'cross_entropy'`` or ``'mse'``, or a module that takes outputs and targets and gives one number.
        task: ``'classification'`` for class numbers, ``'regression'`` for targets of the outputs' shape.
        optimizer: See :class:`LearningRule`.
        **kwargs: See :class:`ClassificationRule`.

    Raises:
        ValueError: An unknown option; on the first batch, a time step that is too long, or a force that cannot be
            reversed.
        TypeError: A network without a simulation.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992; Pourcel and Ernoult, "Learning long range dependencies through time reversal symmetry breaking",
        NeurIPS 2025, for parameters that stand still.
    """

    presets: ClassVar[Mapping[str, NetworkFactory]] = {"duffing": DuffingClassifier, "log_cosh": LogCoshClassifier}
    # An echo is a small difference of two runs: half precisions have no digits left for it.
    supported_precisions: ClassVar[tuple[str, ...]] = ("32-true", "64-true")

    def __init__(
        self,
        *,
        network: str | nn.Module | NetworkFactory = "duffing",
        gradient_engine: GradientEngine = "echo",
        eta: float | None = None,
        nudge: EchoNudge = "symmetric",
        relative_eta: bool = True,
        loss: str | nn.Module = "cross_entropy",
        task: Literal["classification", "regression"] = "classification",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-2),
        **kwargs: Any,
    ) -> None:
        if task not in _LOSSES:
            raise ValueError(f"task={task!r} is not one of 'classification', 'regression'")
        if not isinstance(loss, nn.Module) and loss not in _LOSSES[task]:
            raise ValueError(
                f"loss={loss!r} is no loss of task={task!r}: take one of {', '.join(_LOSSES[task])}, or a module"
            )
        check_nudge(nudge, 1.0 if eta is None else eta)
        # Set before the base's constructor, which prepares the network with them.
        self.task, self.gradient_engine = task, gradient_engine
        self.eta, self.nudge, self.relative_eta = eta, nudge, relative_eta
        super().__init__(network=network, optimizer=optimizer, **kwargs)
        self.loss = loss
        self._has_warned = False

    @property
    def classifies(self) -> bool:
        """Whether targets are class numbers."""
        return self.task == "classification"

    def prepare_network(self, network: nn.Module) -> nn.Module:
        """Hand the layers that simulate the rule's options, and their names."""
        for name, layer in network.named_modules():
            if isinstance(layer, EchoLayer):
                layer.gradient_engine, layer.eta, layer.nudge = self.gradient_engine, self.eta, self.nudge
                layer.relative_eta = self.relative_eta
                layer.label = f"network.{name}" if name else "network"
        return network

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network without a simulation."""
        if not _simulations(network):
            raise TypeError(
                f"network={type(network).__name__} simulates nothing that could be reversed in time: give a "
                "DuffingClassifier, a LogCoshClassifier, or a module with a HamiltonianLayer in it"
            )

    def compute_gradients(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Add the gradient of the batch's mean loss to ``p.grad``.

        Args:
            batch: Inputs ``(batch, *input_shape)``, and class numbers ``(batch,)`` or targets of the outputs' shape.

        Returns:
            ``loss`` of the batch, and its ``accuracy`` if there are classes.
        """
        try:
            return self._learn(*batch[:2])
        except FloatingPointError as error:
            self.give_up_batch(error)
            # As many numbers as of any other batch: processes average them.
            lost = batch[0].new_full((), math.nan)
            return {"loss": lost} | ({"accuracy": lost} if self.classifies else {})

    def _learn(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            y = self(x)
            if not y.requires_grad:
                raise ValueError("network: all of its parameters are frozen, so there is nothing to learn")
            y.retain_grad()
            loss = self.loss_function(y, target)
            loss.backward()  # type: ignore[no-untyped-call]
        self._warn_of_silence(y.grad)
        metrics = {"loss": loss.detach()}
        return metrics | ({"accuracy": accuracy(y.detach(), target)} if self.classifies else {})

    def _warn_of_silence(self, signal: Tensor | None) -> None:
        if self._has_warned or (signal is not None and bool(signal.any())):
            return
        rank_zero_warn(
            "the error signal of a whole batch is exactly 0, so its echo says nothing: the loss has saturated, or does "
            "not depend on the outputs. This is said once"
        )
        self._has_warned = True

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss, by autograd's operations.

        Args:
            scores: The network's output.
            target: See :meth:`compute_gradients`.

        Raises:
            ValueError: Targets of another shape, or a loss of several numbers.
        """
        if isinstance(self.loss, nn.Module):
            return loss_of_module(self.loss, scores, target)
        if not self.classifies and scores.shape != target.shape:
            raise ValueError(f"targets of shape {tuple(target.shape)} do not fit outputs of {tuple(scores.shape)}")
        if self.loss == "cross_entropy":
            return F.cross_entropy(scores, target)
        if self.classifies:
            target = F.one_hot(target, scores.shape[-1]).to(scores.dtype)
        return F.mse_loss(scores, target)

    def global_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor | None:
        """The loss of a perfect apparatus, with autograd's graph through all time steps."""
        with self._ideal():
            return super().global_loss(batch)

    @contextmanager
    def _ideal(self) -> Iterator[None]:
        layers = _simulations(self.built_network())
        before = [(layer.gradient_engine, layer.imperfections) for layer in layers]
        for layer in layers:
            layer.gradient_engine, layer.imperfections = "autograd", None
        try:
            yield
        finally:
            for layer, own in zip(layers, before, strict=True):
                layer.gradient_engine, layer.imperfections = own


def _simulations(network: nn.Module) -> list[EchoLayer]:
    return [module for module in network.modules() if isinstance(module, EchoLayer)]
