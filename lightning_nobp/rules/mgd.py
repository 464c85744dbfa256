"""Multiplexed gradient descent: gradients from nothing but the network's cost under perturbations."""

import math
import warnings
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.multiplexing import check_counts, schedule, shrinkage
from lightning_nobp.functional.perturbation import CODES, code_period
from lightning_nobp.nn.multiplexed import (
    AnalogEstimator,
    Estimate,
    Estimator,
    Hook,
    SampleEstimator,
    Turn,
    WindowEstimator,
)
from lightning_nobp.nn.parameter_codes import BatchedEngine, ForwardModeEngine, InPlaceEngine, ParameterCodes
from lightning_nobp.nn.sample_codes import SAMPLERS, ActivationCodes, WeightCodes, is_separable
from lightning_nobp.rules.classification import ClassificationRule
from lightning_nobp.rules.synchronisation import (
    from_ranks,
    gather_from_ranks,
    gather_vectors,
    rank,
    ranks_where,
    sum_over_ranks,
    world_size,
)

_STATE_KEY = "multiplexed_gradient_descent"
_CHOICES = {
    "task": ("classification", "regression"),
    "perturbation": tuple(CODES),
    "difference": ("central", "one_sided"),
    "perturb": ("weights", "activations"),
    "mode": ("discrete", "analog"),
    "engine": ("auto", "per_sample", "vmap", "in_place", "jvp"),
    "normalisation": ("mean", "sum"),
    "lr_scale": ("none", "mgd"),
}
_ENGINES: dict[str, type[BatchedEngine] | type[InPlaceEngine]] = {
    "vmap": BatchedEngine,
    "in_place": InPlaceEngine,
    "jvp": ForwardModeEngine,
}
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
"""Losses that compare numbers with numbers: class numbers become one-hot."""
_TIMES = ("tau_p", "tau_theta", "tau_x", "tau_hp")
_DROPS = ("StochasticDepth", "DropBlock2d", "DropBlock3d", "DropPath")
"""Layers of torchvision and timm that leave out whole branches or blocks by chance, with probability p or drop_prob."""
_SMALL = 4096
"""Parameters up to which many perturbations as one batched pass are faster than one after another."""
_GOOD_AMPLITUDE = 1e-3
"""From here on rounding is not the largest error of a difference in float32."""
_LEAST_RATIO = 1e3
"""A cost difference of fewer roundings than this says little about the gradient."""


