"""From numbers to spikes, as layers."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nobp.functional.spiking.coding import (
    check_thresholds,
    latency_code,
    regular_code,
    threshold_code,
    with_inverse,
)
from lightning_nobp.functional.spiking.events import whole
from lightning_nobp.nn.backprop import Pullback, register_vjp
from lightning_nobp.typed import Typed


class SpikeEncoder(Typed, nn.Module):
    """What all encoders share: inputs are scaled to numbers from 0 to 1, and each number is one input neuron.

    Args:
        t_last: Time of the latest spike.
        inverse: Whether a second population, behind the first along dimension 1, sees one minus the numbers.
        value_range: The inputs that become 0 and 1; what lies outside is clipped. None for the least and the greatest
            of the data that :func:`initialise_from_data` gets, or the first training batch of the rule, which the
            state of the module keeps; before that, of each batch, and outside of training a warning says so.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(self, t_last: float, inverse: bool, value_range: Sequence[float] | None) -> None:
        super().__init__()
        if not 0 < t_last < float("inf"):
            raise ValueError(f"t_last={t_last} must be positive and finite")
        if value_range is not None and not (len(value_range) == 2 and value_range[0] < value_range[1]):
            raise ValueError(f"value_range={value_range}: give the input that becomes 0 and a greater one, for 1")
        self.t_last, self.inverse = t_last, inverse
        self.value_range = None if value_range is None else tuple(value_range)
        self._measured: tuple[float, float] | None = None

    @property
    def is_measured(self) -> bool:
        """Whether the range of inputs is known."""
        return self.value_range is not None or self._measured is not None

    def forward(self, x: Tensor) -> Tensor:
        """Spike times ``(batch, features, ..., spikes)`` of inputs ``(batch, features, ...)``, padded with infinity.

        With ``inverse`` there are twice as many features.

        Raises:
            ValueError: Inputs that are not finite.
        """
        if not (self.training or self.is_measured):
            warnings.warn(
                f"{type(self).__name__}(value_range=None) has not seen training data, and takes the range of each "
                "batch: give value_range, or call measure(x) with training data",
                stacklevel=2,
            )
        return self.code(self._both(self._scaled(x)))

    @abstractmethod
    def code(self, u: Tensor) -> Tensor:
        """Spike times ``(..., spikes)`` of numbers from 0 to 1 ``(...)``."""
        raise NotImplementedError(f"{type(self).__name__} must implement code(u)  (abstract)")

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """Derivatives of :meth:`code`, what broadcasts to its shape; anything where there is no spike."""
        raise NotImplementedError(f"{type(self).__name__} must implement slope(u)  (abstract)")

    def measure(self, x: Tensor) -> None:
        """Take the range of inputs from data, unless it was given."""
        if self.value_range is None:
            low, high = (float(value) for value in x.detach().aminmax())
            self._measured = low, high

    def get_extra_state(self) -> Tensor:
        """The measured range, ``(2,)``; zeros if there is none."""
        return torch.tensor(self._measured or (0.0, 0.0), dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take a measured range back."""
        low, high = state.tolist()
        self._measured = (low, high) if low < high else None

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"t_last={self.t_last}, inverse={self.inverse}, value_range={self.value_range}"

    def _bounds(self, x: Tensor) -> tuple[float, float]:
        low, high = self.value_range or self._measured or (float(value) for value in x.detach().aminmax())
        return low, high if high > low else low + 1

    def _scaled(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(f"inputs of type {x.dtype} and shape {tuple(x.shape)}: give floating point (batch, ...)")
        if not x.is_meta and not bool(x.isfinite().all()):
            raise ValueError("inputs hold nan or infinity: give finite numbers")
        low, high = self._bounds(x)
        return ((x - low) / (high - low)).clamp(0, 1)

    def _both(self, u: Tensor) -> Tensor:
        return with_inverse(u) if self.inverse else u


@register_vjp(SpikeEncoder)
def _encoder(layer: SpikeEncoder, x: Tensor, needs_input_grad: bool) -> tuple[Tensor, Pullback]:
    spikes = layer(x)

    def pull(grad: Tensor) -> Tensor | None:
        if not needs_input_grad:
            return None
        low, high = layer._bounds(x)
        u = layer._both(layer._scaled(x))
        by_number = torch.where(spikes < torch.inf, grad * layer.slope(u), 0.0).sum(-1)
        if layer.inverse:
            by_number = by_number[:, : x.shape[1]] - by_number[:, x.shape[1] :]
        return torch.where((x >= low) & (x <= high), by_number / (high - low), 0.0)

    return spikes, pull


class LatencyEncoder(SpikeEncoder):
    """One spike a number, the earlier the larger: at ``t_last * (1 - number)``.

    Args:
        t_last: Time of the spike of 0.
        threshold: Numbers up to this one send no spike; below 0 all do.
        inverse: See :class:`SpikeEncoder`.
        value_range: See :class:`SpikeEncoder`.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        t_last: float = 1.0,
        threshold: float = 0.0,
        inverse: bool = False,
        value_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(t_last, inverse, value_range)
        if not threshold < 1:
            raise ValueError(f"threshold={threshold} must be below 1, or nothing sends a spike")
        self.threshold = threshold

    def code(self, u: Tensor) -> Tensor:
        """At most one spike a number, ``(..., 1)``."""
        return latency_code(u, self.t_last, self.threshold)

    def slope(self, u: Tensor) -> Tensor:
        """Minus ``t_last``."""
        return u.new_full((), -self.t_last)

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"{super().extra_repr()}, threshold={self.threshold}"


class ThresholdCrossingEncoder(SpikeEncoder):
    """Several spikes a number: a ramp that reaches the number at ``t_last`` spikes at each threshold on its way.

    Larger numbers send more spikes, and earlier ones: the threshold h is crossed at ``t_last * h / number``.

    Args:
        thresholds: Ascending, above 0 and up to 1.
        t_last: When the ramp ends.
        inverse: See :class:`SpikeEncoder`.
        value_range: See :class:`SpikeEncoder`.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        thresholds: Sequence[float] = (0.25, 0.5, 0.75),
        t_last: float = 1.0,
        inverse: bool = False,
        value_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(t_last, inverse, value_range)
        check_thresholds(thresholds)
        self.thresholds = tuple(thresholds)

    def code(self, u: Tensor) -> Tensor:
        """A spike for each threshold that a number reaches, ``(..., thresholds)``."""
        return threshold_code(u, self.thresholds, self.t_last)

    def slope(self, u: Tensor) -> Tensor:
        """Minus ``t_last * h / number^2``."""
        return -self.t_last * u.new_tensor(self.thresholds) / u.unsqueeze(-1).clamp(min=self.thresholds[0]).square()

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"thresholds={self.thresholds}, {super().extra_repr()}"


class RegularEncoder(SpikeEncoder):
    """A rate code without randomness: as many spikes at equal distances as the number says.

    Args:
        max_spikes: Of a number 1.
        t_last: Length of the train; n spikes are at ``t_last * (k + 1/2) / n``.
        inverse: See :class:`SpikeEncoder`.
        value_range: See :class:`SpikeEncoder`.

    Raises:
        ValueError: An argument out of range.
    """

    def __init__(
        self,
        max_spikes: int = 4,
        t_last: float = 1.0,
        inverse: bool = False,
        value_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__(t_last, inverse, value_range)
        if whole(max_spikes, "max_spikes") < 1:
            raise ValueError(f"max_spikes={max_spikes} must be at least 1")
        self.max_spikes = max_spikes

    def code(self, u: Tensor) -> Tensor:
        """The trains, ``(..., max_spikes)``."""
        return regular_code(u, self.max_spikes, self.t_last)

    def slope(self, u: Tensor) -> Tensor:
        """0: spikes come and go, but do not move."""
        return u.new_zeros(())

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"max_spikes={self.max_spikes}, {super().extra_repr()}"
