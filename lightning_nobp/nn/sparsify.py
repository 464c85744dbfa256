"""Sparse layers in place of the dense ones of any network, and back."""

import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from statistics import median
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lightning_nobp.functional.sparse import (
    Backend,
    SparseStructure,
    sparse_conv2d,
    sparse_conv2d_vjp,
    sparse_linear,
    sparse_linear_vjp,
)
from lightning_nobp.functional.sparsity import check_sparsity, keep_largest, keep_largest_globally, kept_counts
from lightning_nobp.nn.sparse import SparseConv2d, SparseLayer, SparseLinear

SparsityDistribution = Literal["uniform", "global", "erk"]


def sparsify(
    model: nn.Module,
    sparsity: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    method: Literal["magnitude", "random"] = "magnitude",
    distribution: SparsityDistribution = "uniform",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    rescale: bool = False,
    generator: torch.Generator | None = None,
    threshold: float | Literal["measure"] | None = None,
    example_input: Tensor | None = None,
) -> nn.Module:
    """Put sparse layers in the place of linear and convolutional ones, in ``model`` itself.

    What is sparse is said by ``sparsity``, by ``masks``, or, with neither, by the zeros that the weights have. All
    layers that are looked at become sparse layers, which keep their zeros; a layer that is not sparse enough to gain by
    it goes on with a dense product. Do it before an optimizer is made, since weights become other parameters.

    Args:
        model: Any module; its ``nn.Linear`` and ``nn.Conv2d`` are looked at.
        sparsity: Fraction of their weights that is dropped, in [0, 1).
        masks: By the layers' names, bool, of the shapes of their weights.
        method: Which weights ``sparsity`` keeps: those of the largest magnitude, or any.
        distribution: ``'uniform'``: every layer is as sparse; ``'global'``: the largest of all layers together;
            ``'erk'``: small layers keep more, see :func:`~lightning_nobp.functional.sparsity.layer_sparsities`.
        include: Patterns of names, as of files (``'*.conv2'``), of which one must match.
        exclude: Patterns of names, of which none may match.
        rescale: Whether weights grow by one over the square root of the layer's density, which keeps the size of
            activities in a network that starts from random weights.
        generator: Draws for ``method='random'``.
        threshold: From this sparsity on a layer uses the sparse kernels, and below it a dense product with zeros; None
            for the layers' own. ``'measure'`` times both, layer by layer, and remembers for layers and inputs of the
            same sizes.
        example_input: A batch for ``threshold='measure'``.

    Returns:
        ``model``, or if it is a layer itself, the layer in its place.

    Raises:
        ValueError: A sparsity outside [0, 1), patterns or masks that match no layer, both or conflicting options, or no
            ``example_input`` where it is needed.
        TypeError: A mask that is not bool.
    """
    check_threshold(threshold)
    if threshold == "measure" and example_input is None:
        raise ValueError("threshold='measure' runs the layers: give it a batch, example_input=...")
    if method not in ("magnitude", "random"):
        raise ValueError(f"method={method!r} is not one of 'magnitude', 'random'")
    if masks is not None and not masks and sparsity is None:
        raise ValueError("masks={}: give at least one, or a sparsity")
    layers = prunable_layers(model, include, exclude)
    if masks is None:
        masks = _masks(layers, sparsity, method, distribution, generator)
    elif sparsity is not None:
        raise ValueError(f"sparsity={sparsity} and masks: give one of them")
    for name in masks:
        if name not in layers:
            raise ValueError(f"masks[{name!r}]: no such layer; there are {', '.join(layers)}")
    replaced: dict[nn.Module, SparseLayer] = {layers[n]: _sparse(layers[n], m, rescale) for n, m in masks.items()}
    model = _replace(model, dict(replaced))
    if threshold == "measure":
        assert example_input is not None
        measure_thresholds(model, example_input)
    elif threshold is not None:
        for layer in replaced.values():
            layer.threshold = threshold
    return model


