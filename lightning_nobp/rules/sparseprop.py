"""Backpropagation that costs what the weights cost that there are."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_nobp.nn.backprop import check_supported
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.nn.sparsify import (
    SparsityDistribution,
    choose_masks,
    densify,
    match_names,
    measure_thresholds,
    sparsify,
)
from lightning_nobp.rules.backprop import Backprop


class SparseProp(Backprop):
    """Backpropagation through a network with few weights.

    Linear and convolutional layers become sparse ones, which hold only the weights that there are: output, gradient of
    the input and gradient of the weights cost as much less as weights are missing. On CPUs that is faster than dense
    layers from a sparsity of about two thirds on; elsewhere it is right, but not faster.

    A network starts sparse with random weights (``sparsity``), or from a checkpoint (``pretrained``) of a network that
    is sparse already, or that is made so by leaving its smallest weights out. The weights that there are stay the same
    ones; :class:`~lightning_nobp.callbacks.SparsityMask` changes them while training.

    Args:
        sparsity: Fraction of their weights that the layers do without, in [0, 1). None: the zeros that the weights
            have, those of ``pretrained`` for instance.
        method: Which weights ``sparsity`` keeps: ``'random'``, or ``'magnitude'``, the largest. By default the largest
            of a pretrained network and random ones of a new one.
        distribution: ``'erk'``: small layers keep more; ``'uniform'``: all layers are as sparse; ``'global'``: the
            largest of all layers together.
        include: Patterns of layer names in the network, as of files, of which one must match.
        exclude: Patterns of layer names, of which none may match: those stay dense.
        threshold: Sparsity from which a layer uses the sparse kernels, and below it a dense product with zeros; None
            for the layers' own. ``'measure'`` times both on the first batch.
        pretrained: Checkpoint of a rule with the same network, or a file with its ``state_dict``; of several files
            that match (``'runs/*/checkpoints/*.ckpt'``) the newest.
        fresh: Patterns of layer names that ``pretrained`` does not fill: they start anew.
        seed: Of the random weights that are kept.
        engine: ``'auto'``: ``'explicit'`` where every layer has a written backward pass, else ``'autograd'``.
        **kwargs: See :class:`Backprop`.

    Raises:
        ValueError: An argument outside its range, or a pattern that matches no layer.
        TypeError: ``engine='explicit'`` and a layer that it does not know.

    References:
        Nikdan, Pegolotti, Iofinova, Kurtic and Alistarh, "SparseProp: Efficient Sparse Backpropagation for Faster
        Training of Neural Networks", arXiv 2302.04852. Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery:
        Making All Tickets Winners", arXiv 1911.11134 (the distribution ``'erk'``).
    """

    def __init__(
        self,
        *,
        sparsity: float | None = 0.9,
        method: Literal["random", "magnitude"] | None = None,
        distribution: SparsityDistribution = "erk",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        threshold: float | Literal["measure"] | None = None,
        pretrained: str | None = None,
        fresh: Sequence[str] = (),
        seed: int = 0,
        engine: Literal["auto", "explicit", "autograd"] = "auto",
        **kwargs: Any,
    ) -> None:
        # Set before the base's constructor, which prepares the network with them.
        self.sparsity = sparsity
        self.method = method or ("random" if pretrained is None else "magnitude")
        self.distribution = distribution
        self.include, self.exclude = tuple(include), tuple(exclude)
        self.threshold = threshold
        self.pretrained = pretrained
        self.fresh = tuple(fresh)
        self.seed = seed
        self._may_fall_back = engine == "auto"
        self._is_measured = False
        super().__init__(engine="explicit" if engine == "auto" else engine, **kwargs)

    def prepare_network(self, network: nn.Module) -> nn.Module:
        """Put sparse layers in the place of dense ones; a network that has some already is left as it is."""
        if self.sparsity is None and any(isinstance(m, SparseLayer) for m in network.modules()):
            return network
        return sparsify(
            densify(network),
            self.sparsity,
            method=self.method,
            distribution=self.distribution,
            include=self.include,
            exclude=self.exclude,
            rescale=self.sparsity is not None and self.method == "random",
            generator=torch.Generator().manual_seed(self.seed),
            threshold=None if self.threshold == "measure" else self.threshold,
        )

    def check_network(self, network: nn.Module) -> None:
        """Refuse a network with a layer that the explicit engine does not know, or take the other engine."""
        if not self._may_fall_back:
            return super().check_network(network)
        try:
            check_supported(network)
        except TypeError:
            self.engine = "autograd"

    def on_fit_start(self) -> None:
        """Fill a new network from ``pretrained``; a run that goes on has all from its own checkpoint."""
        if self.pretrained is not None and self._restored is None:
            self.load_pretrained(self.pretrained)
        super().on_fit_start()

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Time dense and sparse products on the first batch, if that is wanted."""
        if self.threshold == "measure" and not self._is_measured:
            measure_thresholds(self.built_network(), batch[0])
            self._is_measured = True

    def load_pretrained(self, path: str | Path) -> None:
        """Fill the network with weights and masks of a checkpoint; a fit with ``pretrained`` does it when it starts.

        Args:
            path: See ``pretrained``.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Another network's weights; the message names the layers.
        """
        network = self.built_network()
        state = _without(_state_of(_newest(path)), self.fresh)
        layers = {name: m for name, m in network.named_modules() if isinstance(m, SparseLayer)}
        weights = {name: state[f"{name}.weight"] for name in layers if f"{name}.weight" in state}
        state |= {f"{name}.mask": mask for name, mask in self._pretrained_masks(weights).items()}
        expected = network.state_dict()
        wrong = [k for k, v in state.items() if not k.endswith(".mask") and _shape(expected.get(k)) != v.shape]
        absent = [name for name in _without(expected, self.fresh) if name not in state]
        if wrong or absent:
            raise ValueError(
                f"pretrained={str(path)!r} is of another network: {', '.join(wrong + absent)}. Name the layers that "
                "shall start anew (fresh), or take the network of the checkpoint"
            )
        network.load_state_dict(expected | state)

    def _pretrained_masks(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.sparsity is None:
            return {name: w != 0 for name, w in weights.items()}
        if self.method == "random":
            return {}
        return choose_masks({name: w.abs() for name, w in weights.items()}, self.sparsity, self.distribution)


def _newest(path: str | Path) -> Path:
    files = sorted(map(Path, glob(str(path))), key=lambda file: (file.stat().st_mtime, file.name))
    if not files:
        raise FileNotFoundError(f"pretrained={str(path)!r}: there is no such file. Train first, or give another")
    return files[-1]


def _state_of(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by their names in the network."""
    content = torch.load(path, weights_only=True, map_location="cpu")
    state: dict[str, Tensor] = content.get("state_dict", content)
    prefix = "network."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    return dict(state)


def _without(state: dict[str, Tensor], fresh: Sequence[str]) -> dict[str, Tensor]:
    """Those entries of a state that belong to no layer whose name matches."""
    layers = {name.rpartition(".")[0]: name for name in state}
    dropped = set(match_names(layers, fresh, ())) if fresh else set()
    return {name: entry for name, entry in state.items() if name.rpartition(".")[0] not in dropped}


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
