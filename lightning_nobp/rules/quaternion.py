"""Quaternion backpropagation."""

from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional import backprop as formulas
from lightning_nobp.functional.quaternion.losses import chordal_loss, geodesic_loss, imaginary_mse, unit_mse
from lightning_nobp.nn.backprop import check_supported, vjp
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.nn.quaternion.adam import QuaternionAdam, quaternion_parameters
from lightning_nobp.nn.quaternion.folk import check_folk, folk_vjp
from lightning_nobp.nn.quaternion.networks import QuaternionCNN, QuaternionMLP
from lightning_nobp.rules.classification import ClassificationRule, accuracy, loss_of_module

BackwardMode = Literal["ghr", "autograd", "naive", "naive_neg", "noconj", "truncated"]

_CLASS_LOSSES = {"mse": formulas.mean_squared_error, "cross_entropy": formulas.cross_entropy}
_QUATERNION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "imaginary_mse": imaginary_mse,
    "unit_mse": unit_mse,
    "geodesic": geodesic_loss,
    "chordal": chordal_loss,
}


class QuaternionBackprop(ClassificationRule):
    """Backpropagation through quaternion layers by the generalised HR calculus, written out layer by layer.

    With ``p = dL/dz*`` at the output of a layer ``z = w a + b``, the weight's derivative is ``dL/dw* = p a*``, the
    bias's ``p``, the input's ``dL/da* = w* p``; from the right ``a* p`` and ``p w*``. No autograd graph is built. The
    gradients that are written are ``grad_scale`` times these derivatives: 4 times they equal autograd's.

    Args:
        loss: ``'cross_entropy'`` or ``'mse'`` for classes; ``'mse'`` of the components, ``'imaginary_mse'``,
            ``'unit_mse'``, ``'geodesic'`` or ``'chordal'`` (see :mod:`lightning_nobp.functional.quaternion`) for
            quaternions; or a module that takes outputs and targets and gives one real number.
        task: ``'classification'`` for class numbers, ``'regression'`` for targets of the outputs' shape.
        backward_mode: ``'ghr'``; ``'autograd'``, the same gradients by torch; or one of the rules that do not hold, to
            see what they do: ``'naive'``, the sum of partial derivatives carried by the ordinary chain rule;
            ``'naive_neg'``, the step against it; ``'noconj'``, descent along ``dL/dw`` rather than ``dL/dw*``;
            ``'truncated'``, one term of the chain rule's four.
        grad_scale: 4 keeps the learning rates of real networks; 1 is the paper's derivative. SGD with ``grad_scale=1``
            and four times the learning rate goes the same way.
        **kwargs: See :class:`ClassificationRule`. ``network`` is a preset (``'mlp'``, ``'cnn'``), or an
            ``nn.Sequential`` of layers with a registered rule, real ones too; for ``'regression'`` no preset.

    Raises:
        ValueError: An unknown option, a preset for regression, or a loss that does not fit the task, has weights to
            train or gives several numbers.
        TypeError: A layer that the backward pass does not know; the message names it.

    References:
        Poeppelbaum and Schwung, "Quaternion Backpropagation", arXiv 2212.13082.
    """

    presets: ClassVar[dict[str, NetworkFactory]] = {"mlp": QuaternionMLP, "cnn": QuaternionCNN}

    def __init__(
        self,
        *,
        loss: str | nn.Module = "cross_entropy",
        task: Literal["classification", "regression"] = "classification",
        backward_mode: BackwardMode = "ghr",
        grad_scale: float = 4.0,
        **kwargs: Any,
    ) -> None:
        if task not in ("classification", "regression"):
            raise ValueError(f"task={task!r} is not one of 'classification', 'regression'")
        losses = _CLASS_LOSSES if task == "classification" else _QUATERNION_LOSSES
        if not isinstance(loss, nn.Module) and loss not in losses:
            raise ValueError(f"loss={loss!r} is no loss of task={task!r}: take one of {', '.join(losses)}, or a module")
        if backward_mode not in get_args(BackwardMode):
            raise ValueError(
                f"backward_mode={backward_mode!r} is not one of {', '.join(map(repr, get_args(BackwardMode)))}"
            )
        if (
            backward_mode != "autograd"
            and isinstance(loss, nn.Module)
            and any(p.requires_grad for p in loss.parameters())
        ):
            raise ValueError(
                f"loss={type(loss).__name__} has weights of its own, which backward_mode={backward_mode!r} does not "
                "train: freeze them, or take backward_mode='autograd'"
            )
        if not isinstance(cast(object, grad_scale), Real) or not 0 < grad_scale < float("inf"):
            raise ValueError(
                f"grad_scale={grad_scale!r} must be a positive number: 4 for autograd's gradient, 1 for dL/dw*"
            )
        self.task, self.backward_mode, self.grad_scale = task, backward_mode, grad_scale
        super().__init__(**kwargs)
        if not self.classifies and self.network is None and self.num_classes is None:
            raise ValueError(
                "network: presets make scores of classes, but task='regression' has none: give a module whose outputs "
                "have the shape of the targets, like EquivariantMLP"
            )
        # Behind the base's constructor: it may be a module, which the base then owns.
        self.loss = loss

    @property
    def classifies(self) -> bool:
        """Whether targets are class numbers."""
        return self.task == "classification"

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network with a layer that the backward pass does not know."""
        if self.backward_mode == "autograd":
            return
        check_supported(network)
        if self.backward_mode != "ghr":
            check_folk(network)

    def configure_optimizers(self) -> Any:
        """The base's; a :class:`~lightning_nobp.nn.QuaternionAdam` learns which parameters are quaternions."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        if isinstance(optimizer, QuaternionAdam):
            optimizer.mark(quaternion_parameters(self))
        return configured

    def compute_gradients(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Add ``grad_scale`` times the GHR derivative of the batch's mean loss to ``p.grad``.

        Args:
            batch: Inputs ``(batch, *input_shape)``, and class numbers ``(batch,)`` or targets of the outputs' shape.

        Returns:
            ``loss`` of the batch, and its ``accuracy`` if there are classes.
        """
        x, target = batch[:2]
        if self.backward_mode == "autograd":
            with torch.enable_grad():
                y = self(x)
                loss = self.loss_function(y, target)
                (loss * (self.grad_scale / 4)).backward()  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                y, pullback = self._run(x)
                loss, grad = self.loss_derivative(y, target)
                pullback(grad * (self.grad_scale / 4))
        metrics = {"loss": loss.detach()}
        return metrics | ({"accuracy": accuracy(y.detach(), target)} if self.classifies else {})

    def _run(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor | None]]:
        if self.backward_mode == "ghr":
            return vjp(self.built_network(), x)
        mode = cast(Literal["naive", "naive_neg", "noconj", "truncated"], self.backward_mode)
        return folk_vjp(self.built_network(), x, mode)

    def loss_derivative(self, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and ``4 dL/dy*``, its real gradient; a rule with a loss of its own may override it.

        Args:
            y: The network's output.
            target: See :meth:`compute_gradients`.
        """
        has_formula = self.classifies and isinstance(self.loss, str)
        if not has_formula or type(self).loss_function is not QuaternionBackprop.loss_function:
            return self.derived_loss(y, target)
        return _CLASS_LOSSES[cast(str, self.loss)](y, target)

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss, by autograd's operations.

        Args:
            scores: The network's output.
            target: See :meth:`compute_gradients`.

        Raises:
            ValueError: Targets of another shape, outputs that are not ``(batch, 4N)`` for a loss of quaternions, or a
                loss of several numbers.
        """
        if isinstance(self.loss, nn.Module):
            return loss_of_module(self.loss, scores, target)
        if not self.classifies:
            if scores.shape != target.shape:
                raise ValueError(
                    f"targets of shape {tuple(target.shape)} do not fit outputs of shape {tuple(scores.shape)}"
                )
            if self.loss != "mse" and scores.dim() != 2:
                raise ValueError(
                    f"loss={self.loss!r} takes outputs (batch, 4N), not {tuple(scores.shape)}: end the network with "
                    "nn.Flatten(), or give a loss module that knows where the components lie"
                )
            return _QUATERNION_LOSSES[self.loss](scores, target)
        if self.loss == "mse":
            return F.mse_loss(scores, F.one_hot(target, scores.shape[-1]).to(scores.dtype))
        return F.cross_entropy(scores, target)
