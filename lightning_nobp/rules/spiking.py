"""Timing-based backpropagation in spiking networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional import backprop as formulas
from lightning_nobp.metrics import DecisionTime, SilentFraction, SpikesPerNeuron, SynapticOperations
from lightning_nobp.metrics.spikes import decision_time, saturated_fraction, silent_fraction, spikes_per_neuron
from lightning_nobp.nn.backprop import check_supported
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.nn.spiking.initialisation import check_fires, initialise_from_data
from lightning_nobp.nn.spiking.layer import SpikingLayer
from lightning_nobp.nn.spiking.networks import SpikingCNN, SpikingMLP
from lightning_nobp.nn.spiking.passes import Pass, leaves, passes, passes_vjp, spiking, synaptic_operations
from lightning_nobp.nn.spiking.penalties import HiddenPenalty, OutputPenalty
from lightning_nobp.nn.spiking.readout import FirstSpike, MembraneReadout, SpikeTrace
from lightning_nobp.rules.classification import ClassificationRule, accuracy
from lightning_nobp.rules.synchronisation import gather_from_ranks

_STATE_KEY = "spiking"
_READOUTS = FirstSpike | SpikeTrace | MembraneReadout
_MOST_SATURATED = 0.01


class SpikeTimingBackprop(ClassificationRule):
    """Backpropagation through exact spike times: no time steps and no surrogate gradients, many spikes a neuron.

    A forward pass finds the spikes of each layer event by event. A spike time is the root of a smooth equation, so its
    derivatives with respect to weights and input times are exact, resets included; the error travels back through
    them, layer by layer. No autograd graph is built.

    Logged for each step, beside loss and accuracy: ``spikes_per_neuron`` and ``silent_fraction`` of hidden neurons;
    ``decision_time``, the time of the first output spike; ``synaptic_operations`` of a sample; and
    ``saturated_fraction`` of the neurons, those with all of their ``max_spikes``. They are measured in validation and
    test too, spikes for each layer.

    Args:
        loss: ``'cross_entropy'`` of the read-out's scores, or ``'mse'`` of the first spike times to ``target_times``.
        target_times: For ``'mse'``, when the neuron of the right class is to spike and when the others; None for four
            and seven tenths of the window.
        gamma: Of the mean ``(t - t_ref)^2`` of first output spikes, which keeps them inside the window.
        t_ref: Where first output spikes are to be, and where they begin; None for six tenths of the window.
        silent_penalty: Of what the silent output neurons of a sample lack to their threshold at the end.
        spike_penalty: Of the spikes of hidden neurons: mean over neurons of the sum of ``(t_max - t) / t_max``.
        initialise: ``'data'`` scales the weights on the first training batch, so that neurons fire whatever the time
            constants (:func:`~lightning_nobp.nn.initialise_from_data`); ``'none'`` for a network whose weights are
            right.
        gain: How strongly hidden layers are driven at the start: the standard deviation of their membranes over
            samples, in thresholds. Fewer spikes with less.
        optimizer: See :class:`LearningRule`.
        **kwargs: See :class:`ClassificationRule`. ``network`` is a preset (``'mlp'``, ``'cnn'``), or an
            ``nn.Sequential`` that ends in a read-out. The options of neurons are the network's.

    Raises:
        ValueError: An argument out of range; on the first training batch, a layer that is silent.
        TypeError: A network without spiking layers or read-out, or with a layer that the backward pass does not know.

    References:
        Yamamoto, Sakemi and Aihara, "Timing-Based Backpropagation in Spiking Neural Networks Without Single-Spike
        Restrictions", arXiv 2211.16113.
    """

    presets: ClassVar[Mapping[str, NetworkFactory]] = {"mlp": SpikingMLP, "cnn": SpikingCNN}
    # Times need their digits: those of a half precision are a hundred to the window.
    supported_precisions: ClassVar[tuple[str, ...]] = ("32-true", "64-true")

    def __init__(
        self,
        *,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        target_times: Sequence[float] | None = None,
        gamma: float = 0.1,
        t_ref: float | None = None,
        silent_penalty: float = 1.0,
        spike_penalty: float = 0.0,
        hidden_silent_penalty: float = 0.0,
        initialise: Literal["data", "none"] = "data",
        gain: float = 3.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        # Set before the base's constructor, which checks the network with them.
        self.loss, self.initialise, self.gain = loss, initialise, gain
        self.target_times = None if target_times is None else tuple(target_times)
        self.gamma, self.t_ref = gamma, t_ref
        self.silent_penalty, self.spike_penalty = silent_penalty, spike_penalty
        self.hidden_silent_penalty = hidden_silent_penalty
        self._check_arguments()
        super().__init__(optimizer=optimizer, **kwargs)
        self._is_initialised, self._has_begun, self._has_warned = False, False, False

    def _check_arguments(self) -> None:
        for name, choices in (("loss", ("cross_entropy", "mse")), ("initialise", ("data", "none"))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        for name in ("gamma", "silent_penalty", "spike_penalty", "hidden_silent_penalty"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0, and finite")
        for name in ("t_ref", "gain"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be positive, and finite")
        if self.target_times is not None and not (len(self.target_times) == 2 and min(self.target_times) > 0):
            raise ValueError(f"target_times={self.target_times}: give two times, of the right class and of the others")

    # The network

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network without spiking layers or read-out, or with a layer that has no written backward pass."""
        check_supported(network)
        layers = [layer for _, layer in leaves(network)]
        readout = layers[-1]
        if not isinstance(readout, _READOUTS) or not any(isinstance(layer, SpikingLayer) for layer in layers):
            raise TypeError(
                f"network ends in a {type(readout).__name__}: give spiking layers (SpikingLinear, SpikingConv2d), and "
                "a FirstSpike, SpikeTrace or MembraneReadout behind them"
            )
        if self.loss == "mse" and not isinstance(readout, FirstSpike):
            raise TypeError(f"loss='mse' of first spike times goes with FirstSpike, not with {type(readout).__name__}")
        output = _output_layer(network)
        if output is None:
            return
        if isinstance(readout, FirstSpike) and readout.t_max != output.t_max:
            raise ValueError(f"t_max={readout.t_max} of the read-out is not that of its neurons, {output.t_max}")
        for name, times in (("t_ref", [self.t_ref]), ("target_times", self.target_times or ())):
            if any(t is not None and t > output.t_max for t in times):
                raise ValueError(f"{name}={getattr(self, name)} is after the end of the window, t_max={output.t_max}")

    def _build(self) -> None:
        super()._build()
        network = self.built_network()
        output = _output_layer(network)
        layers = sum(isinstance(layer, SpikingLayer) for _, layer in leaves(network))
        for stage in ("val", "test"):
            metrics: dict[str, nn.Module] = {f"spikes_per_neuron/{n}": SpikesPerNeuron() for n in range(1, layers + 1)}
            metrics |= {"silent_fraction": SilentFraction(), "synaptic_operations": SynapticOperations()}
            if output is not None:
                metrics["decision_time"] = DecisionTime(output.t_max)
            self._metrics.update({f"{stage}/{name}": metric for name, metric in metrics.items()})

    def _penalty(self, layer: SpikingLayer) -> OutputPenalty | HiddenPenalty:
        """What is asked of a layer's spikes."""
        if layer is not _output_layer(self.built_network()):
            return HiddenPenalty(self.spike_penalty, self.hidden_silent_penalty)
        t_ref = 0.6 * layer.t_max if self.t_ref is None else self.t_ref
        return OutputPenalty(self.gamma, t_ref, self.silent_penalty)

    # A step

    def compute_gradients(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Add the gradient of the batch's mean loss, penalties included, to ``p.grad``.

        Args:
            batch: Inputs ``(batch, *input_shape)`` and class numbers ``(batch,)``.

        Returns:
            ``loss``, ``accuracy``, and how much the network fires.
        """
        x, target = batch[:2]
        with torch.no_grad():
            self._initialise(x)
            found = passes_vjp(self.built_network(), x)
            self._check_spikes(spiking(found))
            loss, grad = self.loss_derivative(found[-1].outputs, target)
            loss = loss + self._backward(found, grad)
            return {"loss": loss, "accuracy": accuracy(found[-1].outputs, target)} | self._statistics(found)

    def _backward(self, found: list[Pass], grad: Tensor) -> Tensor:
        """Take the gradient of the scores back through all layers, with those of the penalties; return their sum."""
        total, back = grad.new_zeros(()), cast(Tensor | None, grad)
        for p in reversed(found):
            by_inputs = None
            if isinstance(p.layer, SpikingLayer):
                penalty = self._penalty(p.layer).vjp(p.layer, p.inputs, p.outputs)
                total, by_inputs = total + penalty.value, penalty.inputs
                back = _sum(back, penalty.outputs)
            assert p.pullback is not None
            back = _sum(None if back is None else p.pullback(back), by_inputs)
        return total

    def loss_derivative(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`loss_function` without an autograd graph, and its gradient.

        Args:
            scores: ``(batch, num_classes)``.
            target: ``(batch,)``, class numbers.
        """
        if self.loss == "cross_entropy":
            return formulas.cross_entropy(scores, target)
        sigma = self._first_spike().sigma
        error = -sigma * scores - self._wanted_times(scores, target)
        return error.square().mean(), -2 * sigma / error.numel() * error

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The loss without penalties, by autograd's operations.

        Args:
            scores: ``(batch, num_classes)``.
            target: ``(batch,)``, class numbers.
        """
        if self.loss == "cross_entropy":
            return F.cross_entropy(scores, target)
        return F.mse_loss(-self._first_spike().sigma * scores, self._wanted_times(scores, target))

    def _wanted_times(self, scores: Tensor, target: Tensor) -> Tensor:
        t_max = self._first_spike().t_max
        right, others = self.target_times or (0.4 * t_max, 0.7 * t_max)
        return torch.full_like(scores, others).scatter(1, target.unsqueeze(1), right)

    def _first_spike(self) -> FirstSpike:
        return cast(FirstSpike, leaves(self.built_network())[-1][1])

    def global_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss with penalties, with its autograd graph."""
        x, target = batch[:2]
        found = passes(self.built_network(), x)
        loss = self.loss_function(found[-1].outputs, target)
        for p in spiking(found):
            layer = cast(SpikingLayer, p.layer)
            loss = loss + self._penalty(layer).value(layer, p.inputs, p.outputs)
        return loss

    # Whether it fires

    def _initialise(self, x: Tensor) -> None:
        if self.initialise == "none" or self._is_initialised:
            return
        # All processes see the same samples, and find the same weights.
        joined = torch.cat([part.to(x) for part in gather_from_ranks(x.cpu())])
        initialise_from_data(self.built_network(), joined, self.t_ref, self.gain)
        self._is_initialised = True

    def _check_spikes(self, found: list[Pass]) -> None:
        layers = [(p.name, cast(SpikingLayer, p.layer), p.outputs) for p in found]
        if not self._has_begun:
            for name, layer, spikes in layers:
                check_fires(name, layer, spikes)
        self._has_begun = True
        # A neuron of the methods of a single spike is not stopped, but done.
        limited = [spikes for _, layer, spikes in layers if layer.max_spikes > 1]
        if not self._has_warned and limited and _over_layers(saturated_fraction, limited) > _MOST_SATURATED:
            self._warn_saturated(limited)

    def _warn_saturated(self, limited: list[Tensor]) -> None:
        full = sum(int((spikes[..., -1] < torch.inf).sum()) for spikes in limited)
        total = sum(spikes[..., 0].numel() for spikes in limited)
        rank_zero_warn(
            f"{full} of {total} neurons in a batch ({full / total:.1%}) have all max_spikes that they may have, and "
            "were perhaps stopped: give more max_spikes, less gain, or a spike_penalty. train/saturated_fraction goes "
            "on counting them"
        )
        self._has_warned = True

    def _statistics(self, found: list[Pass]) -> dict[str, Tensor]:
        layers = spiking(found)
        output = layers[-1].outputs if layers[-1] is _output_pass(found) else None
        hidden = [p.outputs for p in layers if p.outputs is not output] or [p.outputs for p in layers]
        values = {
            "spikes_per_neuron": _over_layers(spikes_per_neuron, hidden),
            "silent_fraction": _over_layers(silent_fraction, hidden),
            "saturated_fraction": _over_layers(saturated_fraction, [p.outputs for p in layers]),
            "synaptic_operations": synaptic_operations(found).to(found[-1].outputs.dtype).mean(),
        }
        if output is not None:
            values["decision_time"] = decision_time(output, cast(SpikingLayer, layers[-1].layer).t_max)
        return values

    # Validation and test

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """What callbacks get of a validation or test batch.

        Args:
            x: Inputs ``(batch, *input_shape)``.

        Returns:
            ``scores``; ``spikes/0``, those that go into the first spiking layer, then ``spikes/1`` and so on, of each
            spiking layer; and the ``synaptic_operations`` of each sample.
        """
        found = passes(self.built_network(), x)
        layers = spiking(found)
        trains = [layers[0].inputs, *(p.outputs for p in layers)]
        spikes = {f"spikes/{n}": train for n, train in enumerate(trains)}
        return {"scores": found[-1].outputs, **spikes, "synaptic_operations": synaptic_operations(found)}

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = super()._evaluate(stage, batch, batch_idx)
        trains = [outputs[f"spikes/{n}"] for n in range(1, sum(name.startswith("spikes/") for name in outputs))]
        for number, train in enumerate(trains, start=1):
            self._metric(stage, f"spikes_per_neuron/{number}").update(train)
        decides = f"{stage}/decision_time" in self._metrics
        for train in trains[:-1] if decides and len(trains) > 1 else trains:
            self._metric(stage, "silent_fraction").update(train)
        if decides:
            self._metric(stage, "decision_time").update(trains[-1])
        self._metric(stage, "synaptic_operations").update(outputs["synaptic_operations"])
        return outputs

    def _log_metrics(self, stage: str) -> None:
        super()._log_metrics(stage)
        for name, metric in self._metrics.items():
            if name.startswith(f"{stage}/") and name.split("/")[1] not in ("loss", "accuracy"):
                self.log(name, cast(Any, metric).compute().float())
                cast(Any, metric).reset()

    # Exact resume

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add whether the weights have been scaled."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_STATE_KEY] = {"is_initialised": self._is_initialised}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Weights that have been scaled are not scaled again."""
        super().on_load_checkpoint(checkpoint)
        self._is_initialised = checkpoint.get(_STATE_KEY, {}).get("is_initialised", False)


def _output_layer(network: nn.Module) -> SpikingLayer | None:
    """The spiking layer that the read-out reads; None if that has neurons of its own."""
    layers = [layer for _, layer in leaves(network)]
    before = layers[-2] if len(layers) > 1 else None
    return before if isinstance(before, SpikingLayer) and not isinstance(layers[-1], MembraneReadout) else None


def _output_pass(found: list[Pass]) -> Pass | None:
    return None if isinstance(found[-1].layer, MembraneReadout) else found[-2]


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """What there is of two gradients."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _over_layers(fraction: Callable[[Tensor], Tensor], layers: list[Tensor]) -> Tensor:
    """Mean over the neurons of several layers."""
    total = sum(spikes[..., 0].numel() for spikes in layers)
    return torch.stack([fraction(spikes) * (spikes[..., 0].numel() / total) for spikes in layers]).sum()
