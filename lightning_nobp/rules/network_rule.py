"""The base of every rule that finds a network from the time series of its nodes."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_nobp.functional.dynamics import Integrator, noisy_start
from lightning_nobp.functional.network_inference import Normalisation
from lightning_nobp.metrics.networks import (
    LinkAUROC,
    LinkAveragePrecision,
    ValidPredictionTime,
    WeightError,
)
from lightning_nobp.nn.dynamical import DynamicalNetwork, DynamicsFactory, LocalDynamics, PolynomialDynamics
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.hyperparameters import to_plain

_START_NOISES = (1e-3, 1e-2)
_LINK_METRICS = {"link_auroc": LinkAUROC, "link_average_precision": LinkAveragePrecision, "weight_error": WeightError}


class NetworkRule(LearningRule):
    """A learning rule for a :class:`~lightning_nobp.nn.DynamicalNetwork`, with its evaluation.

    Batches are windows ``(batch, steps + 1, nodes, components)``, alone or first in a tuple, as
    :class:`~lightning_nobp.datamodules.SeriesDataModule` gives them. Logged are ``val/loss`` and ``test/loss``, the
    mean square error of free runs of ``num_steps`` from the start of each window, in units of the series' variance.
    Where the data module knows the ``true_weights``, so are ``link_auroc``, ``link_average_precision`` and
    ``weight_error``. The test follows free runs to the end of its windows: ``test/valid_prediction_time`` is the median
    time until their error exceeds 0.4 standard deviations, in Lyapunov times if the data module knows the exponent. If
    it knows the true ``field`` too, ``test/valid_prediction_time_true_0.001`` and ``..._0.01`` say how long the true
    system holds, started with errors of so many standard deviations.

    Args:
        local: How a node moves alone: ``'polynomial'`` (:class:`~lightning_nobp.nn.PolynomialDynamics`), ``'mlp'``
            (:class:`~lightning_nobp.nn.LocalDynamics`), a module from states to velocities, or what builds one from
            numbers of nodes and of components.
        num_nodes: Of the network; None takes it from the data module.
        components: Numbers in the state of a node; None likewise.
        dt: Time from one sample to the next, that of the data module if it tells; None likewise.
        integrator: ``'rk4'``, ``'split'`` as in the paper, or ``'euler'``: see
            :func:`~lightning_nobp.functional.dynamics.step`.
        num_steps: Steps of a window that are predicted from its first sample.
        **kwargs: See :class:`LearningRule`.

    Raises:
        ValueError: An argument out of its range.
    """

    supported_precisions: ClassVar[tuple[str, ...]] = ("32-true", "64-true")
    classifies: ClassVar[bool] = False
    """Predictions are states, not classes."""
    presets: ClassVar[Mapping[str, DynamicsFactory]] = {"polynomial": PolynomialDynamics, "mlp": LocalDynamics}
    """Local motions that have a short name."""

    def __init__(
        self,
        *,
        local: str | nn.Module | DynamicsFactory = "polynomial",
        num_nodes: int | None = None,
        components: int | None = None,
        dt: float | None = None,
        integrator: Integrator = "rk4",
        num_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        self.num_nodes, self.components, self.dt = num_nodes, components, dt
        self.integrator, self.num_steps = integrator, num_steps
        self._local: nn.Module | DynamicsFactory = local if isinstance(local, nn.Module) else self._factory(local)
        self.network: DynamicalNetwork | None = None
        self._units: Normalisation | None = None
        self._metrics = nn.ModuleDict()
        self._prediction_times: dict[str, ValidPredictionTime] = {}
        if None not in (num_nodes, components, dt):
            self._build()

    def _factory(self, local: str | DynamicsFactory) -> DynamicsFactory:
        if not isinstance(local, str):
            return local
        if local in self.presets:
            return self.presets[local]
        module, _, name = local.rpartition(".")
        try:
            return cast(DynamicsFactory, getattr(import_module(module or "lightning_nobp.nn"), name))
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"local={local!r} is not one of {', '.join(map(repr, self.presets))}, nor a class path ({error})"
            ) from error

    # The network

    def configure_model(self) -> None:
        """Build what waited for the data module's shape, and learn how it normalised its series."""
        data = getattr(self._trainer, "datamodule", None)
        if self.network is None:
            for name in ("num_nodes", "components", "dt"):
                if getattr(self, name) is None:
                    value = getattr(data, name, None)
                    if value is None:
                        raise ValueError(
                            f"{name} is not known: give {type(self).__name__}({name}=...) or a data module with the "
                            f"attribute {name!r}"
                        )
                    setattr(self, name, value)
                    self.hparams[name] = to_plain(value, name)
            self._build()
        self._check_dt(data)
        if data is not None and self.trainer.state.fn == "fit" and hasattr(data, "normalisation"):
            self.built_network().normalise_by(data.normalisation)
        super().configure_model()

    def _check_dt(self, data: Any) -> None:
        theirs, ours = getattr(data, "dt", None), self.built_network().dt
        if theirs is not None and not math.isclose(theirs, ours, rel_tol=1e-6):
            raise ValueError(
                f"dt={ours} of {type(self).__name__} is not that of the data module, dt={theirs}: leave the rule's "
                "out, or sample the series again"
            )

    def on_fit_start(self) -> None:
        """Series come in the units of the network."""
        super().on_fit_start()
        self._units = None

    def on_validation_start(self) -> None:
        """Learn how the data module's series are normalised."""
        self._learn_units()

    def on_test_start(self) -> None:
        """Likewise."""
        self._learn_units()

    def on_predict_start(self) -> None:
        """Likewise."""
        self._learn_units()

    def _learn_units(self) -> None:
        """Series of another file than the network was trained on are normalised otherwise."""
        network, theirs = (
            self.built_network(),
            getattr(getattr(self.trainer, "datamodule", None), "normalisation", None),
        )
        if theirs is not None:
            theirs = Normalisation(theirs.mean.to(network.mean), theirs.scale.to(network.scale))
            same = torch.equal(theirs.mean, network.mean) and torch.equal(theirs.scale, network.scale)
            theirs = None if same else theirs
        self._units = theirs

    def _build(self) -> None:
        assert self.num_nodes is not None
        assert self.components is not None
        assert self.dt is not None
        local = self._local
        if not isinstance(local, nn.Module):
            local = local(self.num_nodes, self.components)
        self.network = DynamicalNetwork(local, self.num_nodes, self.components, self.dt, self.integrator)
        self.check_network(self.network)
        for stage in ("val", "test"):
            # By default a nan would be left out, and the loss look as if there was none.
            self._metrics[f"{stage}/loss"] = MeanMetric(nan_strategy=math.nan)

    def check_network(self, network: DynamicalNetwork) -> None:
        """Refuse a network that the rule cannot train; by default every network is welcome.

        Raises:
            ValueError: The reason.
        """

    def built_network(self) -> DynamicalNetwork:
        """The network.

        Raises:
            RuntimeError: It waits for the data module's shape.
        """
        if self.network is None:
            raise RuntimeError(
                f"the network is built once its shape is known: give {type(self).__name__}(num_nodes=..., "
                "components=..., dt=...), or train with a data module"
            )
        return self.network

    def forward(self, x: Tensor) -> Tensor:
        """Normalised states one step after ``x`` ``(batch, nodes, components)``."""
        after: Tensor = self.built_network()(x)
        return after

    # Batches

    def windows(self, batch: Any) -> Tensor:
        """The windows of a batch, normalised as the network is, in the dtype of its weights."""
        network = self.built_network()
        found: Tensor = (batch if isinstance(batch, Tensor) else batch[0]).to(network.weights)
        if self._units is not None:
            found = (found * self._units.scale + (self._units.mean - network.mean)) / network.scale
        return found

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch that does not fit the network.

        Raises:
            TypeError: It is no tensor, and no tuple of tensors.
            ValueError: Windows of another shape, or too short.
        """
        found = batch if isinstance(batch, Tensor) else batch[0] if isinstance(batch, list | tuple) and batch else None
        if not isinstance(found, Tensor):
            raise TypeError(f"{type(self).__name__} learns from windows, a tensor or a tuple of one, not {type(batch)}")
        network = self.built_network()
        if found.dim() != 4 or tuple(found.shape[2:]) != (network.num_nodes, network.components):
            raise ValueError(
                f"windows of shape {tuple(found.shape)} do not fit (batch, steps + 1, nodes={network.num_nodes}, "
                f"components={network.components})"
            )
        if found.shape[1] <= self.num_steps:
            raise ValueError(
                f"num_steps={self.num_steps} is longer than the windows, of {found.shape[1] - 1} steps: give the data "
                "module longer windows, or predict fewer steps"
            )

    # Validation and test

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Count one batch into ``val/loss``; callbacks get the ``predicted`` and ``true`` windows."""
        return self._evaluate("val", batch, batch_idx, self.num_steps)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Count one batch into ``test/loss`` and the prediction times; callbacks get what validation gives them."""
        outputs = self._evaluate("test", batch, batch_idx, self.windows(batch).shape[1] - 1)
        for name, predicted in self._predictions(outputs).items():
            self._prediction_times[name].update(predicted, outputs["true"])
        return outputs

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Free runs from the first sample of each window, in the units of the data, of the shape of the windows."""
        network, windows = self.built_network(), self.windows(batch)
        predicted = free_run(network, windows)
        lost = (~predicted.isfinite()).flatten(2).any(dim=2).any(dim=0).nonzero()
        if len(lost):
            rank_zero_warn(
                f"free runs of batch {batch_idx} diverge: from step {int(lost[0])} on not all are finite. Follow fewer "
                "steps (the data module's horizon), or take a local motion of a lower degree"
            )
        return predicted * network.scale + network.mean

    def on_test_epoch_start(self) -> None:
        """Learn of the data module how fast errors grow."""
        data = getattr(self.trainer, "datamodule", None)
        exponent, network = getattr(data, "lyapunov_exponent", None), self.built_network()
        names = ["", *(f"_true_{noise:g}" for noise in _START_NOISES)] if hasattr(data, "field") else [""]
        for name in names:
            metric = ValidPredictionTime(network.dt, exponent).to(self.device)
            self._prediction_times[f"test/valid_prediction_time{name}"] = metric

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, over all ranks."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, over all ranks."""
        self._log_metrics("test")
        for name, metric in self._prediction_times.items():
            self.log(name, metric.compute().float())

    def _evaluate(self, stage: str, batch: Any, batch_idx: int, num_steps: int) -> dict[str, Tensor]:
        if batch_idx == 0:
            self.check_batch(batch)
        true = self.windows(batch)[:, : num_steps + 1]
        predicted = free_run(self.built_network(), true)
        counted = slice(1, self.num_steps + 1)
        loss = (predicted[:, counted] - true[:, counted]).square().mean()
        cast(MeanMetric, self._metrics[f"{stage}/loss"]).update(loss, weight=len(true))
        return {"predicted": predicted, "true": true}

    def _predictions(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Free runs of the network, and of the true system from inexact starts, by the metric that counts them."""
        found = {"test/valid_prediction_time": outputs["predicted"]}
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "field"):
            network = self.built_network()
            true = (outputs["true"] * network.scale + network.mean).double().cpu()
            for noise in _START_NOISES:
                run = partial(noisy_start, data.field, data.true_weights, true, data.dt, noise)
                states = run(torch.Generator().manual_seed(0), integrator=data.integrator).to(outputs["true"])
                found[f"test/valid_prediction_time_true_{noise:g}"] = (states - network.mean) / network.scale
        return found

    def _log_metrics(self, stage: str) -> None:
        loss = cast(MeanMetric, self._metrics[f"{stage}/loss"])
        # The metric sums over ranks itself.
        value = loss.compute()
        self.log(f"{stage}/loss", value, prog_bar=True)
        if not bool(value.isfinite()):
            rank_zero_warn(
                f"{stage}/loss={float(value)}: free runs of the network diverge within num_steps={self.num_steps}. "
                "Take a local motion of a lower degree, a larger ridge, or smaller steps of the optimizer"
            )
        loss.reset()
        true = getattr(getattr(self.trainer, "datamodule", None), "true_weights", None)
        if true is None:
            return
        weights = self.built_network().weights
        for name, kind in _LINK_METRICS.items():
            # The same weights on every rank.
            self.log(f"{stage}/{name}", cast(Callable[..., Tensor], kind.of)(weights.detach(), true.to(weights.device)))


def free_run(step: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Predictions from the first sample of each window; what diverges is not finite, and stays so.

    Args:
        step: From states to those one step later.
        windows: ``(batch, steps + 1, nodes, components)``.

    Returns:
        Of the shape of ``windows``, the start first.
    """
    seen = [windows[:, 0]]
    for _ in range(windows.shape[1] - 1):
        seen.append(step(seen[-1]))
    return torch.stack(seen, dim=1)
