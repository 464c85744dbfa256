"""Apparatus that loses energy, shakes, and reverses time imperfectly."""

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_nobp.functional.hamiltonian import Imperfections
from lightning_nobp.nn.hamiltonian.echo_layer import EchoLayer
from lightning_nobp.rules.random_state import RankGenerator
from lightning_nobp.typed import Typed


class EchoImperfections(Typed, Callback):
    r"""Let the simulations of a :class:`~lightning_nobp.rules.HamiltonianEcho` run as those of a real apparatus do.

    It is there in training, validation and test alike, and gone after them. What
    :class:`~lightning_nobp.callbacks.GradientAlignment` compares with is the gradient of the apparatus as it should be:
    with its damping, without noise and errors. Imperfect updates and weights are
    :class:`~lightning_nobp.callbacks.HardwareNoise`'s.

    Args:
        damping: Rate at which momenta are lost, one over the system's unit of time; None for what the network says.
        gain: Rate at which the echo is amplified; None compensates the damping, which keeps the echo exact; 0 leaves it
            as it is.
        noise: Standard deviation of what is added to momenta, per square root of time.
        shared_noise: Whether the two echoes that are subtracted from each other see the same noise.
        conjugation_error: Fraction of the momentum that is lost when time is reversed, from 0 to 1.
        readout_noise: Standard deviation of the error signal's components over their root mean square.
        seed: Of the noise.

    Raises:
        ValueError: An argument out of its range.
        MisconfigurationException: A module in which nothing is simulated, or a ``gradient_engine`` without an echo;
            ``'autograd'`` knows damping and noise.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """

    def __init__(
        self,
        *,
        damping: float | None = None,
        gain: float | None = None,
        noise: float = 0.0,
        shared_noise: bool = False,
        conjugation_error: float = 0.0,
        readout_noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("noise", noise), ("readout_noise", readout_noise)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} is a standard deviation: it must be at least 0, and finite")
        if not 0 <= conjugation_error <= 1:
            raise ValueError(f"conjugation_error={conjugation_error} must be from 0 to 1")
        for name, rate in (("damping", damping), ("gain", gain)):
            if rate is not None and not 0 <= rate < float("inf"):
                raise ValueError(f"{name}={rate} must be at least 0, and finite, or None")
        self.damping, self.gain, self.noise, self.shared_noise = damping, gain, noise, shared_noise
        self.conjugation_error, self.readout_noise, self.seed = conjugation_error, readout_noise, seed
        self._generator = RankGenerator(seed)
        self._before: list[tuple[EchoLayer, float]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew."""
        self._generator.reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the apparatus as it is."""
        self._attach(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise, if no fit has done it."""
        self._attach(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        self._attach(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        self._attach(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the network as it was."""
        for layer, damping in self._before:
            layer.damping, layer.imperfections = damping, None
        self._before = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self.teardown(trainer, pl_module, "exception")

    def state_dict(self) -> dict[str, Any]:
        """How far the noise has come."""
        return self._generator.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same noise."""
        self._generator.load_state_dict(state_dict, torch.device("cpu"))

    def _attach(self, module: LightningModule) -> None:
        if self._before:
            return
        layers = [layer for layer in module.modules() if isinstance(layer, EchoLayer)]
        if not layers:
            raise MisconfigurationException(
                f"EchoImperfections distorts simulations, and a {type(module).__name__} has none: train with "
                "HamiltonianEcho, or leave the callback out"
            )
        self._check_engine(layers)
        imperfections = Imperfections(
            gain=self.gain,
            noise=self.noise,
            shared_noise=self.shared_noise,
            conjugation_error=self.conjugation_error,
            readout_noise=self.readout_noise,
            generator=self._generator.on(torch.device("cpu")),
        )
        for layer in layers:
            self._before.append((layer, layer.damping))
            layer.imperfections = imperfections
            if self.damping is not None:
                layer.damping = self.damping

    def _check_engine(self, layers: list[EchoLayer]) -> None:
        """Refuse faults of an echo where there is none."""
        engines = {layer.gradient_engine for layer in layers} - {"echo"}
        if "adjoint" in engines or (engines and (self.conjugation_error or self.readout_noise)):
            raise MisconfigurationException(
                f"EchoImperfections distorts echoes, and gradient_engine={engines.pop()!r} makes none: take "
                "gradient_engine='echo', or leave the callback out"
            )
