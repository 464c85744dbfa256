"""A network under perturbations of all its parameters: what its cost becomes, and which gradient that betrays.

Three engines evaluate the same perturbations: many at once as one batched pass, one after another in place, or their
slopes without a perturbation, by forward-mode differentiation.
"""

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.modules.conv import _ConvNd as _Convolution

from lightning_nobp.functional.perturbation import code_period, code_power, perturbation_codes
from lightning_nobp.nn.backprop import accumulate_grad
from lightning_nobp.typed import Typed

Amplitude = float | Mapping[str, float]
"""Root mean square of a perturbation: of all parameters, or by patterns of their names (``'*.bias'``)."""

Cost = Callable[[Tensor, Tensor], Tensor]
"""``cost(scores, target)``: one number."""

Shown = Sequence[tuple[Tensor, Tensor]]
"""Inputs and targets ``(samples, ...)`` that are shown together, slot after slot."""

_LARGEST_CHUNK = 2**21
"""Numbers of perturbed weights or inputs that one batched pass holds: more would leave the processor's caches."""


class ParameterCodes(Typed):
    """Codes of all trainable parameters of a network, regenerated from seed and step whenever they are asked for.

    Args:
        network: The network.
        kind: A key of :data:`~lightning_nobp.functional.perturbation.CODES`.
        amplitude: See :data:`Amplitude`.
        seed: Of the codes.
        period: See :func:`~lightning_nobp.functional.perturbation.code_period`.

    Raises:
        ValueError: No trainable parameter, an amplitude that is not positive, a parameter whose name matches no
            pattern, or a period that is too short.
    """

    def __init__(
        self, network: nn.Module, kind: str, amplitude: Amplitude, seed: int, period: int | None = None
    ) -> None:
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(f"network {type(network).__name__} has no trainable parameter to perturb")
        self.kind, self.seed = kind, seed
        self.amplitudes = amplitudes_of(self.parameters, amplitude)
        stops = list(accumulate(p.numel() for p in self.parameters.values()))
        self.size = stops[-1]
        self._places = dict(zip(self.parameters, pairwise([0, *stops]), strict=True))
        self.period = code_period(kind, self.size, period)
        self.power = code_power(kind, self.size)
        self._drawn: tuple[tuple[int, int], Tensor, Tensor] | None = None

    def blocks(self) -> list[list[str]]:
        """Names of all parameters in order, in groups of which codes are drawn at once."""
        groups: list[list[str]] = []
        for name in self.parameters:
            if not groups or self._places[name][1] - self._places[groups[-1][0]][0] > _LARGEST_CHUNK:
                groups.append([])
            groups[-1].append(name)
        return groups

    def codes(self, steps: Tensor, names: Sequence[str]) -> Tensor:
        """Codes ``(steps, entries)`` of neighbouring parameters in a row; not to be written over."""
        place = start, stop = self._places[names[0]][0], self._places[names[-1]][1]
        if self._drawn is not None and self._drawn[0] == place and torch.equal(self._drawn[1], steps):
            return self._drawn[2]
        period = None if self.kind == "coordinate" else self.period
        codes = perturbation_codes(self.kind, self.seed, steps, self.size, start=start, stop=stop, period=period)
        # What a pass has just drawn, its gradient asks for again.
        self._drawn = place, steps, codes
        return codes

    def perturbation(self, steps: Tensor, names: Sequence[str]) -> Tensor:
        """Codes ``(steps, entries)`` of neighbouring parameters in a row, times amplitude."""
        dtype, scales = self.parameters[names[0]].dtype, {self.amplitudes[name] for name in names}
        codes = self.codes(steps, names).to(dtype)
        if len(scales) == 1:
            return codes * scales.pop()
        pieces = torch.split(codes, self._sizes(names), dim=1)
        return torch.cat([p * self.amplitudes[n] for n, p in zip(names, pieces, strict=True)], dim=1)

    def perturbations(self, steps: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The same for each parameter, ``(steps, *shape)`` in its dtype."""
        pieces = torch.split(self.perturbation(steps, names), self._sizes(names), dim=1)
        parameters = [self.parameters[name] for name in names]
        return {
            name: piece.to(p.dtype).reshape(-1, *p.shape)
            for name, p, piece in zip(names, parameters, pieces, strict=True)
        }

    def _sizes(self, names: Sequence[str]) -> list[int]:
        return [self.parameters[name].numel() for name in names]

    @torch.no_grad()
    def add_gradient(self, coefficients: Tensor, steps: Tensor) -> None:
        """Add the homodyne estimate, the sum of coefficient times code over amplitude, to ``p.grad``.

        Args:
            coefficients: ``(steps,)``, cost differences (or slopes times amplitude) with their weights.
            steps: ``(steps,)``, int64.
        """
        for names in self.blocks():
            sizes = self._sizes(names)
            rows = max(1, _LARGEST_CHUNK // sum(sizes))
            total = coefficients.new_zeros(sum(sizes))
            for some, weights in zip(torch.split(steps, rows), torch.split(coefficients, rows), strict=True):
                total.addmv_(self.codes(some, names).to(total.dtype).t(), weights)
            for name, piece in zip(names, torch.split(total, sizes), strict=True):
                estimate = piece / (self.amplitudes[name] * self.power)
                accumulate_grad(self.parameters[name], estimate.view_as(self.parameters[name]))
        self._drawn = None


def amplitudes_of(names: Iterable[str], amplitude: Amplitude) -> dict[str, float]:
    """Amplitude of each parameter: that of the first pattern that its name matches.

    Args:
        names: Of the parameters.
        amplitude: One for all, or by patterns.

    Raises:
        ValueError: A name matches no pattern, a pattern no name, or an amplitude is not positive.
    """
    patterns = amplitude if isinstance(amplitude, Mapping) else {"*": amplitude}
    found = {name: _amplitude_of(name, patterns, amplitude) for name in names}
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in found):
            raise ValueError(
                f"amplitude={amplitude}: {pattern!r} matches no trained parameter; there are {', '.join(found)}"
            )
    return found


def _amplitude_of(name: str, patterns: Mapping[str, float], amplitude: Amplitude) -> float:
    for pattern, value in patterns.items():
        if fnmatch.fnmatchcase(name, pattern):
            if not 0 < value < math.inf:
                raise ValueError(f"amplitude={amplitude} of parameter {name!r} must be positive, like 0.004")
            return float(value)
    raise ValueError(f"amplitude={dict(patterns)} has no pattern for parameter {name!r}: add one, like '*': 0.004")


class BatchedEngine(Typed):
    """Many perturbations as one pass through the network, by ``torch.func``: for networks of few parameters.

    Args:
        network: The network; one that ``torch.vmap`` can go through.
        cost: The cost of scores.
        codes: Codes of its parameters.
    """

    def __init__(self, network: nn.Module, cost: Cost, codes: ParameterCodes) -> None:
        self.network, self.cost, self.codes = network, cost, codes

    @torch.no_grad()
    def costs(self, shown: Shown, steps: Tensor, slots: Tensor, signs: tuple[int, ...]) -> Tensor:
        """The cost under each perturbation.

        Args:
            shown: Inputs and targets of each slot.
            steps: ``(readings,)``, int64, which perturbation.
            slots: ``(readings,)``, int64, which slot is shown then.
            signs: How often the perturbation is added to the parameters: (1, -1) for central differences.

        Returns:
            ``(readings, signs)``.
        """
        if len(signs) > 1 and any(isinstance(m, _Convolution) for m in self.network.modules()):
            # Convolutions with weights of their own become groups of one, and many groups are slower than few.
            return torch.cat([self.costs(shown, steps, slots, (sign,)) for sign in signs], dim=1)
        found, order = [], []
        inner = None if len(shown) == 1 else 0
        for chosen, x, target in self._groups(shown, steps, slots):
            weights = self._perturbed(steps[chosen], signs)
            if inner is not None:
                x, target = (t.repeat(len(signs), *[1] * (t.dim() - 1)) for t in (x, target))
            found.append(self._batched(self._cost, inner)(weights, x, target).view(len(signs), -1).t())
            order.append(chosen)
        return _in_order(found, order)

    def _batched(self, function: Callable[..., Any], inner: int | None) -> Callable[..., Any]:
        run = vmap(function, in_dims=(0, inner, inner))

        def explained(*args: Any) -> Any:
            try:
                return run(*args)
            except RuntimeError as error:
                raise RuntimeError(
                    f"torch.vmap cannot run this {type(self.network).__name__} (recurrent layers, branches that depend "
                    f"on data, writing into new tensors): take engine='in_place'. {error}"
                ) from error

        return explained

    def _cost(self, weights: Mapping[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return self.cost(functional_call(self.network, dict(weights), (x,)), target)

    def _perturbed(self, steps: Tensor, signs: tuple[int, ...]) -> dict[str, Tensor]:
        """Perturbed parameters ``(signs * steps, *shape)``."""
        names, parameters = list(self.codes.parameters), list(self.codes.parameters.values())
        flat = torch.cat([p.detach().flatten() for p in parameters])
        changes = self.codes.perturbation(steps, names).to(flat.dtype)
        # One sum over all parameters for each sign, and then views: networks of this size are made of overheads.
        moved = flat.new_empty(len(signs), *changes.shape)
        for row, sign in zip(moved, signs, strict=True):
            torch.add(flat, changes, alpha=sign, out=row)
        pieces = torch.split(moved.flatten(0, 1), [p.numel() for p in parameters], dim=1)
        return {
            name: torch.unflatten(piece, 1, p.shape).to(p.dtype) if p.dim() else piece.squeeze(1).to(p.dtype)
            for name, p, piece in zip(names, parameters, pieces, strict=True)
        }

    def _groups(self, shown: Shown, steps: Tensor, slots: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Readings that fit into one pass: which, and the inputs and targets that they are shown."""
        if len(shown) == 1:
            x, target = shown[0]
            for chosen in torch.split(torch.arange(len(steps), device=steps.device), self._chunk(x)):
                yield chosen, x, target
            return
        for size in sorted({len(x) for x, _ in shown}):
            alike = [k for k, (x, _) in enumerate(shown) if len(x) == size]
            readings = torch.isin(slots, torch.tensor(alike, device=slots.device)).nonzero().squeeze(1)
            x, target = (torch.stack([shown[k][part] for k in alike]) for part in (0, 1))
            place = torch.tensor([alike.index(k) if k in alike else 0 for k in range(len(shown))], device=slots.device)
            for chosen in torch.split(readings, self._chunk(x[0])):
                rows = place[slots[chosen]]
                yield chosen, x[rows], target[rows]

    def _chunk(self, x: Tensor) -> int:
        """Readings in one pass; the inputs stand for the activities of all layers."""
        return max(1, _LARGEST_CHUNK // (self.codes.size + x.numel()))


class ForwardModeEngine(BatchedEngine):
    """Slopes along the codes by forward-mode differentiation: the limit of vanishing amplitude, without noise."""

    @torch.no_grad()
    def slopes(self, shown: Shown, steps: Tensor, slots: Tensor) -> Tensor:
        """Costs, and their slopes along the perturbations of unit length of a code.

        Args:
            shown: Inputs and targets of each slot.
            steps: ``(readings,)``, int64.
            slots: ``(readings,)``, int64.

        Returns:
            ``(readings, 2)``: cost, and slope times amplitude.
        """
        found, order = [], []
        inner = None if len(shown) == 1 else 0
        for chosen, x, target in self._groups(shown, steps, slots):
            tangents = self.codes.perturbations(steps[chosen], list(self.codes.parameters))
            found.append(torch.stack(self._batched(self._slope, inner)(tangents, x, target), dim=1))
            order.append(chosen)
        return _in_order(found, order)

    def _slope(self, tangents: dict[str, Tensor], x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        weights = {name: p.detach() for name, p in self.codes.parameters.items()}
        found: tuple[Tensor, Tensor] = jvp(lambda w: self._cost(w, x, target), (weights,), (tangents,))  # type: ignore[assignment]
        return found


class InPlaceEngine(Typed):
    """One perturbation after another, for any network: beside what inference needs, one layer's weights.

    A layer's parameters are exchanged for perturbed ones while it runs, and put back untouched: nothing is rounded.

    Args:
        network: The network.
        cost: The cost of scores.
        codes: Codes of its parameters.
    """

    def __init__(self, network: nn.Module, cost: Cost, codes: ParameterCodes) -> None:
        self.network, self.cost, self.codes = network, cost, codes
        self._owners: dict[nn.Module, list[str]] | None = None
        self._sign = 1

    @torch.no_grad()
    def costs(self, shown: Shown, steps: Tensor, slots: Tensor, signs: tuple[int, ...]) -> Tensor:
        """The cost under each perturbation, see :meth:`BatchedEngine.costs`."""
        if self._owners is None:
            self._owners = self._checked_owners(*shown[0])
        rows = []
        with self._hooked():
            for step, slot in zip(torch.split(steps, 1), slots.tolist(), strict=True):
                x, target = shown[slot]
                self._change = self._changes(step)
                for self._sign in signs:
                    rows.append(self.cost(self.network(x), target))
        return torch.stack(rows).view(len(steps), len(signs))

    def _changes(self, step: Tensor) -> Callable[[str], Tensor]:
        """The perturbation of a parameter by its name: all at once, or each when it is asked for."""
        names = list(self.codes.parameters)
        if self.codes.size <= _LARGEST_CHUNK:
            return self.codes.perturbations(step, names).__getitem__
        return lambda name: self.codes.perturbations(step, [name])[name]

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Exchange parameters while their modules run."""
        assert self._owners is not None
        owners, parameters = self._owners, self.codes.parameters
        untouched: dict[str, Tensor] = {}
        exchanged: list[list[str]] = []

        def enter(module: nn.Module, args: Any) -> None:
            # Within a module that shares a parameter, it is perturbed already, and stays so afterwards.
            exchanged.append([name for name in owners[module] if name not in untouched])
            for name in exchanged[-1]:
                data = untouched[name] = parameters[name].data
                parameters[name].data = data.add(self._change(name)[0], alpha=self._sign)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            for name in exchanged.pop():
                parameters[name].data = untouched.pop(name)

        # Before hooks of the modules' own, which may compute a weight from the parameter.
        handles = [owner.register_forward_pre_hook(enter, prepend=True) for owner in owners]
        handles += [owner.register_forward_hook(leave) for owner in owners]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, data in untouched.items():
                parameters[name].data = data

    def _checked_owners(self, x: Tensor, target: Tensor) -> dict[nn.Module, list[str]]:
        """Where to exchange each parameter: around the whole pass, if modules that do not hold it use it too."""
        owners = self._find_owners(x)
        unperturbed = self.cost(self.network(x), target)
        rounding = 8 * torch.finfo(unperturbed.dtype).eps * unperturbed.abs()
        # Signs, whatever the codes: every entry of every parameter must show.
        probe = InPlaceEngine(
            self.network, self.cost, ParameterCodes(self.network, "rademacher", self.codes.amplitudes, self.codes.seed)
        )
        first = torch.zeros(1, dtype=torch.int64, device=x.device)

        def cost(places: dict[nn.Module, list[str]]) -> Tensor:
            probe._owners = places
            return probe.costs([(x, target)], first, first, (1,))[0, 0]

        whole = []
        for name in self.codes.parameters:
            everywhere = cost({self.network: [name]})
            here = cost({owner: [name] for owner, names in owners.items() if name in names})
            if bool((here - everywhere).abs() > 0.01 * (everywhere - unperturbed).abs() + rounding):
                whole.append(name)
        owners = {owner: [name for name in names if name not in whole] for owner, names in owners.items()}
        owners[self.network] = owners.get(self.network, []) + whole
        return {owner: names for owner, names in owners.items() if names}

    def _find_owners(self, x: Tensor) -> dict[nn.Module, list[str]]:
        """The module that holds each parameter, or the nearest one around it that is called as a module."""
        called: set[nn.Module] = set()
        handles = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in self.network.modules()]
        try:
            self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        by_identity = {id(p): name for name, p in self.codes.parameters.items()}
        owners: dict[nn.Module, list[str]] = {}
        for path, module in self.network.named_modules(remove_duplicate=False):
            own = [by_identity[id(p)] for p in module.parameters(recurse=False) if id(p) in by_identity]
            while own and module not in called:
                path = path.rpartition(".")[0]
                module = self.network.get_submodule(path)
            for name in own:
                if name not in owners.setdefault(module, []):
                    owners[module].append(name)
        return {module: names for module, names in owners.items() if names}


def _in_order(found: list[Tensor], order: list[Tensor]) -> Tensor:
    """Rows that were found in parts, each where it belongs."""
    return torch.cat(found)[torch.cat(order).argsort()] if len(found) > 1 else found[0]
