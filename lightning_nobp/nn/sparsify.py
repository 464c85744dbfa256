"""Sparse layers in place of the dense ones of any network, and back."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from lightning_nobp.functional.sparsity import check_sparsity, keep_largest, keep_largest_globally, kept_counts
from lightning_nobp.nn.crossover import check_threshold, measure_thresholds
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
