"""Whether simulations still run back to where they came from, while training runs."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_nobp.callbacks.gradient_alignment import log_now
from lightning_nobp.functional.hamiltonian import State
from lightning_nobp.nn.hamiltonian.echo_layer import EchoLayer
from lightning_nobp.typed import Typed


class ReversalMonitor(Typed, Callback):
    """Log how well the simulations of a network can be reversed, and whether their time steps are short enough.

    Logged are, for the layer where it is largest, ``heb/reversal_error``, how far from its start a sample of the batch
    ends that is simulated, reversed and simulated again, over the size of its state; and of a
    :class:`~lightning_nobp.nn.HamiltonianLayer` ``heb/dt_omega``, the time step times the highest frequency, which must
    stay below 2, and ``heb/energy_drift``, the change of a sample's energy over the energy, where nothing takes it and
    no drive changes. Learning raises frequencies: from 1.8 a warning says so.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next; each costs about three simulations.

    Raises:
        ValueError: ``every_n_steps`` is not positive; in training, ``dt_omega`` has reached 2.
        TypeError: The module simulates nothing.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self._seen: dict[EchoLayer, tuple[State, Sequence[Tensor]]] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a module without simulations."""
        if not _layers(pl_module):
            raise TypeError(
                f"ReversalMonitor watches simulations, and {type(pl_module).__name__} has none: give its network a "
                "HamiltonianLayer"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at where the simulations of this batch start."""
        if trainer.global_step % self.every_n_steps:
            return
        for layer in _layers(pl_module):

            def keep(state: State, drives: Sequence[Tensor], layer: EchoLayer = layer) -> None:
                self._seen[layer] = tuple(s.detach() for s in state), [u.detach() for u in drives]

            layer.watcher = keep

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure."""
        seen, self._seen = self._seen, {}
        for layer in _layers(pl_module):
            layer.watcher = None
        values: dict[str, float] = {}
        for layer, (state, drives) in seen.items():
            for name, value in layer.diagnose(state, drives).items():
                values[f"heb/{name}"] = max(value, values.get(f"heb/{name}", 0.0))
        if values:
            log_now(trainer, values)


def _layers(module: LightningModule) -> list[EchoLayer]:
    return [m for m in module.modules() if isinstance(m, EchoLayer)]
