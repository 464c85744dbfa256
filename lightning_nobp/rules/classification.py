"""The base of every rule that trains a classifier."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from inspect import Parameter, isclass, signature
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Accuracy, MeanMetric, Metric

from lightning_nobp.nn.networks import PRESETS, NetworkFactory
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.faults import check_labels
from lightning_nobp.rules.hyperparameters import to_plain

_SETS = {"val": "validation", "test": "test"}


class ClassificationRule(LearningRule):
    """A learning rule for a network that maps inputs to class scores.

    The base adds the network, loss and accuracy for validation and test, and prediction. A subclass implements
    :meth:`~LearningRule.compute_gradients`, and overrides :meth:`forward` or :meth:`loss_function` where its scores or
    its loss are others.

    Args:
        network: A preset (``'mlp'``, ``'cnn'``), a module, or what builds one from ``(input_shape, num_classes)``:
            a class, a ``functools.partial`` of one or a function; from ``num_classes=...`` alone where it takes no
            shape, like ``torchvision.models.resnet18``; where targets are no classes, from no arguments.
        num_classes: Number of classes; None takes it from the data module.
        input_shape: Shape of one sample, for images ``(channels, height, width)``; None takes it from the data
            module. Not needed where ``network`` is a module.
        **kwargs: See :class:`LearningRule`.

    Raises:
        ValueError: An unknown preset, or fewer than two classes.
    """

    presets: ClassVar[Mapping[str, NetworkFactory]] = PRESETS
    """Networks that have a short name."""

    def __init__(
        self,
        *,
        network: str | nn.Module | NetworkFactory = "mlp",
        num_classes: int | None = None,
        input_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: a classifier needs at least two")
        self._factory = None if isinstance(network, nn.Module) else _network_factory(network, self.presets)
        self.num_classes = num_classes
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.network: nn.Module | None = network if isinstance(network, nn.Module) else None
        if self._factory is not None and num_classes is None and not self.classifies and _is_complete(self._factory):
            # Built at once: what its constructor refuses is the reason that it is no module yet.
            self.network = cast(Callable[[], nn.Module], self._factory)()
        self._metrics = nn.ModuleDict()
        known = num_classes is not None or not self.classifies
        if known and (self.network is not None or input_shape is not None):
            self._build()

    @property
    def classifies(self) -> bool:
        """Whether targets are class numbers: always, unless a rule can learn other targets too."""
        return True

    def configure_model(self) -> None:
        """Build what waited for the data module's shape and number of classes."""
        if not self._metrics:
            self._build_for_data()
        super().configure_model()

    def _build_for_data(self) -> None:
        data = getattr(self._trainer, "datamodule", None)
        for name in ("num_classes", "input_shape") if self.classifies else ("input_shape",):
            if getattr(self, name) is None:
                value = getattr(data, name, None)
                if value is None and not (name == "input_shape" and self.network is not None):
                    raise ValueError(
                        f"{name} is not known: give {type(self).__name__}({name}=...) or a data module with the "
                        f"attribute {name!r}"
                    )
                setattr(self, name, value)
                self.hparams[name] = None if value is None else to_plain(value, name)
        self._build()

    def _build(self) -> None:
        if self.network is None:
            if self.num_classes is None:
                raise ValueError("network: without classes its outputs are not known, so give a module of your own")
            assert self._factory is not None
            assert self.input_shape is not None
            self.network = _call(self._factory, self.input_shape, self.num_classes)
        self.network = self.prepare_network(self.network)
        self.check_network(self.network)
        for stage in ("val", "test"):
            # By default a nan would be left out, and the loss look as if there was none.
            self._metrics[f"{stage}/loss"] = MeanMetric(nan_strategy=math.nan)
            if self.classifies:
                assert self.num_classes is not None
                self._metrics[f"{stage}/accuracy"] = Accuracy(task="multiclass", num_classes=self.num_classes)

    def prepare_network(self, network: nn.Module) -> nn.Module:
        """What the rule makes of the network that it was given or has built; by default itself.

        The constructor of this class calls it: a subclass sets what it looks at before ``super().__init__``.
        """
        return network

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network that the rule cannot train; by default every network is welcome.

        The constructor of this class calls it: a subclass sets what it looks at before ``super().__init__``.

        Raises:
            TypeError: Names the layer and what to do about it.
        """

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch that does not fit the network.

        Args:
            batch: Inputs ``(batch, *input_shape)`` and class numbers ``(batch,)``.

        Raises:
            TypeError: It is no pair of tensors.
            ValueError: Inputs of another size, or targets that are no class numbers.
        """
        if not (isinstance(batch, list | tuple) and len(batch) > 1 and all(isinstance(t, Tensor) for t in batch[:2])):
            raise TypeError(f"{type(self).__name__} learns from batches (inputs, targets), not {type(batch)}")
        x, target = batch[:2]
        self._check_inputs(x)
        if not self.classifies:
            if not target.is_floating_point() or len(target) != len(x):
                raise ValueError(
                    f"targets of type {target.dtype} and shape {tuple(target.shape)} are no values: give "
                    "floating point numbers, a row a sample"
                )
            return
        if target.is_floating_point() or target.shape != x.shape[:1]:
            raise ValueError(
                f"targets of type {target.dtype} and shape {tuple(target.shape)} are no class numbers: give integers, "
                f"one a sample"
            )
        self.check_labels(batch)

    def _check_inputs(self, x: Tensor) -> None:
        if self.input_shape is not None and x.shape[1:].numel() != math.prod(self.input_shape):
            raise ValueError(
                f"inputs of shape {tuple(x.shape[1:])} do not fit the network's input_shape={self.input_shape}"
            )

    def check_labels(self, batch: Any) -> None:
        """Refuse class numbers that there are not; of every batch, unless it comes from a GPU.

        A loss may ignore them, or take a class from the end.

        Args:
            batch: Inputs and class numbers ``(batch,)``, integers.
        """
        check_labels(batch[1], cast(int, self.num_classes))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Look at class numbers while they are on the CPU, where that waits for no device."""
        target = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
        # The first of an epoch is refused together, so that no rank waits for another.
        is_first = self.trainer.training and self.trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0
        if self.classifies and _are_integers(target) and not (is_first or self.trainer.predicting):
            self.check_labels(batch)
        return batch

    def find_fault(self, batch: Any) -> None:
        """Say what is wrong with a batch of which a step has failed: its shape, targets, or the type of its inputs.

        Raises:
            TypeError: See :meth:`check_batch`.
            ValueError: Likewise, or inputs of another type than the weights.
        """
        if self._trainer is None or not self.trainer.predicting:
            self.check_batch(batch)
        x = batch[0] if isinstance(batch, list | tuple) and batch else batch
        if not isinstance(x, Tensor):
            return
        self._check_inputs(x)
        weights = next((p.dtype for p in self.parameters() if p.is_floating_point()), self.dtype)
        # Whole numbers may be meant: indices of an embedding. A network may also convert them, and fail elsewhere.
        if x.dtype != weights and (x.is_floating_point() or x.dtype == torch.uint8) and _is_of_types(sys.exception()):
            raise ValueError(
                f"inputs of type {x.dtype} do not fit the weights, {weights}: convert them first, for images of bytes "
                "x.float() / 255"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(batch, num_classes)`` of inputs ``(batch, *input_shape)``.

        Raises:
            TypeError: The network returns more than a tensor.
        """
        scores = self.built_network()(x)
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"the network {type(self.network).__name__} returns a {type(scores).__name__}: wrap it in a module "
                "that returns a tensor alone"
            )
        return scores

    def built_network(self) -> nn.Module:
        """The network.

        Raises:
            RuntimeError: It waits for the data module's shape.
        """
        if self.network is None:
            raise RuntimeError(
                f"the network is built once its shape is known: give {type(self).__name__}(num_classes=..., "
                "input_shape=...), or train with a data module"
            )
        return self.network

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """What callbacks get of a validation or test batch: ``scores``, and what else a rule finds on the way."""
        return {"scores": self(x)}

    def batch_outputs(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """:meth:`outputs` of a whole validation or test batch, for rules that use more of it than the inputs."""
        return self.outputs(batch[0])

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss that is reported for validation and test: softmax cross-entropy by default.

        Args:
            scores: ``(batch, num_classes)``.
            target: ``(batch,)``, class numbers.
        """
        return nn.functional.cross_entropy(scores, target)

    def evaluation_loss(self, outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The loss of a validation or test batch by its :meth:`outputs`; by default :meth:`loss_function` of scores.

        Args:
            outputs: What :meth:`outputs` found.
            target: ``(batch,)``, class numbers.
        """
        return self.loss_function(outputs["scores"], target)

    def derived_loss(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`loss_function` and its gradient by the scores, whatever a subclass made of it; by autograd.

        Args:
            scores: ``(batch, num_classes)``.
            target: ``(batch,)``, class numbers.
        """
        with torch.enable_grad():
            scores = scores.detach().requires_grad_()
            loss = self.loss_function(scores, target)
            return loss.detach(), torch.autograd.grad(loss, scores)[0]

    def global_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor | None:
        """:meth:`loss_function` of the whole network, with its autograd graph."""
        x, target = batch[:2]
        return self.loss_function(self(x), target)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Class probabilities ``(batch, num_classes)`` from scores: their softmax by default."""
        return scores.softmax(dim=-1)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Count one batch into ``val/loss`` and ``val/accuracy``; callbacks get its :meth:`outputs`."""
        return self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Count one batch into ``test/loss`` and ``test/accuracy``; callbacks get its :meth:`outputs`."""
        return self._evaluate("test", batch, batch_idx)

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        """Class probabilities ``(batch, num_classes)`` of ``x`` or ``(x, target)``; outputs if there are no classes."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        with self._explained(batch):
            return self.probabilities(self(x)) if self.classifies else self(x)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, over all ranks."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, over all ranks."""
        self._log_metrics("test")

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if batch_idx == 0:
            self.check_batch(batch)
        x, target = batch[:2]
        with self._explained(batch):
            outputs = self.batch_outputs(batch)
        scores = outputs["scores"]
        if self.classifies and scores.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"the network's scores have shape {tuple(scores.shape)}: num_classes={self.num_classes} asks for "
                f"({len(x)}, {self.num_classes}); build it with as many outputs, on the command line often "
                f"--model.network.num_classes={self.num_classes}"
            )
        self._metric(stage, "loss").update(self.evaluation_loss(outputs, target), weight=len(target))
        if self.classifies:
            self._metric(stage, "accuracy").update(scores, target)
        return outputs

    def _log_metrics(self, stage: str) -> None:
        for name in ("loss", "accuracy") if self.classifies else ("loss",):
            metric = self._metric(stage, name)
            # The metric sums over ranks itself.
            value = metric.compute()
            self.log(f"{stage}/{name}", value, prog_bar=True)
            metric.reset()
            if not bool(value.isfinite()):
                rank_zero_warn(
                    f"{stage}/{name}={float(value)}: an input of the {_SETS[stage]} data is not finite or too large, "
                    "or weights have become so. Check the data, or lower the learning rate"
                )

    def _metric(self, stage: str, name: str) -> Metric:
        return cast(Metric, self._metrics[f"{stage}/{name}"])


def accuracy(scores: Tensor, target: Tensor) -> Tensor:
    """Fraction of ``scores`` ``(batch, num_classes)`` whose largest entry is the target's."""
    return (scores.argmax(dim=-1) == target).to(torch.float32).mean()


def loss_of_module(loss: nn.Module, scores: Tensor, target: Tensor) -> Tensor:
    """What a loss that a user gave as a module says.

    Raises:
        ValueError: It gives several numbers.
    """
    found: Tensor = loss(scores, target)
    if found.dim():
        raise ValueError(
            f"loss={type(loss).__name__} gives numbers of shape {tuple(found.shape)}: it must give one, by "
            "reduction='mean'"
        )
    return found


def _is_of_types(error: BaseException | None) -> bool:
    """Whether torch complains of a type, or nothing has failed yet."""
    return error is None or bool(re.search("type|not implemented for", str(error)))


def _are_integers(target: Any) -> bool:
    """Whether these are numbers, and looking at them waits for nothing."""
    is_here = isinstance(target, Tensor) and target.device.type == "cpu" and target.numel() > 0
    return is_here and not (target.is_floating_point() or target.is_complex())


def _is_complete(factory: NetworkFactory) -> bool:
    """Whether a network can be built without a shape and classes."""
    given = factory.keywords if isinstance(factory, partial) else {}
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return all(
        name in given or parameter.default is not Parameter.empty or parameter.kind in optional
        for name, parameter in _parameters(factory).items()
    )


def _call(factory: NetworkFactory, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """A network from shape and classes in this order, or from classes alone of a factory that takes no shape."""
    parameters = _parameters(factory)
    ordered = [p.name for p in parameters.values() if p.kind not in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)]
    takes_both = ordered[1:2] == ["num_classes"] or (ordered and "num_classes" not in parameters)
    if takes_both:
        return factory(input_shape, num_classes)
    return cast(Callable[..., nn.Module], factory)(num_classes=num_classes)


def _parameters(factory: NetworkFactory) -> Mapping[str, Parameter]:
    """What a factory can still be given; of the command line's own partials, what their class takes."""
    if isinstance(factory, partial) and not isclass(factory.func):
        # They call a helper with the class as an argument.
        return signature(next((part for part in factory.args if isclass(part)), factory)).parameters
    return signature(factory).parameters


def _network_factory(network: str | NetworkFactory, presets: Mapping[str, NetworkFactory]) -> NetworkFactory:
    if not isinstance(network, str):
        return network
    if network in presets:
        return presets[network]
    module, _, name = network.rpartition(".")
    try:
        factory = getattr(import_module(module or "lightning_nobp.nn"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"network={network!r} is not one of {', '.join(map(repr, presets))}, nor a class path ({error})"
        ) from error
    return cast(NetworkFactory, factory)