def densify(model: nn.Module) -> nn.Module:
    """Put ordinary layers with zeros in the place of sparse ones, in ``model`` itself.

    Returns:
        ``model``, or if it is a sparse layer itself, the layer in its place.
    """
    sparse = [m for m in model.modules() if isinstance(m, SparseLinear | SparseConv2d)]
    return _replace(model, {layer: layer.to_dense() for layer in sparse})


def prunable_layers(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear and convolutional layers of ``model`` whose names match, by name.

    Args:
        model: Any module.
        include: Patterns of names, as of files, of which one must match.
        exclude: Patterns of names, of which none may match.

    Raises:
        ValueError: A pattern that matches no layer, a weight that another module uses too, or no layer at all.
    """
    # A subclass may do something else with its weight, and a parametrized or normalised layer computes it.
    layers = {
        name: m
        for name, m in model.named_modules()
        if type(m) in (nn.Linear, nn.Conv2d) and m._parameters.get("weight") is not None
    }
    chosen = match_names(layers, include, exclude)
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            users.setdefault(id(parameter), []).append(name)
    for name in chosen:
        if len(users[id(layers[name].weight)]) > 1:
            shared = " and ".join(map(repr, users[id(layers[name].weight)]))
            raise ValueError(f"{shared} share a weight, which a sparse layer could not: exclude {name!r}")
    return {name: cast(nn.Linear | nn.Conv2d, layers[name]) for name in chosen}


def as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns of names; a string is one."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def match_names(
    names: Mapping[str, object], include: Sequence[str], exclude: Sequence[str], argument: str = "include"
) -> list[str]:
    """Those of ``names`` that a pattern of ``include`` matches and none of ``exclude``.

    Args:
        names: Of layers.
        include: Patterns, as of files.
        exclude: Likewise.
        argument: What ``include`` is called in errors.

    Raises:
        ValueError: A pattern that matches nothing, or nothing is left.
    """
    include, exclude = as_patterns(include), as_patterns(exclude)
    for which, patterns in ((argument, include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                known = ", ".join(map(repr, names)) or "none"
                raise ValueError(f"{which}={pattern!r} matches no layer with weights; there are {known}")
    matched = [n for n in names if any(fnmatchcase(n, p) for p in include)]
    chosen = [n for n in matched if not any(fnmatchcase(n, p) for p in exclude)]
    if not chosen:
        raise ValueError(f"include={list(include)} and exclude={list(exclude)} leave no layer with weights")
    return chosen


def choose_masks(
    scores: Mapping[str, Tensor], sparsity: float, distribution: SparsityDistribution = "uniform"
) -> dict[str, Tensor]:
    """Masks of the largest scores, so that all layers together have the sparsity.

    Args:
        scores: By layer, of the shapes of the weights.
        sparsity: Fraction that is dropped, in [0, 1).
        distribution: See :func:`sparsify`.

    Raises:
        ValueError: No such sparsity or distribution.
    """
    check_sparsity(sparsity)
    if distribution not in get_args(SparsityDistribution):
        choices = ", ".join(map(repr, get_args(SparsityDistribution)))
        raise ValueError(f"distribution={distribution!r} is not one of {choices}")
    by_layer = list(scores.values())
    if distribution == "global":
        kept = sum(kept_counts([s.shape for s in by_layer], sparsity))
        return dict(zip(scores, keep_largest_globally(by_layer, kept), strict=True))
    counts = kept_counts([s.shape for s in by_layer], sparsity, distribution)
    return {name: keep_largest(s, kept) for (name, s), kept in zip(scores.items(), counts, strict=True)}


def _masks(
    layers: Mapping[str, nn.Linear | nn.Conv2d],
    sparsity: float | None,
    method: str,
    distribution: SparsityDistribution,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    if sparsity is None:
        return {name: w != 0 for name, w in weights.items()}
    if method == "magnitude":
        return choose_masks({name: w.abs() for name, w in weights.items()}, sparsity, distribution)
    # Drawn on the CPU, so that a seed means the same masks everywhere.
    drawn = {name: torch.rand(w.shape, generator=generator, dtype=torch.float64) for name, w in weights.items()}
    return choose_masks(drawn, sparsity, distribution)


def _sparse(layer: nn.Linear | nn.Conv2d, mask: Tensor, rescale: bool) -> SparseLayer:
    mask = mask.to(layer.weight.device)
    sparse = (
        SparseLinear.from_dense(layer, mask) if isinstance(layer, nn.Linear) else SparseConv2d.from_dense(layer, mask)
    )
    if rescale and sparse.values.numel():
        with torch.no_grad():
            sparse.values.div_((1 - sparse.sparsity) ** 0.5)
    return sparse


def _replace(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and child in replaced:
                module._modules[name] = replaced[child]
    return replaced.get(model, model)


# Which of the two products is the faster one


def check_threshold(threshold: float | str | None) -> None:
    """Raise ``ValueError`` unless ``threshold`` is None, ``'measure'`` or a sparsity."""
    if threshold is None or threshold == "measure":
        return
    if isinstance(threshold, str) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold!r} is not a sparsity in [0, 1], nor 'measure'")


def measure_thresholds(model: nn.Module, example_input: Tensor) -> None:
    """Set ``threshold`` of every sparse layer of ``model`` to its :func:`crossover`.

    Args:
        model: Any module.
        example_input: A batch of its inputs.
    """
    layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(lambda layer, args: inputs.update({layer: args[0]})) for layer in layers]
    training = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example_input)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    for layer in layers:
        if layer in inputs:
            layer.threshold = crossover(layer, inputs[layer])


def crossover(layer: SparseLayer, x: Tensor) -> float:
    """Sparsity from which the sparse kernels are faster than the dense product, forward and backward, on this machine.

    The time of the kernels is a line over the number of weights: it is measured at two densities, and the dense
    product once. Remembered for layers and inputs of the same sizes and the same number of threads.

    Args:
        layer: A sparse layer.
        x: What it gets, ``(batch, ...)``.
    """
    geometry = tuple(layer.geometry().items()) if isinstance(layer, SparseConv2d) else ()
    return _crossover(layer._shape, geometry, tuple(x.shape), x.dtype, torch.get_num_threads())


# Densities at which the kernels are timed, the timed runs of each, and the seconds they may take.
_FEW, _MORE, _RUNS, _SECONDS = 0.02, 0.2, 9, 2.0


@cache
def _crossover(
    shape: tuple[int, ...],
    geometry: tuple[tuple[str, object], ...],
    input_shape: tuple[int, ...],
    dtype: torch.dtype,
    threads: int,
) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(input_shape, generator=generator, dtype=dtype)
    drawn = torch.rand(shape, generator=generator)
    few, more, dense = _medians(
        [
            _step(drawn < _FEW, x, dict(geometry), "auto"),
            _step(drawn < _MORE, x, dict(geometry), "auto"),
            _step(drawn < 1, x, dict(geometry), "torch"),
        ]
    )
    slope = (more - few) / (_MORE - _FEW)
    density = _FEW + (dense - few) / slope if slope > 0 else 1.0
    return 1 - min(1.0, max(0.0, density))


def _step(mask: Tensor, x: Tensor, geometry: dict[str, Any], backend: Backend) -> Callable[[], None]:
    """A forward and a backward pass of a layer."""
    structure = SparseStructure.from_mask(mask)
    values = torch.ones(structure.nnz, dtype=x.dtype)

    def run() -> None:
        if mask.dim() == 2:
            sparse_linear_vjp(
                sparse_linear(x, values, structure, backend=backend), x, values, structure, backend=backend
            )
        else:
            y = sparse_conv2d(x, values, structure, **geometry, backend=backend)
            sparse_conv2d_vjp(y, x, values, structure, **geometry, backend=backend)

    return torch.no_grad()(run)


def _medians(runs: Sequence[Callable[[], None]]) -> list[float]:
    """Median seconds of each, taken in turns so that a busy machine is busy for all."""
    times: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    while len(times[0]) < _RUNS and (len(times[0]) < 2 or time.perf_counter() - start < _SECONDS):
        for run, seconds in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    # The first pays for memory.
    return [median(seconds[1:]) for seconds in times]
