"""How well a network is known: its links, its weights, and its future."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_nobp.functional.dynamics.prediction import valid_steps
from lightning_nobp.typed import Typed


def link_auroc(weights: Tensor, true: Tensor) -> Tensor:
    """Probability that a link has a larger weight, in absolute value, than what is none; ties count half.

    Args:
        weights: ``(nodes, nodes)``; the diagonal does not matter.
        true: Likewise; what is not 0 is a link.

    Returns:
        nan where all pairs of nodes are linked, or none.
    """
    size, is_link = _pairs(weights, true)
    linked, others = size[is_link], size[~is_link].sort().values
    below = torch.searchsorted(others, linked) + torch.searchsorted(others, linked, right=True)
    return below.double().sum() / (2 * len(linked) * len(others))


def link_average_precision(weights: Tensor, true: Tensor) -> Tensor:
    """Mean, over links, of the share of links among all pairs whose weight is as large in absolute value.

    Args:
        weights: See :func:`link_auroc`.
        true: Likewise.

    Returns:
        nan without a link.
    """
    size, is_link = _pairs(weights, true)
    linked, everyone = size[is_link].sort().values, size.sort().values
    hits = len(linked) - torch.searchsorted(linked, linked)
    return (hits.double() / (len(everyone) - torch.searchsorted(everyone, linked))).mean()


def weight_error(weights: Tensor, true: Tensor) -> Tensor:
    """Length of the error of all weights, over that of the true ones.

    Args:
        weights: See :func:`link_auroc`.
        true: Likewise.
    """
    others = ~torch.eye(len(true), dtype=torch.bool, device=true.device)
    wanted = true[others].double()
    error: Tensor = (weights[others].double() - wanted).norm() / wanted.norm()
    return error


def _pairs(weights: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute weights, and which are links, of all pairs of nodes."""
    if weights.shape != true.shape or weights.dim() != 2:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} and true ones of {tuple(true.shape)}: give (nodes, nodes)"
        )
    others = ~torch.eye(len(true), dtype=torch.bool, device=true.device)
    return weights[others].abs().double(), true[others] != 0


class _NetworkMetric(Typed, Metric):
    """The mean over networks of a number that compares couplings with true ones."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @staticmethod
    @abstractmethod
    def of(weights: Tensor, true: Tensor) -> Tensor:
        """The number, of one network."""
        raise NotImplementedError

    def update(self, weights: Tensor, true: Tensor) -> None:
        """Count couplings ``(nodes, nodes)`` and true ones."""
        self.total += self.of(weights.detach(), true.to(weights.device)).to(self.total)
        self.count += 1

    def compute(self) -> Tensor:
        """The mean; nan before the first network."""
        return self.total / self.count


class LinkAUROC(_NetworkMetric):
    """Probability that a link has a larger weight than what is none: see :func:`link_auroc`."""

    of = staticmethod(link_auroc)


class LinkAveragePrecision(_NetworkMetric):
    """Precision over links: see :func:`link_average_precision`."""

    of = staticmethod(link_average_precision)


class WeightError(_NetworkMetric):
    """Relative error of the weights: see :func:`weight_error`."""

    of = staticmethod(weight_error)


class ValidPredictionTime(Typed, Metric):
    """Median time before predictions leave the truth, over starts.

    Args:
        dt: Time of a step.
        lyapunov_exponent: Rate at which errors grow: times are then in units of one over it. None for the unit of
            ``dt``.
        threshold: Root mean square error at which a prediction has failed, in standard deviations of the series.
        **kwargs: See ``torchmetrics.Metric``.

    Raises:
        ValueError: An argument that is not positive.

    References:
        Pathak, Hunt, Girvan, Lu and Ott, "Model-free prediction of large spatiotemporally chaotic systems from data: a
        reservoir computing approach", Phys. Rev. Lett. 120, 024102 (2018).
    """

    full_state_update = False
    steps: list[Tensor]

    def __init__(
        self, dt: float, lyapunov_exponent: float | None = None, threshold: float = 0.4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("dt", dt), ("lyapunov_exponent", lyapunov_exponent), ("threshold", threshold)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")
        self.dt, self.lyapunov_exponent, self.threshold = dt, lyapunov_exponent, threshold
        self.add_state("steps", [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Count predictions and truth, normalised states ``(batch, steps + 1, nodes, components)`` from the start."""
        self.steps.append(valid_steps(predicted, true, self.threshold))

    def times(self) -> Tensor:
        """Of every start, ``(starts,)``."""
        steps = torch.cat(list(self.steps)) if isinstance(self.steps, list) else self.steps
        return steps.double() * self.dt * (self.lyapunov_exponent or 1.0)

    def compute(self) -> Tensor:
        """The median."""
        return self.times().quantile(0.5)
