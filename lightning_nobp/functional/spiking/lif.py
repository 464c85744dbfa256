r"""Exact spike times of leaky integrate-and-fire neurons with many spikes each, and their exact gradients.

The potential :math:`v` of a neuron obeys

.. math::

    \dot v = -v / \tau_v + I, \qquad \dot I = -I / \tau_i + \sum_j w_j\, \delta(t - t_j),

spikes where it rises through :math:`\theta`, and is set to 0 then while the current stays. A spike time :math:`t_k` is
the root of a smooth equation,

.. math::

    \sum_j w_j K(t_k - t_j) - \theta \sum_{m < k} e^{-(t_k - t_m) / \tau_v} = \theta,

so its derivatives follow from the implicit function theorem, with no surrogate and no time step.

References:
    Yamamoto, Sakemi and Aihara, "Timing-Based Backpropagation in Spiking Neural Networks Without Single-Spike
    Restrictions", arXiv 2211.16113; Mostafa, "Supervised learning based on temporal coding in spiking neural networks",
    arXiv 1606.08165, and Göltz et al., "Fast and energy-efficient neuromorphic deep learning with first-spike times",
    arXiv 1912.11443, for one spike a neuron; Wunderlich and Pehle, "Event-based backpropagation can compute exact
    gradients for spiking neural networks", arXiv 2009.08378.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_nobp.functional.spiking import kernels, native, reference
from lightning_nobp.functional.spiking.events import SpikeTrain, check_events, check_grad, rounded, whole
from lightning_nobp.functional.spiking.kernel import Rates, TimeConstant, number
from lightning_nobp.functional.spiking.record import LayerGradients, Needs, SpikeRecord
from lightning_nobp.typed import explained

Backend = Literal["auto", "native", "torch"]
Function = TypeVar("Function", bound=Callable[..., Any])


def _eager(function: Function) -> Function:
    """Compilers pass it over: they can look into neither ctypes nor a loop over events."""
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]


@explained
@_eager
def lif_spike_times(
    times: Tensor,
    index: Tensor,
    num_events: Tensor,
    weight: Tensor,
    max_spikes: int,
    tau_v: TimeConstant,
    tau_i: TimeConstant,
    theta: float = 1.0,
    t_max: float = 2.0,
    *,
    p_max: float | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Spike times of a layer of neurons, differentiable in the input times, the weights and the time constants.

    Counts are not differentiable: where a change adds or removes a spike, the result jumps. Gradients can be taken
    once, and not inside ``torch.func``.

    Args:
        times: ``(batch, events)``, input spikes of each sample, ascending, from 0 to ``t_max``.
        index: ``(batch, events)``, whole numbers: the input neuron of each.
        num_events: ``(batch,)``, whole numbers: how many events of each sample count; what follows is padding.
        weight: ``(inputs, neurons)``, the type of the times.
        max_spikes: After so many a neuron is silent; :func:`saturated` tells which were stopped.
        tau_v: Membrane time constant :math:`\tau_v` in the unit of the times; ``float('inf')`` for no leak. A
            0-dimensional tensor may be learned.
        tau_i: Time constant :math:`\tau_i` of the synaptic current, likewise.
        theta: Threshold :math:`\theta`.
        t_max: When the simulation ends.
        p_max: Largest influence of the gradient of one spike time, ``dL/dt`` over the slope of the potential: a spike
            that only grazes the threshold has no finite derivative. None for the exact gradient.
        backend: ``'native'``, the compiled kernels: CPU, float32 and float64. ``'torch'``, a loop over events: every
            device. ``'auto'`` takes the first where it can.

    Returns:
        Spike times ``(batch, neurons, max_spikes)``, padded with infinity, and counts ``(batch, neurons)``, int64.

    Raises:
        TypeError: Times or weights that are not floating point or of two types, or indices that are not whole numbers.
        ValueError: Times that are not sorted, negative or after ``t_max``, shapes that do not fit, or numbers out of
            range.
        RuntimeError: ``backend='native'`` for tensors that the kernels cannot take, or where there are none; or inside
            ``torch.func``.
    """
    layer = _layer(times, max_spikes, theta, t_max, p_max, backend)
    train = _checked(times, index, num_events, weight, tau_v, tau_i, layer)
    found: tuple[Tensor, Tensor] = _SpikeTimes.apply(train.times, weight, tau_v, tau_i, train, layer)
    return found


