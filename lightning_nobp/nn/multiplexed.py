"""Gradients by multiplexed perturbations, usable without Lightning.

An estimator reads the costs of a batch under perturbations, turns them into coefficients, and adds the sum of
coefficient times code to ``p.grad``. Codes are a function of their number, so that the coefficients are all that
another process needs to know.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_nobp.functional.multiplexing import Schedule, high_pass, low_pass
from lightning_nobp.nn.backprop import accumulate_grad
from lightning_nobp.nn.parameter_codes import (
    BatchedEngine,
    Cost,
    ForwardModeEngine,
    InPlaceEngine,
    ParameterCodes,
    Shown,
)
from lightning_nobp.nn.sample_codes import ActivationCodes, WeightCodes
from lightning_nobp.typed import Typed

Hook = Callable[[Tensor], Tensor]
Difference = Literal["central", "one_sided"]

_MOST_SAMPLES = 2**24
"""Of a batch over all processes, so that the numbers of two passes' perturbations never meet."""


class Turn(NamedTuple):
    """Whose perturbations: those of the ``call``-th batch, on process ``rank`` of ``world``."""

    call: int
    rank: int = 0
    world: int = 1


class Estimate(NamedTuple):
    """What one process found out from one batch."""

    coefficients: Tensor
    """``(perturbations,)``: the gradient of the mean cost is their sum with the codes."""
    loss: Tensor
    """The mean cost, a scalar."""
    evaluations: int
    """Samples whose cost was read."""


class Estimator(Typed, ABC):
    """Reads costs, and turns them into a gradient.

    Attributes:
        cost_hooks: Each is called with every tensor of costs as they are read, and returns what is understood: the
            place for noise of the read-out.
        difference_hooks: Each is called with the cost differences ``(time_steps,)`` in order of time.
        scale: Factor of the gradient.
    """

    def __init__(self) -> None:
        self.cost_hooks: Sequence[Hook] = ()
        self.difference_hooks: Sequence[Hook] = ()
        self.scale = 1.0

    @abstractmethod
    def estimate(self, x: Tensor, target: Tensor, turn: Turn) -> Estimate:
        """Read the costs of a batch.

        Args:
            x: Inputs ``(batch, ...)``.
            target: Targets ``(batch, ...)``.
            turn: Whose perturbations.
        """

    @abstractmethod
    def add_gradient(self, coefficients: Tensor, turn: Turn) -> None:
        """Add the sum of coefficient times code over amplitude to ``p.grad``.

        Args:
            coefficients: ``(perturbations,)``, of an :class:`Estimate`, perhaps weighted.
            turn: Whose perturbations.
        """

    def _read(self, costs: Tensor) -> Tensor:
        for hook in self.cost_hooks:
            costs = hook(costs)
        return costs


