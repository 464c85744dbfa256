"""Convolutional networks of any depth in one sweep of closed-form layers."""

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_nobp.functional.ridge import (
    LinearReadout,
    RidgeStatistics,
    backfit,
    mean_error,
    ridge_path,
    ridge_solve,
)
from lightning_nobp.functional.views import image_view, view_parts
from lightning_nobp.metrics import NormalEquations, PatchStatistics
from lightning_nobp.metrics.summed import SummedMetric
from lightning_nobp.nn.networks import NetworkFactory
from lightning_nobp.nn.residual_compensation import CompensationLayer, ResCNet
from lightning_nobp.rules.activation_cache import CachedRows
from lightning_nobp.rules.classification import accuracy
from lightning_nobp.rules.closed_form import ClosedFormRule, Sums
from lightning_nobp.rules.layer_memory import LayerMemory, stretches
from lightning_nobp.rules.synchronisation import broadcast_from_main

_COMBINE = ("residual", "late_fusion", "joint", "backfit")
_CACHES = ("none", "ram", "disk")
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ResidualCompensation(ClosedFormRule):
    """Deep residual compensation: every layer is solved for what the layers before it got wrong.

    A layer's filters are principal components of the patches it sees; its read-out is a ridge regression of the
    residual, one-hot targets less the sum of the read-outs before. No gradients, no learning rate: a pass over the data
    for each layer, and one before for the first filters.

    Args:
        network: A preset (``'rescnet'``), a :class:`~lightning_nobp.nn.ResCNet`, or what builds one.
        depth: Layers of the preset; None for its default.
        channels: Filters of each of the preset's layers, likewise.
        ridge: Penalty of the read-outs per sample, or several to choose from by ``cross_fit_folds``.
        shrinkage: How much of each read-out is taken, from 0 to 1 (``eta``); all of it in late fusion, and of layers
            that are fitted together.
        combine: ``'residual'``; ``'late_fusion'``: every layer is fitted to the targets themselves, and the mean of
            the read-outs decides; ``'joint'``: one regression on the features of the last ``joint_layers`` layers;
            ``'backfit'``: the same by sweeps over the layers.
        joint_layers: How many layers ``'joint'`` and ``'backfit'`` fit together, all by default; those before are
            fitted to residuals.
        backfit_sweeps: How often ``'backfit'`` fits each layer.
        cross_fit_folds: Parts of the data, each with read-outs that have not seen it, which give its residuals; 0 for
            none.
        pca_fraction: Share of the images of which filters are made.
        cache: Whether what the layers make of each image is kept between passes: ``'none'`` computes all layers anew in
            every pass, ``'ram'``, or ``'disk'``, whose memory does not grow with the images. Keeping needs batches with
            sample numbers, ``with_index=True`` of the data module.
        cache_dtype: ``'float32'``, ``'bfloat16'`` or ``'float16'``.
        cache_dir: Where the disk's cache lies, by default the system's folder for temporary files.
        views: Ways in which each image is seen, see :func:`~lightning_nobp.functional.views.image_view`.
        predict_views: Whether predictions are means over ``'all'`` views or of the first (``'first'``).
        stat_dtype: In which products are computed: ``'float32'``, or ``'float64'``, half as fast. Sums and solutions
            are float64 always.
        seed: Of random filters.
        **kwargs: See :class:`ClosedFormRule`.

    Raises:
        ValueError: An argument outside its range.
        TypeError: The network is no ResCNet.

    References:
        Alotaibi and Wilson, "Deep Residual Compensation Convolutional Network without Backpropagation",
        arXiv 2301.11663.
    """

    presets: ClassVar[Mapping[str, NetworkFactory]] = {"rescnet": ResCNet}

    def __init__(
        self,
        *,
        network: str | nn.Module | NetworkFactory = "rescnet",
        depth: int | None = None,
        channels: int | None = None,
        ridge: float | Sequence[float] = 3e-3,
        shrinkage: float = 0.5,
        combine: Literal["residual", "late_fusion", "joint", "backfit"] = "residual",
        joint_layers: int | None = None,
        backfit_sweeps: int = 20,
        cross_fit_folds: int = 0,
        pca_fraction: float = 1.0,
        cache: Literal["none", "ram", "disk"] = "none",
        cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        cache_dir: str | None = None,
        views: Sequence[str] = ("original",),
        predict_views: Literal["all", "first"] = "all",
        stat_dtype: Literal["float32", "float64"] = "float32",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.ridges = (ridge,) if isinstance(ridge, int | float) else tuple(ridge)
        self.shrinkage, self.combine, self.joint_layers = shrinkage, combine, joint_layers
        self.backfit_sweeps, self.cross_fit_folds, self.pca_fraction = backfit_sweeps, cross_fit_folds, pca_fraction
        self.cache, self.cache_dtype, self.cache_dir = cache, cache_dtype, cache_dir
        self.views, self.predict_views, self.stat_dtype, self.seed = tuple(views), predict_views, stat_dtype, seed
        self._check_arguments()
        shape = {name: value for name, value in (("depth", depth), ("channels", channels)) if value is not None}
        if shape and network != "rescnet":
            given = ", ".join(f"{name}={value}" for name, value in shape.items())
            raise ValueError(
                f"{given} is for the preset 'rescnet': give it to the network, ResCNet(depth=..., channels=...), on "
                "the command line --model.network.depth"
            )
        chosen = partial(ResCNet, **shape) if shape else network  # type: ignore[arg-type]
        super().__init__(network=chosen, **kwargs)
        self._layer_memory: LayerMemory | None = None
        self._stage_start = 0.0
        self.measured_depth = 0
        """Layers to which the training loss and accuracy of the last pass belong."""

    def _check_arguments(self) -> None:
        for name, value, choices in (
            ("combine", self.combine, _COMBINE),
            ("cache", self.cache, _CACHES),
            ("cache_dtype", self.cache_dtype, ("float32", "bfloat16", "float16")),
            ("predict_views", self.predict_views, ("all", "first")),
            ("stat_dtype", self.stat_dtype, ("float32", "float64")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
        if not self.ridges or not all(ridge >= 0 for ridge in self.ridges):
            raise ValueError(f"ridge={list(self.ridges)} must be at least 0")
        if len(self.ridges) > 1 and self.cross_fit_folds < 2:
            raise ValueError(
                f"ridge={list(self.ridges)}: to choose among several, data are needed that the read-outs have not "
                "seen: give cross_fit_folds=5, say"
            )
        if not 0 < self.shrinkage <= 1:
            raise ValueError(f"shrinkage={self.shrinkage} must be above 0 and at most 1")
        if not 0 < self.pca_fraction <= 1:
            raise ValueError(f"pca_fraction={self.pca_fraction} must be above 0 and at most 1")
        if self.cross_fit_folds < 0 or self.cross_fit_folds == 1:
            raise ValueError(f"cross_fit_folds={self.cross_fit_folds} must be 0 or at least 2")
        if self.combine == "backfit" and (self.backfit_sweeps < 1 or min(self.ridges) == 0):
            raise ValueError(f"combine='backfit' needs backfit_sweeps={self.backfit_sweeps} >= 1 and ridge > 0")
        if self.joint_layers is not None and (self.combine not in ("joint", "backfit") or self.joint_layers < 1):
            raise ValueError(
                f"joint_layers={self.joint_layers} must be at least 1, and belongs to combine='joint' and 'backfit'"
            )
        if not self.views:
            raise ValueError("views=[] shows no image: give at least 'original'")
        for view in self.views:
            view_parts(view)

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network without layers in closed form."""
        if not isinstance(network, ResCNet):
            raise TypeError(f"ResidualCompensation fits a ResCNet, not a {type(network).__name__}")
        super().check_network(network)
        if self.joint_layers is not None and self.joint_layers > network.depth:
            raise ValueError(f"joint_layers={self.joint_layers} are more than depth={network.depth}")

    @property
    def rescnet(self) -> ResCNet:
        """The network."""
        return cast(ResCNet, self.built_network())

    # Stages: stage 0 makes the first filters, stage l the read-out of layer l and the filters of the next

    @property
    def num_stages(self) -> int:
        """Passes over the data, one more than layers."""
        return self.rescnet.depth + 1

    @property
    def _together(self) -> int:
        """Layers that are fitted together, at the last stage."""
        if self.combine not in ("joint", "backfit"):
            return 0
        return self.joint_layers or self.rescnet.depth

    @property
    def _settled(self) -> int:
        """Layers whose read-outs are solved, and whose features are no longer needed."""
        return min(max(self.stage - 1, 0), self.rescnet.depth - self._together)

    def _layers_to_fit(self) -> range:
        """Numbers, from 1, of the layers whose read-outs this stage solves."""
        alone = self.rescnet.depth - self._together
        if 1 <= self.stage <= alone:
            return range(self.stage, self.stage + 1)
        return range(alone + 1, self.stage + 1) if self.stage == self.rescnet.depth else range(0)

    def _layer(self, number: int) -> CompensationLayer:
        return self.rescnet.compensation(number)

    def make_statistics(self) -> Mapping[str, SummedMetric]:
        """Patches for the filters of the next layer, and normal equations (by fold) for this one's read-out."""
        self._stage_start = time.perf_counter()
        statistics: dict[str, SummedMetric] = {}
        if self.stage < self.rescnet.depth:
            conv = self._layer(self.stage + 1).conv
            classes = self._num_classes if conv.filters == "lda" else 0
            dtype = torch.float64 if self._product_dtype is torch.float64 else None
            statistics["patches"] = PatchStatistics(conv.in_channels, conv.kernel_size, conv.padding, classes, dtype)
        num_features = sum(self._layer(number).readout.num_features for number in self._layers_to_fit())
        for fold in range(max(1, self.cross_fit_folds)) if num_features else ():
            statistics[f"readout_{fold}"] = NormalEquations(num_features, self._num_classes, self._product_dtype)
        return statistics

    @property
    def _product_dtype(self) -> torch.dtype:
        return torch.promote_types(cast(torch.dtype, self.dtype), _DTYPES[self.stat_dtype])

    @property
    def _num_classes(self) -> int:
        return cast(int, self.num_classes)

    def restart(self) -> None:
        """Forget all layers."""
        self.rescnet.num_fitted = 0
        self._forget()

    # Sums

    @torch.no_grad()
    def contribution(self, batch: Any) -> Sums:
        """What a batch adds to the sums of the current stage; nothing is remembered of it."""
        held = self._memory
        self._layer_memory = held.without_cache()
        try:
            return super().contribution(batch)
        finally:
            self._layer_memory = held

    def discard_stage(self) -> None:
        """Let go of what was kept: the stage will want to keep it again."""
        self._memory.close()

    def accumulate(self, batch: Any) -> Mapping[str, Tensor]:
        """Add images, in all their views, to the sums of the stage.

        Returns:
            ``loss``, the mean squared residual that this stage starts from, and ``accuracy`` of the layers before.
        """
        x, target = batch[:2]
        index = self._numbers(batch)
        self.measured_depth = self._settled
        scores = [self._accumulate_view(x, target, index, number) for number in range(len(self.views))]
        scores = [self._combined(s, self._settled) for s in scores]
        if not self._settled:
            return {"loss": self.loss_function(scores[0], target)}
        return {
            "loss": torch.stack([self.loss_function(s, target) for s in scores]).mean(),
            "accuracy": torch.stack([accuracy(s, target) for s in scores]).mean(),
        }

    def _accumulate_view(self, x: Tensor, target: Tensor, index: Tensor | None, view: int) -> Tensor:
        """One view of a batch; returns the scores of the layers before."""
        rows = None if index is None else index * len(self.views) + view
        folds = None if index is None or not self.cross_fit_folds else _mixed(index) % self.cross_fit_folds
        parts = self._parts(len(x))
        passed = [
            self._pass(image_view(x[part], self.views[view]), *(None if t is None else t[part] for t in (rows, folds)))
            for part in parts
        ]
        scores = torch.cat([p.scores for p in passed])
        if self.stage < self.rescnet.depth:
            chosen = self._for_filters(index, x)
            maps = torch.cat([p.maps[chosen[part]] for p, part in zip(passed, parts, strict=True)])
            self.statistic("patches").update(maps, target[chosen])
        if self._layers_to_fit():
            features = torch.cat([cast(Tensor, p.features) for p in passed])
            self._add_equations(features, scores, target, folds)
        return scores

    def _pass(self, images: Tensor, rows: Tensor | None, folds: Tensor | None) -> CachedRows:
        """Maps for the filters of the next layer, features of this one's read-out, scores of the layers before."""
        settled, fitted = self._settled, self._layers_to_fit()
        maps, scores = self._memory.reach(images, settled, "train", rows, folds)
        found = []
        for number, (h, features) in enumerate(self.rescnet.run(maps, settled, self.stage), settled + 1):
            found += [features] if number in fitted else []
            maps = h
        passed = CachedRows(maps, scores, torch.cat(found, 1) if found else None)
        if len(fitted) == 1 and self.stage < self.rescnet.depth:
            self._memory.keep("train", rows, self.stage, passed)
        return passed

    def _add_equations(self, features: Tensor, scores: Tensor, target: Tensor, folds: Tensor | None) -> None:
        wanted = nn.functional.one_hot(target, self._num_classes).to(scores.dtype)
        residual = wanted if self.combine == "late_fusion" else wanted - scores
        if folds is None:
            self.statistic("readout_0").update(features, residual)
            return
        for fold in set(folds.tolist()):
            chosen = folds == fold
            self.statistic(f"readout_{fold}").update(features[chosen], residual[chosen])

    def _for_filters(self, index: Tensor | None, x: Tensor) -> Tensor:
        """Which images the filters are made of; by number, so that it is the same in any order of any shards."""
        if self.pca_fraction == 1 or index is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        # Successive numbers are spread evenly (Knuth's multiplicative hashing).
        return ((index * 2654435761) % 2**32 < self.pca_fraction * 2**32).to(x.device)

    def _parts(self, batch: int) -> list[slice]:
        return stretches(batch, self.rescnet.map_shapes)

    def _numbers(self, batch: Sequence[Tensor]) -> Tensor | None:
        """Sample numbers of a batch, on the CPU."""
        remembers = self.cache != "none" or self.cross_fit_folds or self.pca_fraction < 1
        if len(batch) > 2 and remembers:
            return _sample_numbers(batch[2], len(batch[0]))
        for name, asks in (
            (f"cache={self.cache!r}", self.cache != "none"),
            (f"cross_fit_folds={self.cross_fit_folds}", self.cross_fit_folds > 0),
            (f"pca_fraction={self.pca_fraction}", self.pca_fraction < 1),
        ):
            if asks:
                raise MisconfigurationException(
                    f"{name} must know each sample again, but batches hold no sample numbers: give the data module "
                    "with_index=True, or let batches be (inputs, class numbers, sample numbers)"
                )
        return None

    # What the layers make of images

    @property
    def _memory(self) -> LayerMemory:
        if self._layer_memory is None:
            dtype = torch.float64 if self.dtype is torch.float64 else _DTYPES[self.cache_dtype]
            folder = Path(self.cache_dir or tempfile.gettempdir()) if self.cache == "disk" else None
            count_rows = None if self.cache == "none" else self._count_rows
            self._layer_memory = LayerMemory(self.rescnet, count_rows, dtype, folder)
        return self._layer_memory

    def _count_rows(self, split: str) -> int:
        if self._trainer is None:
            raise MisconfigurationException(f"cache={self.cache!r} needs a Trainer: without one take cache='none'")
        loader: Any = self.trainer.train_dataloader if split == "train" else self.trainer.val_dataloaders
        [loader] = loader if isinstance(loader, list) else [loader]
        return len(loader.dataset) * len(self.views)

    def _forget(self) -> None:
        if self._layer_memory is not None:
            self._layer_memory.close()
        self._layer_memory = None

    # Solutions

    def solve(self) -> Mapping[str, float]:
        """Read-outs of this stage, and filters of the next layer."""
        values: dict[str, float] = {}
        fitted = self._layers_to_fit()
        if fitted:
            values |= self._solve_readouts(fitted)
        if self.stage < self.rescnet.depth:
            values |= self._solve_filters(self._layer(self.stage + 1))
        changed = [self._layer(number).readout for number in fitted]
        if self.stage < self.rescnet.depth:
            changed.append(self._layer(self.stage + 1).conv)  # type: ignore[arg-type]
        broadcast_from_main(tensor for module in changed for tensor in module.state_dict().values())
        sums = [t for metric in self.statistics.values() for t in cast(SummedMetric, metric).sums().values()]
        values["statistics_bytes"] = float(sum(t.nbytes for t in sums))
        values["layer_seconds"] = time.perf_counter() - self._stage_start
        return values

    def _solve_filters(self, layer: CompensationLayer) -> dict[str, float]:
        moments, classes = self.statistic("patches").compute()
        if not moments.count:
            raise ValueError(f"pca_fraction={self.pca_fraction} chooses none of the images: give a larger share")
        generator = torch.Generator("cpu").manual_seed(self.seed + self.stage)
        spectrum = layer.conv.fit(moments, classes, generator)
        shares = spectrum / spectrum.sum().clamp(min=1e-300)
        return {
            "explained_variance": float(layer.conv.explained_variance_ratio.sum()),
            # The number of equally strong directions that would be as uneven (exponential of the entropy).
            "effective_rank": float(torch.special.entr(shares).sum().exp()),
        }

    def _solve_readouts(self, fitted: range) -> dict[str, float]:
        folds = [self.statistic(f"readout_{fold}").compute() for fold in range(max(1, self.cross_fit_folds))]
        total: RidgeStatistics = folds[0]
        for fold in folds[1:]:
            total = total.plus(fold)
        ridge, values = self.ridges[0], {}
        if len(folds) > 1:
            ridge, _, readouts = ridge_path(folds, self.ridges)
            best = self.ridges.index(ridge)
            own = [_shrunk(readout, self._share_taken) for readout in readouts[best]]
            for readout in own:
                broadcast_from_main((readout.weight, readout.bias))
            self._memory.fold_readouts.append(own)
            values["residual"] = mean_error(folds, own)
        found = self._solution(total, fitted, ridge)
        self._take(found, fitted)
        self.rescnet.num_fitted = fitted[-1]
        return (
            {"residual": mean_error([total], [found])}
            | values
            | {
                "ridge": found.ridge,
                "condition": found.condition,
                "weight_norm": float(found.weight.norm()),
            }
        )

    @property
    def _share_taken(self) -> float:
        return 1.0 if self.combine == "late_fusion" else self.shrinkage

    def _solution(self, total: RidgeStatistics, fitted: range, ridge: float) -> LinearReadout:
        if not self._together or len(fitted) == 1:
            alone = not self._together or fitted[-1] <= self.rescnet.depth - self._together
            return _shrunk(ridge_solve(total, ridge), self._share_taken if alone else 1.0)
        if self.combine == "joint":
            return ridge_solve(total, ridge)
        sizes = [self._layer(number).readout.num_features for number in fitted]
        return backfit(total, sizes, ridge, self.backfit_sweeps)

    def _take(self, found: LinearReadout, fitted: range) -> None:
        """Give each layer its part of a solution; the bias goes to the last."""
        readouts = [self._layer(number).readout for number in fitted]
        start = 0
        for readout in readouts:
            weight = found.weight[start : start + readout.num_features]
            bias = found.bias if readout is readouts[-1] else torch.zeros_like(found.bias)
            readout.fit(found._replace(weight=weight, bias=bias))
            start += readout.num_features

    # Prediction

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(batch, num_classes)`` of images: estimates of the one-hot targets, means over the views."""
        views = self.views if self.predict_views == "all" else self.views[:1]
        scores = torch.stack([self._scores(image_view(x, view)) for view in views]).mean(0)
        return self._combined(scores, self.rescnet.num_fitted)

    def _scores(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or torch.is_grad_enabled():
            scores: Tensor = self.rescnet(x)
            return scores
        return torch.cat([self.rescnet(x[part]) for part in self._parts(len(x))])

    def _combined(self, scores: Tensor, layers: int) -> Tensor:
        """Sums over so many layers as what the network answers."""
        return scores / max(1, layers) if self.combine == "late_fusion" else scores

    def batch_outputs(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Scores; during a fit they go on from those of the last validation, if there is a cache."""
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        if self.cache == "none" or len(batch) < 3 or not fits or not self.rescnet.num_fitted:
            return self.outputs(batch[0])
        x, index = batch[0], batch[2].cpu()
        views = self.views if self.predict_views == "all" else self.views[:1]
        found = [self._cached_scores(x, index * len(self.views) + number, view) for number, view in enumerate(views)]
        return {"scores": self._combined(torch.stack(found).mean(0), self.rescnet.num_fitted)}

    def _cached_scores(self, x: Tensor, rows: Tensor, view: str) -> Tensor:
        layer, scores = self.rescnet.num_fitted, []
        for part in self._parts(len(x)):
            maps, found = self._memory.reach(image_view(x[part], view), layer, "val", rows[part])
            self._memory.keep("val", rows[part], layer, CachedRows(maps, found, None))
            scores.append(found)
        return torch.cat(scores)

    # The Trainer

    def on_fit_start(self) -> None:
        """Refuse data that change between passes where something is remembered of them."""
        self._forget()
        data = getattr(self.trainer, "datamodule", None)
        changes = getattr(data, "transforms", None) is not None or getattr(data, "augment", False)
        remembers = self.cache != "none" or self.cross_fit_folds
        if changes and remembers:
            raise MisconfigurationException(
                f"cache={self.cache!r}, cross_fit_folds={self.cross_fit_folds}: what is remembered of an image belongs "
                "to how it looked, but the data module changes images at random (augment, transforms). Take "
                "views=[...] for deterministic changes, or cache='none'."
            )
        if self.cache != "none" and self.trainer.world_size > 1 and getattr(data, "shuffle", False):
            warnings.warn(
                "shuffle=True: every process sees others' samples in each pass, and what it keeps of them is of little "
                "use. Give the data module shuffle=False.",
                stacklevel=2,
            )
        super().on_fit_start()

    def teardown(self, stage: str) -> None:
        """Let go of what was kept of images; a checkpoint may still be written."""
        if self._layer_memory is not None:
            self._layer_memory.close()

    def fit_state(self) -> dict[str, Any]:
        """The folds' read-outs."""
        return {"fold_readouts": [[list(readout) for readout in layer] for layer in self._memory.fold_readouts]}

    def load_fit_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._memory.fold_readouts = [
            [LinearReadout(w.to(self.device), b.to(self.device), r, c) for w, b, r, c in layer]
            for layer in state["fold_readouts"]
        ]


def _sample_numbers(index: Any, batch: int) -> Tensor:
    """The third part of a batch as int64 ``(batch,)`` on the CPU.

    Raises:
        ValueError: It is no tensor of integers, one a sample.
    """
    if not isinstance(index, Tensor) or index.is_floating_point() or index.shape != (batch,):
        what = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise ValueError(f"sample numbers must be a tensor of {batch} integers, one a sample, not {what}")
    return index.to("cpu", torch.int64)


def _mixed(index: Tensor) -> Tensor:
    """Numbers from 0 to 2**31, in no order that the data might have (steps of splitmix64)."""
    mixed = index * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    return ((mixed ^ (mixed >> 27)) >> 16) & 0x7FFFFFFF


def _shrunk(found: LinearReadout, shrinkage: float) -> LinearReadout:
    return found._replace(weight=shrinkage * found.weight, bias=shrinkage * found.bias)
