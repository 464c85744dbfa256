"""Compiled kernels on random layers.

The kernels are C++ on bare addresses: a wrong bound would read or write what belongs to others. Here they get layers
drawn at random (shapes, strides, masks with empty rows or all weights, events with ties or none, one to three threads)
and must give what plain torch gives: ``difference`` is the largest, relative to the largest number of the result; of
spike times it is absolute, in windows of length 2. Indices, events and records that are wrong must be refused before a
kernel sees them.

``make sanitize`` runs this file, at a smaller scale, with kernels that are compiled with the address and
undefined-behaviour sanitizers: they check each access to memory and end the process at the first wrong one. The counts
are of a run with those kernels where the last column says so.
"""

import faulthandler
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from spiking_toys import INF, TAUS
from torch import Tensor

from lightning_nobp.functional.quaternion.hadamard import _kernel, hadamard, hadamard_
from lightning_nobp.functional.sparse import SparseStructure, sparse_conv2d, sparse_linear
from lightning_nobp.functional.spiking import (
    SpikeRecord,
    SpikeTrain,
    events_from_spikes,
    lif_record,
    lif_spike_times_vjp,
)
from lightning_nobp.functional.spiking.events import _sources

pytestmark = pytest.mark.reliability

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
DTYPES = st.sampled_from(list(TOLERANCE))
PAIR = st.tuples


def are_sanitized(config: pytest.Config) -> bool:
    return "sanitize" in str(config.getoption("--kernels"))


@pytest.fixture
def fuzz(request, repetitions, count):
    """Tries a check on so many random cases, and notes what it found."""
    sanitized = "yes" if are_sanitized(request.config) else "no"

    def run(what: str, full: int, strategy: Any, check: Callable[[Any], float]) -> None:
        worst: list[float] = []

        @seed(0)
        @settings(max_examples=repetitions(full), deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy, st.integers(0, 2**31), st.integers(1, 3))
        def one(case: Any, number: int, threads: int) -> None:
            torch.manual_seed(number)
            torch.set_num_threads(threads)
            worst.append(check(case))

        one()
        about = {"examples": len(worst), "difference": f"{max(worst):.0e}", "findings": 0}
        count("Kernels", kernel=what, **about, sanitizers=sanitized)

    return run


def lay(x: Tensor, how: str) -> Tensor:
    """The same numbers, lying otherwise in memory."""
    if how == "every second":
        return torch.stack([x, torch.full_like(x, math.nan)], -1)[..., 0]
    if how == "transposed":
        order = list(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    if how == "odd address":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    if how == "expanded" and len(x):
        return x[:1].expand(x.shape)
    return x


LAYOUTS = st.sampled_from(["plain", "every second", "transposed", "odd address", "expanded"])


def draw_mask(kind: str, *shape: int) -> Tensor:
    """All weights, none, one, or a few with empty rows and columns."""
    mask = torch.rand(shape) < torch.rand(())
    if kind == "holes":
        mask[torch.rand(shape[0]) < 0.3] = False
        mask[:, torch.rand(shape[1]) < 0.3] = False
    elif kind == "one":
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.view(-1)[int(torch.randint(0, mask.numel(), ()))] = True
    elif kind != "random":
        mask = torch.full(shape, kind == "all")
    return mask


MASKS = st.sampled_from(["random", "holes", "one", "all", "none"])


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))


def assert_as_torch(function: Callable[..., Tensor], mask: Tensor, x: Tensor, layouts: tuple[str, str]) -> float:
    """Output and gradients of the native function and of torch's in double precision."""
    structure = SparseStructure.from_mask(mask)
    values, bias = torch.randn(structure.nnz, dtype=x.dtype), torch.randn(len(mask), dtype=x.dtype)
    inputs = [lay(x, layouts[0]), values, bias]
    results = []
    grad: Tensor | None = None
    for backend, dtype in (("native", x.dtype), ("torch", torch.float64)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        y = function(leaves[0], leaves[1], structure, leaves[2], backend=backend)
        grad = lay(torch.randn_like(y), layouts[1]) if grad is None else grad
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))])
    worst = max(difference(found, expected) for found, expected in zip(*results, strict=True))
    assert worst < TOLERANCE[x.dtype]
    return worst


