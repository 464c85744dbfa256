"""Training as it would go on imperfect hardware."""

from typing import Any, Literal, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer

from lightning_nobp.callbacks.activation_variation import ActivationVariation
from lightning_nobp.callbacks.imperfect_memory import ImperfectMemory
from lightning_nobp.callbacks.noisy_readout import CostReader, NoisyReadout
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.rules.backprop import Backprop
from lightning_nobp.rules.closed_form import ClosedFormRule
from lightning_nobp.typed import Typed


class HardwareNoise(Typed, Callback):
    r"""Train as on a device whose read-outs, weights and units are imperfect; everything is off by default.

    Weights and units are those of any LightningModule. What the optimizers change is distorted after each of their
    steps, so that it does not matter who wrote the gradients. Per step and parameter, in this order: the change is
    rounded to pulses (``update_step``), answered by the device (``dead_zone``, ``up_gain``, ``down_gain``,
    ``saturation='soft'``; see :func:`~lightning_nobp.functional.device.device_update`) and joined by ``update_noise``;
    the weight is clipped to its range, drifts, and is stored on its grid; stuck ones are put back. A parameter without
    gradient is not written, but drifts. Weights are clipped, and rounded to the nearest level, when a fit starts too.

    Costs are those of a rule that learns from them, like MultiplexedGradientDescent. Read-outs are noisy first and
    rounded then, :math:`C' = C + \sqrt{\sigma_C^2 + (\sigma_r C)^2}\, n` with standard normal :math:`n`.

    Units are those behind activation modules, and differ in training and evaluation alike: :math:`f(a)` becomes
    :math:`L f(k (a - x_0)) + y_0`, with :math:`x_0, y_0` of mean 0 and :math:`k, L` of mean 1, all normal with standard
    deviation :math:`\sigma_a`. The same module used twice is the same units, as far as shapes are the same.

    All numbers are functions of the seed and of what they are for: weights and units are the same in every process,
    read-outs are not. The seed and the counts are in the checkpoint, and a run that goes on from one has its device.

    Args:
        cost_noise: Standard deviation of each cost read-out, :math:`\sigma_C`, in units of the cost.
        cost_noise_relative: The same as a fraction of the cost, :math:`\sigma_r`.
        cost_quantisation: Read-outs are rounded to multiples of this, in units of the cost.
        readout_delay: Time steps by which cost differences come late, and so meet others' perturbations; the first
            are zero.
        update_noise: Standard deviation of every update of a parameter, :math:`\sigma_\theta`, in its unit.
        update_step: Updates are multiples of this pulse, in units of the parameter.
        update_rounding: ``'nearest'`` or ``'stochastic'``, whose mean is the update asked for.
        dead_zone: Smaller updates are none, in units of the parameter.
        up_gain: Factor of every update that raises a weight.
        down_gain: Factor of every update that lowers a weight.
        weight_range: Weights stay between minus this and this; None for no bound.
        saturation: ``'hard'``: updates of full size up to the bound; ``'soft'``: they shrink on the way there.
        weight_bits: Stored weights have so many bits, ``2 ** bits - 1`` levels over the range; None for floating point.
        weight_rounding: ``'nearest'``, with which updates below half a level are lost, or ``'stochastic'``.
        drift: Fraction of each weight that is lost in an update.
        stuck_fraction: Share of parameters that are defective, and keep the value they had when training started.
        activation_variation: Standard deviation between units, :math:`\sigma_a`.
        seed: Of the device.

    Raises:
        ValueError: An argument outside its range, or one that needs ``weight_range``.
        MisconfigurationException: The module reads no costs, or all at once, has no activation modules, or no
            parameters that an optimizer moves, and is to have them distorted.

    References:
        McCaughan, Oripov, Ganesh, Nam, Dienstfrey and Buckley, "Multiplexed gradient descent: Fast online training of
        modern datasets on hardware neural networks without backpropagation", arXiv 2303.03986.
    """

    def __init__(
        self,
        *,
        cost_noise: float = 0.0,
        cost_noise_relative: float = 0.0,
        cost_quantisation: float = 0.0,
        readout_delay: int = 0,
        update_noise: float = 0.0,
        update_step: float = 0.0,
        update_rounding: Literal["nearest", "stochastic"] = "nearest",
        dead_zone: float = 0.0,
        up_gain: float = 1.0,
        down_gain: float = 1.0,
        weight_range: float | None = None,
        saturation: Literal["hard", "soft"] = "hard",
        weight_bits: int | None = None,
        weight_rounding: Literal["nearest", "stochastic"] = "nearest",
        drift: float = 0.0,
        stuck_fraction: float = 0.0,
        activation_variation: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self.readout = NoisyReadout(cost_noise, cost_noise_relative, cost_quantisation, readout_delay)
        self.memory = ImperfectMemory(
            update_noise=update_noise,
            update_step=update_step,
            update_rounding=update_rounding,
            dead_zone=dead_zone,
            up_gain=up_gain,
            down_gain=down_gain,
            weight_range=weight_range,
            saturation=saturation,
            weight_bits=weight_bits,
            weight_rounding=weight_rounding,
            drift=drift,
            stuck_fraction=stuck_fraction,
        )
        self.units = ActivationVariation(activation_variation)

    # At the door

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew, and refuse what cannot be distorted."""
        if stage != "fit":
            return
        self.readout.reset()
        self.memory.reset()
        if not self.readout.is_ideal and not hasattr(pl_module, "cost_hooks"):
            raise MisconfigurationException(
                "cost_noise, cost_noise_relative, cost_quantisation and readout_delay distort the costs that a rule "
                f"reads, and a {type(pl_module).__name__} reads none: train with MultiplexedGradientDescent, or leave "
                "them out"
            )
        if not self.memory.is_ideal and isinstance(pl_module, ClosedFormRule):
            raise MisconfigurationException(
                f"HardwareNoise distorts what optimizers change, and {type(pl_module).__name__} solves for its "
                "weights: leave the options of updates and weights out"
            )
        if self.units.sigma and isinstance(pl_module, Backprop) and pl_module.engine == "explicit":
            raise MisconfigurationException(
                f"activation_variation={self.units.sigma}: the backward pass of Backprop(engine='explicit') knows "
                "nothing of it; take engine='autograd'"
            )

    def _check_module(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what shows only once networks and optimizers are built."""
        delay = self.readout.readout_delay
        if delay and not cast(CostReader, pl_module).reads_in_time_order:
            raise MisconfigurationException(
                f"readout_delay={delay}: all samples of a batch are read at the same time, and nothing can come late; "
                "take an engine that reads one perturbation after another, engine='vmap' or 'in_place', or leave the "
                "delay out"
            )
        if self.memory.stuck_fraction and any(isinstance(m, SparseLayer) for m in pl_module.modules()):
            raise MisconfigurationException(
                f"stuck_fraction={self.memory.stuck_fraction}: a sparse layer gets other weights with another mask; "
                "train a dense network, densify(...), under a SparsityMask"
            )
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if not self.memory.is_ideal and not any(p.requires_grad for group in groups for p in group["params"]):
            raise MisconfigurationException(
                f"HardwareNoise distorts what optimizers change, and a {type(pl_module).__name__} gives them nothing: "
                "leave the options of updates and weights out"
            )

    # As long as a run lasts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Vary the units."""
        self._check_module(trainer, pl_module)
        self.units.attach(pl_module, self.seed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Distort read-outs and weights, now that a checkpoint's optimizers are restored."""
        if not self.readout.is_ideal:
            self.readout.attach(cast(CostReader, pl_module), self.seed)
        if not self.memory.is_ideal:
            optimizers = [o.optimizer if isinstance(o, LightningOptimizer) else o for o in trainer.optimizers]
            self.memory.attach(optimizers, self.seed)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Vary the units, if no fit has done it."""
        self.units.attach(pl_module, self.seed)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Vary the units."""
        self.units.attach(pl_module, self.seed)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Vary the units."""
        self.units.attach(pl_module, self.seed)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave rule, optimizers and network as they were."""
        for part in (self.readout, self.memory, self.units):
            part.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self.teardown(trainer, pl_module, "exception")

    # Exact resume

    def state_dict(self) -> dict[str, Any]:
        """The device's seed, and how far it has been used."""
        return {"seed": self.seed, "updates": self.memory.updates, "readout": self.readout.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same device."""
        self.seed, self.memory.updates = state_dict["seed"], state_dict["updates"]
        self.readout.load_state_dict(state_dict["readout"])
