"""A network in which every sample of a batch is perturbed in its own way: a batch of perturbations in one pass."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_nobp.functional import backprop as formulas
from lightning_nobp.functional.counter_random import random_normal, random_signs
from lightning_nobp.functional.separable import separable_conv, separable_gradient, separable_linear
from lightning_nobp.nn.backprop import _zero_padding, accumulate_grad
from lightning_nobp.nn.parameter_codes import Amplitude, amplitudes_of
from lightning_nobp.typed import Typed

SAMPLERS: dict[str, Callable[[int, Tensor, int, int], Tensor]] = {
    "rademacher": random_signs,
    "gaussian": random_normal,
}
"""Kinds of codes of which products are codes again."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)
_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_LayerCodes = tuple[Tensor, Tensor, Tensor, Tensor]
"""Codes of a layer's outputs, inputs, bias, and of the places in its kernel."""
_GEOMETRY = ("stride", "padding", "dilation", "groups")
_NEXT_LAYER = 2**40
"""Numbers between the codes of one layer's activations and the next's: more than any has."""


class SampleCodes(Typed, ABC):
    """Base of the passes in which every sample has codes of its own.

    Args:
        network: The network; all its trainable parameters must belong to layers that are known.
        kind: A key of :data:`SAMPLERS`.
        amplitude: See :data:`~lightning_nobp.nn.parameter_codes.Amplitude`.
        seed: Of the codes.

    Raises:
        ValueError: Codes of another kind, no trainable parameter, or an amplitude without a pattern for it.
        TypeError: A trainable parameter of another layer; names it.
    """

    layer_types: tuple[type[nn.Module], ...] = _LAYERS

    def __init__(self, network: nn.Module, kind: str, amplitude: Amplitude, seed: int) -> None:
        if kind not in SAMPLERS:
            raise ValueError(
                f"perturbation={kind!r} cannot be given to every sample: take one of {', '.join(map(repr, SAMPLERS))}, "
                "or engine='vmap' or 'in_place'"
            )
        self.network, self.kind, self.seed = network, kind, seed
        self.layers = _trained_layers(network, self.layer_types)
        named = {f"{n}.{own}": p for n, layer in self.layers.items() for own, p in layer.named_parameters()}
        trained = {name: p for name, p in named.items() if p.requires_grad}
        found = amplitudes_of(trained, amplitude)
        self.amplitudes: dict[Tensor, float] = {p: found[name] for name, p in trained.items()}
        self._doubles_late = _is_chain(network)

    @torch.no_grad()
    def run(self, x: Tensor, ids: Tensor, signs: tuple[int, ...]) -> Tensor:
        """Scores of every sample under its own perturbation.

        Args:
            x: ``(batch, ...)``.
            ids: ``(batch,)``, int64, which perturbation each sample has.
            signs: How often it is added: (1, -1) for central differences, (1, 0) for one-sided ones.

        Returns:
            ``(signs, batch, ...)``.

        Raises:
            TypeError: A layer sees something else than the batch in its first dimension.
        """
        with self._hooked(ids, signs):
            # What comes before the first perturbation is the same for all signs: in a chain it is computed once.
            scores: Tensor = self.network(x if self._doubles_late else _blocks(x, len(signs)))
        return torch.unflatten(scores, 0, (len(signs), -1))

    @contextmanager
    def _hooked(self, ids: Tensor, signs: tuple[int, ...]) -> Iterator[None]:
        self._begin(ids)
        factors = torch.tensor(signs, device=ids.device)
        batch = len(ids)

        def perturb(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            h = args[0]
            if h.shape[0] not in (batch, batch * len(signs)):
                raise TypeError(
                    f"a {type(layer).__name__} got an input of shape {tuple(h.shape)} for a batch of {batch} samples: "
                    "samples are mixed, so that none can have a perturbation of its own; take engine='in_place'"
                )
            if isinstance(layer, nn.Conv2d):
                # What follows keeps the order, and torch pools several times faster in it.
                y = y.contiguous(memory_format=torch.channels_last)
            h, blocks = (torch.unflatten(t, 0, (-1, batch)) for t in (h, y))
            change, code = self._change(cast(_Layer, layer), h, blocks)
            signed = change * factors.to(y.dtype).view(-1, *[1] * (blocks.dim() - 1))
            # One block for all signs is broadcast; one for each is nobody else's, and written over.
            out = blocks if len(blocks) == len(signs) else None
            return torch.addcmul(blocks, signed, code, out=out).flatten(0, 1)

        handles = [layer.register_forward_hook(perturb) for layer in self.layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @abstractmethod
    def _begin(self, ids: Tensor) -> None:
        """Make ready for a pass."""

    @abstractmethod
    def _change(self, layer: _Layer, h: Tensor, y: Tensor) -> tuple[Tensor | float, Tensor]:
        """What a layer's perturbation adds to its output: a product, which broadcasts to the shape of ``y``.

        Args:
            layer: The layer.
            h: Its input ``(blocks, batch, ...)``; one block, or one for each sign.
            y: Its output ``(blocks, batch, ...)``.
        """

    def _draw(self, ids: Tensor, start: int, size: int) -> Tensor:
        return SAMPLERS[self.kind](self.seed, ids, start, start + size)


class WeightCodes(SampleCodes):
    """Every sample sees weights perturbed in its own way, by products of codes of a layer's outputs and inputs."""

    def _begin(self, ids: Tensor) -> None:
        self._ids, self._codes = ids, self.layer_codes(ids)

    def layer_codes(self, ids: Tensor) -> dict[_Layer, _LayerCodes]:
        """Of each layer: codes of outputs, inputs, the bias, and places ``(batch, ...)``."""
        shapes = {layer: _code_sizes(layer) for layer in self.layers.values()}
        drawn = self._draw(ids, 0, sum(map(sum, shapes.values())))
        codes, start = {}, 0
        for layer, sizes in shapes.items():
            own = drawn[:, start : start + sum(sizes)].to(layer.weight.dtype)
            codes[layer] = torch.split(own, sizes, dim=1)
            start += sum(sizes)
        return codes  # type: ignore[return-value]

    def _change(self, layer: _Layer, h: Tensor, y: Tensor) -> tuple[Tensor | float, Tensor]:
        outputs, inputs, bias, places = self._codes[layer]
        batch, channel = len(outputs), y.dim() - 1 if isinstance(layer, nn.Linear) else 2
        change: Tensor | float = 0.0
        if layer.weight.requires_grad:
            if isinstance(layer, nn.Linear):
                change = separable_linear(h, inputs)
            else:
                settings: dict[str, Any] = {name: getattr(layer, name) for name in _GEOMETRY}
                change = separable_conv(h, inputs, places.view(batch, *layer.kernel_size), **settings)
                # Output channels of a group share the group's one map.
                change = change.repeat_interleave(layer.out_channels // layer.groups, 2) if layer.groups > 1 else change
            change = change * self.amplitudes[layer.weight]
        if layer.bias is not None and layer.bias.requires_grad:
            change = change + (bias * self.amplitudes[layer.bias]).view(batch, *[1] * (y.dim() - 2))
        return change, outputs.view(batch, *[1] * (channel - 2), -1, *[1] * (y.dim() - 1 - channel))

    def written_out(self, ids: Tensor, sample: int, sign: int = 1) -> dict[str, Tensor]:
        """Names and values of the perturbed weights that one sample sees.

        Args:
            ids: ``(batch,)``, int64.
            sample: Which of them.
            sign: How often the perturbation is added.
        """
        perturbed, codes = {}, self.layer_codes(ids[sample : sample + 1])
        for name, layer in self.layers.items():
            for own, parameter, factors in _parts(layer, codes[layer]):
                change = separable_gradient(factors[0].new_full((1,), sign * self.amplitudes[parameter]), *factors)
                perturbed[f"{name}.{own}"] = parameter + change.view_as(parameter)
        return perturbed

    @torch.no_grad()
    def check(self, x: Tensor, ids: Tensor) -> None:
        """Compare what the first and the last sample see with their perturbed weights written out.

        Raises:
            TypeError: The network uses weights outside their layers, or mixes samples.
        """
        found, unperturbed = self.run(x, ids, (1,))[0], self.network(x)
        for sample in {0, len(x) - 1}:
            expected = functional_call(self.network, self.written_out(ids, sample), (x,))[sample]
            effect = (expected - unperturbed[sample]).norm()
            rounding = 32 * torch.finfo(expected.dtype).eps * expected.norm()
            if (found[sample] - expected).norm() > 0.01 * effect + rounding:
                raise TypeError(
                    f"this {type(self.network).__name__} uses weights outside their layers, or mixes samples: none can "
                    "have a perturbation of its own; take engine='in_place'"
                )

    @torch.no_grad()
    def add_gradient(self, coefficients: Tensor, ids: Tensor) -> None:
        """Add the homodyne estimate, the sum over samples of coefficient times code over amplitude, to ``p.grad``.

        Args:
            coefficients: ``(batch,)``, cost differences with their weights.
            ids: ``(batch,)``, int64.
        """
        # The pass just made has its codes still; those of other processes are drawn here.
        codes = self._codes if torch.equal(ids, self._ids) else self.layer_codes(ids)
        for layer, of_layer in codes.items():
            for _, parameter, factors in _parts(layer, of_layer):
                weighted = coefficients.to(parameter.dtype) / self.amplitudes[parameter]
                accumulate_grad(parameter, separable_gradient(weighted, *factors).view_as(parameter))


class ActivationCodes(SampleCodes):
    """Every sample has its pre-activations perturbed (node perturbation): fewer directions than there are weights.

    The slope along a unit's code estimates the error that backpropagation would send it; its product with the layer's
    input is the gradient of the weights. Inputs are kept, as in backpropagation.

    References:
        Widrow and Lehr, "30 years of adaptive neural networks", Proceedings of the IEEE 78 (1990); Fiete and Seung,
        "Gradient learning in spiking neural networks by dynamic perturbation of conductances", PRL 97 (2006).
    """

    layer_types = (nn.Linear, nn.Conv2d)

    def _begin(self, ids: Tensor) -> None:
        self._ids = ids
        self._seen: list[tuple[_Layer, Tensor, Tensor]] = []

    def _change(self, layer: _Layer, h: Tensor, y: Tensor) -> tuple[Tensor | float, Tensor]:
        one = y[0]
        start = len(self._seen) * _NEXT_LAYER
        codes = self._draw(self._ids, start, math.prod(one.shape[1:])).to(y.dtype)
        # In the order of memory that y has.
        codes = codes.view_as(one.movedim(1, -1)).movedim(-1, 1) if isinstance(layer, nn.Conv2d) else codes.view_as(one)
        # Halfway between both signs the input is that of the unperturbed network, up to second order.
        self._seen.append((layer, h.mean(0) if len(h) > 1 else h[0], codes))
        return self._amplitude(layer), codes

    def _amplitude(self, layer: _Layer) -> float:
        """That of the weight; of a layer that trains its bias alone, of that."""
        return self.amplitudes[layer.weight if layer.weight.requires_grad else cast(Tensor, layer.bias)]

    @torch.no_grad()
    def add_gradient(self, coefficients: Tensor) -> None:
        """Add the estimate from the pass that :meth:`run` made last to ``p.grad``.

        Args:
            coefficients: ``(batch,)``, cost differences with their weights.
        """
        for layer, h, codes in self._seen:
            c = coefficients.to(codes.dtype) / self._amplitude(layer)
            errors = codes * c.view(-1, *[1] * (codes.dim() - 1))
            needed: dict[str, Any] = {"needs_input_grad": False, "needs_weight_grad": layer.weight.requires_grad}
            if isinstance(layer, nn.Conv2d):
                padding = _zero_padding(layer, "network")
                needed |= {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
                _, grad = formulas.conv2d_vjp(errors, h, layer.weight, padding=padding, **needed)
            else:
                _, grad = formulas.linear_vjp(errors, h, layer.weight, **needed)
            accumulate_grad(layer.weight, grad)
            if layer.bias is not None and layer.bias.requires_grad:
                accumulate_grad(layer.bias, formulas.bias_vjp(errors, 1 if isinstance(layer, nn.Conv2d) else -1))
        self._seen = []


def is_separable(network: nn.Module) -> bool:
    """Whether :class:`WeightCodes` can perturb all trainable parameters of ``network``."""
    try:
        return bool(_trained_layers(network, _LAYERS))
    except TypeError:
        return False


def _trained_layers(network: nn.Module, known: tuple[type[nn.Module], ...]) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    for name, module in network.named_modules():
        own = {n for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        # A subclass with its own forward computes something else than the hooks assume, and so does a layer whose
        # weight is computed, by pruning or weight normalisation.
        kinds = (k for k in known if isinstance(module, k) and type(module).forward is k.forward)
        kind = next(kinds, None) if own <= {"weight", "bias"} else None
        padded = getattr(module, "padding_mode", "zeros")
        if kind is None or padded != "zeros":
            why = f" with padding_mode={padded!r}" if kind else ""
            names = ", ".join(k.__name__ for k in known)
            raise TypeError(
                f"layer {name!r}, a {type(module).__name__}{why}, cannot be perturbed sample by sample, only "
                f"{names} can: freeze its parameters, or perturb weights with engine='in_place'"
            )
        layers[name] = cast(_Layer, module)
    return layers


def _parts(layer: _Layer, codes: _LayerCodes) -> Iterator[tuple[str, nn.Parameter, tuple[Tensor, ...]]]:
    """Name, parameter, and the factors of its code, for what a layer trains."""
    outputs, inputs, bias, places = codes
    weight = (outputs, inputs) if isinstance(layer, nn.Linear) else (outputs, inputs, places)
    for own, factors in (("weight", weight), ("bias", (outputs, bias))):
        parameter = getattr(layer, own)
        if parameter is not None and parameter.requires_grad:
            yield own, parameter, factors


def _code_sizes(layer: _Layer) -> list[int]:
    if isinstance(layer, nn.Linear):
        return [layer.out_features, layer.in_features, 1, 0]
    return [layer.out_channels, layer.in_channels // layer.groups, 1, math.prod(layer.kernel_size)]


def _is_chain(network: nn.Module) -> bool:
    """Whether every layer sees nothing but the output of the one before."""
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        return all(map(_is_chain, network))
    return not list(network.children())


def _blocks(x: Tensor, count: int) -> Tensor:
    return x.repeat(count, *[1] * (x.dim() - 1))