class WindowEstimator(Estimator):
    """All parameters perturbed at once, by one perturbation after another, while inputs are shown in slots.

    Args:
        codes: Codes of the network's parameters.
        engine: Evaluates the costs.
        window: Which perturbation is on when, and which input is shown.
        difference: ``'central'`` or ``'one_sided'``.
    """

    def __init__(
        self,
        codes: ParameterCodes,
        engine: BatchedEngine | InPlaceEngine,
        window: Schedule,
        difference: Difference = "central",
    ) -> None:
        super().__init__()
        self.codes, self.engine, self.window, self.difference = codes, engine, window, difference
        self._perturbations = int(window.perturbation[-1]) + 1

    def estimate(self, x: Tensor, target: Tensor, turn: Turn) -> Estimate:
        """See :meth:`Estimator.estimate`; a batch with fewer samples than slots makes a shorter window."""
        window = self.window if len(x) >= self.window.num_slots else self.window.up_to(len(x))
        window = window.to(x.device)
        shown = [(x[k :: window.num_slots], target[k :: window.num_slots]) for k in range(window.num_slots)]
        steps = self._first(turn) + window.perturbation
        sizes = torch.tensor([len(part) for part, _ in shown], device=x.device)
        differences, costs = self._differences(shown, steps, window)
        for hook in self.difference_hooks:
            differences = hook(differences)
        # Every slot counts by its samples.
        held = sizes[window.slot[window.reading]]
        weights = held.to(differences.dtype) * (window.num_slots / len(x) / len(differences))
        coefficients = differences.new_zeros(len(steps)).index_add_(0, window.reading, differences * weights)
        return Estimate(coefficients * self.scale, (costs * weights).sum(), self._evaluations(held, len(x)))

    def _differences(self, shown: Shown, steps: Tensor, window: Schedule) -> tuple[Tensor, Tensor]:
        """Differences, and mean costs, at each time step."""
        if isinstance(self.engine, ForwardModeEngine):
            costs, slopes = self.engine.slopes(shown, steps, window.slot)[window.reading].unbind(1)
            return slopes, costs
        if self.difference == "central":
            costs = self._read(self.engine.costs(shown, steps, window.slot, (1, -1))[window.reading])
            return (costs[:, 0] - costs[:, 1]) / 2, costs.mean(1)
        slots = torch.arange(len(shown), device=steps.device)
        unperturbed = self._read(self.engine.costs(shown, steps[:1].expand(len(shown)), slots, (0,))[:, 0])
        reference = unperturbed[window.slot[window.reading]]
        # Last, so that their codes are still there for the gradient.
        costs = self._read(self.engine.costs(shown, steps, window.slot, (1,))[window.reading, 0])
        return costs - reference, reference

    def _evaluations(self, held: Tensor, batch: int) -> int:
        """Samples whose cost was read, where each time step has shown so many."""
        if isinstance(self.engine, ForwardModeEngine):
            return int(held.sum())
        return 2 * int(held.sum()) if self.difference == "central" else int(held.sum()) + batch

    def _first(self, turn: Turn) -> int:
        return (turn.call * turn.world + turn.rank) * self._perturbations

    def add_gradient(self, coefficients: Tensor, turn: Turn) -> None:
        """See :meth:`Estimator.add_gradient`."""
        steps = self._first(turn) + self.window.perturbation[: len(coefficients)].to(coefficients.device)
        self.codes.add_gradient(coefficients, steps)