@explained
@_eager
def lif_record(
    times: Tensor,
    index: Tensor,
    num_events: Tensor,
    weight: Tensor,
    max_spikes: int,
    tau_v: TimeConstant,
    tau_i: TimeConstant,
    theta: float = 1.0,
    t_max: float = 2.0,
    *,
    backend: Backend = "auto",
) -> SpikeRecord:
    """:func:`lif_spike_times` without autograd: the spikes, and what :func:`lif_spike_times_vjp` takes.

    Arguments and errors are the same.
    """
    layer = _layer(times, max_spikes, theta, t_max, None, backend)
    train = _checked(times, index, num_events, weight, tau_v, tau_i, layer)
    return _forward(train, weight, Rates.of(tau_v, tau_i, layer.theta), layer)


@explained
@_eager
def lif_spike_times_vjp(
    grad: Tensor,
    record: SpikeRecord,
    times: Tensor,
    index: Tensor,
    num_events: Tensor,
    weight: Tensor,
    tau_v: TimeConstant,
    tau_i: TimeConstant,
    theta: float = 1.0,
    t_max: float = 2.0,
    *,
    p_max: float | None = None,
    needs_times_grad: bool = True,
    needs_weight_grad: bool = True,
    needs_tau_grad: bool = False,
    backend: Backend = "auto",
) -> LayerGradients:
    """Gradients of :func:`lif_spike_times` for the gradient of its spike times.

    Args:
        grad: ``(batch, neurons, max_spikes)``; what it holds where there is no spike does not count.
        record: Of :func:`lif_record` for the same arguments.
        times: See :func:`lif_spike_times`, as all that follow.
        index: ``(batch, events)``.
        num_events: ``(batch,)``.
        weight: ``(inputs, neurons)``.
        tau_v: Membrane time constant.
        tau_i: Synaptic time constant.
        theta: Threshold.
        t_max: When the simulation ends.
        p_max: Largest influence of one spike, or None.
        needs_times_grad: Whether to compute the gradient of the input times.
        needs_weight_grad: Whether to compute that of the weights.
        needs_tau_grad: Whether to compute those of the time constants.
        backend: See :func:`lif_spike_times`.

    Returns:
        The gradients of times, weight, ``tau_v`` and ``tau_i``, None where not needed.

    Raises:
        TypeError: A record or a gradient of another type than the times.
        ValueError: A record or a gradient of another shape; and as :func:`lif_spike_times`.
    """
    check_grad(grad, record.times.shape)
    layer = _layer(times, grad.shape[2], theta, t_max, p_max, backend)
    train = _checked(times, index, num_events, weight, tau_v, tau_i, layer)
    _check_record(grad, record, times, weight)
    needs = Needs(needs_times_grad, needs_weight_grad, needs_tau_grad)
    return _backward(grad, record, train, weight, Rates.of(tau_v, tau_i, layer.theta), layer, needs)


@explained
def saturated(counts: Tensor, max_spikes: int) -> Tensor:
    """Which neurons have all the spikes they may have, and were perhaps stopped: bool, the shape of ``counts``."""
    return counts >= max_spikes


class _Layer(NamedTuple):
    """What is no tensor."""

    max_spikes: int
    theta: float
    t_max: float
    """Rounded as the times are."""
    p_max: float
    """Infinity for no bound."""
    backend: Backend


