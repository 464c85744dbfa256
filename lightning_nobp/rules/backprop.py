"""Backpropagation, written out by hand: the yardstick of every comparison."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional import backprop as formulas
from lightning_nobp.nn.backprop import check_supported, vjp
from lightning_nobp.rules.classification import ClassificationRule, accuracy

_LOSSES = {"mse": formulas.mean_squared_error, "cross_entropy": formulas.cross_entropy}


class Backprop(ClassificationRule):
    """Backpropagation of errors.

    The explicit engine builds no autograd graph: a forward pass records what each layer's vector-Jacobian product
    needs, and the error travels back through them, layer by layer. It takes any ``nn.Sequential`` of layers with a
    registered rule (see :func:`lightning_nobp.nn.register_vjp`), nested ones and
    :class:`~lightning_nobp.nn.Residual` included. The autograd engine takes any module.

    Args:
        loss: ``'mse'``, the mean squared error against one-hot targets, or ``'cross_entropy'`` after a softmax.
        engine: ``'explicit'`` or ``'autograd'``: the same gradients; ``'auto'``: ``'explicit'`` where every layer has a
            written backward pass, else ``'autograd'``.
        **kwargs: See :class:`ClassificationRule`.

    Raises:
        ValueError: An unknown loss or engine.
        TypeError: The explicit engine does not know a layer; the message names it.

    References:
        Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323 (1986).
    """

    def __init__(
        self,
        *,
        loss: Literal["mse", "cross_entropy"] = "mse",
        engine: Literal["explicit", "autograd", "auto"] = "explicit",
        **kwargs: Any,
    ) -> None:
        if loss not in _LOSSES:
            raise ValueError(f"loss={loss!r} is not one of {', '.join(map(repr, _LOSSES))}")
        if engine not in ("explicit", "autograd", "auto"):
            raise ValueError(f"engine={engine!r} is not one of 'explicit', 'autograd', 'auto'")
        # Set before the base's constructor, which checks the network with them.
        self.loss = loss
        self.engine = engine
        super().__init__(**kwargs)

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network with a layer that the explicit engine does not know, or take the other engine."""
        if self.engine == "explicit":
            check_supported(network)
        elif self.engine == "auto":
            self.engine = "explicit" if _is_supported(network) else "autograd"

    def compute_gradients(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Add the gradient of the batch's mean loss to ``p.grad``.

        Args:
            batch: Inputs ``(batch, *input_shape)`` and class numbers ``(batch,)``.

        Returns:
            ``loss`` and ``accuracy`` of the batch.
        """
        x, target = batch[:2]
        if self.engine == "autograd":
            with torch.enable_grad():
                scores = self(x)
                loss = self.loss_function(scores, target)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                scores, pullback = vjp(self.built_network(), x)
                loss, grad = self.loss_derivative(scores, target)
                pullback(grad)
        return {"loss": loss.detach(), "accuracy": accuracy(scores.detach(), target)}

    def loss_derivative(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`loss_function` and its gradient by the scores: by formula, or autograd's if a subclass has its own.

        Args:
            scores: ``(batch, num_classes)``.
            target: ``(batch,)``, class numbers.
        """
        if type(self).loss_function is not Backprop.loss_function:
            return self.derived_loss(scores, target)
        return _LOSSES[self.loss](scores, target)

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss, by autograd's operations.

        Args:
            scores: ``(batch, num_classes)``.
            target: ``(batch,)``, class numbers.
        """
        if self.loss == "mse":
            return F.mse_loss(scores, F.one_hot(target, scores.shape[-1]).to(scores.dtype))
        return F.cross_entropy(scores, target)


def _is_supported(network: nn.Module) -> bool:
    """Whether the explicit engine knows every layer."""
    try:
        check_supported(network)
    except TypeError:
        return False
    return True
