"""Self-learning machines: fields that learn by their own echo."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.hamiltonian import COMPLEX, Simulation, decay_step
from lightning_nobp.functional.hamiltonian.checks import check_state, check_system
from lightning_nobp.functional.hamiltonian.nudge import nudge_size
from lightning_nobp.nn.backprop import accumulate_grad
from lightning_nobp.nn.hamiltonian import (
    CoherentReadout,
    KerrCavityNetwork,
    LearningFieldNetwork,
    TwoBeamNetwork,
    WaveFieldNetwork,
)
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.rules.classification import ClassificationRule, accuracy, loss_of_module

EchoMode = Literal["simple", "averaged", "sequential"]

_PAPER_LEARNING_RATE = 0.03
_LOSSES = {"classification": ("distance", "cross_entropy"), "regression": ("mse",)}


class SelfLearningMachine(ClassificationRule):
    r"""A machine of two fields: one evaluates, and the other learns, by physics alone.

    The fields meet and part. The evaluation field is read, nudged by :math:`-i \eta \, \partial C / \partial \Psi^*`,
    and both are reversed in time. Their echo brings the learning field back with the momentum :math:`-\frac\eta2 \,
    \partial C / \partial \mathrm{Re} \Theta`, and a decay step turns that into a step. Nothing but the cost and its
    derivative at the output is known of the machine. Each sample of a batch sees a copy of the learning field; the
    step is the mean of theirs. What is written to ``p.grad`` is minus the step.

    Args:
        network: A preset (``'cavity'``, ``'wave_field'``, ``'two_beams'``), a
            :class:`~lightning_nobp.nn.LearningFieldNetwork`, or what builds one. For regression give a network of your
            own.
        loss: ``'distance'`` of the outputs from their targets, minus the score of the right class, or
            ``'cross_entropy'``; ``'mse'`` for values; or a module of outputs and targets that gives the mean over
            samples.
        task: ``'classification'`` for class numbers, ``'regression'`` for targets of the outputs' shape.
        mode: ``'simple'``, one echo a step, whose field comes back a little beside its place; ``'averaged'``, two
            echoes of opposite nudges from the same field, in which that cancels; ``'sequential'``, the paper's averaged
            echo: the second starts from where the first one's step has led.
        eta: Size of the nudge: with ``relative`` its length over that of the fields. 3e-3 suits
            float32, whose rounding drowns much less, and nonlinear fields, which bend under much more.
        relative: Whether each sample's nudge is scaled by its fields and error signal. A fixed ``eta``, as of a machine
            that knows only one strength, drowns in rounding when errors get small.
        learning_rate: ``eta / mass``: what multiplies the cost's gradient in a step, half of it in mode ``'simple'``.
            None for the paper's 0.03.
        mass: Of the learning field, instead; for a fixed ``eta``.
        decay: How far its momentum decays in a step, the ``loss`` of the authors' code, which is 100 there. With a
            finite one heavy-ball momentum is left, of the factor ``exp(-decay)``; for a fixed ``eta``.
        kick_cutoff: The most that an echo moves an entry of the learning field, approached softly.
        optimizer: Applies the step. SGD with a learning rate of 1 does it as it is.
        **kwargs: See :class:`ClassificationRule`.

    Raises:
        ValueError: An argument out of range, or two that contradict each other.
        TypeError: A network that is no LearningFieldNetwork, or has other parameters to train.

    References:
        Lopez-Pastor and Marquardt, "Self-learning machines based on Hamiltonian echo backpropagation", arXiv
        2103.04992.
    """

    presets: ClassVar[Mapping[str, NetworkFactory]] = {
        "cavity": KerrCavityNetwork,
        "wave_field": WaveFieldNetwork,
        "two_beams": TwoBeamNetwork,
    }
    # An echo drowns in the rounding of half precisions.
    supported_precisions: ClassVar[tuple[str, ...]] = ("32-true", "64-true")

    def __init__(
        self,
        *,
        network: str | nn.Module | NetworkFactory = "cavity",
        loss: str | nn.Module = "distance",
        task: Literal["classification", "regression"] = "classification",
        mode: EchoMode = "averaged",
        eta: float = 3e-3,
        relative: bool = True,
        learning_rate: float | None = None,
        mass: float | None = None,
        decay: float = math.inf,
        kick_cutoff: float = 0.1,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=1.0),
        **kwargs: Any,
    ) -> None:
        self.task, self.mode, self.eta, self.relative = task, mode, eta, relative
        self.learning_rate, self.mass, self.decay, self.kick_cutoff = learning_rate, mass, decay, kick_cutoff
        self._check_arguments(loss)
        self._loss_name = loss if isinstance(loss, str) else ""
        super().__init__(network=network, optimizer=optimizer, **kwargs)
        if not self.classifies and self.network is None:
            raise ValueError("network: presets make scores of classes; for task='regression' give a module of your own")
        # Behind the base's constructor: it may be a module, which the base then owns.
        self.loss = loss

    def _check_arguments(self, loss: str | nn.Module) -> None:
        for name, choices in (("task", tuple(_LOSSES)), ("mode", get_args(EchoMode))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
        if isinstance(loss, str) and loss not in _LOSSES[self.task]:
            raise ValueError(
                f"loss={loss!r} is no loss of task={self.task!r}: take one of {', '.join(_LOSSES[self.task])}, or a "
                "module"
            )
        for name in ("eta", "learning_rate", "mass"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r} must be positive, and finite")
        for name in ("decay", "kick_cutoff"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be positive, or .inf for no bound")
        if self.mass is not None and self.learning_rate is not None:
            raise ValueError(
                f"mass={self.mass} and learning_rate={self.learning_rate}: one follows from the other: give one"
            )
        for name, default in (("mass", None), ("decay", math.inf)):
            if self.relative and getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)} is that of a field whose nudges have one size: give relative=False"
                )

    # The machine

    @property
    def classifies(self) -> bool:
        """Whether targets are class numbers."""
        return self.task == "classification"

    def check_network(self, network: nn.Module) -> None:
        """Refuse what is no machine of two fields, and parameters that an echo does not teach."""
        if not isinstance(network, LearningFieldNetwork):
            raise TypeError(
                f"network={type(network).__name__} has no learning field: give a LearningFieldNetwork, like "
                "KerrCavityNetwork or WaveFieldNetwork"
            )
        others = [name for name, p in network.named_parameters() if p.requires_grad and name != "learning_field"]
        if others:
            raise TypeError(f"network: the echo teaches its learning field alone, freeze {', '.join(others)}")
        if self._loss_name == "distance" and not isinstance(network.readout, CoherentReadout):
            raise TypeError(
                f"loss='distance' goes with a CoherentReadout, not with {type(network.readout).__name__}: take "
                "'cross_entropy'"
            )

    def _build(self) -> None:
        super()._build()
        if self.decay < math.inf:
            # Beside the field and like it, so that processes average it, and checkpoints hold it.
            self.momentum = nn.Parameter(torch.zeros_like(self.machine().learning_field))

    def machine(self) -> LearningFieldNetwork:
        """The network."""
        return cast(LearningFieldNetwork, self.built_network())

    def learning_state(self, copies: int) -> Tensor:
        """The learning field as it is let loose, complex ``(copies, *learning_shape)``."""
        field = self.machine().learning_field
        momentum = self.momentum if self.decay < math.inf else torch.zeros_like(field)
        return torch.complex(field, momentum).expand(copies, *field.shape)

    def configure_optimizers(self) -> Any:
        """The base's; leftover momentum must not be scaled."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        plain = isinstance(optimizer, torch.optim.SGD) and all(
            group["lr"] == 1 and not group["momentum"] and not group["weight_decay"] for group in optimizer.param_groups
        )
        if self.decay < math.inf and (isinstance(configured, dict) or not plain):
            raise MisconfigurationException(
                f"decay={self.decay} leaves momentum in the learning field, which no optimizer may scale: leave "
                "optimizer and lr_scheduler away, and set learning_rate or mass"
            )
        return configured

    # A step

    def compute_gradients(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Add minus the mean step of the samples' learning fields to ``p.grad``.

        Args:
            batch: Inputs ``(batch, *input_shape)``, and class numbers ``(batch,)`` or targets of the outputs' shape.

        Returns:
            ``loss`` of the batch, and its ``accuracy`` if there are classes.
        """
        x, target = batch[:2]
        try:
            with torch.no_grad():
                return self._learn(x, target)
        except FloatingPointError as error:
            self.give_up_batch(error)
            # As many numbers as of any other batch: processes average them.
            lost = x.new_full((), math.nan)
            return {"loss": lost} | ({"accuracy": lost} if self.classifies else {})

    def _learn(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        start = self.learning_state(len(x))
        if self.mode == "sequential":
            outputs, loss, first = self._echo(start, x, target, (1.0,))
            _, _, second = self._echo(start + first, x, target, (-1.0,))
            moves = first + second
        else:
            outputs, loss, moves = self._echo(start, x, target, (1.0,) if self.mode == "simple" else (1.0, -1.0))
        step = moves.mean(dim=0)
        accumulate_grad(self.machine().learning_field, -step.real)
        if self.decay < math.inf:
            accumulate_grad(self.momentum, -step.imag)
        return {"loss": loss} | ({"accuracy": accuracy(outputs, target)} if self.classifies else {})

    def _echo(
        self, learning: Tensor, x: Tensor, target: Tensor, signs: tuple[float, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, loss, and how echoes with nudges of these signs and their decay steps move the learning fields."""
        machine = self.machine()
        simulation = Simulation(machine.system, machine.dt, machine.n_steps, machine.n_steps)
        end = self._run(simulation, machine.start(x, learning))
        outputs, loss, gradient = self._error_signal(end[0], target)
        direction = COMPLEX.direction((gradient,))
        size = nudge_size(end, [direction], self.eta, self.relative)
        nudges = torch.cat([sign * size for sign in signs])
        (echo,), _ = simulation.echo(end, [direction], (), nudges, nudges)
        mass = nudges / self._rate() if self.mass is None else nudges.sign() * self.mass
        copies = torch.cat([learning] * len(signs))
        ends = decay_step(copies, machine.system.learning(echo), mass, self.decay, self.kick_cutoff)
        moves = (ends - copies).view(len(signs), *learning.shape)
        return outputs, loss, torch.complex(moves.real.sum(dim=0), moves.imag.mean(dim=0))

    @staticmethod
    def _run(simulation: Simulation, start: Tensor) -> tuple[Tensor, ...]:
        """Both fields at the end of the way there."""
        check_state((start,), (), COMPLEX)
        check_system(simulation.system, COMPLEX, start)
        try:
            [end] = simulation.forward((start,), ())
        except FloatingPointError as error:
            raise FloatingPointError(f"network, of a {type(simulation.system).__name__}: {error}") from error
        return end

    def _rate(self) -> float:
        return _PAPER_LEARNING_RATE if self.learning_rate is None else self.learning_rate

    def _error_signal(self, end: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, the mean loss, and the gradient of each sample's own."""
        with torch.enable_grad():
            end = end.detach().requires_grad_()
            outputs = self.machine().read(end)
            loss = self.loss_function(outputs, target)
            return outputs.detach(), loss.detach(), torch.autograd.grad(loss * len(end), end)[0]

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """The mean loss over samples, by autograd's operations.

        Args:
            scores: The machine's outputs.
            target: See :meth:`compute_gradients`.

        Raises:
            ValueError: Targets of another shape, or a loss of several numbers.
        """
        if isinstance(self.loss, nn.Module):
            return loss_of_module(self.loss, scores, target)
        if self.loss == "mse":
            if scores.shape != target.shape:
                raise ValueError(
                    f"targets of shape {tuple(target.shape)} do not fit outputs of shape {tuple(scores.shape)}"
                )
            return F.mse_loss(scores, target.to(scores.dtype))
        if self.loss == "distance":
            return -scores.gather(1, target.unsqueeze(1)).mean()
        return F.cross_entropy(scores, target)

    def global_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """:meth:`loss_function` of the machine, with its autograd graph."""
        x, target = batch[:2]
        return self.loss_function(self.machine()(x, self.learning_state(len(x))), target)
