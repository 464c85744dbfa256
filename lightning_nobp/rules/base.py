"""The base of every learning rule: everything about a training step except the gradient itself."""

import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, ClassVar, Literal, Self, cast, final

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_nobp.checkpoints import load_checkpoint
from lightning_nobp.rules.accumulation import GradientAccumulator, RunningMeans
from lightning_nobp.rules.agreement import (
    check_agreement,
    check_configurations_agree,
    check_epochs_end_together,
    check_lengths_agree,
    refuse_together,
)
from lightning_nobp.rules.batch_values import first_tensor, scalar
from lightning_nobp.rules.faults import described, learned, not_finite, total
from lightning_nobp.rules.hyperparameters import picklable, plain_arguments, refuse_opaque
from lightning_nobp.rules.random_state import RankGenerator, collect_random_state, restore_random_state
from lightning_nobp.rules.restart import is_validation_due, leave_ended_epoch, validate
from lightning_nobp.rules.synchronisation import (
    average_gradients,
    average_over_ranks,
    check_ranks_agree,
    from_ranks,
    gather_from_ranks,
    world_size,
)
from lightning_nobp.rules.trainer_settings import check_trainer
from lightning_nobp.typed import Typed

_STATE_KEY = "lightning_nobp"


class LearningRule(Typed, LightningModule):
    """A LightningModule that writes ``p.grad`` its own way and lets an ordinary torch optimizer apply it.

    A subclass implements :meth:`compute_gradients`. The base does the rest of a training step: zero the gradients,
    compute them, average them over ranks and accumulated batches, refuse what is not finite, clip, step the
    optimizer once and the scheduler when it is due, and log. It works without a Trainer too: call
    ``rule.compute_gradients(batch)`` between ``optimizer.zero_grad()`` and ``optimizer.step()``.

    Args:
        optimizer: Called with the parameters: a class, a ``functools.partial`` of one, or ``class_path`` on the
            command line.
        lr_scheduler: Called with the optimizer, likewise; None for a constant learning rate.
        lr_scheduler_interval: What the scheduler counts, ``'epoch'`` or ``'step'``.
        lr_scheduler_frequency: It moves once in so many of them.
        lr_scheduler_monitor: Logged value that a ``ReduceLROnPlateau`` watches.
        gradient_clip_val: Bound for the gradient, None for no bound. Lightning's own
            ``Trainer(gradient_clip_val=...)`` is refused in manual optimization.
        gradient_clip_algorithm: ``'norm'`` bounds the total norm, ``'value'`` every entry.
        accumulate_grad_batches: So many batches make one optimizer step, equal to a step on the joined batch.
        on_nonfinite: ``'raise'`` a ``FloatingPointError`` before a loss or gradient that is not finite reaches the
            weights, or ``'skip'`` that step and count it in ``train/skipped_steps``.

    Raises:
        ValueError: An argument outside its range.
    """

    supported_precisions: ClassVar[tuple[str, ...]] = ("32-true", "64-true", "bf16-mixed", "bf16-true")
    """Values of ``Trainer(precision=...)`` under which the rule is right."""

    def __init__(
        self,
        *,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(params, lr=0.1),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        lr_scheduler_frequency: int = 1,
        lr_scheduler_monitor: str = "val/loss",
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        accumulate_grad_batches: int = 1,
        on_nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._remember_arguments(cast(FrameType, inspect.currentframe()))
        _check_positive("lr_scheduler_frequency", lr_scheduler_frequency)
        _check_positive("accumulate_grad_batches", accumulate_grad_batches)
        if gradient_clip_val is not None:
            _check_positive("gradient_clip_val", gradient_clip_val)
        self._optimizer_factory = picklable(type(self), "optimizer", optimizer)
        self._scheduler_factory = picklable(type(self), "lr_scheduler", lr_scheduler)
        self.lr_scheduler_interval = lr_scheduler_interval
        self.lr_scheduler_frequency = lr_scheduler_frequency
        self.lr_scheduler_monitor = lr_scheduler_monitor
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.accumulate_grad_batches = accumulate_grad_batches
        self.on_nonfinite = on_nonfinite
        self.generators: dict[str, RankGenerator] = {}
        """The rule's own random numbers, by name; checkpoints hold their state on each rank."""
        self._lr: float | None = None
        self._accumulator = GradientAccumulator()
        self._means = RunningMeans()
        self._skipped_steps = 0
        self._ended_epochs = 0
        self._monitored: dict[str, float] = {}
        self._restored: dict[str, Any] | None = None
        self._first_step = 0
        self._reason = ""
        self._buffers_before: list[Tensor] = []
        self._is_late = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a subclass that replaces the training step."""
        super().__init_subclass__(**kwargs)
        if "training_step" in vars(cls):
            raise TypeError(f"{cls.__name__}.training_step: it is final, implement compute_gradients(batch) instead")

    # What a rule defines

    @abstractmethod
    def compute_gradients(self, batch: Any) -> Mapping[str, Tensor]:
        """Add the gradient of this batch to ``p.grad`` of every parameter to be moved.

        Gradients are means over the samples of the batch. No Trainer is needed.

        Args:
            batch: What the data module yields, for images ``(x, y)``.

        Returns:
            Scalars to log, by name; ``'loss'`` among them if the rule has one.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compute_gradients(batch)  (abstract)")

    def num_samples(self, batch: Any) -> int:
        """How many samples a batch holds: its weight in averages. By default the length of its first tensor.

        Raises:
            TypeError: There is no tensor with a length in the batch.
        """
        first = first_tensor(batch)
        if first is None:
            raise TypeError(
                f"a batch of type {type(batch).__name__} has no tensor whose length is its number of samples: override "
                f"{type(self).__name__}.num_samples(batch)"
            )
        return len(first)

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch that the rule cannot learn from; called with the first of every epoch. By default none."""

    def find_fault(self, batch: Any) -> None:
        """Say what is wrong with a batch of which a step has failed; by default what :meth:`check_batch` refuses.

        Raises:
            TypeError: The reason.
            ValueError: The reason.
        """
        self.check_batch(batch)

    @contextmanager
    def _explained(self, batch: Any) -> Iterator[None]:
        """Where a step fails because of its batch, say so: looking at every batch beforehand would cost time."""
        try:
            yield
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if "allocate" in str(error):  # of torch, on any device: there is not enough memory
                raise
            try:
                self.find_fault(batch)
            except (TypeError, ValueError) as reason:
                raise reason from error
            error.add_note(f"{type(self).__name__} was given a batch {described(batch)}.")
            raise

    def global_loss(self, batch: Any) -> Tensor | None:
        """The loss of the whole network on ``batch``, with an autograd graph, to compare gradients with.

        None, the default, says that the rule has no such loss.
        """
        return None

    def synchronise_gradients(self, num_samples: int, loss: Tensor | None) -> Tensor | None:
        """Average ``p.grad`` and the loss over ranks, weighted by samples, in one flattened all-reduce.

        Called only with more than one rank. A rule with a cheaper exact exchange overrides it.

        Args:
            num_samples: Samples behind this rank's gradient.
            loss: This rank's loss, a scalar, or None.

        Returns:
            The loss averaged over ranks.
        """
        return average_over_ranks(self._moved_parameters(), num_samples, loss)

    # The training step

    @final
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One batch: gradients, and unless more batches accumulate, one step of the optimizer."""
        if batch_idx == 0:
            refuse_together(self.check_batch, batch)
        if self.trainer.world_size > 1 and self.trainer.num_training_batches == math.inf:
            check_epochs_end_together(self.trainer)
        parameters = self._moved_parameters()
        for parameter in parameters:
            parameter.grad = None
        skips = self.on_nonfinite == "skip"
        if skips and not self._accumulator.batches:
            self._buffers_before = [buffer.detach().clone() for buffer in self.buffers()]
        with self._explained(batch):
            found = self.compute_gradients(batch)
        if not isinstance(found, Mapping):
            raise TypeError(f"compute_gradients returned {found!r}: give values by name, {{'loss': loss}} or {{}}")
        # Plain numbers come from the CPU, and are summed beside the others.
        values = {n: scalar(n, value).to(self.device) for n, value in found.items()}
        num_samples = self.num_samples(batch)
        self._means.add(values, num_samples, only_finite=skips)
        self._log_step(values, num_samples)
        loss = values.get("loss")
        mean_loss = loss
        if self.accumulate_grad_batches > 1:
            self._accumulator.add(parameters, num_samples, loss)
            if self._accumulator.batches < self.accumulate_grad_batches and not self.trainer.is_last_batch:
                return loss
            num_samples, mean_loss = self._accumulator.release(parameters)
        own_sum = None
        if self.trainer.world_size > 1:
            # Behind the average it could not be told whose numbers are not finite.
            own_sum = total(_step(parameters, mean_loss))
            mean_loss = self.synchronise_gradients(num_samples, mean_loss)
        self._step_optimizer(parameters, mean_loss, own_sum)
        return loss

    def _step_optimizer(self, parameters: list[nn.Parameter], loss: Tensor | None, own_sum: Tensor | None) -> None:
        finite = self._is_finite(parameters, loss, own_sum)
        if not finite:
            self._skip(parameters)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        # Stepping without gradients moves nothing, but counts: global_step advances by one whatever happens.
        optimizer.step()
        if finite:
            self._step_schedulers("step", self.trainer.global_step)

    @torch.no_grad()
    def _skip(self, parameters: list[nn.Parameter]) -> None:
        self._skipped_steps += 1
        for parameter in parameters:
            parameter.grad = None
        # Running statistics have seen the same batches.
        for buffer, before in zip(self.buffers(), self._buffers_before, strict=False):
            buffer.copy_(before)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip; callbacks have seen the unclipped gradient by now, as in automatic optimization."""
        if self.gradient_clip_val is None:
            return
        clip = clip_grad_norm_ if self.gradient_clip_algorithm == "norm" else clip_grad_value_
        clip([p for group in optimizer.param_groups for p in group["params"]], self.gradient_clip_val)

    def _moved_parameters(self) -> list[nn.Parameter]:
        optimizer = cast(Optimizer, self.optimizers(use_pl_optimizer=False))
        return [p for group in optimizer.param_groups for p in group["params"]]

    def _is_finite(self, parameters: list[nn.Parameter], loss: Tensor | None, own_sum: Tensor | None) -> bool:
        if total(_step(parameters, loss)).isfinite():
            return True
        # A sum of finite entries may overflow: only now look at each.
        culprits = not_finite({n: p.grad for n, p in self.named_parameters() if p.grad is not None})
        if loss is not None and not torch.isfinite(loss):
            culprits.insert(0, "the loss")
        if not culprits:
            return True
        if self.on_nonfinite == "skip":
            return False
        where = "" if own_sum is None else self._whose(not own_sum.isfinite())
        spoilt = not_finite(learned(self))
        but = f", but not finite themselves, so start or go on from others: {', '.join(spoilt)}" if spoilt else ""
        raise FloatingPointError(
            f"{type(self).__name__}: not finite at step {self.trainer.global_step}{where}: {', '.join(culprits)}. The "
            f"weights are untouched{but}. Lower the learning rate, clip (gradient_clip_val), check the data, or go on "
            "without such steps: on_nonfinite='skip'."
        )

    def _whose(self, is_ours: bool | Tensor) -> str:
        """On which ranks numbers were not finite, and what the rule of the first says of it."""
        reasons = gather_from_ranks(self._reason if is_ours else None)
        culprits = [number for number, reason in enumerate(reasons) if reason is not None]
        return from_ranks(culprits) + next((f" ({reason})" for reason in reasons if reason), "")

    def give_up_batch(self, error: FloatingPointError) -> None:
        """Go on with a loss of NaN where the step is skipped or other ranks would wait; otherwise raise.

        For :meth:`compute_gradients` that finds out half way: what it returns must have the names of any other batch,
        which ranks average. With several of them, all raise.
        """
        if self.on_nonfinite == "raise" and world_size() == 1:
            raise error
        self._reason = str(error)

    def _check_weights(self) -> None:
        """Refuse to go on with, or to save, weights and running statistics that a step has spoilt.

        Raises:
            FloatingPointError: Names them.
        """
        culprits = not_finite(learned(self))
        if culprits:
            raise FloatingPointError(
                f"{type(self).__name__}: not finite after step {self.trainer.global_step}: {', '.join(culprits)}. They "
                "are not saved. Lower the learning rate, scale the inputs, check the data, and go on from a checkpoint "
                "before: on the command line --ckpt_path last-good."
            )

    # Logging

    def _log_step(self, values: Mapping[str, Tensor], num_samples: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Logging every step costs as much as a quarter of a small network's step.
        if values and every and (self.trainer.fit_loop.total_batch_idx + 1) % every == 0:
            # Together, and so of one type: ranks that exchange others crash.
            row = torch.stack(list(values.values()))
            [row] = average_gradients([row.to(torch.promote_types(row.dtype, torch.float32))], num_samples)
            for name, value in zip(values, row.unbind(), strict=True):
                self.log(f"train/{name}", value, prog_bar=name in ("loss", "accuracy"), batch_size=1)

    def on_train_epoch_start(self) -> None:
        """Look again at loaders that were built again."""
        if self.trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
            check_lengths_agree(self.trainer)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means, move the schedulers, and check that weights are finite, and the same on all ranks."""
        refuse_together(lambda _: self._check_weights(), None)
        if not self._is_late:
            # With max_epochs=-1 an iterable without batches would be asked for them for ever.
            self._refuse_nothing(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        values = {f"train/{name}_epoch": value for name, value in self._means.compute().items()}
        self._means.reset()
        if self._skipped_steps:
            values["train/skipped_steps"] = torch.tensor(float(self._skipped_steps))
        self._log_epoch(values)
        # Counted here, and so in the checkpoint: a run may stop between an epoch's last batch and its end.
        self._ended_epochs += 1
        self._step_schedulers("epoch", self._ended_epochs)
        if self.trainer.world_size > 1:
            check_ranks_agree(dict(self.named_parameters()))

    def _log_epoch(self, values: Mapping[str, Tensor]) -> None:
        if not self._is_late:
            for name, value in values.items():
                self.log(name, value)
            return
        # The next epoch has begun: what belongs to the last one cannot wait for its end.
        ended = {name: float(value) for name, value in values.items()} | {"epoch": self._ended_epochs}
        for logger in self.trainer.loggers:
            logger.log_metrics(ended, step=self.trainer.fit_loop.total_batch_idx)

    # Optimizer and schedulers

    def optimised(self) -> list[Any]:
        """What the optimizer gets: all parameters that are trained, or groups of them with options of their own."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """The optimizer over all trainable parameters, and the scheduler if there is one."""
        parameters = self.optimised()
        # Something must be stepped once a batch, or Lightning counts no steps and saves no checkpoints.
        with _naming("optimizer"):
            optimizer = self._optimizer_factory(parameters) if parameters else _idle_optimizer()
        if isinstance(optimizer, torch.optim.LBFGS):
            raise MisconfigurationException(
                "optimizer=LBFGS evaluates the loss several times a step, but here gets one gradient: take another"
            )
        for group in optimizer.param_groups:
            if self._lr is not None:
                group["lr"] = self._lr
            # A checkpoint with a number of numpy's would not load safely.
            group.update({name: value.item() for name, value in group.items() if isinstance(value, np.generic)})
        if self._scheduler_factory is None:
            return optimizer
        with _naming("lr_scheduler"):
            made = self._scheduler_factory(optimizer)
        scheduler = {
            "scheduler": made,
            "interval": self.lr_scheduler_interval,
            "frequency": self.lr_scheduler_frequency,
        }
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @property
    def lr(self) -> float | None:
        """Learning rate of the first parameter group; setting it moves all groups (Lightning's finder does)."""
        if self._trainer is not None and self.trainer.optimizers:
            return float(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = value
        for optimizer in self.trainer.optimizers if self._trainer is not None else []:
            for group in optimizer.param_groups:
                group["lr"] = value

    def _step_schedulers(self, interval: str, count: int) -> None:
        """Move the schedulers that count ``interval``: in manual optimization Lightning never does."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval or count % config.frequency:
                continue
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(self._monitored_value(config.scheduler))
            else:
                config.scheduler.step()

    def _monitored_value(self, scheduler: ReduceLROnPlateau) -> float:
        name = getattr(scheduler, "monitor", self.lr_scheduler_monitor)
        metrics = self.trainer.callback_metrics
        if name in metrics:
            return float(metrics[name])
        if name in self._monitored:
            return self._monitored[name]
        raise MisconfigurationException(
            f"ReduceLROnPlateau watches lr_scheduler_monitor={name!r}, which is not logged. "
            f"Logged values: {', '.join(sorted(metrics)) or 'none'}."
        )

    # At the door

    def configure_callbacks(self) -> list[Callback]:
        """No callbacks, but the first hook of a run: refuse what the Trainer was given and the rule cannot honour."""
        # It advises to save the weights before the step under names that no rule may use.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        check_trainer(self.trainer, type(self).__name__, self.supported_precisions)
        return []

    # Exact resume

    def configure_model(self) -> None:
        """Take the run's precision before a checkpoint is restored, which would be rounded otherwise."""
        if self._trainer is not None:
            self.trainer.precision_plugin.convert_module(self)
            # Before Lightning's own exchanges, which hang or crash on ranks that differ.
            check_configurations_agree(self, self.trainer)

    def on_fit_start(self) -> None:
        """Start anew, or where the checkpoint left off, before any data is drawn."""
        check_agreement({"the step to start from": self._first_step}, "Resume all of them from the same checkpoint.")
        state, self._restored, self._first_step = self._restored, None, 0
        self._accumulator, self._means = GradientAccumulator(), RunningMeans()
        self._skipped_steps, self._monitored, self._buffers_before, self._reason = 0, {}, [], ""
        self._ended_epochs = self.current_epoch
        for generator in self.generators.values():
            generator.reset()
        if state is None:
            return
        self._accumulator.load_state_dict(state["accumulator"])
        self._means.load_state_dict(state["means"], self.device)
        self._skipped_steps = state["skipped_steps"]
        self._ended_epochs = state["ended_epochs"]
        self._monitored = state["monitored"]
        random_states = state["random_states"]
        random_state = random_states[min(self.trainer.global_rank, len(random_states) - 1)]
        restore_random_state(random_state)
        for name, generator in self.generators.items():
            generator.load_state_dict(random_state.get("own", {}).get(name, {}), self.device)

    def on_train_start(self) -> None:
        """Refuse loaders of other lengths on other ranks, and make up for what followed the batch of a stop.

        A run may have been stopped between a batch and its validation or its epoch's end.
        """
        check_lengths_agree(self.trainer)
        has_ended = self._ended_epochs < self.current_epoch
        if has_ended:
            leave_ended_epoch(self.trainer)
        loop = self.trainer.fit_loop.epoch_loop
        # Lightning counts what was due after the batch as done, and goes on with the next.
        if loop._should_check_val_epoch() if has_ended else is_validation_due(self.trainer):
            validate(self.trainer)
        if has_ended:
            self._is_late = True
            self.on_train_epoch_end()
            self._is_late = False

    def on_fit_end(self) -> None:
        """Refuse to have learned from nothing: of a loader without batches Lightning starts no epoch."""
        if self.trainer.limit_train_batches != 0:
            self._refuse_nothing(self.trainer.fit_loop.max_batches)

    def _refuse_nothing(self, batches: float) -> None:
        if not batches:
            raise MisconfigurationException(
                f"{type(self).__name__} has not learned: the training data are empty, or drop_last=True leaves out all "
                "of them. Give more samples, or smaller batches."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add everything that shapes the future, and plain constructor arguments."""
        if self._trainer is not None:
            refuse_together(lambda _: self._check_weights(), None)
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain_arguments(type(self), self.hparams)
        metrics = self.trainer.callback_metrics if self._trainer is not None else {}
        own = {name: generator.state_dict() for name, generator in self.generators.items()}
        checkpoint[_STATE_KEY] = {
            "random_states": gather_from_ranks(collect_random_state() | {"own": own}),
            "accumulator": self._accumulator.state_dict(),
            "means": self._means.state_dict(),
            "skipped_steps": self._skipped_steps,
            "ended_epochs": self._ended_epochs,
            "monitored": {k: float(v) for k, v in metrics.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what :meth:`on_save_checkpoint` added for the start of the fit that is resumed."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._restored = checkpoint.get(_STATE_KEY)
            self._first_step = checkpoint.get("global_step", 0)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """The rule of a checkpoint, see :meth:`lightning.pytorch.LightningModule.load_from_checkpoint`.

        Args:
            checkpoint_path: A file, an address or a file that is open.
            map_location: The device of its tensors.
            hparams_file: Arguments of the constructor that stand in a file of their own.
            strict: Whether its weights must be all those of the rule; None for the rule's own answer.
            weights_only: Whether a checkpoint that holds more than tensors and plain values, as none of a rule does, is
                refused. Whoever loads such a file runs the code in it.
            **kwargs: Arguments of the constructor that take the place of those in the checkpoint.

        Raises:
            DamagedCheckpointError: The file is damaged, no checkpoint, or holds what ``weights_only`` refuses.
            FileNotFoundError: There is no such file.
        """
        if isinstance(checkpoint_path, str | Path) and "://" not in str(checkpoint_path):
            load_checkpoint(checkpoint_path, weights_only=weights_only is not False)
        return super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs)

    def _remember_arguments(self, constructor: FrameType) -> None:
        """Fill ``self.hparams`` with what the outermost constructor was given, in plain form."""
        frames = collect_init_args(constructor, [], classes=(HyperparametersMixin,))
        given = frames[-1]
        refuse_opaque(given)
        self.save_hyperparameters(logger=False, ignore=[n for names in frames for n in names], frame=constructor)
        # From the command line or a checkpoint every argument is plain already, modules included.
        plain = () if "_class_path" in self.hparams else (plain_arguments(type(self), given),)
        self.save_hyperparameters(*plain, logger=False, frame=constructor)


def _step(parameters: list[nn.Parameter], loss: Tensor | None) -> list[Tensor]:
    """All numbers of a step."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return gradients if loss is None else [*gradients, loss]


def _idle_optimizer() -> Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(()), requires_grad=False)], lr=0.0)


@contextmanager
def _naming(argument: str) -> Iterator[None]:
    """Let what torch refuses name the argument that it came in."""
    try:
        yield
    except (ArithmeticError, TypeError, ValueError) as error:
        raise MisconfigurationException(f"{argument}: {str(error) or type(error).__name__}") from error


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value!r} must be positive")