class SampleEstimator(Estimator):
    """Every sample of a batch has perturbations of its own, all read in one pass.

    Args:
        codes: Perturbs weights, or activations.
        sample_costs: ``(scores, targets)`` to the cost of each sample, ``(batch,)``.
        num_perturbations: Of each sample, one pass each.
        difference: ``'central'`` or ``'one_sided'``.
    """

    def __init__(
        self,
        codes: WeightCodes | ActivationCodes,
        sample_costs: Cost,
        num_perturbations: int = 1,
        difference: Difference = "central",
    ) -> None:
        super().__init__()
        self.codes, self.sample_costs, self.num_perturbations = codes, sample_costs, num_perturbations
        self.signs = (1, -1) if difference == "central" else (1, 0)

    def estimate(self, x: Tensor, target: Tensor, turn: Turn) -> Estimate:
        """See :meth:`Estimator.estimate`.

        Raises:
            ValueError: More samples than numbers of perturbations.
        """
        if len(x) * turn.world > _MOST_SAMPLES:
            raise ValueError(f"a batch of {len(x)} samples is too large: {_MOST_SAMPLES} over all processes at most")
        passes = [self._ids(turn, number, len(x), x.device) for number in range(self.num_perturbations)]
        coefficients, losses = zip(*(self._one_pass(x, target, ids) for ids in passes), strict=True)
        return Estimate(torch.cat(coefficients), torch.stack(losses).mean(), 2 * len(x) * self.num_perturbations)

    def _one_pass(self, x: Tensor, target: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.codes.run(x, ids, self.signs).flatten(0, 1)
        targets = target.repeat(2, *[1] * (target.dim() - 1))
        costs = self._read(self.sample_costs(scores, targets).view(2, len(x)))
        differences = (costs[0] - costs[1]) / (self.signs[0] - self.signs[1])
        coefficients = differences * (self.scale / (len(x) * self.num_perturbations))
        if isinstance(self.codes, ActivationCodes):
            # What these codes are multiplied with is alive now.
            self.codes.add_gradient(coefficients)
        return coefficients, costs.mean() if self.signs[1] else costs[1].mean()

    def _ids(self, turn: Turn, number: int, batch: int, device: torch.device) -> Tensor:
        """Numbers of perturbations, the same whether samples are spread over processes in turn or not."""
        first = (turn.call * self.num_perturbations + number) * _MOST_SAMPLES
        return first + turn.rank + turn.world * torch.arange(batch, device=device)

    def add_gradient(self, coefficients: Tensor, turn: Turn) -> None:
        """See :meth:`Estimator.add_gradient`; gradients from activations are added as they are read."""
        if isinstance(self.codes, ActivationCodes):
            return
        for number, some in enumerate(coefficients.chunk(self.num_perturbations)):
            self.codes.add_gradient(some, self._ids(turn, number, len(some), some.device))


class AnalogEstimator(Estimator):
    """The analog form, one time step a call: filters in place of sums, and parameters that move all the time.

    The cost passes a high-pass filter, which leaves its modulation; the product with each code passes a low-pass
    filter, which integrates it.

    Args:
        codes: Codes of the network's parameters.
        engine: Evaluates the costs.
        tau_p: Time steps that a perturbation stays.
        tau_theta: Time constant of the low-pass filter, in time steps.
        tau_x: Time steps that an input stays; the high-pass filter does not see the jump to the next.
        tau_hp: Time constant of the high-pass filter, in time steps.
    """

    def __init__(
        self,
        codes: ParameterCodes,
        engine: BatchedEngine | InPlaceEngine,
        *,
        tau_p: int,
        tau_theta: int,
        tau_x: int,
        tau_hp: float,
    ) -> None:
        super().__init__()
        self.codes, self.engine = codes, engine
        self.tau_p, self.tau_theta, self.tau_x, self.tau_hp = tau_p, tau_theta, tau_x, tau_hp
        self.time = 0
        self.filters: dict[str, Tensor] = {}
        self._next: dict[str, Tensor] = {}

    def estimate(self, x: Tensor, target: Tensor, turn: Turn) -> Estimate:
        """See :meth:`Estimator.estimate`; what there was before goes on in the filters."""
        slot = torch.zeros(1, dtype=torch.int64, device=x.device)
        cost = self._read(self.engine.costs([(x, target)], slot + self._step(turn), slot, (1,))[:, 0])
        before = self.filters.get("cost", cost) if self.time % self.tau_x else cost
        modulation = high_pass(self.filters.get("modulation", torch.zeros_like(cost)), cost - before, self.tau_hp)
        self._next = {"cost": cost, "modulation": modulation}
        for hook in self.difference_hooks:
            modulation = hook(modulation)
        return Estimate(modulation * self.scale, cost[0], len(x))

    @torch.no_grad()
    def add_gradient(self, coefficients: Tensor, turn: Turn) -> None:
        """Add the low-passed product of coefficient and code to ``p.grad``, and go on by a time step.

        Filters do not take in what is not finite.
        """
        finite = bool(coefficients.isfinite().all())
        self.filters |= self._next if finite else {}
        earlier = {name: p.grad for name, p in self.codes.parameters.items()}
        for parameter in self.codes.parameters.values():
            parameter.grad = None
        self.codes.add_gradient(coefficients, self._step(turn) + torch.zeros_like(coefficients, dtype=torch.int64))
        for name, parameter in self.codes.parameters.items():
            assert parameter.grad is not None
            key = f"gradient/{name}"
            state = self.filters.get(key, torch.zeros_like(parameter.grad))
            integrated = low_pass(state, parameter.grad, self.tau_theta)
            if finite:
                self.filters[key] = integrated
            parameter.grad = earlier[name]
            accumulate_grad(parameter, integrated.clone())
        self.time += 1

    def _step(self, turn: Turn) -> int:
        return self.time // self.tau_p * turn.world + turn.rank
