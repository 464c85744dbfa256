"""Timing-based backpropagation in spiking networks."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_nobp.metrics import DecisionTime, SaturatedFraction, SilentFraction, SpikesPerNeuron, SynapticOperations
from lightning_nobp.metrics.spikes import decision_time, saturated_fraction, silent_fraction, spikes_per_neuron
from lightning_nobp.nn.backprop import check_supported
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.nn.spiking.encoding import SpikeEncoder
from lightning_nobp.nn.spiking.initialisation import check_fires, initialise_from_data, measure_ranges
from lightning_nobp.nn.spiking.layer import NeuronOptions, SpikingLayer
from lightning_nobp.nn.spiking.networks import SpikingCNN, SpikingMLP
from lightning_nobp.nn.spiking.objectives import CrossEntropy, SpikeTimes, Traces, Train
from lightning_nobp.nn.spiking.passes import Pass, leaves, passes, passes_vjp, spiking, synaptic_operations
from lightning_nobp.nn.spiking.penalties import HiddenPenalty, OutputPenalty
from lightning_nobp.nn.spiking.readout import MembraneReadout, SpikeTrace
from lightning_nobp.nn.spiking.structure import check_structure, output_layer, output_number
from lightning_nobp.rules.classification import ClassificationRule, accuracy
from lightning_nobp.rules.synchronisation import gather_from_ranks

_STATE_KEY = "spiking"
_LOSSES = ("cross_entropy", "mse", "trace_mse")
_MOST_SATURATED = 0.01
_STATISTICS = ("spikes_per_neuron", "silent_fraction", "saturated_fraction", "synaptic_operations")
# What is the network's to know, not the rule's.
_NEURON_OPTIONS = tuple(field.name for field in fields(NeuronOptions))


class SpikeTimingBackprop(ClassificationRule):
    """Backpropagation through exact spike times: no time steps and no surrogate gradients, many spikes a neuron.

    A forward pass finds the spikes of each layer event by event. A spike time is the root of a smooth equation, so its
    derivatives with respect to weights and input times are exact, resets included; the error travels back through
    them, layer by layer. No autograd graph is built.

    Logged for each step, beside loss and accuracy: ``spikes_per_neuron`` and ``silent_fraction`` of hidden neurons;
    ``decision_time``, the time of the first output spike; ``synaptic_operations`` of a sample; and
    ``saturated_fraction`` of the neurons, those with all of their ``max_spikes``. In validation and test the first, the
    second and the last are measured for each layer: ``silent_fraction/1`` and so on.

    Args:
        loss: ``'cross_entropy'`` of the read-out's scores; ``'mse'`` of spike times to ``target_times``; or, with a
            :class:`SpikeTrace`, ``'trace_mse'`` of the traces to those of ``target_times``.
        target_times: For ``'mse'`` and ``'trace_mse'``, when the neuron of the right class is to spike and when the
            others: a time each, or a train of times each. None for four and seven tenths of the window.
        gamma: Of the mean ``(t - t_ref)^2`` of first output spikes, which keeps them inside the window; None for 0.1.
        t_ref: Where first output spikes are to be, and where they begin; None for six tenths of the window.
        silent_penalty: Of what the silent output neurons of a sample lack to their threshold, at the time at which
            their membranes are highest; None for 1.
        spike_penalty: Of the spikes of hidden neurons: mean over neurons of the sum of ``(t_max - t) / t_max``, which
            falls with later spikes and with fewer.
        hidden_silent_penalty: Of what hidden neurons that are silent in the whole batch lack to their threshold, in the
            sample and at the time at which their membranes are highest, mean over neurons. Each of accumulated batches,
            and each process, has silent neurons of its own.
        initialise: ``'data'`` scales the weights that have never been scaled on the first training batch, so that
            neurons fire whatever the time constants (:func:`~lightning_nobp.nn.initialise_from_data`); ``'none'`` for a
            network whose weights are right.
        gain: How strongly hidden layers are driven at the start: the standard deviation of their membranes over
            samples, in thresholds. Fewer spikes with less. For ``initialise='data'``.
        optimizer: See :class:`LearningRule`.
        **kwargs: See :class:`ClassificationRule`. ``network`` is a preset (``'mlp'``, ``'cnn'``), or an
            ``nn.Sequential`` that ends in a read-out. The options of neurons, like ``max_spikes``, are the network's:
            ``network=partial(SpikingMLP, max_spikes=4)``.

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
        loss: Literal["cross_entropy", "mse", "trace_mse"] = "cross_entropy",
        target_times: Sequence[float | Sequence[float]] | None = None,
        gamma: float | None = None,
        t_ref: float | None = None,
        silent_penalty: float | None = None,
        spike_penalty: float = 0.0,
        hidden_silent_penalty: float = 0.0,
        initialise: Literal["data", "none"] = "data",
        gain: float = 3.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        _refuse_options_of_neurons(kwargs)
        # Set before the base's constructor, which checks the network with them.
        self.loss, self.initialise, self.gain = loss, initialise, gain
        self.target_times = None if target_times is None else tuple(target_times)
        self.gamma, self.t_ref = gamma, t_ref
        self.silent_penalty, self.spike_penalty = silent_penalty, spike_penalty
        self.hidden_silent_penalty = hidden_silent_penalty
        self._check_arguments()
        super().__init__(optimizer=optimizer, **kwargs)
        self._has_begun, self._has_warned = False, False
        self._silent: list[str] = []

    def _check_arguments(self) -> None:
        if type(self).loss_function is not ClassificationRule.loss_function:
            raise TypeError(
                f"{type(self).__name__}.loss_function is not what it would learn: leave it, and see the argument 'loss'"
            )
        for name, choices in (("loss", _LOSSES), ("initialise", ("data", "none"))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        for name in ("gamma", "silent_penalty", "spike_penalty", "hidden_silent_penalty"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be at least 0, and finite")
        for name in ("t_ref", "gain"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be positive, and finite")
        if self.target_times is None:
            return
        if self.loss == "cross_entropy":
            raise ValueError(f"target_times={self.target_times} have no part in loss='cross_entropy': see 'mse'")
        if len(self.target_times) != 2 or not all(_is_train(train) for train in self._target_trains(1.0)):
            raise ValueError(
                f"target_times={self.target_times}: give two times, of the right class and of the others, or two "
                "ascending trains of times"
            )

    # The network

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network that does not lead over spikes to scores, and options that cannot act on it."""
        if not isinstance(network, nn.Sequential):
            # A backward pass for it would not help: it has no layers that could spike.
            check_structure(network)
        check_supported(network)
        check_structure(network)
        output, readout = output_layer(network), leaves(network)[-1][1]
        if output is None:
            self._check_without_outputs()
            return
        if self.loss == "trace_mse" and not isinstance(readout, SpikeTrace):
            raise TypeError(f"loss='trace_mse' goes with SpikeTrace, not with {type(readout).__name__}")
        trains = self._target_trains(output.t_max)
        for name, times in (("t_ref", (self.t_ref or 0.0,)), ("target_times", [t for train in trains for t in train])):
            if any(t > output.t_max for t in times):
                raise ValueError(
                    f"{name}={getattr(self, name)} is after the end of the window, t_max={output.t_max}: give an "
                    "earlier one, or null for the default"
                )
        if max(map(len, trains)) > output.max_spikes:
            raise ValueError(
                f"target_times={self.target_times} are more than the max_spikes={output.max_spikes} of output neurons"
            )

    def _check_without_outputs(self) -> None:
        given = {name: getattr(self, name) for name in ("gamma", "t_ref", "silent_penalty")}
        if self.loss != "cross_entropy":
            given["loss"] = self.loss
        for name, value in given.items():
            if value:
                raise ValueError(
                    f"{name}={value!r} is for the spikes of output neurons, which a MembraneReadout does not have: "
                    "leave it out, or take a FirstSpike or SpikeTrace"
                )

    def _build(self) -> None:
        super()._build()
        network = self.built_network()
        output = output_layer(network)
        layers = [layer for _, layer in leaves(network) if isinstance(layer, SpikingLayer)]
        for stage in ("val", "test"):
            metrics: dict[str, nn.Module] = {"synaptic_operations": SynapticOperations()}
            if output is not None:
                metrics["decision_time"] = DecisionTime(output.t_max)
            for number, layer in enumerate(layers, start=1):
                metrics[f"spikes_per_neuron/{number}"] = SpikesPerNeuron()
                metrics[f"silent_fraction/{number}"] = SilentFraction()
                # A neuron of the methods of a single spike is not stopped, but done.
                if layer.max_spikes > 1:
                    metrics[f"saturated_fraction/{number}"] = SaturatedFraction()
            self._metrics.update({f"{stage}/{name}": metric for name, metric in metrics.items()})

    def _target_trains(self, t_max: float) -> tuple[Train, Train]:
        right, others = self.target_times or (0.4 * t_max, 0.7 * t_max)
        return _as_train(right), _as_train(others)

    def _objective(self) -> CrossEntropy | SpikeTimes | Traces:
        """The loss without penalties."""
        output = output_layer(self.built_network())
        if self.loss == "cross_entropy" or output is None:
            return CrossEntropy()
        trains = self._target_trains(output.t_max)
        if self.loss == "mse":
            return SpikeTimes(*trains, output.t_max)
        return Traces(*trains, cast(SpikeTrace, leaves(self.built_network())[-1][1]).tau_out)

    def _penalty(self, layer: SpikingLayer, number: int) -> OutputPenalty | HiddenPenalty:
        """What is asked of the spikes of the layer with a number."""
        if number != output_number(self.built_network()):
            return HiddenPenalty(self.spike_penalty, self.hidden_silent_penalty)
        t_ref = 0.6 * layer.t_max if self.t_ref is None else self.t_ref
        gamma, silent = 0.1 if self.gamma is None else self.gamma, self.silent_penalty
        return OutputPenalty(gamma, t_ref, 1.0 if silent is None else silent)

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
            self._prepare(x)
            if self.on_nonfinite == "skip" and not bool(x.isfinite().all()):
                return self._lost(x)
            found = passes_vjp(self.built_network(), x)
            self._check_spikes(spiking(found))
            scores = found[-1].outputs
            loss, *grads = self._objective().vjp(scores, found[-1].inputs, target)
            loss = loss + self._backward(found, *grads)
            return {"loss": loss, "accuracy": accuracy(scores, target)} | self._statistics(found)

    def _lost(self, x: Tensor) -> dict[str, Tensor]:
        """Of a batch that has no spike times: as many numbers as of any other, since processes average them."""
        has_outputs = output_number(self.built_network()) is not None
        names = ("loss", "accuracy", *_STATISTICS, *(("decision_time",) if has_outputs else ()))
        return dict.fromkeys(names, x.new_full((), math.nan))

    def _backward(self, found: list[Pass], by_scores: Tensor | None, by_spikes: Tensor | None) -> Tensor:
        """Take the loss's gradient back through all layers, with those of the penalties; return the penalties' sum.

        Args:
            found: The passes.
            by_scores: Gradient of the last one's outputs.
            by_spikes: That of its inputs.
        """
        total, back = found[-1].outputs.new_zeros(()), by_scores
        for number, p in reversed(list(enumerate(found))):
            by_inputs = by_spikes if p is found[-1] else None
            if isinstance(p.layer, SpikingLayer):
                penalty = self._penalty(p.layer, number).vjp(p.layer, p.inputs, p.outputs)
                total, by_inputs = total + penalty.value, penalty.inputs
                back = _sum(back, penalty.outputs)
            assert p.pullback is not None
            back = _sum(None if back is None else p.pullback(back), by_inputs)
        return total

    def global_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss with penalties, with its autograd graph."""
        x, target = batch[:2]
        found = passes(self.built_network(), x)
        loss = self._objective().value(found[-1].outputs, found[-1].inputs, target)
        for number, p in enumerate(found):
            if isinstance(p.layer, SpikingLayer):
                loss = loss + self._penalty(p.layer, number).value(p.layer, p.inputs, p.outputs)
        return loss

    # Whether it fires

    def _prepare(self, x: Tensor) -> None:
        """On the first batch, scale what has never been scaled, and measure inputs."""
        network = self.built_network()
        layers = [layer for _, layer in leaves(network)]
        scales = self.initialise == "data" and not all(
            layer.is_scaled for layer in layers if isinstance(layer, SpikingLayer | MembraneReadout)
        )
        if not scales and all(layer.is_measured for layer in layers if isinstance(layer, SpikeEncoder)):
            return
        # All processes see the same samples, and find the same weights.
        joined = torch.cat([part.to(x) for part in gather_from_ranks(x.cpu())])
        if self.on_nonfinite == "skip":
            joined = joined[joined.flatten(1).isfinite().all(1)]
            if not len(joined):
                return
        if scales:
            initialise_from_data(network, joined, self.t_ref, self.gain, only_new=True)
        else:
            measure_ranges(network, joined)

    def _check_spikes(self, found: list[Pass]) -> None:
        if not self._has_begun:
            _warn_if_late(found[0])
            for p in found:
                check_fires(p.name, cast(SpikingLayer, p.layer), p.outputs)
        self._has_begun = True
        for p in found:
            if p.name not in self._silent and p.outputs.numel() and not bool((p.outputs[..., 0] < torch.inf).any()):
                rank_zero_warn(f"{p.name} has fallen silent: none of its neurons spikes in a batch")
                self._silent.append(p.name)
        self._warn_if_saturated([p.outputs for p in found])

    def _warn_if_saturated(self, trains: list[Tensor]) -> None:
        limited = [spikes for spikes in trains if spikes.shape[-1] > 1]
        if self._has_warned or not limited or _over_layers(saturated_fraction, limited) <= _MOST_SATURATED:
            return
        full = sum(int((spikes[..., -1] < torch.inf).sum()) for spikes in limited)
        total = sum(spikes[..., 0].numel() for spikes in limited)
        rank_zero_warn(
            f"{full} of {total} neurons in a batch ({full / total:.1%}) have all max_spikes that they may have, and "
            "were perhaps stopped: give more max_spikes, less gain, or a spike_penalty. saturated_fraction goes on "
            "counting them"
        )
        self._has_warned = True

    def _statistics(self, found: list[Pass]) -> dict[str, Tensor]:
        layers, number = spiking(found), output_number(self.built_network())
        output = None if number is None else found[number]
        hidden = [p.outputs for p in layers if p is not output] or [p.outputs for p in layers]
        measured = (
            _over_layers(spikes_per_neuron, hidden),
            _over_layers(silent_fraction, hidden),
            _over_layers(saturated_fraction, [p.outputs for p in layers]),
            synaptic_operations(found).to(found[-1].outputs.dtype).mean(),
        )
        values = dict(zip(_STATISTICS, measured, strict=True))
        if output is not None:
            values["decision_time"] = decision_time(output.outputs, cast(SpikingLayer, output.layer).t_max)
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

    def spike_names(self) -> list[str]:
        """What the ``spikes/0`` and so on of :meth:`outputs` are: ``'inputs'``, ``'hidden 1'``, ..., ``'outputs'``."""
        layers = sum(isinstance(layer, SpikingLayer) for _, layer in leaves(self.built_network()))
        names = ["inputs", *(f"hidden {number}" for number in range(1, layers + 1))]
        return names if output_number(self.built_network()) is None else [*names[:-1], "outputs"]

    def evaluation_loss(self, outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The loss without penalties of a validation or test batch by its :meth:`outputs`."""
        spikes = outputs[f"spikes/{len(self.spike_names()) - 1}"]
        return self._objective().value(outputs["scores"], spikes.flatten(1, -2), target)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        # Then encoders have not seen any data, and weights are not scaled.
        is_early = self._trainer is not None and self.trainer.sanity_checking
        with warnings.catch_warnings():
            if is_early:
                warnings.filterwarnings("ignore", message=".*has not seen training data")
            outputs = super()._evaluate(stage, batch, batch_idx)
        trains = [outputs[f"spikes/{number}"] for number in range(1, len(self.spike_names()))]
        for number, train in enumerate(trains, start=1):
            for name in ("spikes_per_neuron", "silent_fraction", "saturated_fraction"):
                if f"{stage}/{name}/{number}" in self._metrics:
                    self._metric(stage, f"{name}/{number}").update(train)
        if not is_early:
            self._warn_if_saturated(trains)
        if f"{stage}/decision_time" in self._metrics:
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
        """Add whether the training has begun, and whether it was warned of; what is scaled is part of the state."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_STATE_KEY] = {
            "has_begun": self._has_begun,
            "has_warned": self._has_warned,
            "silent": list(self._silent),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A training that has begun may have a batch without spikes, and is not warned of twice."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(_STATE_KEY, {})
        self._has_begun, self._has_warned = (state.get(name, False) for name in ("has_begun", "has_warned"))
        self._silent = list(state.get("silent", []))


def _refuse_options_of_neurons(given: Mapping[str, Any]) -> None:
    for name in _NEURON_OPTIONS:
        if name in given:
            raise TypeError(
                f"{name}={given[name]!r} is an option of the network, not of the rule: "
                f"network=functools.partial(lightning_nobp.nn.SpikingMLP, {name}={given[name]!r}), or "
                f"--model.network.{name} on the command line"
            )


def _warn_if_late(first: Pass) -> None:
    end = cast(SpikingLayer, first.layer).t_max
    late, total = (int(((first.inputs < torch.inf) & (first.inputs > t)).sum()) for t in (end, -1.0))
    if late:
        rank_zero_warn(
            f"{late} of {total} input spikes of the first batch come after t_max={end} and are dropped: rescale the "
            "times, or give a longer t_max"
        )


def _as_train(times: float | Sequence[float]) -> Train:
    return tuple(times) if isinstance(times, Sequence) else (times,)


def _is_train(times: Train) -> bool:
    return list(times) == sorted(set(times)) and all(0 < t < float("inf") for t in times)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """What there is of two gradients."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _over_layers(fraction: Callable[[Tensor], Tensor], layers: list[Tensor]) -> Tensor:
    """Mean over the neurons of several layers."""
    total = sum(spikes[..., 0].numel() for spikes in layers)
    return torch.stack([fraction(spikes) * (spikes[..., 0].numel() / total) for spikes in layers]).sum()
