"""The base of every rule that is solved rather than trained: sums over the data, one system of equations a stage."""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast, final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_nobp.metrics.summed import SummedMetric
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.rules.classification import ClassificationRule
from lightning_nobp.rules.synchronisation import from_ranks, ranks_where, sum_over_ranks

_STATE_KEY = "closed_form"

Sums = dict[str, dict[str, Tensor]]
"""What some samples add to the sums of a stage, by statistic."""


class ClosedFormRule(ClassificationRule):
    """A classifier that is fitted stage by stage: an epoch sums statistics, its last batch solves for weights.

    A subclass says how many stages there are (:attr:`num_stages`), which sums a stage needs
    (:meth:`make_statistics`), how a batch adds to them (:meth:`accumulate`) and what follows from them (:meth:`solve`).
    The base counts samples and stages, adds sums over processes, keeps them in checkpoints, and stops the Trainer after
    the last stage: ``max_epochs`` must be at least ``num_stages``, or -1. Weights do not depend on the order of the
    samples, the size of batches or the number of processes, up to rounding.

    Without a Trainer: call ``compute_gradients(batch)`` for every batch, then ``end_stage()``, as long as
    ``rule.stage < rule.num_stages``.

    Args:
        network: See :class:`ClassificationRule`.
        num_classes: See :class:`ClassificationRule`.
        input_shape: See :class:`ClassificationRule`.
        on_nonfinite: ``'raise'`` a ``FloatingPointError`` at inputs that are not finite, or ``'skip'`` such a batch.
    """

    supported_precisions: ClassVar[tuple[str, ...]] = ("32-true", "64-true")

    def __init__(
        self,
        *,
        network: str | nn.Module | NetworkFactory,
        num_classes: int | None = None,
        input_shape: Sequence[int] | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(network=network, num_classes=num_classes, input_shape=input_shape, on_nonfinite=on_nonfinite)
        self.stage = 0
        """Stages that have been solved; the number of the one that is being summed, from 0."""
        self.statistics = nn.ModuleDict()
        """The sums of this stage, by name."""
        self.solution: dict[str, float] = {}
        """What :meth:`solve` said of the last stage."""
        self._samples = self._of_others = 0
        self._restored_stage: dict[str, Any] | None = None
        self._repeats = self._leaves_out = False

    # What a rule defines

    @property
    @abstractmethod
    def num_stages(self) -> int:
        """Passes over the data."""
        raise NotImplementedError

    @abstractmethod
    def make_statistics(self) -> Mapping[str, SummedMetric]:
        """Empty sums for the current stage, by name."""
        raise NotImplementedError

    @abstractmethod
    def accumulate(self, batch: Any) -> Mapping[str, Tensor]:
        """Add a batch to :attr:`statistics`; returns scalars to log."""
        raise NotImplementedError

    @abstractmethod
    def solve(self) -> Mapping[str, float]:
        """Set the weights that follow from :attr:`statistics`, the same on every process; returns what to log.

        A metric's ``compute()`` adds up over processes.
        """
        raise NotImplementedError

    def restart(self) -> None:
        """Forget what earlier fits have solved; called when a fit starts anew."""

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network for other images or classes than the rule's.

        Raises:
            ValueError: Names what differs.
        """
        shape, classes = getattr(network, "input_shape", None), getattr(network, "num_classes", None)
        if self.input_shape is None and shape is not None:
            self.input_shape = tuple(shape)
        if shape is not None and tuple(shape) != self.input_shape:
            raise ValueError(f"the network is for inputs of shape {tuple(shape)}, not input_shape={self.input_shape}")
        if classes is not None and classes != self.num_classes:
            raise ValueError(f"the network is for {classes} classes, not num_classes={self.num_classes}")

    def discard_stage(self) -> None:
        """Forget what else this stage has left behind: it is summed again."""

    # A stage

    @torch.no_grad()
    def compute_gradients(self, batch: Any) -> Mapping[str, Tensor]:
        """Add a batch to the sums, and solve after an epoch's last; there are no gradients."""
        if self.stage >= self.num_stages:
            return {}
        if not self.statistics:
            self.begin_stage()
        values = self._sum(batch) if self._is_usable(batch) else {}
        if self._trainer is not None and self.trainer.is_last_batch:
            self._check_samples()
            values |= {name: torch.tensor(value) for name, value in self.end_stage().items()}
        return values

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch that does not fit; called with every one, since one would spoil the sums for good.

        Raises:
            TypeError: It is no pair of tensors.
            ValueError: Inputs of another shape or type, or targets that are no class numbers.
        """
        super().check_batch(batch)
        shape = tuple(batch[0].shape[1:])
        if self.input_shape is not None and shape != tuple(self.input_shape):
            raise ValueError(f"inputs of shape {shape} do not fit input_shape={tuple(self.input_shape)}")
        if batch[0].dtype != self.dtype:
            raise ValueError(
                f"inputs of type {batch[0].dtype} do not fit the weights' {self.dtype}: convert them first"
            )

    def _sum(self, batch: Any) -> dict[str, Tensor]:
        self.check_batch(batch)
        with _exact_products(self.device.type):
            values = dict(self.accumulate(batch))
        self._samples += self.num_samples(batch)
        return values

    @final
    def begin_stage(self) -> None:
        """Start the current stage's sums at zero."""
        self.statistics = nn.ModuleDict(dict(self.make_statistics())).to(self.device)
        self._samples = self._of_others = 0

    @final
    def end_stage(self) -> dict[str, float]:
        """Solve the current stage and go on to the next; returns what :meth:`solve` says.

        Raises:
            RuntimeError: No batch has been summed.
            MisconfigurationException: The sums have no solution, with the reason.
        """
        if self._repeats:
            self._repeats = False
            self.statistics = nn.ModuleDict()
            self.discard_stage()
            return {}
        if self.stage >= self.num_stages:
            raise RuntimeError(f"all {self.num_stages} stages are solved")
        if not self.statistics or not self._samples + self._of_others:
            raise RuntimeError("no batch was summed in this stage: call compute_gradients(batch) first")
        try:
            self.solution = dict(self.solve())
        except (ValueError, RuntimeError) as error:
            raise MisconfigurationException(f"stage {self.stage}: {error}") from error
        self.stage += 1
        self.statistics = nn.ModuleDict()
        if self._trainer is not None and self.stage == self.num_stages:
            self.trainer.should_stop = True
        return self.solution

    def statistic(self, name: str) -> SummedMetric:
        """One of :attr:`statistics`."""
        return cast(SummedMetric, self.statistics[name])

    # Scores estimate one-hot targets

    def loss_function(self, scores: Tensor, target: Tensor) -> Tensor:
        """Mean over samples of the squared distance from the one-hot target."""
        wanted = nn.functional.one_hot(target, cast(int, self.num_classes))
        return (scores - wanted).square().sum(1).mean()

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores, which estimate probabilities, cut to what probabilities can be and scaled to the sum 1."""
        positive = scores.clamp(min=1e-6)
        return positive / positive.sum(-1, keepdim=True)

    # Sums of others

    @torch.no_grad()
    def contribution(self, batch: Any) -> Sums:
        """What a batch adds to the sums of the current stage, to be sent to another site or forgotten."""
        self.check_batch(batch)
        held, samples, others = self.statistics, self._samples, self._of_others
        try:
            self.begin_stage()
            with _exact_products(self.device.type):
                self.accumulate(batch)
            self._samples = self.num_samples(batch)
            return self.current_sums()
        finally:
            self.statistics, self._samples, self._of_others = held, samples, others

    def current_sums(self) -> Sums:
        """The sums of the current stage on this process, to be sent to another site."""
        sums = {name: dict(self.statistic(name).sums()) for name in self.statistics}
        about = {"count": torch.tensor(self._samples + self._of_others), "stage": torch.tensor(self.stage)}
        return sums | {"samples": about}

    def merge(self, sums: Sums) -> None:
        """Add another site's sums of the same stage, of the same network.

        Raises:
            ValueError: Sums of another stage, or of another network.
        """
        self._add(sums, "merge", 1)

    def forget(self, batch: Any) -> None:
        """Take a batch that was summed in this stage out of the sums; earlier stages stay as they are.

        Raises:
            RuntimeError: Fewer samples have been summed.
        """
        summed = self._samples + self._of_others
        if self.num_samples(batch) > summed:
            raise RuntimeError(f"{summed} samples were summed in this stage: that batch is not among them")
        self._add(self.contribution(batch), "forget", -1)

    def _add(self, sums: Sums, method: str, sign: int) -> None:
        if not self.statistics:
            self.begin_stage()
        stage = int(sums["samples"]["stage"])
        if stage != self.stage or set(sums) != {*self.statistics, "samples"}:
            raise ValueError(
                f"these are sums of {sorted(sums)} at stage {stage}, not of {sorted(self.statistics)} at stage "
                f"{self.stage}: both sites must be at the same stage of the same fit"
            )
        # All before any: nothing is half merged.
        for name in self.statistics:
            self.statistic(name).check_sums(sums[name])
        for name in self.statistics:
            getattr(self.statistic(name), method)(sums[name])
        self._of_others += sign * int(sums["samples"]["count"])

    # At the door

    def _is_usable(self, batch: Any) -> bool:
        """Whether all inputs are finite, on every rank; what is not would spoil the sums for good."""
        culprits = ranks_where(not torch.isfinite(batch[0]).all())
        if not culprits:
            return True
        if self.on_nonfinite == "skip":
            self._skipped_steps += 1
            return False
        step = "" if self._trainer is None else f" at step {self.trainer.global_step}"
        raise FloatingPointError(
            f"{type(self).__name__}: inputs of a batch are not finite{step}{from_ranks(culprits)}. The sums are "
            "untouched. Check the data, or go on without such batches: on_nonfinite='skip'."
        )

    def _check_samples(self) -> None:
        """Each sample must count once."""
        expected = self._expected_samples()
        if expected is None or self._repeats:
            return
        seen = int(sum_over_ranks(torch.tensor(self._samples)))
        if seen < expected and not (self._leaves_out or self._skipped_steps):
            warnings.warn(
                f"{seen} of {expected} samples were summed in this epoch: the weights are those of these alone. A run "
                "that is resumed needs the batch size and the number of processes that it had.",
                stacklevel=2,
            )
        if seen > expected:
            raise MisconfigurationException(
                f"{seen} samples were summed in this epoch, but there are {expected}: some count twice. Give the data "
                "module pad_shards=False; for a loader of your own, Trainer(use_distributed_sampler=False) and a "
                "sampler that repeats nothing."
            )

    def _expected_samples(self) -> int | None:
        loader = self.trainer.train_dataloader
        dataset = getattr(loader, "dataset", None)
        counts = isinstance(dataset, Sized) and getattr(loader, "batch_size", 0) is not None
        return len(cast(Sized, dataset)) if counts else None

    def _warn_of_what_is_missing(self) -> None:
        trainer, loader = self.trainer, self.trainer.train_dataloader
        share = trainer.limit_train_batches
        # The number 1 is one batch, the share 1.0 all of them.
        limited = isinstance(share, int) or share < 1 or trainer.overfit_batches > 0  # type: ignore[attr-defined]
        if limited and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warnings.warn("limited training batches: the weights are those of a part of the data", stacklevel=2)
        sampler = getattr(loader, "batch_sampler", None)
        drops = bool(getattr(loader, "drop_last", False) or getattr(sampler, "drop_last", False))
        if drops:
            warnings.warn("drop_last=True: the weights are those without the samples dropped", stacklevel=2)
        self._leaves_out = limited or drops
        epochs = trainer.max_epochs
        if epochs is not None and 0 <= epochs < self.num_stages and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warnings.warn(
                f"max_epochs={epochs} are enough for {epochs} of the {self.num_stages} stages: give max_epochs=-1, "
                "which ends behind the last",
                stacklevel=2,
            )

    # Several processes, and resume

    def synchronise_gradients(self, num_samples: int, loss: Tensor | None) -> Tensor | None:
        """Nothing: there are no gradients, and sums are added up once a stage."""
        return loss

    def on_fit_start(self) -> None:
        """Start anew, or with the sums of a checkpoint."""
        super().on_fit_start()
        state, self._restored_stage = self._restored_stage, None
        self.stage, self._repeats = 0, False
        self._samples = self._of_others = 0
        self.statistics = nn.ModuleDict()
        if state is None:
            self.restart()
            return
        self.stage = state["stage"]
        self.load_fit_state(state["own"])
        if state["statistics"]:
            self.begin_stage()
            if self.trainer.is_global_zero:
                # What all processes had summed counts once.
                for name, sums in state["statistics"].items():
                    self.statistic(name).merge(sums)
                self._samples, self._of_others = state["samples"], state["of_others"]

    def on_train_start(self) -> None:
        """Stop where nothing is left to solve, and see whether the data can go on where they stopped."""
        super().on_train_start()
        self._warn_of_what_is_missing()
        if self.stage >= self.num_stages:
            self.trainer.should_stop = True
        if not self.statistics or hasattr(self.trainer.train_dataloader, "load_state_dict"):
            return
        warnings.warn(
            "the training loader has no state: it starts its epoch over, and this stage is summed again in the next. A "
            "loader with state_dict and load_state_dict, like those of this package's data modules, goes on.",
            stacklevel=2,
        )
        self._repeats = True
        if (self.trainer.max_epochs or 0) > 0:
            self.trainer.fit_loop.max_epochs += 1  # type: ignore[operator]

    def on_train_end(self) -> None:
        """Say if a stage was summed in vain."""
        if self.statistics and self._samples:
            warnings.warn(
                f"the fit ended inside stage {self.stage} of {self.num_stages}, which is not solved: give it more "
                "steps or time, or resume it",
                stacklevel=2,
            )

    def fit_state(self) -> dict[str, Any]:
        """What else a subclass needs to go on with a fit; plain values and tensors."""
        return {}

    def load_fit_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`fit_state` gave."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the stage and its sums over all processes."""
        super().on_save_checkpoint(checkpoint)
        statistics = {
            name: {key: sum_over_ranks(value).clone() for key, value in self.statistic(name).sums().items()}
            for name in self.statistics
        }
        checkpoint[_STATE_KEY] = {
            "stage": self.stage,
            "samples": int(sum_over_ranks(torch.tensor(self._samples))),
            "of_others": int(sum_over_ranks(torch.tensor(self._of_others))),
            "statistics": statistics,
            "own": self.fit_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep them for the start of the fit that is resumed."""
        super().on_load_checkpoint(checkpoint)
        if self._restored is not None:
            self._restored_stage = checkpoint.get(_STATE_KEY)


@contextmanager
def _exact_products(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32: sums of rounded products would be of no use."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
