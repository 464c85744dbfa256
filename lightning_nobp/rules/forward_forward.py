"""Forward-Forward and SymBa: every layer learns by its own loss, without any backward pass between layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional import forward_forward as ff
from lightning_nobp.nn.forward_forward import SLOPES, Drive, FFLayer, LayerPass
from lightning_nobp.nn.forward_forward_network import ForwardForwardNetwork
from lightning_nobp.nn.forward_forward_presets import ForwardForwardCNN, ForwardForwardMLP
from lightning_nobp.nn.forward_forward_readout import NeutralReadout
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.rules.classification import ClassificationRule, accuracy
from lightning_nobp.rules.faults import check_labels
from lightning_nobp.rules.random_state import RankGenerator

Layers = Literal["all", "skip_first"] | list[int]
_CHOICES = {
    "loss": ("ff", "symba", "swish", "class_softmax"),
    "negatives": ("random", "hard", "argmax", "given", "hybrid"),
    "hard_scope": ("first", "each", "all", "readout"),
    "schedule": ("simultaneous", "sequential"),
    "readout": ("none", "softmax"),
    "engine": ("explicit", "autograd"),
    "compute_dtype": (None, "bfloat16"),
}
_GLOBAL_CANDIDATES = 10
"""Labels in the loss that gradients are compared with: with hundreds it would not fit into memory."""


class ForwardForward(ClassificationRule):
    """Forward-Forward: each layer raises its goodness for samples with the right label, and lowers it for wrong ones.

    Positives and negatives go through the network in one pass. A layer's gradient is known as soon as its activity is,
    in closed form, so that one layer's activity is alive at a time. A sample's class is the label of highest goodness.

    Args:
        network: ``'mlp'`` (:class:`~lightning_nobp.nn.ForwardForwardMLP`), ``'cnn'``
            (:class:`~lightning_nobp.nn.ForwardForwardCNN`), another
            :class:`~lightning_nobp.nn.ForwardForwardNetwork`, or what builds one. Labels, goodness and normalisation
            are arguments of the network.
        hidden_dims: Units of the layers of ``'mlp'``, (500, 500) by default.
        input_dim: Entries of a sample, in place of ``input_shape`` where samples are flat.
        input_shape: See :class:`ClassificationRule`.
        loss: ``'ff'``, each goodness against a threshold; ``'symba'``, the two goodnesses of one sample against each
            other; ``'swish'``, likewise, but letting go of pairs that are far apart; ``'class_softmax'``,
            cross-entropy over the goodness of all labels, which needs no negatives.
        alpha: Slope of the loss, per unit of mean goodness; by default 16 for ``'ff'`` and 10 for the others.
        threshold: Of ``'ff'``, in units of mean goodness; 1 by default (-1 where the goodness is negative).
        negatives: Wrong labels: ``'random'``; ``'hard'``, drawn from the softmax of their goodness; ``'argmax'``, the
            one of highest goodness; ``'given'`` as a third tensor in each batch. Or ``'hybrid'``: no labels, but
            each image against a mixture of two, for a network with ``label='none'``.
        hard_temperature: Inverse temperature of the softmax.
        hard_scope: Whose goodness makes a label hard: that of the ``'first'`` layer, the sum over ``'all'``, ``'each'``
            layer's own (with ``stream='neutral'``), or the scores of the ``'readout'``.
        schedule: ``'simultaneous'``, all layers learn from every batch; ``'sequential'``, one layer after another.
        epochs_per_layer: Epochs for each layer of ``'sequential'``; the last goes on to the end.
        predict_layers: Layers whose goodness is summed to predict: ``'all'``, ``'skip_first'``, or a list of numbers
            from 0.
        predict_top_k: Try so many labels behind the first layer only; None for all.
        readout: ``'softmax'`` trains a linear classifier beside the layers, on their normalised activity under the
            neutral label, and predicts with it: one pass a sample instead of one a label.
        readout_layers: Layers that it reads, likewise; those behind the first are Hinton's choice.
        peer_normalisation: Weight of a loss that keeps the units of a layer equally active.
        peer_momentum: Weight of the past in their running mean activity.
        engine: ``'explicit'``, the closed form, or ``'autograd'``, the same readably, for any activation.
        compute_dtype: ``'bfloat16'`` for products of half precision; weights, goodness and gradients stay as they are.
        seed: Of the negatives; each rank has its own.
        optimizer: See :class:`LearningRule`; one for all layers.
        **kwargs: See :class:`ClassificationRule`.

    Raises:
        ValueError: An argument outside its range, or two that exclude each other.
        TypeError: A network that is no ForwardForwardNetwork, or with an activation that has no closed form.

    References:
        Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.
    """

    presets: ClassVar[Mapping[str, NetworkFactory]] = {"mlp": ForwardForwardMLP, "cnn": ForwardForwardCNN}

    def __init__(
        self,
        *,
        network: str | nn.Module | NetworkFactory = "mlp",
        hidden_dims: Sequence[int] | None = None,
        input_dim: int | None = None,
        input_shape: Sequence[int] | None = None,
        loss: Literal["ff", "symba", "swish", "class_softmax"] = "ff",
        alpha: float | None = None,
        threshold: float | None = None,
        negatives: Literal["random", "hard", "argmax", "given", "hybrid"] = "hard",
        hard_temperature: float = 10.0,
        hard_scope: Literal["first", "each", "all", "readout"] = "first",
        schedule: Literal["simultaneous", "sequential"] = "simultaneous",
        epochs_per_layer: int | None = None,
        predict_layers: Layers = "all",
        predict_top_k: int | None = None,
        readout: Literal["none", "softmax"] = "none",
        readout_layers: Layers = "all",
        peer_normalisation: float = 0.0,
        peer_momentum: float = 0.9,
        engine: Literal["explicit", "autograd"] = "explicit",
        compute_dtype: Literal["bfloat16"] | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=3e-3, fused=True),
        **kwargs: Any,
    ) -> None:
        self.loss, self.alpha, self.threshold = loss, alpha, threshold
        self.negatives, self.hard_temperature, self.hard_scope = negatives, hard_temperature, hard_scope
        self.schedule, self.epochs_per_layer = schedule, epochs_per_layer
        self.predict_layers, self.predict_top_k = predict_layers, predict_top_k
        self.readout, self.readout_layers = readout, readout_layers
        self.peer_normalisation, self.peer_momentum = peer_normalisation, peer_momentum
        self.engine, self.compute_dtype = engine, compute_dtype
        self._check_arguments()
        # Names of their own: the base keeps what the arguments were.
        factory, shape = network, input_shape
        if hidden_dims is not None:
            if network != "mlp":
                raise ValueError(
                    f"hidden_dims={hidden_dims} is for network='mlp': give your network its own, on the command line "
                    "--model.network.hidden_dims"
                )
            factory = partial(ForwardForwardMLP, hidden_dims=tuple(hidden_dims))
        if input_dim is not None:
            if input_shape is not None and tuple(input_shape) != (input_dim,):
                raise ValueError(f"input_dim={input_dim} and input_shape={input_shape}: give one of them")
            shape = (input_dim,)
        self._trained_layers: int | None = None
        super().__init__(network=factory, input_shape=shape, optimizer=optimizer, **kwargs)
        self.generators["negatives"] = RankGenerator(seed)

    # At the door

    def _check_arguments(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
        for name in ("alpha", "hard_temperature"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be positive and finite")
        if self.threshold is not None and self.loss != "ff":
            raise ValueError(f"threshold={self.threshold} belongs to loss='ff': loss={self.loss!r} has none")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ValueError(f"threshold={self.threshold} must be finite")
        if not self.peer_normalisation >= 0:
            raise ValueError(f"peer_normalisation={self.peer_normalisation} must not be negative")
        if not 0 <= self.peer_momentum < 1:
            raise ValueError(f"peer_momentum={self.peer_momentum} must lie from 0 to below 1")
        if self.schedule == "sequential" and self.epochs_per_layer is None:
            raise ValueError("schedule='sequential' needs epochs_per_layer=N")
        if self.schedule == "simultaneous" and self.epochs_per_layer is not None:
            raise ValueError(f"epochs_per_layer={self.epochs_per_layer} has no effect without schedule='sequential'")
        if self.epochs_per_layer is not None and self.epochs_per_layer < 1:
            raise ValueError(f"epochs_per_layer={self.epochs_per_layer} must be at least 1")
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Refuse what would be ignored."""
        if self.hard_scope == "readout" and self.readout == "none":
            raise ValueError("hard_scope='readout' draws labels from scores: it needs readout='softmax'")
        if self.hard_scope != "first" and self.negatives not in ("hard", "argmax"):
            raise ValueError(f"hard_scope={self.hard_scope!r} has no effect on negatives={self.negatives!r}")
        if self.loss == "class_softmax" and self.negatives not in ("hard", "hybrid"):
            raise ValueError(f"negatives={self.negatives!r} has no effect: loss='class_softmax' takes all labels")
        if self.readout == "none" and self.readout_layers != "all":
            raise ValueError(f"readout_layers={self.readout_layers!r} has no effect without readout='softmax'")
        if self.readout != "none" and (self.predict_layers != "all" or self.predict_top_k is not None):
            raise ValueError(
                f"predict_layers={self.predict_layers!r} and predict_top_k={self.predict_top_k} have no effect on "
                "readout='softmax', which predicts"
            )
        if self.peer_normalisation and self.loss == "class_softmax":
            raise ValueError(f"peer_normalisation={self.peer_normalisation} needs a loss of pairs, not 'class_softmax'")
        if self.negatives == "hybrid" and (self.readout == "none" or self.loss == "class_softmax"):
            raise ValueError(
                "negatives='hybrid' learns without labels: it needs readout='softmax' to predict them, and a loss of "
                "pairs, not 'class_softmax'"
            )

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network that is not made of Forward-Forward layers, or does not fit the arguments."""
        if not isinstance(network, ForwardForwardNetwork):
            raise TypeError(
                f"network is a {type(network).__name__}: {type(self).__name__} trains a ForwardForwardNetwork, for "
                "example ForwardForwardMLP or ForwardForwardCNN, whose layers have goodness and labels"
            )
        self._check_layers(network)
        unlabelled = network.labelled_input.mode == "none"
        if unlabelled != (self.negatives == "hybrid"):
            raise ValueError(
                f"negatives={self.negatives!r} with label={network.labelled_input.mode!r}: label='none' and "
                "negatives='hybrid' go together"
            )
        if self.hard_scope == "each" and network.stream != "neutral":
            raise ValueError(
                "hard_scope='each' changes labels between layers: it needs a network with stream='neutral'"
            )
        if self.num_classes != network.num_classes:
            raise ValueError(f"num_classes={self.num_classes} does not fit the network's, {network.num_classes}")
        if self.predict_top_k is not None and network.stream == "neutral":
            raise ValueError(
                f"predict_top_k={self.predict_top_k} has no effect on a network with stream='neutral', in which all "
                "labels share the products"
            )
        if self.predict_top_k is not None and not 1 <= self.predict_top_k <= network.num_classes:
            raise ValueError(f"predict_top_k={self.predict_top_k} must lie from 1 to {network.num_classes}")
        chosen_layers("predict_layers", self.predict_layers, len(network.layers))

    def _check_layers(self, network: ForwardForwardNetwork) -> None:
        for number, layer in enumerate(cast(list[FFLayer], list(network.layers))):
            usual = self._usual_threshold(layer)
            if self.threshold is not None and self.threshold * usual <= 0:
                raise ValueError(
                    f"threshold={self.threshold} is not among the values of goodness={layer.goodness!r}: all samples "
                    f"lie on one side; the usual is {usual}"
                )
            if self.engine == "explicit" and layer.activation not in SLOPES:
                raise TypeError(
                    f"layers[{number}] has activation={layer.activation!r}, which has no closed form here: take one of "
                    f"{', '.join(map(repr, SLOPES))}, or engine='autograd'"
                )

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch that does not fit the network, or lacks the negatives."""
        super().check_batch(batch)
        x, target = batch[:2]
        if not x.is_floating_point():
            raise TypeError(f"inputs of type {x.dtype} are no images in floating point: scale them, x.float() / 255")
        if self.on_nonfinite == "raise" and not x.isfinite().all():
            raise ValueError("inputs with values that are not finite: check the data")
        if self.negatives == "hybrid" and (x.dim() != 4 or len(x) < 2):
            raise ValueError(
                f"inputs of shape {tuple(x.shape)}: negatives='hybrid' mixes images (batch, channels, ...)"
            )
        if self.negatives == "given" and self.trainer.training:
            self._check_given(batch, target)

    def check_labels(self, batch: Any) -> None:
        """Refuse class numbers that there are not, wrong ones included."""
        super().check_labels(batch)
        if self.negatives == "given" and len(batch) > 2 and not batch[2].is_floating_point():
            check_labels(batch[2], cast(int, self.num_classes), "wrong labels")

    def _check_given(self, batch: Sequence[Tensor], target: Tensor) -> None:
        if len(batch) < 3:
            raise MisconfigurationException(
                "negatives='given' needs batches (inputs, class numbers, wrong class numbers)"
            )
        wrong = batch[2]
        if wrong.shape != target.shape or wrong.is_floating_point():
            raise ValueError(
                f"wrong labels of type {wrong.dtype}, shape {tuple(wrong.shape)}: give integers, one a sample"
            )
        if self.loss == "ff" and (wrong == target).any():
            raise ValueError("a wrong label equals the right one: its two forces would not cancel with loss='ff'")

    def on_fit_start(self) -> None:
        """Refuse a run that would end before the last layer's turn."""
        super().on_fit_start()
        if self.epochs_per_layer is None:
            return
        needed, planned = len(self._network.layers) * self.epochs_per_layer, self.trainer.max_epochs
        if planned is not None and 0 <= planned < needed:
            raise MisconfigurationException(
                f"max_epochs={planned} ends before the last layer's turn: epochs_per_layer={self.epochs_per_layer} for "
                f"{len(self._network.layers)} layers needs max_epochs={needed}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add which layers have been trained."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["trained_layers"] = self._trained_layers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over which layers have been trained."""
        super().on_load_checkpoint(checkpoint)
        self._trained_layers = checkpoint.get("trained_layers")

    # Learning

    @property
    def _network(self) -> ForwardForwardNetwork:
        return cast(ForwardForwardNetwork, self.built_network())

    def _build(self) -> None:
        if isinstance(self.network, ForwardForwardNetwork) and self.input_shape is None:
            self.input_shape = self.network.labelled_input.input_shape
        super()._build()
        number = len(self._network.layers)
        self._predicting = chosen_layers("predict_layers", self.predict_layers, number)
        if self.readout == "softmax":
            read = chosen_layers("readout_layers", self.readout_layers, number)
            self.neutral_readout = NeutralReadout(self._network, read)

    def compute_gradients(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Add the gradient of each layer's own loss to its ``p.grad``.

        Args:
            batch: Inputs ``(batch, *input_shape)`` and class numbers ``(batch,)``; with ``negatives='given'`` wrong
                class numbers too.

        Returns:
            ``loss``, summed over the layers; ``pair_accuracy``, how often the goodness of the right label, summed over
            the layers, is above that of the wrong one (all wrong ones with ``'class_softmax'``); of the readout,
            ``readout_loss`` and ``accuracy``.
        """
        losses, goodness = [], []
        explicit = self.engine == "explicit"
        if self.schedule == "sequential":
            self._trained_layers = self._last_learning + 1
        with self.autocast(), torch.set_grad_enabled(not explicit):
            batch = (batch[0], *(labels.long() for labels in batch[1:]))
            for number, current in enumerate(self.contrast(batch, self.generators["negatives"])):
                found = current.goodness()
                goodness.append(found.detach())
                if self._learns(number):
                    learn = self._add_gradients if explicit else self._backpropagate
                    losses.append(learn(current, found, batch[1]))
                if number == self._last_learning:
                    break
            values = {"loss": torch.stack(losses).sum(), "pair_accuracy": self._share_right(goodness, batch[1])}
            if self.readout == "softmax":
                scores, loss = self.neutral_readout.add_gradients(self._network, batch[0], batch[1])
                values |= {"readout_loss": loss, "accuracy": accuracy(scores, batch[1])}
        return values

    def contrast(self, batch: Sequence[Tensor], generator: RankGenerator) -> Iterator[LayerPass]:
        """Each layer's activity on positives, candidate 0, and negatives, candidate 1, of a batch.

        With ``loss='class_softmax'`` the candidates are all labels.

        Args:
            batch: As in :meth:`compute_gradients`.
            generator: Of the negatives.
        """
        x, target = batch[:2]
        network, numbers = self._network, generator.on(x.device)
        if self.negatives == "hybrid":
            pairs = torch.cat([x, ff.hybrid_images(x, generator=numbers)])
            return network.passes(pairs, lambda drive: target.new_zeros(2, len(x)))
        if self.loss == "class_softmax":
            return network.passes(x, network.all_labels)
        chosen: list[Tensor] = []

        def choose(drive: Drive) -> Tensor:
            if not chosen or self.hard_scope == "each":
                chosen[:] = [torch.stack([target, self.wrong_labels(batch, drive, numbers)])]
            return chosen[0]

        return network.passes(x, choose)

    def _scores(self, x: Tensor) -> Tensor:
        """What hard labels are drawn by, ``(batch, num_classes)``, beyond one layer's goodness."""
        if self.hard_scope == "readout":
            return cast(Tensor, self.neutral_readout(self._network, x))
        goodness = self._network.candidate_goodness(x)
        units = goodness.new_tensor(self._network.goodness_units())
        return self._summed(goodness / units, range(len(units)))

    @torch.no_grad()
    def wrong_labels(self, batch: Sequence[Tensor], drive: Drive, generator: torch.Generator) -> Tensor:
        """A wrong label for each sample; override it for negatives of your own.

        Args:
            batch: As in :meth:`compute_gradients`.
            drive: What drives the first layer (with ``hard_scope='each'`` each layer), which tells any label's goodness
                there.
            generator: Of random numbers, on the device of the batch.

        Returns:
            ``(batch,)``, class numbers.
        """
        x, target = batch[:2]
        network = self._network
        if self.negatives == "given" and len(batch) > 2:
            return batch[2]
        if self.negatives in ("random", "given"):  # Validation comes without wrong labels.
            return ff.sample_wrong_labels(target, network.num_classes, generator)
        if self.hard_scope in ("first", "each"):
            scores = drive.goodness(network.all_labels(drive)).t() / drive.unit
        else:
            with network.evaluating():
                scores = self._scores(x)
        temperature = math.inf if self.negatives == "argmax" else self.hard_temperature
        return ff.sample_hard_labels(scores, target, temperature, generator)

    def _add_gradients(self, current: LayerPass, goodness: Tensor, target: Tensor) -> Tensor:
        unit = current.drive.unit
        q, loss = ff.candidate_coefficients(self.loss, goodness / unit, target, **self._slope(current))
        extra, peer_loss = self._peer(current)
        current.add_gradients(q / unit, extra)
        return loss + peer_loss

    def _backpropagate(self, current: LayerPass, goodness: Tensor, target: Tensor) -> Tensor:
        loss = ff.candidate_loss(self.loss, goodness / current.drive.unit, target, **self._slope(current))
        extra, peer_loss = self._peer(current)
        objective = loss if extra is None else loss + (current.h * extra).sum()
        objective.backward()  # type: ignore[no-untyped-call]
        return loss.detach() + peer_loss

    def _slope(self, current: LayerPass) -> dict[str, float]:
        """Slope and threshold of a layer's loss."""
        threshold = self._usual_threshold(current.layer) if self.threshold is None else self.threshold
        return {"alpha": self._alpha, "threshold": threshold}

    @staticmethod
    def _usual_threshold(layer: FFLayer) -> float:
        return -1.0 if layer.goodness == "negative" else 1.0

    @torch.no_grad()
    def _peer(self, current: LayerPass) -> tuple[Tensor | None, float | Tensor]:
        """Gradient with respect to the activity, and value, of peer normalisation."""
        if not self.peer_normalisation:
            return None, 0.0
        layer, batch = current.layer, current.labels.shape[1]
        loss, grad, means = ff.peer_normalisation(current.h[:batch], layer.peer_means, self.peer_momentum)
        layer.peer_means.copy_(means)
        extra = torch.zeros_like(current.h)
        extra[:batch] = self.peer_normalisation * grad
        return extra, self.peer_normalisation * loss

    def _learns(self, number: int) -> bool:
        return self.schedule == "simultaneous" or number == self._last_learning

    @property
    def _last_learning(self) -> int:
        last = len(self._network.layers) - 1
        return last if self.epochs_per_layer is None else min(self.current_epoch // self.epochs_per_layer, last)

    def _share_right(self, goodness: Sequence[Tensor], target: Tensor) -> Tensor:
        sums = torch.stack(list(goodness)).sum(0)
        if self.loss == "class_softmax":
            return accuracy(sums.t(), target)
        return (sums[0] > sums[1]).float().mean()

    @property
    def _alpha(self) -> float:
        return self.alpha if self.alpha is not None else 16.0 if self.loss == "ff" else 10.0

    def autocast(self) -> AbstractContextManager[Any]:
        """What ``compute_dtype`` asks for."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # Predicting

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(batch, num_classes)`` of ``(batch, *input_shape)``: goodness, or those of the readout."""
        return self.outputs(x)["scores"]

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """``scores``, and where they are sums of goodness ``layer_goodness``, ``(batch, num_classes, layers)``."""
        with self.autocast():
            if self.readout == "softmax":
                return {"scores": self.neutral_readout(self._network, x)}
            goodness = self._network.candidate_goodness(x, self.predict_top_k)
        return {"scores": self._summed(goodness, self._predicting), "layer_goodness": goodness}

    def _summed(self, goodness: Tensor, layers: Sequence[int]) -> Tensor:
        """Sum over those of ``layers`` that have been trained, or are being; over all of them if none has."""
        trained = [layer for layer in layers if self._trained_layers is None or layer < self._trained_layers]
        return goodness[..., trained or list(layers)].sum(-1)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Class probabilities: the softmax of scores, as steep as the loss of a layer."""
        return (self._steepness * scores).softmax(dim=-1)

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of :meth:`probabilities`, which validation and test report.

        Args:
            scores: ``(batch, num_classes)``.
            target: ``(batch,)``, class numbers.
        """
        return F.cross_entropy(self._steepness * scores, target)

    @property
    def _steepness(self) -> float:
        if self.readout == "softmax":
            return 1.0
        units = self._network.goodness_units()
        return self._alpha * len(units) / sum(units)

    def global_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of the whole network, with gradients from layer to layer.

        It is that of :meth:`loss_function`; of more than ten labels, over the right one and the nine that follow it.
        """
        x, target = batch[:2]
        if self.readout == "softmax":
            return self.loss_function(self.neutral_readout(self._network, x), target)
        network = self._network
        tried = min(network.num_classes, _GLOBAL_CANDIDATES)
        labels = (target + torch.arange(tried, device=target.device).unsqueeze(1)) % network.num_classes
        passes = network.passes(x, lambda drive: labels, detach=False)
        goodness = torch.stack([p.goodness() for p in passes], dim=-1)
        scores = self._summed(goodness, self._predicting).t()
        return self.loss_function(scores, torch.zeros_like(target))


class SymBa(ForwardForward):
    """SymBa: the goodness of a sample with the right label against that of the same sample with a wrong one.

    No threshold is left, and the forces on the two are equal and opposite. Everything else is as in
    :class:`ForwardForward`.

    Args:
        loss: As there, but ``'symba'`` by default.
        **kwargs: See :class:`ForwardForward`.

    References:
        Lee and Song, "SymBa: Symmetric Backpropagation-Free Contrastive Learning with Forward-Forward Algorithm for
        Optimizing Convergence", arXiv 2303.08418.
    """

    def __init__(self, *, loss: Literal["ff", "symba", "swish", "class_softmax"] = "symba", **kwargs: Any) -> None:
        super().__init__(loss=loss, **kwargs)


def chosen_layers(name: str, layers: Layers, number: int) -> list[int]:
    """The layers that an argument means.

    Args:
        name: Of the argument.
        layers: ``'all'``, ``'skip_first'`` or a list.
        number: How many there are.

    Raises:
        ValueError: There is no such layer, or none is left.
    """
    if layers == "all":
        return list(range(number))
    if layers == "skip_first":
        if number == 1:
            raise ValueError(f"{name}='skip_first' leaves none of one layer: use 'all'")
        return list(range(1, number))
    if isinstance(layers, str) or not layers or not all(0 <= layer < number for layer in layers):
        raise ValueError(f"{name}={layers!r} must be 'all', 'skip_first' or a list of layers from 0 to {number - 1}")
    return sorted(set(layers))