class _SpikeTimes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        times: Tensor,
        weight: Tensor,
        tau_v: TimeConstant,
        tau_i: TimeConstant,
        train: SpikeTrain,
        layer: _Layer,
    ) -> tuple[Tensor, Tensor]:
        rates = Rates.of(tau_v, tau_i, layer.theta)
        record = _forward(train, weight, rates, layer)
        ctx.rates, ctx.layer = rates, layer
        ctx.save_for_backward(
            times, weight, train.index, train.counts, record.times, record.counts, record.event, record.slope
        )
        ctx.taus = tuple(tau if isinstance(tau, Tensor) else None for tau in (tau_v, tau_i))
        ctx.mark_non_differentiable(record.counts)
        return record.times, record.counts

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        needs = Needs(needed[0], needed[1], needed[2] or needed[3])
        times, weight, *others = ctx.saved_tensors
        # Gradients that are to be differentiated again must know that they cannot be.
        run = _SpikeTimesGradients.apply if torch.is_grad_enabled() else _gradients
        grads = LayerGradients(*run(grad, times, weight, others, ctx.rates, ctx.layer, needs))
        taus = (
            None if tau is None or found is None else found.to(tau)
            for found, tau in zip((grads.tau_v, grads.tau_i), ctx.taus, strict=True)
        )
        return grads.times, grads.weight, *taus, None, None


class _SpikeTimesGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> LayerGradients:
        return _gradients(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("lif_spike_times can be differentiated once: its gradients have no gradient")


def _gradients(
    grad: Tensor, times: Tensor, weight: Tensor, others: list[Tensor], rates: Rates, layer: _Layer, needs: Needs
) -> LayerGradients:
    index, num_events, *record = others
    return _backward(grad, SpikeRecord(*record), SpikeTrain(times, index, num_events), weight, rates, layer, needs)


def _forward(train: SpikeTrain, weight: Tensor, rates: Rates, layer: _Layer) -> SpikeRecord:
    if weight.is_meta:
        return _empty(train, weight, layer)
    run = native.forward if _is_native(train, weight, layer.backend) else reference.forward
    with torch.no_grad():
        return run(train, weight.detach(), layer.max_spikes, rates, layer.t_max)


def _backward(
    grad: Tensor,
    record: SpikeRecord,
    train: SpikeTrain,
    weight: Tensor,
    rates: Rates,
    layer: _Layer,
    needs: Needs,
) -> LayerGradients:
    if weight.is_meta:
        scalar = grad.new_empty(())
        return needs.chosen(torch.empty_like(train.times), torch.empty_like(weight), scalar, scalar, rates)
    run = native.backward if _is_native(train, weight, layer.backend, grad, record.slope) else reference.backward
    with torch.no_grad():
        return run(grad, record, train, weight.detach(), rates, layer.t_max, layer.p_max, needs)


def _empty(train: SpikeTrain, weight: Tensor, layer: _Layer) -> SpikeRecord:
    """Of the right shapes, for tensors that hold no numbers."""
    shape = len(train.times), weight.shape[1], layer.max_spikes
    return SpikeRecord(
        train.times.new_empty(shape),
        weight.new_empty(shape[:2], dtype=torch.int64),
        weight.new_empty(shape, dtype=torch.int32),
        train.times.new_empty(shape),
    )


# At the door


def _checked(
    times: Tensor,
    index: Tensor,
    num_events: Tensor,
    weight: Tensor,
    tau_v: TimeConstant,
    tau_i: TimeConstant,
    layer: _Layer,
) -> SpikeTrain:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "lif_spike_times does not run inside torch.func or vmap: give a batch of samples, and take gradients by "
            "torch.autograd.grad or lif_spike_times_vjp"
        )
    _check_numbers(tau_v, tau_i, layer)
    train = SpikeTrain(times, index, num_events)
    if weight.dtype is not times.dtype:
        raise TypeError(f"times of type {times.dtype} and weight of {weight.dtype}: give both one type")
    if weight.dim() != 2:
        raise ValueError(f"weight of shape {tuple(weight.shape)}: give (inputs, neurons)")
    devices = {str(tensor.device) for tensor in (times, index, num_events, weight)}
    if len(devices) > 1:
        raise ValueError(f"times, index, num_events and weight on {', '.join(sorted(devices))}: give all on one device")
    if not times.is_meta:
        check_events(train, weight.shape[0], layer.t_max)
        _check_weight(weight.detach(), times.shape[1], layer.t_max)
    return train