def test_sparse_linear(fuzz):
    def check(case: Any) -> float:
        lead, inputs, outputs, kind, layouts, dtype = case
        x = torch.randn(*lead, inputs, dtype=dtype)
        return assert_as_torch(sparse_linear, draw_mask(kind, outputs, inputs), x, layouts)

    sizes = st.integers(1, 80)
    lead = st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(lambda shape: math.prod(shape) <= 400)
    fuzz(
        "sparse linear, and its gradients", 3000, PAIR(lead, sizes, sizes, MASKS, PAIR(LAYOUTS, LAYOUTS), DTYPES), check
    )


def test_sparse_conv2d(fuzz):
    def check(case: Any) -> float:
        batch, channels, size, kernel, stride, padding, dilation, kind, layouts, dtype = case
        inputs, outputs, groups = channels
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        size = [max(n, r - 2 * p) for n, r, p in zip(size, reach, padding, strict=True)]
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

        def layer(x: Tensor, values: Tensor, structure: SparseStructure, bias: Tensor, backend: str) -> Tensor:
            return sparse_conv2d(x, values, structure, bias, **options, backend=backend)

        x = torch.randn(batch, inputs * groups, *size, dtype=dtype)
        return assert_as_torch(layer, draw_mask(kind, outputs * groups, inputs, *kernel), x, layouts)

    few, some = st.integers(1, 5), st.integers(1, 20)
    case = PAIR(
        *(st.integers(0, 5), PAIR(few, few, st.integers(1, 3)), PAIR(some, some), PAIR(few, few)),
        *(PAIR(few, few), PAIR(st.integers(0, 6), st.integers(0, 6)), PAIR(few, few)),
        *(MASKS, PAIR(LAYOUTS, LAYOUTS), DTYPES),
    )
    fuzz("sparse convolution, and its gradients", 3000, case, check)


def test_structures_that_are_wrong(fuzz):
    """One number of one index tensor changed, or two exchanged."""

    def check(case: Any) -> float:
        kind, rows, columns, which, where, value = case
        structure = SparseStructure.from_mask(draw_mask(kind, rows, columns))
        indices = [index.clone() for index in structure.tensors()]
        index = indices[which]
        assert SparseStructure(structure.shape, *indices).nnz == structure.nnz
        place = where % max(1, len(index))
        if len(index):
            index[place] = value if value != int(index[place]) else value + 1
        else:
            indices[which] = torch.tensor([value], dtype=torch.int32)
        with pytest.raises(ValueError, match="are no structure of a weight of shape"):
            SparseStructure(structure.shape, *indices)
        return 0.0

    value = st.one_of(st.integers(-3, 40), st.sampled_from([-(2**31), 2**31 - 2]))
    case = PAIR(MASKS, st.integers(1, 30), st.integers(1, 30), st.integers(0, 4), st.integers(0, 10**6), value)
    fuzz("sparse: a wrong index (must be refused)", 3000, case, check)


def follow_a_wrong_index() -> None:
    """What every check above prevents."""
    structure = SparseStructure.from_mask(torch.ones(4, 4, dtype=torch.bool))
    for step in (1, 10**3, 10**6, 10**8):
        column = structure.column + step
        indices = structure.row_first, column, structure.column_first, structure.row, structure.origin
        wrong = SparseStructure(structure.shape, *indices, trusted=True)
        sparse_linear(torch.randn(2, 4), torch.randn(16), wrong, backend="native")


def test_the_sanitizers_see_a_wrong_index(request, count):
    if not are_sanitized(request.config):
        pytest.skip("the kernels are compiled without sanitizers: make sanitize")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 2)
        faulthandler.disable()
        follow_a_wrong_index()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    assert "AddressSanitizer" in said
    about = {"examples": 1, "difference": "", "findings": 1, "sanitizers": "yes"}
    count("Kernels", kernel="sparse linear with a wrong index, unchecked (must be found)", **about)