class MultiplexedGradientDescent(ClassificationRule):
    """Gradient descent for hardware that shows nothing but its cost: perturb all parameters at once, and correlate.

    Every parameter is perturbed with a code of its own. The cost's modulation times a parameter's code, integrated over
    perturbations, is the gradient along that parameter (homodyne detection). No derivative is ever taken, and no
    autograd graph is built.

    Three time constants, in time steps of one perturbed reading each, make it one of many methods: ``tau_p``, how long
    a perturbation stays; ``tau_theta``, how long the gradient is integrated before the parameters move; ``tau_x``, how
    long a sample is shown. A training batch holds the samples of one window of ``tau_theta`` steps: it is shown in
    ``tau_theta / tau_x`` slots, of several samples at a time if it has more. By default all samples are shown at once,
    to ``num_perturbations`` perturbations.

    Args:
        loss: ``'cross_entropy'``; ``'mse'``, the mean squared error, against one-hot targets where targets are class
            numbers; or a module that gives one number for ``(scores, targets)``, like ``torch.nn.SmoothL1Loss()``.
        task: ``'classification'``, or ``'regression'`` for targets of floating point, where there is no accuracy.
        perturbation: Kind of code, see :mod:`lightning_nobp.functional.perturbation`: ``'rademacher'`` (random signs),
            ``'walsh'``, ``'coordinate'`` (one parameter at a time), ``'sinusoidal'`` or ``'gaussian'``.
        amplitude: Root mean square of each parameter's perturbation, in units of the parameter; or by patterns of
            parameter names, the first that matches counts: ``{'*.bias': 0.01, '*': 0.004}``.
        num_perturbations: Perturbations behind an update, ``tau_theta / tau_p``; with ``engine='per_sample'``, those of
            each sample.
        difference: ``'central'``, half the difference of the costs with the perturbation added and taken away, or
            ``'one_sided'``, the difference to the cost without it.
        perturb: ``'weights'``, or ``'activations'``: node perturbation, where each sample's pre-activations are
            perturbed, and the gradient is their error times the layer's input.
        mode: ``'discrete'`` as above, or ``'analog'``: every batch is one time step; the cost goes through a high-pass
            filter, its product with the perturbation through a low-pass filter of time constant ``tau_theta``, and
            parameters move all the time.
        engine: How perturbations are evaluated. ``'vmap'``: many as one batched pass. ``'in_place'``: one after
            another, in the memory of inference, the gradient, and one layer. ``'jvp'``: their slopes without an
            amplitude, by forward-mode differentiation. ``'per_sample'``: each sample of a batch has a perturbation of
            its own, a product of codes of outputs and inputs. ``'auto'``: ``'vmap'`` up to 4096 parameters; above,
            ``'per_sample'`` if all trained layers are linear or convolutions and no time constants are given;
            otherwise, and where these turn out not to run the network, ``'in_place'``.
        tau_p: Time steps that a perturbation stays.
        tau_theta: Time steps from one update to the next; by default ``num_perturbations * tau_p``.
        tau_x: Time steps that a sample is shown; by default ``tau_theta``. If longer, each batch must come several
            times in a row (``repeat_batches`` of the data module).
        tau_hp: Time constant of the analog high-pass filter, in time steps.
        normalisation: ``'mean'``, the estimate of the gradient; ``'sum'``, the paper's sum over time steps.
        lr_scale: ``'mgd'`` multiplies the estimate of T perturbations of P parameters by T / (T + P - 1): it is that
            much too long on average, squared. Only for random codes of weights.
        period: Of Walsh and sinusoidal codes, in perturbations; by default the shortest.
        seed: Of the codes.
        optimizer: See :class:`LearningRule`.
        **kwargs: See :class:`ClassificationRule`.

    Raises:
        ValueError: An argument outside its range, or two that exclude each other.
        TypeError: A network with dropout, with batch normalisation in training mode, or with a layer of which the
            engine cannot perturb single samples.

    References:
        McCaughan, Oripov, Ganesh, Nam, Dienstfrey and Buckley, "Multiplexed gradient descent: Fast online training of
        modern datasets on hardware neural networks without backpropagation", arXiv 2303.03986.
    """

    supported_precisions: ClassVar[tuple[str, ...]] = ("32-true", "64-true")

    def __init__(
        self,
        *,
        loss: nn.Module | str = "cross_entropy",
        task: Literal["classification", "regression"] = "classification",
        perturbation: Literal["rademacher", "walsh", "coordinate", "sinusoidal", "gaussian"] = "rademacher",
        amplitude: float | dict[str, float] = 2**-8,
        num_perturbations: int | None = None,
        difference: Literal["central", "one_sided"] = "central",
        perturb: Literal["weights", "activations"] = "weights",
        mode: Literal["discrete", "analog"] = "discrete",
        engine: Literal["auto", "per_sample", "vmap", "in_place", "jvp"] = "auto",
        tau_p: int = 1,
        tau_theta: int | None = None,
        tau_x: int | None = None,
        tau_hp: float = 10.0,
        normalisation: Literal["mean", "sum"] = "mean",
        lr_scale: Literal["none", "mgd"] = "none",
        period: int | None = None,
        seed: int = 0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        **kwargs: Any,
    ) -> None:
        self.task = task
        self.perturbation, self.amplitude, self.period, self.seed = perturbation, amplitude, period, seed
        self.difference, self.perturb, self.mode, self.engine = difference, perturb, mode, engine
        self.normalisation, self.lr_scale, self.tau_hp = normalisation, lr_scale, tau_hp
        self._check_choices(loss)
        self._given_times = tau_theta is not None or tau_x is not None or tau_p != 1
        self.tau_p = tau_p
        if period is not None and perturbation not in ("walsh", "sinusoidal"):
            code_period(perturbation, 0, period)
        self.tau_theta = self._window(num_perturbations, tau_p, tau_theta)
        self.tau_x = self.tau_theta if tau_x is None else tau_x
        check_counts(tau_p=self.tau_p, tau_theta=self.tau_theta, tau_x=self.tau_x)
        # Of the analog form a batch is one time step, and nothing ends.
        discrete = mode == "discrete"
        self._schedule = schedule(self.tau_p, self.tau_theta, self.tau_x) if discrete else schedule(1, 1, 1)
        self.num_perturbations = self.tau_theta // self.tau_p
        self._check_combinations()
        self.cost_hooks: list[Hook] = []
        """Each is called with every tensor of costs that are read, and returns what is understood."""
        self.difference_hooks: list[Hook] = []
        """Each is called with the cost differences ``(time_steps,)`` in order of time."""
        super().__init__(optimizer=optimizer, **kwargs)
        # Behind the base's constructor: it may be a module, which the base then owns.
        self.loss = loss
        self.cost_evaluations = 0
        """Samples whose cost was read, over all ranks."""
        self.samples_seen = 0
        """Training samples that were shown, over all ranks."""
        self._calls = 0
        self._estimator: Estimator | None = None
        self._pending: list[tuple[int, Tensor]] = []
        self._analog_time = 0
        self._analog_filters: dict[str, Tensor] = {}
        self._state: dict[str, Any] | None = None

    # At the door

    def _check_choices(self, loss: str | nn.Module) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        if not (isinstance(loss, nn.Module) or loss in ("cross_entropy", "mse")):
            raise ValueError(f"loss={loss!r} is not 'cross_entropy', 'mse' or a module that gives one number")
        if self.task == "regression" and loss == "cross_entropy":
            raise ValueError(
                "loss='cross_entropy' is for class numbers: task='regression' needs loss='mse' or a module"
            )
        for value in self._amplitudes():
            if not 0 < value < math.inf:
                raise ValueError(f"amplitude={self.amplitude!r} must be positive, like {2**-8}")
        if not self.tau_hp > 0:
            raise ValueError(f"tau_hp={self.tau_hp!r} must be a positive number of time steps")

    def _amplitudes(self) -> list[float]:
        return list(self.amplitude.values()) if isinstance(self.amplitude, dict) else [self.amplitude]

    @staticmethod
    def _window(num_perturbations: int | None, tau_p: int, tau_theta: int | None) -> int:
        check_counts(tau_p=tau_p, num_perturbations=1 if num_perturbations is None else num_perturbations)
        if tau_theta is None:
            return (num_perturbations or 1) * tau_p
        if num_perturbations is not None and num_perturbations * tau_p != tau_theta:
            raise ValueError(
                f"num_perturbations={num_perturbations} perturbations of tau_p={tau_p} steps are not "
                f"tau_theta={tau_theta} steps: leave one of them out"
            )
        return tau_theta

    def _check_combinations(self) -> None:
        per_sample = self.engine == "per_sample" or self.perturb == "activations"
        if self.perturb == "activations" and self.engine not in ("auto", "per_sample"):
            raise ValueError(f"engine={self.engine!r} perturbs weights: perturb='activations' needs 'per_sample'")
        if per_sample and self.perturbation not in SAMPLERS:
            raise ValueError(
                f"perturbation={self.perturbation!r} cannot be given to every sample: take one of "
                f"{', '.join(map(repr, SAMPLERS))}, or perturb weights with engine='vmap' or 'in_place'"
            )
        if per_sample and (self._given_times or self.mode == "analog"):
            raise ValueError(
                "tau_p, tau_theta, tau_x and mode='analog' are times of one device, but where every sample has its own "
                "perturbation all are read at once: leave them out, or take engine='vmap' or 'in_place'"
            )
        if self.mode == "analog" and self.engine == "jvp":
            raise ValueError("engine='jvp' has no cost to filter: mode='analog' needs 'vmap' or 'in_place'")
        if self.mode == "analog" and self.tau_x < 2:
            raise ValueError(
                f"tau_x={self.tau_x}: the high-pass filter of mode='analog' must see a sample twice at least"
            )
        if self.mode == "analog" and self.difference == "one_sided":
            raise ValueError("difference='one_sided' is of the discrete mode: mode='analog' has its high-pass filter")
        by_law = self.perturb == "weights" and (
            self.perturbation == "rademacher" or (self.perturbation == "gaussian" and self.engine != "per_sample")
        )
        if self.lr_scale == "mgd" and not by_law:
            raise ValueError("lr_scale='mgd' is a law of random codes of weights: leave it out here")
        if self.tau_x > self.tau_theta and self.mode == "discrete":
            warnings.warn(
                f"tau_x={self.tau_x} is longer than tau_theta={self.tau_theta}: every update follows the gradient of a "
                "single batch alone",
                stacklevel=4,
            )

    @property
    def classifies(self) -> bool:
        """Whether targets are class numbers."""
        return self.task == "classification"

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network of which the parameters cannot be perturbed as asked for."""
        if self._chosen_engine(network) == "per_sample":
            self._sample_codes(network)
        else:
            self._parameter_codes(network)

    def _parameter_codes(self, network: nn.Module) -> ParameterCodes:
        return ParameterCodes(network, self.perturbation, self.amplitude, self.seed, self.period)

    def _sample_codes(self, network: nn.Module) -> WeightCodes | ActivationCodes:
        kind = WeightCodes if self.perturb == "weights" else ActivationCodes
        return kind(network, self.perturbation, self.amplitude, self.seed)

    def _check_modes(self, network: nn.Module) -> None:
        """Refuse what makes the cost of a sample depend on chance, or on the other samples."""
        for name, module in network.named_modules():
            if _draws(module):
                raise TypeError(
                    f"layer {name!r} is a {type(module).__name__}: the cost would change by chance more than by a "
                    f"perturbation. Leave it out, or switch it off with .eval()."
                )
            if module.training and _pools(module):
                raise TypeError(
                    f"layer {name!r} is a {type(module).__name__} in training mode: a sample's cost would depend on "
                    "the others, and running statistics on perturbed passes. Switch it to running statistics with "
                    ".eval(), which the Trainer keeps, or take GroupNorm or LayerNorm."
                )

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch that does not fit the network, or is smaller than the window."""
        super().check_batch(batch)
        slots = self._schedule.num_slots
        if self.training and len(batch[0]) < slots:
            raise ValueError(
                f"a batch of {len(batch[0])} samples does not fill a window of tau_theta / tau_x = {slots} samples: "
                f"give data.batch_size={slots} or a multiple"
            )

    # Learning

    def compute_gradients(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Add the estimate of the gradient of the batch's mean cost to ``p.grad``.

        Each call uses the perturbations that follow those of the call before.

        Args:
            batch: Inputs ``(batch, *input_shape)`` and targets: class numbers ``(batch,)``, or numbers of the scores'
                shape.

        Returns:
            ``loss`` of the batch, and in distributed runs ``bytes_sent`` by each rank.

        Raises:
            FloatingPointError: A cost is not finite, unless ``on_nonfinite='skip'``.
        """
        x, target = batch[:2]
        with torch.no_grad():
            if self._estimator is None:
                self._estimator = self._build_estimator(x, target)
            turn = Turn(self._calls, rank(), world_size())
            at_once = len(x) if isinstance(self._estimator, SampleEstimator) else 1
            batches = turn.world * self.accumulate_grad_batches
            self._estimator.scale = self._scale(at_once * self.num_perturbations * batches)
            estimate = self._estimator.estimate(x, target, turn)
            is_finite = self.on_nonfinite == "skip" or bool((estimate.coefficients.sum() + estimate.loss).isfinite())
            counts = sum_over_ranks(torch.tensor([estimate.evaluations, len(x), int(not is_finite)])).tolist()
            if counts[2]:
                self._refuse_reading(is_finite)
            self._check_amplitude(estimate)
            self._estimator.add_gradient(estimate.coefficients, turn)
        self._calls += 1
        self.cost_evaluations += counts[0]
        self.samples_seen += counts[1]
        if turn.world == 1:
            return {"loss": estimate.loss}
        sent = self.num_perturbed + 2
        if self._exchanges_scalars:
            # Without the scale, which depends on how many there are over all ranks.
            unscaled = torch.cat([estimate.coefficients / self._estimator.scale, estimate.loss.view(1)]) * len(x)
            self._pending.append((turn.call, torch.cat([unscaled, unscaled.new_tensor([len(x)])])))
            sent = len(unscaled) + 1
        # Two counts, a flag, and the length of the vector, are whole numbers of eight bytes.
        return {"loss": estimate.loss, "bytes_sent": torch.tensor(float(sent * estimate.loss.element_size() + 32))}

    def _build_estimator(self, x: Tensor, target: Tensor) -> Estimator:
        network = self.built_network()
        self._check_modes(network)
        engine = self._chosen_engine(network)
        if self.cost_hooks and engine == "jvp":
            raise MisconfigurationException("engine='jvp' reads no costs: noise of the read-out needs another engine")
        estimator: Estimator | None = None
        if engine == "per_sample":
            estimator, engine = self._sample_estimator(network, x, target), "in_place"
        estimator = estimator or self._parameter_estimator(network, engine, x, target)
        estimator.cost_hooks, estimator.difference_hooks = self.cost_hooks, self.difference_hooks
        return estimator

    def _sample_estimator(self, network: nn.Module, x: Tensor, target: Tensor) -> SampleEstimator | None:
        """None where single samples are not asked for, and turn out not to exist."""
        codes = self._sample_codes(network)
        if any(module._compiled_call_impl is not None for module in network.modules()):
            if self.engine == "auto" and self.perturb == "weights":
                return None
            raise TypeError(
                "network is compiled, and a compiled forward pass does not see the hooks that perturb single samples: "
                "leave network.compile() out, or take engine='vmap'"
            )
        try:
            # Activations too stand for weights that are used in their own layers, and for samples on their own.
            weights = WeightCodes(network, self.perturbation, self.amplitude, self.seed)
            weights.check(x, torch.arange(len(x), device=x.device))
            self._check_mean(network(x), target)
        except (TypeError, ValueError):
            if self.engine == "auto" and self.perturb == "weights":
                return None
            raise
        return SampleEstimator(codes, self.sample_costs, self.num_perturbations, self.difference)

    def _check_mean(self, scores: Tensor, target: Tensor) -> None:
        """Refuse a cost that is not of single samples."""
        mean, whole = self.sample_costs(scores, target).mean(), self._cost(scores, target)
        if not torch.allclose(mean, whole, rtol=1e-3, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"the loss of a batch, {float(whole):.4g}, is not the mean over its samples, {float(mean):.4g}: with "
                "class weights, a sum or samples that are left out, take engine='vmap' or 'in_place'"
            )

    def _parameter_estimator(self, network: nn.Module, engine: str, x: Tensor, target: Tensor) -> Estimator:
        codes = self._parameter_codes(network)
        evaluate = _ENGINES[engine](network, self._cost, codes)
        if self.engine == "auto" and not _runs(evaluate, x, target):
            evaluate = InPlaceEngine(network, self._cost, codes)
        if self.mode == "discrete":
            return WindowEstimator(codes, evaluate, self._schedule, self.difference)
        times: dict[str, Any] = {name: getattr(self, name) for name in _TIMES}
        estimator = AnalogEstimator(codes, evaluate, **times)
        estimator.time, estimator.filters = self._analog_time, self._analog_filters
        return estimator

    def _chosen_engine(self, network: nn.Module) -> str:
        if self.perturb == "activations":
            return "per_sample"
        if self.engine != "auto":
            return self.engine
        if self.num_perturbed <= _SMALL:
            return "vmap"
        free = not self._given_times and self.mode == "discrete" and self.perturbation in SAMPLERS
        return "per_sample" if free and is_separable(network) else "in_place"

    def _scale(self, perturbations: int) -> float:
        """Factor of an estimate from so many perturbations."""
        scale = shrinkage(perturbations, self.num_perturbed) if self.lr_scale == "mgd" else 1.0
        return scale * self.tau_theta if self.normalisation == "sum" else scale

    def _refuse_reading(self, is_finite: bool) -> None:
        where = from_ranks(ranks_where(not is_finite))
        raise FloatingPointError(
            f"{type(self).__name__}: not finite at update {self._calls}{where}: the cost under a perturbation. The "
            "weights are untouched. Check the data and the amplitude, lower the learning rate, or go on without such "
            "steps: on_nonfinite='skip'."
        )

    def _check_amplitude(self, estimate: Estimate) -> None:
        # Larger amplitudes are as good as it gets, a flat start or a filter that begins is no fault of theirs.
        if self._calls or self.engine == "jvp" or self.mode == "analog" or self.difference_hooks:
            return
        if min(self._amplitudes()) >= _GOOD_AMPLITUDE:
            return
        assert self._estimator is not None
        # Once, since it waits for the device.
        largest = float(estimate.coefficients.abs().max()) * len(estimate.coefficients) / self._estimator.scale
        rounding = torch.finfo(estimate.loss.dtype).eps * abs(float(estimate.loss))
        if largest < _LEAST_RATIO * rounding:
            warnings.warn(
                f"amplitude={self.amplitude} changes the cost by {largest / rounding:.1f} roundings of "
                f"{estimate.loss.dtype} only: the gradient drowns in them. Take 1e-3 to 1e-2, or precision='64-true'.",
                stacklevel=3,
            )

    def _cost(self, scores: Tensor, target: Tensor) -> Tensor:
        cost = self.loss_function(scores, target)
        if cost.numel() != 1:
            raise ValueError(
                f"the loss gave a tensor of shape {tuple(cost.shape)}: a cost is one number, take its mean"
            )
        return cost.reshape(())

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The cost, one number.

        A subclass may override it; of single samples :meth:`sample_costs` then makes batches of one.

        Args:
            scores: ``(batch, ...)``.
            target: ``(batch,)``, class numbers, or numbers ``(batch, ...)`` of the scores' shape.
        """
        if isinstance(self.loss, nn.Module):
            elementwise = isinstance(self.loss, _ELEMENTWISE)
            found: Tensor = self.loss(scores, _values(target, scores) if elementwise else target)
            return found
        if self.loss == "mse":
            return F.mse_loss(scores, _values(target, scores))
        return F.cross_entropy(scores, target)

    def sample_costs(self, scores: Tensor, target: Tensor) -> Tensor:
        """The cost of each sample ``(batch,)``, of which :meth:`loss_function` is the mean.

        Args:
            scores: ``(batch, ...)``.
            target: ``(batch, ...)``.
        """
        if type(self).loss_function is not MultiplexedGradientDescent.loss_function or isinstance(self.loss, nn.Module):
            return torch.vmap(lambda s, t: self._cost(s.unsqueeze(0), t.unsqueeze(0)))(scores, target)
        if self.loss == "mse":
            return (scores - _values(target, scores)).square().reshape(len(scores), -1).mean(1)
        return F.cross_entropy(scores, target, reduction="none")

    # What others may ask

    @property
    def num_perturbed(self) -> int:
        """Number of parameters that are perturbed."""
        return sum(p.numel() for p in self.built_network().parameters() if p.requires_grad)

    @property
    def reads_in_time_order(self) -> bool:
        """Whether costs are read one after another; those of single samples are read all at once."""
        return self._chosen_engine(self.built_network()) != "per_sample"

    # Several processes

    @property
    def _exchanges_scalars(self) -> bool:
        """Whether coefficients say everything: errors of activations need inputs, and filters have a past."""
        return self.perturb == "weights" and self.mode == "discrete"

    @torch.no_grad()
    def synchronise_gradients(self, num_samples: int, loss: Tensor | None) -> Tensor | None:
        """Exchange coefficients, a number a perturbation, and rebuild the gradient of all ranks from codes.

        Args:
            num_samples: Samples behind this rank's gradient.
            loss: This rank's loss.

        Returns:
            The loss averaged over ranks.
        """
        if not self._exchanges_scalars:
            return super().synchronise_gradients(num_samples, loss)
        assert self._estimator is not None
        gathered = [(call, gather_vectors(vector)) for call, vector in self._pending]
        self._pending = []
        sums = torch.stack([row[-2:] for _, rows in gathered for row in rows]).sum(0)
        scale = self._scale(sum(len(row) - 2 for _, rows in gathered for row in rows))
        for parameter in self.built_network().parameters():
            parameter.grad = None
        for call, rows in gathered:
            for number, row in enumerate(rows):
                # In the same order everywhere: ranks must not differ by a rounding.
                self._estimator.add_gradient(row[:-2] * (scale / sums[1]), Turn(call, number, len(rows)))
        return sums[0] / sums[1]

    # Exact resume

    def on_fit_start(self) -> None:
        """Start with the first perturbation, or where the checkpoint left off."""
        super().on_fit_start()
        state, self._state = self._state, None
        self._estimator, self._pending = None, []
        self._analog_time, self._analog_filters = 0, {}
        self._calls = self.cost_evaluations = self.samples_seen = 0
        self._check_repeats()
        if state is None:
            return
        self._calls = state["calls"]
        self.cost_evaluations, self.samples_seen = state["cost_evaluations"], state["samples_seen"]
        ranks = state["ranks"]
        if len(ranks) != world_size():
            if any(own["pending"] or own["filters"] for own in ranks):
                raise MisconfigurationException(
                    f"the checkpoint is from the middle of an update of {len(ranks)} processes: resume with as many"
                )
            return
        own = ranks[rank()]
        self._pending = [(call, vector.to(self.device)) for call, vector in own["pending"]]
        self._analog_time = own["time"]
        self._analog_filters = {name: value.to(self.device) for name, value in own["filters"].items()}

    def _check_repeats(self) -> None:
        needed = max(1, self.tau_x // self.tau_theta) if self.mode == "discrete" else self.tau_x
        repeats = getattr(getattr(self.trainer, "datamodule", None), "repeat_batches", None)
        if repeats is None and needed > 1:
            warnings.warn(
                f"tau_x={self.tau_x}: a batch stays for {needed} training steps; the data must show each as often in a "
                "row, which only a data module with repeat_batches can tell",
                stacklevel=2,
            )
        elif repeats is not None and repeats != needed:
            raise MisconfigurationException(
                f"tau_x={self.tau_x}: a batch stays for {needed} training steps, but comes {repeats} times in a row: "
                f"set data.repeat_batches={needed}"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the number of the next perturbation, counters, filters, and what waits for its update."""
        super().on_save_checkpoint(checkpoint)
        if isinstance(self._estimator, AnalogEstimator):
            self._analog_time, self._analog_filters = self._estimator.time, self._estimator.filters
        own = {
            "pending": [(call, vector.cpu()) for call, vector in self._pending],
            "time": self._analog_time,
            "filters": {name: value.cpu() for name, value in self._analog_filters.items()},
        }
        checkpoint[_STATE_KEY] = {
            "calls": self._calls,
            "cost_evaluations": self.cost_evaluations,
            "samples_seen": self.samples_seen,
            "ranks": gather_from_ranks(own),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what :meth:`on_save_checkpoint` added for the start of the fit that is resumed."""
        super().on_load_checkpoint(checkpoint)
        if self._restored is not None:
            self._state = checkpoint.get(_STATE_KEY)


def _pools(module: nn.Module) -> bool:
    """Whether a module in training mode looks at other samples, or gathers statistics of what it sees."""
    gathers = any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))
    return gathers or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _draws(module: nn.Module) -> bool:
    """Whether what a module gives depends on chance."""
    if not module.training:
        return False
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    if type(module).__name__ in _DROPS:
        return bool(getattr(module, "p", getattr(module, "drop_prob", 0.0)))
    return isinstance(module, nn.RReLU) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)


def _runs(engine: BatchedEngine | InPlaceEngine, x: Tensor, target: Tensor) -> bool:
    """Whether an engine gets through its network: ``torch.vmap`` knows no recurrent layers, and no branches."""
    first = torch.zeros(1, dtype=torch.int64, device=x.device)
    try:
        engine.costs([(x, target)], first, first, (1,))
    except RuntimeError:
        return False
    return True


def _values(target: Tensor, scores: Tensor) -> Tensor:
    """Targets as numbers of the scores' shape: class numbers become one-hot."""
    if target.is_floating_point():
        if target.shape != scores.shape:
            raise ValueError(
                f"targets of shape {tuple(target.shape)} do not fit the network's outputs of shape "
                f"{tuple(scores.shape)}: give them the same"
            )
        return target
    classes = torch.arange(scores.shape[-1], device=target.device)
    return (target.unsqueeze(-1) == classes).to(scores.dtype)