def _check_weight(weight: Tensor, events: int, t_max: float) -> None:
    """Whether no sum of weights, and no potential, can overflow."""
    if not weight.numel():
        return
    low, high = (float(w) for w in weight.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("weight holds nan or infinity: a smaller learning rate or a bound on the gradient may help")
    largest = max(-low, high)
    if largest * max(1, events) * max(1.0, t_max) > torch.finfo(weight.dtype).max:
        raise ValueError(
            f"weight holds numbers up to {largest:g}: the potential of {events} inputs may overflow {weight.dtype}, so "
            "scale weight and theta down"
        )


def _check_record(grad: Tensor, record: SpikeRecord, times: Tensor, weight: Tensor) -> None:
    wanted = len(times), weight.shape[1]
    shapes = {tensor.shape for tensor in (record.times, record.event, record.slope)}
    if record.counts.shape != wanted or shapes != {torch.Size((*wanted, grad.shape[2]))}:
        raise ValueError(
            f"record of {tuple(record.counts.shape)} samples and neurons: times and weight have {wanted}, so give "
            "those that it was made of"
        )
    for name, tensor in (("grad", grad), ("record.times", record.times), ("record.slope", record.slope)):
        if tensor.dtype is not times.dtype or tensor.device != times.device:
            raise TypeError(
                f"{name} of {tensor.dtype} on {tensor.device}, but times of {times.dtype} on {times.device}: convert"
            )
    if (record.counts.dtype, record.event.dtype) != (torch.int64, torch.int32):
        raise TypeError(
            f"record with counts of {record.counts.dtype} and events of {record.event.dtype}: see lif_record"
        )
    if record.counts.numel() and not record.counts.is_meta:
        least, most = (int(n) for n in record.counts.aminmax())
        if least < 0 or most > grad.shape[2]:
            raise ValueError(f"record with counts from {least} to {most}: there is place for {grad.shape[2]} spikes")


def _check_numbers(tau_v: TimeConstant, tau_i: TimeConstant, layer: _Layer) -> None:
    for name, tau in (("tau_v", tau_v), ("tau_i", tau_i)):
        if isinstance(tau, Tensor) and tau.dim():
            raise ValueError(f"{name} of shape {tuple(tau.shape)}: all neurons of a layer share one, so give a number")
        if not number(tau) > 0:
            learned = ", and the learning rate of a learned one lower" if isinstance(tau, Tensor) else ""
            raise ValueError(f"{name}={number(tau):g} must be positive; float('inf') is no decay{learned}")
    for name, value in (("theta", layer.theta), ("t_max", layer.t_max)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value:g} must be positive and finite")
    if layer.max_spikes < 1:
        raise ValueError(f"max_spikes={layer.max_spikes} must be at least 1")
    if layer.backend not in ("auto", "native", "torch"):
        raise ValueError(f"backend={layer.backend!r} is not one of 'auto', 'native', 'torch'")


def _layer(times: Tensor, max_spikes: int, theta: float, t_max: float, p_max: float | None, backend: Backend) -> _Layer:
    if p_max is not None and not p_max > 0:
        raise ValueError(f"p_max={p_max:g} must be positive; None is no bound")
    most = whole(max_spikes, "max_spikes")
    return _Layer(most, float(theta), rounded(t_max, times.dtype), math.inf if p_max is None else float(p_max), backend)


def _is_native(train: SpikeTrain, weight: Tensor, backend: Backend, *others: Tensor) -> bool:
    if backend == "torch":
        return False
    can = kernels.supports(train.times, weight, *others)
    if backend == "auto":
        return can and kernels.are_built()
    if not can:
        raise RuntimeError(
            f"backend='native' takes float32 or float64 tensors on the CPU; here are {weight.dtype} on "
            f"{weight.device}: take backend='torch'"
        )
    return True
