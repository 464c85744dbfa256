"""Which weights a network has while it trains."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_nobp.callbacks.mask_schedule import Kind, MaskSchedule, Schedule
from lightning_nobp.callbacks.masked_weights import DenseWeight, MaskedWeight, SparseWeight
from lightning_nobp.functional.sparsity import (
    check_sparsity,
    drop_and_grow,
    keep_n_of_m,
    saliency,
)
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.nn.sparsify import SparsityDistribution, as_patterns, choose_masks, match_names
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.closed_form import ClosedFormRule
from lightning_nobp.typed import Typed

Method = Literal["one_shot", "gradual", "random", "gradient", "set", "rigl", "n_m", "fixed"]

_EXCHANGING = ("set", "rigl")


class SparsityMask(Typed, Callback):
    r"""Keep weights at zero, and choose which ones, in any LightningModule.

    The masks belong to the weights, of two dimensions or more, of the layers that ``include`` and ``exclude`` choose.
    In a dense layer absent weights are zeros: in the weight, in its gradient and in the optimizer's state. A
    :class:`~lightning_nobp.nn.SparseLinear` or :class:`~lightning_nobp.nn.SparseConv2d` gets another structure instead,
    and its optimizer's state moves with it. Both train alike.

    Masks change after steps of the optimizer (of several the first), with the gradient of that step at hand; only
    ``'gradient'`` decides right before one.

    ========== =========================================================================================
    method     what is kept
    ========== =========================================================================================
    one_shot   after ``begin`` steps, the largest weights
    gradual    the largest weights, fewer and fewer until ``end``, every ``every`` steps
    random     after ``begin`` steps, any weights
    gradient   after ``begin`` steps, the weights that change the loss most, :math:`|w g|` (SNIP)
    n_m        after ``begin`` steps, of every m consecutive inputs the n largest
    set        any weights; every ``every`` steps until ``end`` the smallest are exchanged for any others
    rigl       likewise, for those with the largest gradient
    fixed      the weights that are not zero when training starts
    ========== =========================================================================================

    The best checkpoint of a gradual pruning is the best of those that are as sparse as asked for.

    Sparsity is logged for each layer at the end of an epoch, as ``sparsity/<layer>``, and for all as ``sparsity``.

    Args:
        method: See above.
        sparsity: Fraction of the weights that is absent in the end, in [0, 1). Not for ``'fixed'`` and ``'n_m'``.
            ``'set'`` and ``'rigl'`` leave layers alone that are sparse already, and without it all others too.
        schedule: For ``'gradual'``, ``'cubic'`` (the default; fast at first) or ``'linear'``; for ``'set'`` and
            ``'rigl'``, ``'cosine'`` (the default) or ``'constant'``: how the fraction that is exchanged falls.
        distribution: ``'uniform'``: every layer is as sparse; ``'global'``: the best of all layers together; ``'erk'``:
            small layers keep more. By default ``'erk'`` for ``'random'``, ``'set'`` and ``'rigl'``, else ``'uniform'``.
        begin: Steps before the first mask.
        end: Steps until the last change. None: three quarters of the training.
        every: Steps between two changes.
        include: Patterns of layer names in the module, as of files (``'network.*'``), of which one must match.
        exclude: Patterns of layer names, of which none may match.
        regrow: Whether weights that are dropped may be those that grow again at once.
        drop_fraction: Fraction of the kept weights that ``'set'`` and ``'rigl'`` exchange, at first.
        n_m: n and m of ``'n_m'``.
        rescale: Whether the weights of a layer that gets a random mask at step 0 grow by one over the square root of
            its density, which keeps the size of activities.
        seed: Of random masks and growth.

    Raises:
        ValueError: An argument outside its range, or one that the method does not know.
        MisconfigurationException: The module solves for its weights, or has no layer that matches.

    References:
        Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878 (gradual). Lee, Ajanthan and Torr, "SNIP:
        Single-shot Network Pruning based on Connection Sensitivity", arXiv 1810.02340 (gradient). Mocanu et al.,
        "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity inspired by Network Science",
        arXiv 1707.04780 (set). Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets Winners",
        arXiv 1911.11134 (rigl, erk).
    """

    def __init__(
        self,
        method: Method = "gradual",
        sparsity: float | None = None,
        *,
        schedule: Schedule | None = None,
        distribution: SparsityDistribution | None = None,
        begin: int = 0,
        end: int | None = None,
        every: int = 100,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        regrow: bool = False,
        drop_fraction: float = 0.3,
        n_m: tuple[int, int] = (2, 4),
        rescale: bool = True,
        seed: int = 0,
    ) -> None:
        _check_options(method, sparsity, schedule, distribution, begin, end, every, drop_fraction, n_m)
        exchanges = method in _EXCHANGING
        self.method = method
        self.sparsity = sparsity
        random_start = method == "random" or exchanges
        self.distribution: SparsityDistribution = distribution or ("erk" if random_start else "uniform")
        self.begin, self.end, self.every = begin, end, every
        self.include, self.exclude = as_patterns(include), as_patterns(exclude)
        self.regrow, self.drop_fraction, self.n_m = regrow, drop_fraction, (n_m[0], n_m[1])
        self.rescale = rescale and random_start
        self.seed = seed
        kind: Kind = "exchange" if exchanges else "gradual" if method == "gradual" else "once"
        self.schedule = MaskSchedule(kind, schedule or ("cosine" if exchanges else "cubic"), begin, every)
        self._weights: dict[str, MaskedWeight] = {}
        self._restored: dict[str, Any] = {}
        # Scores of a change that is due, and samples of the present batch.
        self._gradients: dict[str, Tensor] = {}
        self._samples = 1

    @property
    def steps(self) -> int:
        """Steps of the optimizer so far."""
        return self.schedule.steps

    @property
    def state_key(self) -> str:
        """Several of them, for other layers, may be in one checkpoint."""
        return self._generate_state_key(method=self.method, include=self.include, exclude=self.exclude)

    # As long as a run lasts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew."""
        if stage == "fit":
            self.schedule.reset()
            self._restored, self._gradients = {}, {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers, with the masks of a checkpoint if there is one."""
        if isinstance(pl_module, ClosedFormRule):
            raise MisconfigurationException(
                f"SparsityMask changes weights between steps of an optimizer, and a {type(pl_module).__name__} solves "
                "for its weights: train with another rule"
            )
        layers = {name: m for name, m in pl_module.named_modules() if _has_matrix(m)}
        try:
            names = match_names(layers, self.include, self.exclude)
        except ValueError as error:
            raise MisconfigurationException(f"SparsityMask: {error}") from error
        self._weights = {name: self._masked(name, layers[name]) for name in names}
        owners: dict[nn.Parameter, str] = {}
        for name, weight in self._weights.items():
            other = owners.setdefault(weight.parameter, name)
            if other != name:
                raise MisconfigurationException(
                    f"SparsityMask: {other!r} and {name!r} share a weight, which can have one mask only: exclude one"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the first masks, if they are due and need no gradient, or make up for what a stopped run had due."""
        if self.schedule.changed is None:
            self.schedule.last = self._last_step(trainer, pl_module)
        self._change_if_due(trainer)
        self._mask_weights()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask sparse layers for the gradient of absent weights, if it will be needed."""
        wanted = self._needs_gradient()
        # Where batches accumulate, a rule of this package weights them by their samples.
        self._samples = pl_module.num_samples(batch) if wanted and isinstance(pl_module, LearningRule) else 1
        for weight in self._weights.values():
            weight.record_dense_gradient(wanted)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradient of absent weights away, and before that, note what depends on it."""
        if optimizer is _optimizers(trainer)[0]:
            self._collect()
            self._note_gradients(trainer)
            if self.method == "gradient" and self._gradients:
                self._change(trainer)
            self.schedule.steps += 1
        for weight in self._weights.values():
            weight.mask_gradient()
            weight.forget_dense_gradient()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Change the masks if it is time; whatever has moved them, absent weights are zeros."""
        self._collect()
        self._change_if_due(trainer)
        self._mask_weights()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how sparse the layers are."""
        for name, weight in self._weights.items():
            pl_module.log(f"sparsity/{name}", 1 - weight.mask().float().mean())
        pl_module.log("sparsity", self._present_sparsity())

    # Exact resume

    def state_dict(self) -> dict[str, Any]:
        """Steps, the masks of dense layers (sparse ones have their own), and gradients that wait for their use."""
        self._collect()
        return {
            "schedule": self.schedule.state_dict(),
            "masks": {name: w.mask().cpu() for name, w in self._weights.items() if isinstance(w, DenseWeight)},
            "collected": {n: w.collected for n, w in self._weights.items() if isinstance(w, SparseWeight)},
            "gradients": self._gradients,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same masks."""
        self.schedule.load_state_dict(state_dict["schedule"])
        self._gradients, self._restored = state_dict["gradients"], state_dict

    # When

    def _needs_gradient(self) -> bool:
        """Whether the coming step's gradient says which weights are kept."""
        if self.method == "rigl":
            return self.schedule.changed is not None and self.schedule.is_due(self.steps + 1)
        return self.method == "gradient" and self.schedule.is_due(self.steps)

    def _note_gradients(self, trainer: Trainer) -> None:
        # A step that a rule skips leaves none, and the change waits for the next.
        skipped = all(weight.parameter.grad is None for weight in self._weights.values())
        if self._needs_gradient() and not (skipped and getattr(trainer.lightning_module, "on_nonfinite", "") == "skip"):
            self._gradients = {name: self._gradient(name, w, trainer) for name, w in self._weights.items()}

    def _change_if_due(self, trainer: Trainer) -> None:
        waits = self.method == "gradient" or (
            self.method == "rigl" and self.schedule.changed is not None and not self._gradients
        )
        if self.schedule.is_due(self.steps) and not waits:
            self._change(trainer)

    def _last_step(self, trainer: Trainer, pl_module: LightningModule) -> int:
        # A rule that accumulates batches steps less often.
        batches = trainer.estimated_stepping_batches
        steps = batches if batches == float("inf") else -(-batches // getattr(pl_module, "accumulate_grad_batches", 1))
        repeats = self.method == "gradual" or self.method in _EXCHANGING
        if repeats and self.end is None and steps == float("inf"):
            raise MisconfigurationException("SparsityMask(end=None): a training without an end needs one here")
        last = self.begin if not repeats else max(self.begin, int(0.75 * steps)) if self.end is None else self.end
        if last > steps and self.method not in _EXCHANGING:
            rank_zero_warn(
                f"SparsityMask(begin={self.begin}, end={self.end}): the training has {steps} steps and will not reach "
                f"sparsity={self.sparsity}"
            )
        return last

    # What

    def _change(self, trainer: Trainer) -> None:
        if self.schedule.changed is None:
            self.schedule.initial = self._present_sparsity()
        if self.method == "gradual":
            new = self._largest(self.schedule.sparsity(cast(float, self.sparsity)))
        elif self.schedule.changed is None:
            new = self._first()
        else:
            new = self._exchanged()
        self._gradients = {}
        self.schedule.mark()
        optimizers = _optimizers(trainer)
        for name, mask in new.items():
            self._refuse_resizing(name, mask, trainer)
            self._weights[name].set_mask(mask, optimizers)
        if self.method == "gradual" and self.steps >= self.schedule.last:
            _forget_best(trainer)

    def _refuse_resizing(self, name: str, mask: Tensor, trainer: Trainer) -> None:
        # What distributes a module remembers the sizes of its parameters, and autograd then expects them.
        if trainer.world_size == 1 or getattr(trainer.lightning_module, "engine", None) == "explicit":
            return
        weight = self._weights[name]
        if isinstance(weight, SparseWeight) and int(mask.sum()) != weight.parameter.numel():
            raise MisconfigurationException(
                f"SparsityMask(method={self.method!r}) on several processes would change the size of {name!r}, which "
                "only SparseProp(engine='explicit') can bear: make the layer sparse before the training, or leave it "
                "dense, densify(...)"
            )

    def _first(self) -> dict[str, Tensor]:
        if self.method == "one_shot":
            return self._largest(cast(float, self.sparsity))
        if self.method == "fixed":
            masks = {name: w.mask() & (w.weight() != 0) for name, w in self._weights.items()}
            if all(bool(mask.all()) for mask in masks.values()):
                raise MisconfigurationException(
                    "SparsityMask(method='fixed') keeps the zeros that weights have, and there are none: load a sparse "
                    "network first, or take another method"
                )
            return masks
        if self.method == "n_m":
            return {name: self._n_of_m(name, w) for name, w in self._weights.items()}
        if self.method == "gradient":
            scores = {n: saliency(w.weight(), self._gradients[n]) for n, w in self._weights.items()}
            return choose_masks(scores, cast(float, self.sparsity), self.distribution)
        return self._random()

    def _largest(self, sparsity: float) -> dict[str, Tensor]:
        if sparsity <= self._present_sparsity():
            return {}
        # What is absent comes after a weight that happens to be zero, and stays absent.
        masks = {name: weight.mask() for name, weight in self._weights.items()}
        scores = {name: torch.where(masks[name], w.weight().abs(), -1) for name, w in self._weights.items()}
        return {name: mask & masks[name] for name, mask in choose_masks(scores, sparsity, self.distribution).items()}

    def _present_sparsity(self) -> float:
        masks = [weight.mask() for weight in self._weights.values()]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    def _random(self) -> dict[str, Tensor]:
        full = {name: w for name, w in self._weights.items() if bool(w.mask().all())}
        chosen = self._weights if self.method == "random" else full
        if self.sparsity is None:
            # Some layers of a sparse network may be dense, and stay so.
            if len(full) < len(self._weights):
                return {}
            raise MisconfigurationException(
                f"SparsityMask(method={self.method!r}, sparsity=None): no layer is sparse; give a sparsity"
            )
        if not chosen:
            return {}
        masks = choose_masks(self._drawn(chosen), self.sparsity, self.distribution)
        for name, weight in chosen.items():
            if self.rescale and self.steps == 0:
                weight.scale(float(masks[name].float().mean()) ** -0.5)
        return masks

    def _exchanged(self) -> dict[str, Tensor]:
        fraction = self.schedule.drop_fraction(self.drop_fraction)
        growth = self._drawn(self._weights) if self.method == "set" else self._gradients
        new = {}
        for name, weight in self._weights.items():
            magnitude = weight.weight().abs()
            new[name] = drop_and_grow(weight.mask(), magnitude, growth[name].abs(), fraction, regrow=self.regrow)
        return new

    def _n_of_m(self, name: str, weight: MaskedWeight) -> Tensor:
        try:
            return keep_n_of_m(weight.weight().abs(), *self.n_m)
        except ValueError as error:
            raise MisconfigurationException(f"SparsityMask(n_m={self.n_m}), layer {name!r}: {error}") from error

    def _drawn(self, weights: Mapping[str, MaskedWeight]) -> dict[str, Tensor]:
        """Random scores, the same in every process and after a restart."""
        mixed = np.random.SeedSequence([self.seed, self.steps]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        drawn = {}
        for name, weight in weights.items():
            like = weight.weight()
            drawn[name] = torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like.device)
        return drawn

    def _gradient(self, name: str, weight: MaskedWeight, trainer: Trainer) -> Tensor:
        gradient = weight.dense_gradient()
        if gradient is None:
            raise MisconfigurationException(
                f"SparsityMask(method={self.method!r}) needs the gradient of all weights of {name!r}, and the backward "
                "pass has left none: exclude the layer, or take another method"
            )
        # A copy, since absent weights' part of it is about to go. Each process has seen other data, and all must decide
        # alike.
        return cast(Tensor, trainer.strategy.reduce(gradient.clone(), reduce_op="mean"))

    def _masked(self, name: str, layer: nn.Module) -> MaskedWeight:
        if isinstance(layer, SparseLayer):
            return SparseWeight(layer, self._restored.get("collected", {}).get(name))
        return DenseWeight(cast(nn.Parameter, layer.weight), self._restored.get("masks", {}).get(name))

    def _collect(self) -> None:
        for weight in self._weights.values():
            weight.collect_dense_gradient(self._samples)

    def _mask_weights(self) -> None:
        for weight in self._weights.values():
            weight.mask_weight()


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, SparseLayer):
        return True
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() > 1 and not isinstance(module, nn.Embedding)


def _optimizers(trainer: Trainer) -> list[Optimizer]:
    return [o.optimizer if isinstance(o, LightningOptimizer) else o for o in trainer.optimizers]


def _forget_best(trainer: Trainer) -> None:
    """Let any checkpoint be better than those so far, which are of denser networks."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            worst = torch.tensor(float("inf" if callback.mode == "min" else "-inf"))
            callback.best_k_models = dict.fromkeys(callback.best_k_models, worst)


def _check_options(
    method: str,
    sparsity: float | None,
    schedule: str | None,
    distribution: str | None,
    begin: int,
    end: int | None,
    every: int,
    drop: float,
    n_m: Sequence[int],
) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not one of {', '.join(map(repr, get_args(Method)))}")
    if sparsity is not None:
        check_sparsity(sparsity)
    if (sparsity is None) != (method in ("fixed", "n_m")) and method not in _EXCHANGING:
        raise ValueError(f"sparsity={sparsity}: method={method!r} {'needs one' if sparsity is None else 'knows none'}")
    schedules = ("cubic", "linear") if method == "gradual" else ("cosine", "constant") if method in _EXCHANGING else ()
    if schedule is not None and schedule not in schedules:
        known = ", ".join(map(repr, schedules)) or "none"
        raise ValueError(f"schedule={schedule!r}: method={method!r} knows {known}")
    if distribution is not None and distribution not in get_args(SparsityDistribution):
        known = ", ".join(map(repr, get_args(SparsityDistribution)))
        raise ValueError(f"distribution={distribution!r} is not one of {known}")
    if len(n_m) != 2 or not 0 < n_m[0] <= n_m[1]:
        raise ValueError(f"n_m={tuple(n_m)}: give n and m, of which n is from 1 to m")
    if begin < 0 or every < 1 or (end is not None and end < begin):
        raise ValueError(
            f"begin={begin}, end={end}, every={every}: they count steps, and the end is not before the begin"
        )
    if not 0 <= drop <= 1:
        raise ValueError(f"drop_fraction={drop} is not in [0, 1]: it is the fraction of the kept weights")
