"""How long a training would take on hardware that is not there."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_nobp.callbacks.figures import log_figure
from lightning_nobp.callbacks.run_folder import write_csv
from lightning_nobp.typed import Typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("hardware_seconds", "cost_evaluations", "samples_seen", "seconds", "val_accuracy")
Point = dict[str, float]
"""A validation: a value for each of :data:`COLUMNS`, without ``val_accuracy`` where none is logged."""


@dataclass(frozen=True)
class Platform(Typed):
    r"""What one thing takes on a platform, in seconds.

    Args:
        perturbation_seconds: To change the perturbation of all parameters, :math:`\tau_p`.
        update_seconds: To change the parameters, :math:`\tau_\theta`.
        sample_seconds: To change the sample, :math:`\tau_x`.
        inference_seconds: From an input to its cost.
        serial_updates: Whether parameters are written one after another, each in ``update_seconds``.

    Raises:
        ValueError: A negative time.
    """

    perturbation_seconds: float = 0.0
    update_seconds: float = 0.0
    sample_seconds: float = 0.0
    inference_seconds: float = 0.0
    serial_updates: bool = False

    def __post_init__(self) -> None:
        """Refuse negative times."""
        for entry in fields(self):
            if not getattr(self, entry.name) >= 0:
                raise ValueError(f"{entry.name}={getattr(self, entry.name)} must not be negative")

    def seconds(self, cost_evaluations: int, samples_seen: int, updates: int, num_perturbed: int) -> float:
        """What a training takes.

        Args:
            cost_evaluations: Costs that were read.
            samples_seen: Samples that were shown.
            updates: Of the parameters.
            num_perturbed: Number of parameters.
        """
        evaluation = max(self.perturbation_seconds, self.inference_seconds)
        update = self.update_seconds * (num_perturbed if self.serial_updates else 1)
        return cost_evaluations * evaluation + samples_seen * self.sample_seconds + updates * update


PLATFORMS = {
    "chip_in_the_loop": Platform(1e-3, 1e-3, 1e-3, 1e-3),
    "memristive": Platform(1e-8, 1e-6, 1e-8, 1e-8),
    "superconducting": Platform(1e-11, 1e-9, 1e-11, 1e-11),
}
"""Assumed orders of magnitude for a chip driven by a laboratory's computer, a memristive array, and a superconducting
circuit: three kinds of hardware as McCaughan et al., arXiv 2303.03986, discuss them, not the numbers of their table."""


class CostCounter(Protocol):
    """A rule that counts the costs it reads."""

    cost_evaluations: int
    """Samples whose cost was read so far, in all processes."""
    samples_seen: int

    @property
    def num_perturbed(self) -> int:
        """Number of perturbed parameters."""


class HardwareClock(Typed, Callback):
    r"""Turn what a rule counts into seconds on a platform.

    .. math::

        t = n_C \max(\tau_p, \tau_\text{inference}) + n_x \tau_x + n_\theta \tau_\theta

    with :math:`n_C` cost evaluations, :math:`n_x` samples and :math:`n_\theta` updates, times the number of parameters
    where they are written one by one. Logged are ``hardware/seconds``, ``hardware/cost_evaluations`` and
    ``hardware/samples_seen``, every ``log_every_n_steps`` and at every validation. At the end of a fit the validation
    accuracy by hardware seconds is drawn as ``hardware``, and written as ``hardware.csv`` into the run's folder.

    Args:
        platform: A key of :data:`PLATFORMS`, whose times are assumptions, or a :class:`Platform`, or its times by name.

    Raises:
        ValueError: An unknown platform, or time.
        MisconfigurationException: The module counts no cost evaluations.

    References:
        McCaughan, Oripov, Ganesh, Nam, Dienstfrey and Buckley, "Multiplexed gradient descent: Fast online training of
        modern datasets on hardware neural networks without backpropagation", arXiv 2303.03986, for the time constants.
    """

    def __init__(self, platform: str | Platform | Mapping[str, float] = "chip_in_the_loop") -> None:
        if isinstance(platform, str):
            if platform not in PLATFORMS:
                raise ValueError(
                    f"platform={platform!r} is not one of {', '.join(map(repr, PLATFORMS))}: take one, or give times "
                    "of your own, on the command line platform.update_seconds=... and so on"
                )
            platform = PLATFORMS[platform]
        if isinstance(platform, Mapping):
            unknown = set(platform) - {entry.name for entry in fields(Platform)}
            if unknown:
                raise ValueError(
                    f"platform has no {unknown.pop()!r}: it has {', '.join(e.name for e in fields(Platform))}"
                )
            platform = Platform(**cast(dict[str, Any], platform))
        self.platform = platform
        self.points: list[Point] = []
        self._seconds_before = 0.0
        self._started: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew, and refuse a rule that counts nothing."""
        if stage != "fit":
            return
        if not hasattr(pl_module, "cost_evaluations"):
            raise MisconfigurationException(
                f"HardwareClock counts the costs that a rule evaluates, and a {type(pl_module).__name__} counts none: "
                "train with MultiplexedGradientDescent, or leave the callback out"
            )
        self.points, self._seconds_before = [], 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock on the wall."""
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log beside the values of the step."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (trainer.fit_loop.total_batch_idx + 1) % every == 0:
            self._log(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log beside the values of the validation."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in self._read(trainer, pl_module).items():
            # In float64: counts beyond 2 ** 24 stay whole.
            pl_module.log(f"hardware/{name}", torch.tensor(value, dtype=torch.float64))

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        counter = cast(CostCounter, pl_module)
        counts = {"cost_evaluations": counter.cost_evaluations, "samples_seen": counter.samples_seen}
        seconds = self.platform.seconds(**counts, updates=trainer.global_step, num_perturbed=counter.num_perturbed)
        return {"seconds": seconds, **counts}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note a point of the curve."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        read = self._read(trainer, pl_module)
        point = {"hardware_seconds": read.pop("seconds"), **read, "seconds": self._elapsed()}
        if "val/accuracy" in trainer.callback_metrics:
            point["val_accuracy"] = float(trainer.callback_metrics["val/accuracy"])
        self.points.append(point)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve, and write it."""
        self._seconds_before, self._started = self._elapsed(), None
        if not self.points or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        log_figure(trainer, "hardware", hardware_figure(self.points))
        write_csv(trainer, "hardware.csv", COLUMNS, self.points)

    def _elapsed(self) -> float:
        """Seconds of this fit and of those that it goes on from."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    def state_dict(self) -> dict[str, Any]:
        """The points so far, and the seconds that have passed."""
        return {"points": [dict(point) for point in self.points], "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind them."""
        self.points, self._seconds_before = state_dict["points"], state_dict["seconds"]


def hardware_figure(points: list[Point]) -> "Figure":
    """Accuracy by seconds on the platform.

    Args:
        points: A validation each.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    # A logarithmic axis has no zero.
    found = [p for p in points if "val_accuracy" in p and p["hardware_seconds"] > 0]
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(found) <= 20 else None
    axes.plot([p["hardware_seconds"] for p in found], [100 * p["val_accuracy"] for p in found], marker=marker)
    axes.set(xlabel="hardware seconds", ylabel="validation accuracy, %", xscale="log")
    # Within a decade the labels between its ends would lie on each other.
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    return figure
