"""Backpropagation that costs what the weights cost that there are."""

from collections import OrderedDict
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_nobp.checkpoints import load_whole
from lightning_nobp.nn.crossover import check_threshold, measure_thresholds
from lightning_nobp.nn.sparse import SparseLayer
from lightning_nobp.nn.sparsify import (
    SparsityDistribution,
    as_patterns,
    choose_masks,
    match_names,
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
        check_threshold(threshold)
        # Set before the base's constructor, which prepares the network with them.
        self.sparsity = sparsity
        self.method = method or ("random" if pretrained is None else "magnitude")
        self.distribution = distribution
        self.include, self.exclude = as_patterns(include), as_patterns(exclude)
        self.threshold = threshold
        self.pretrained = pretrained
        self.fresh = as_patterns(fresh)
        self.seed = seed
        self._is_measured, self._is_filled = False, False
        self._missing: FileNotFoundError | None = None
        super().__init__(engine=engine, **kwargs)

    def prepare_network(self, network: nn.Module) -> nn.Module:
        """Put sparse layers in the place of dense ones; a network that has some already is left as it is."""
        if any(isinstance(m, SparseLayer) for m in network.modules()):
            return network
        return sparsify(
            network,
            self.sparsity,
            method=self.method,
            distribution=self.distribution,
            include=self.include,
            exclude=self.exclude,
            rescale=self.sparsity is not None and self.method == "random",
            generator=torch.Generator().manual_seed(self.seed),
            threshold=None if self.threshold == "measure" else self.threshold,
        )

    def configure_model(self) -> None:
        """Build what waited for the data module, and fill a new network from ``pretrained``."""
        super().configure_model()
        if (
            self.pretrained is None
            or self._is_filled
            or self._trainer is None
            or self.trainer.state.fn != TrainerFn.FITTING
        ):
            return
        try:
            self.load_pretrained(self.pretrained)
        except FileNotFoundError as error:
            # A run that goes on has all from its own checkpoint.
            self._missing = error

    def on_fit_start(self) -> None:
        """Refuse to start anew without the file."""
        if self._missing is not None and self._restored is None:
            raise self._missing
        super().on_fit_start()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is loaded needs no other weights."""
        super().on_load_checkpoint(checkpoint)
        self._is_filled = True

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Time dense and sparse products on the first batch, if that is wanted."""
        if self.threshold == "measure" and not self._is_measured:
            measure_thresholds(self.built_network(), batch[0])
            self._is_measured = True

    def load_pretrained(self, path: str | Path) -> None:
        """Fill the network with weights and masks of a checkpoint; with ``pretrained`` a fit does it once.

        Args:
            path: See ``pretrained``.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Another network's weights; the message names the layers.
        """
        network = self.built_network()
        expected = network.state_dict()
        file = _newest(path)
        rank_zero_info(f"SparseProp: weights and masks of {file}")
        state = _state_of(file)
        for name in _dropped(expected, self.fresh):
            state.pop(name, None)
        wrong = [name for name, v in state.items() if name not in expected or expected[name].shape != v.shape]
        absent = [name for name in expected if name not in state and name not in _dropped(expected, self.fresh)]
        if wrong or absent:
            raise ValueError(
                f"pretrained={str(path)!r} is of another network: {', '.join(wrong + absent)}. Name the layers that "
                "shall start anew (fresh), or take the network of the checkpoint"
            )
        masks = self._pretrained_masks(network, state)
        metadata = getattr(state, "_metadata", {})
        expected.update(state | {f"{name}.mask": mask for name, mask in masks.items()})
        expected._metadata.update(metadata)  # type: ignore[attr-defined]
        network.load_state_dict(expected)
        self._is_filled = True

    def _pretrained_masks(self, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masks of the largest weights in ``state``, and of their own in layers that it does not fill."""
        layers = {name: m for name, m in network.named_modules() if isinstance(m, SparseLayer)}
        if self.sparsity is None:
            # A layer without zeros is whole; another says itself what its zeros mean.
            weights = {name: state[f"{name}.weight"] for name in layers if f"{name}.weight" in state}
            return {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items() if bool((w != 0).all())}
        if self.method == "random":
            return {}
        scores = {name: state.get(f"{name}.weight", m.weight.detach()).abs() for name, m in layers.items()}
        return choose_masks(scores, self.sparsity, self.distribution)


def _newest(path: str | Path) -> Path:
    files = sorted(map(Path, glob(str(path))), key=lambda file: (file.stat().st_mtime, file.name))
    if not files:
        raise FileNotFoundError(f"pretrained={str(path)!r}: there is no such file. Train first, or give another")
    return files[-1]


def _state_of(path: Path) -> OrderedDict[str, Tensor]:
    """The weights in a file, by their names in the network, with their metadata."""
    content = load_whole(path)
    given = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(given, dict) or not all(isinstance(v, Tensor) for v in given.values()):
        raise ValueError(f"pretrained: {path} holds no weights: give a checkpoint, or a saved state_dict")
    prefix = "network." if any(name.startswith("network.") for name in given) else ""
    state = OrderedDict((n.removeprefix(prefix), v) for n, v in given.items() if n.startswith(prefix))
    metadata = {n.removeprefix(prefix): m for n, m in getattr(given, "_metadata", {}).items() if n.startswith(prefix)}
    state._metadata = metadata  # type: ignore[attr-defined]
    return state


def _dropped(state: dict[str, Tensor], fresh: Sequence[str]) -> set[str]:
    """Names of the entries of a state that belong to a layer whose name matches."""
    layers = {name.rpartition(".")[0]: name for name in state}
    matched = match_names(layers, fresh, (), "fresh") if fresh else []
    return {name for name in state if name.rpartition(".")[0] in matched}