def draw_train(batch: int, events: int, inputs: int, ties: bool, dtype: torch.dtype) -> SpikeTrain:
    counts = torch.randint(0, events + 1, (batch,))
    times = torch.rand(batch, events, dtype=dtype)
    times = ((times * 8).floor() / 8 if ties else times).sort(1).values
    times = torch.where(torch.arange(events) < counts[:, None], times, INF)
    index = torch.randint(-5, inputs + 5, (batch, events))
    # Behind the last event anything may stand.
    index = torch.where(torch.arange(events) < counts[:, None], index.clamp(0, inputs - 1), index)
    return SpikeTrain(times, index, counts)


SPIKING = PAIR(
    *(st.integers(0, 6), st.integers(0, 25), st.integers(1, 12), st.integers(0, 70), st.integers(1, 9)),
    *(st.sampled_from(TAUS), st.booleans(), DTYPES),
)


def draw_spiking(case: Any) -> tuple[SpikeTrain, Tensor, int, tuple[float, float]]:
    batch, events, inputs, neurons, spikes, taus, ties, dtype = case
    train = draw_train(batch, events, inputs, ties, dtype)
    return train, torch.randn(inputs, neurons, dtype=dtype) + torch.rand(neurons, dtype=dtype), spikes, taus


def test_spike_times(fuzz):
    def check(case: Any) -> float:
        train, weight, spikes, taus = draw_spiking(case)
        layer = train.times, train.index, train.counts, weight, spikes, *taus
        found, expected = (lif_record(*layer, backend=backend) for backend in ("native", "torch"))
        agree = found.counts == expected.counts
        if weight.dtype is torch.float64:
            assert agree.all()
        elif agree.numel() >= 100:
            assert agree.double().mean() > 0.9
        one, other = (torch.where(record.times < INF, record.times, 0.0)[agree] for record in (found, expected))
        worst = float((one - other).abs().max()) if one.numel() else 0.0
        # A spike that grazes the threshold is known to half of the digits.
        assert worst < (1e-6 if weight.dtype is torch.float64 else 5e-2)
        return worst if weight.dtype is torch.float64 else 0.0

    fuzz("spike times (difference: of double precision)", 3000, SPIKING, check)


def test_gradients_of_spike_times(fuzz):
    def check(case: Any) -> float:
        train, weight, spikes, taus = draw_spiking(case)
        layer = train.times, train.index, train.counts, weight
        record = lif_record(*layer, spikes, *taus)
        grad = torch.randn_like(record.times)
        options: dict[str, Any] = {"p_max": 3.0, "needs_tau_grad": True}
        found, expected = (
            lif_spike_times_vjp(grad, record, *layer, *taus, **options, backend=backend)
            for backend in ("native", "torch")
        )
        pairs = [(f, e) for f, e in zip(found, expected, strict=True) if e is not None]
        worst = max(difference(f, e) for f, e in pairs)
        assert worst < (1e-9 if weight.dtype is torch.float64 else 1e-3)
        return worst

    fuzz("gradients of spike times", 3000, SPIKING, check)


WRONG_EVENTS = {
    "nan": lambda train: train.times.__setitem__((0, 0), math.nan),
    "infinity among the events": lambda train: train.times.__setitem__((0, 0), INF),
    "before the beginning": lambda train: train.times.__setitem__((0, 0), -1.0),
    "after the end": lambda train: train.times.__setitem__((0, -1), 3.0),
    "not sorted": lambda train: train.times.copy_(train.times.flip(1)),
    "an input that is not there": lambda train: train.index.__setitem__((0, -1), 10**6),
    "a negative input": lambda train: train.index.__setitem__((0, 0), -(2**62)),
    "more than there are": lambda train: train.counts.__setitem__(0, 10**6),
    "a negative number of them": lambda train: train.counts.__setitem__(0, -1),
}


