"""Which of two products a sparse layer should use: measured on this machine."""

import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nobp.functional import sparse
from lightning_nobp.nn.sparse import SparseConv2d, SparseLayer


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


def _step(mask: Tensor, x: Tensor, geometry: dict[str, Any], backend: sparse.Backend) -> Callable[[], None]:
    """A forward and a backward pass of a layer."""
    structure = sparse.SparseStructure.from_mask(mask)
    values = torch.ones(structure.nnz, dtype=x.dtype)

    def run() -> None:
        if mask.dim() == 2:
            y = sparse.sparse_linear(x, values, structure, backend=backend)
            sparse.sparse_linear_vjp(y, x, values, structure, backend=backend)
        else:
            y = sparse.sparse_conv2d(x, values, structure, **geometry, backend=backend)
            sparse.sparse_conv2d_vjp(y, x, values, structure, **geometry, backend=backend)

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