def test_events_that_are_wrong(fuzz):
    def check(case: Any) -> float:
        what, batch, events, inputs, neurons = case
        train = draw_train(batch, events, inputs, False, torch.float64)
        train.counts[0] = events
        train.times[0], train.index[0] = torch.rand(events).double().sort().values, 0
        WRONG_EVENTS[what](train)
        weight = torch.randn(inputs, neurons, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"times|index|num_events|t_max"):
            lif_record(train.times, train.index, train.counts, weight, 3, 1.0, 0.5, backend="native")
        return 0.0

    few = st.integers(1, 9)
    case = PAIR(st.sampled_from(list(WRONG_EVENTS)), few, st.integers(2, 20), few, few)
    fuzz("spike times: wrong events (must be refused)", 1000, case, check)


def test_records_that_are_wrong(fuzz):
    """Counts out of range must be refused; events and times of a record made of something else may give any number."""

    def check(case: Any) -> float:
        (train, weight, spikes, taus), count = draw_spiking(case[0]), case[1]
        layer = train.times, train.index, train.counts, weight
        record = lif_record(*layer, spikes, *taus)
        grad = torch.randn_like(record.times)
        event = torch.randint(-(2**31), 2**31 - 1, record.event.shape, dtype=torch.int32)
        other = SpikeRecord(record.times, torch.randint_like(record.counts, 0, spikes + 1), event, record.slope)
        lif_spike_times_vjp(grad, other, *layer, *taus, needs_tau_grad=True, backend="native")
        if record.counts.numel():
            record.counts.view(-1)[-1] = count if count < 0 else spikes + count
            with pytest.raises(ValueError, match="record with counts from"):
                lif_spike_times_vjp(grad, record, *layer, *taus, backend="native")
        return 0.0

    count = st.one_of(st.integers(-3, -1), st.integers(1, 2**40))
    fuzz("gradients of spike times: records of something else", 1000, PAIR(SPIKING, count), check)


def test_order_of_spikes(fuzz):
    def check(case: Any) -> float:
        batch, neurons, spikes, kind, layout, dtype = case
        times = torch.randn(batch, neurons, spikes, dtype=dtype)
        if kind == "ties":
            times = times.round()
        elif kind == "extremes":
            extremes = torch.tensor([0.0, -0.0, 5e-324, -1e-45, 1e38, -1e38, -INF, INF], dtype=dtype)
            times = extremes[torch.randint(0, 8, times.shape)]
        times = lay(torch.where(torch.rand(times.shape) < torch.rand(()), times, INF), layout)
        train = events_from_spikes(times)
        source, counts = _sources(times.flatten(1))
        assert torch.equal(train.counts, counts)
        assert train.source is not None
        assert torch.equal(torch.where(train.is_spike, train.source, 0), torch.where(train.is_spike, source, 0))
        return 0.0

    kinds = st.sampled_from(["any", "ties", "extremes"])
    case = PAIR(st.integers(0, 9), st.integers(0, 40), st.integers(1, 9), kinds, LAYOUTS, DTYPES)
    fuzz("order of spikes", 3000, case, check)


def test_hadamard(fuzz):
    def check(case: Any) -> float:
        rows, width, gap, negate, in_place, dtype = case
        assert _kernel(dtype) is not None
        parts = torch.randn(rows, 4, width + gap, dtype=dtype)[..., :width].unbind(1)
        given = [(-part if negate and not k else part).clone() for k, part in enumerate(parts)]
        out = parts if in_place else [torch.empty_like(part) for part in parts]
        for found, expected in zip(hadamard_(out, parts, negate_first=negate), hadamard(given), strict=True):
            assert torch.equal(found, expected)
        return 0.0

    width = st.one_of(st.integers(0, 70), st.integers(1000, 1100))
    case = PAIR(st.integers(0, 40), width, st.integers(0, 3), st.booleans(), st.booleans(), DTYPES)
    fuzz("Hadamard transform", 3000, case, check)
