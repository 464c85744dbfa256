"""Windows cut from the time series of the nodes of a network: what the data modules of networks share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.datamodules.batched import BatchedDataModule, check_least
from lightning_nobp.datamodules.loader import Batch
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import BatchIndex
from lightning_nobp.functional.network_inference import Normalisation, check_identifiable


class WindowBatches:
    """Batches of windows from trajectories that lie in memory.

    Args:
        trajectories: Each ``(time, nodes, components)``.
        window: Steps in a window, one less than its samples.
        stride: Samples from the start of a window to that of the next.
    """

    def __init__(self, trajectories: Sequence[Tensor], window: int, stride: int) -> None:
        self.samples = torch.cat([*trajectories])
        self.window = window
        self._first = len(trajectories[0])
        starts, before = [], 0
        for trajectory in trajectories:
            starts.append(torch.arange(before, max(before, before + len(trajectory) - window), stride))
            before += len(trajectory)
        self.starts = torch.cat(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def beginning(self, most_steps: int) -> Tensor:
        """The first trajectory, up to so many steps: ``(steps + 1, nodes, components)``."""
        return self.samples[: min(self._first, most_steps + 1)]

    def __getitems__(self, index: BatchIndex) -> Batch:
        """Windows ``(batch, window + 1, nodes, components)``, alone in a tuple."""
        times = self.starts[torch.tensor(index)].unsqueeze(1) + torch.arange(self.window + 1)
        return (self.samples[times],)


class SeriesDataModule(BatchedDataModule):
    """Windows of normalised time series of the nodes of a network, in float64.

    A batch is ``(windows,)``, with ``windows`` of shape ``(batch, window + 1, nodes, components)``; nodes feel each
    other through component 0. Series are normalised by one mean and one scale a component, the same for all nodes and
    those of the training series: couplings do not feel it.

    A subclass gives the trajectories of each split (:meth:`load`).

    Args:
        window: Steps in a window of training and validation, one less than its samples.
        stride: Samples from the start of a training window to that of the next; None for ``window``, so that each step
            is in one window. Derivatives leave out samples at both ends of a window: ``window - 3`` uses each sample
            once with central differences, ``window - 7`` with the filter of Savitzky and Golay.
        horizon: Steps in a test window, in which predictions are followed until they fail.
        **kwargs: See :class:`~lightning_nobp.datamodules.batched.BatchedDataModule`.

    Raises:
        ValueError: An argument out of its range; in ``setup``, a window longer than a trajectory, or nodes that move
            together.
    """

    num_nodes: int
    """Of the network, known after ``setup``."""
    components: int
    """Numbers in the state of a node, likewise."""
    node_names: tuple[str, ...] = ()
    """What the nodes are called, if they have names."""
    dt: float
    """Time from one sample to the next."""
    normalisation: Normalisation
    """Of the series, known after ``setup``."""
    true_weights: Tensor | None = None
    """Weights ``(nodes, nodes)`` of the network that made the series, if they are known."""
    lyapunov_exponent: float | None = None
    """Rate at which errors grow, one over the unit of ``dt``, if it is known."""

    def __init__(self, *, window: int = 20, stride: int | None = None, horizon: int = 500, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window, self.stride, self.horizon = plain(window), plain(stride), plain(horizon)
        check_least("window", self.window, 1)
        check_least("horizon", self.horizon, 1)
        if self.stride is not None:
            check_least("stride", self.stride, 1)
        self._samples: dict[str, WindowBatches] = {}

    @abstractmethod
    def load(self) -> dict[str, list[Tensor]]:
        """Trajectories ``(time, nodes, components)`` of ``'train'``, ``'val'`` and ``'test'``, not normalised."""
        raise NotImplementedError(f"{type(self).__name__} must implement load()  (abstract)")

    def setup(self, stage: str) -> None:
        """Get the series, normalise them and cut them into windows."""
        if self._samples:
            return
        series = self.load()
        self.normalisation = Normalisation.of(torch.cat(series["train"]))
        constant = (~(self.normalisation.scale > 0)).nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"component {constant[0]} never changes in the training series: leave it out")
        self.num_nodes, self.components = series["train"][0].shape[1:]
        self.input_shape = (self.num_nodes, self.components)
        for split, trajectories in series.items():
            self._samples[split] = self._windows(split, trajectories)
        h = self._samples["train"].samples[..., 0]
        if len(h) >= self.num_nodes:
            check_identifiable(h.T @ h, names=self.node_names)

    def _windows(self, split: str, trajectories: list[Tensor]) -> WindowBatches:
        window = self.horizon if split == "test" else self.window
        shortest = min((len(trajectory) for trajectory in trajectories), default=window + 1)
        if shortest <= window:
            name = "horizon" if split == "test" else "window"
            raise ValueError(
                f"{name}={window} steps are longer than a trajectory of the {split} split, which has {shortest} "
                f"samples: take at most {shortest - 1}, or longer trajectories"
            )
        stride = self.stride if split == "train" and self.stride is not None else window
        normal = [self.normalisation(trajectory) for trajectory in trajectories]
        empty = [torch.empty(0, self.num_nodes, self.components, dtype=torch.float64)]
        return WindowBatches(normal or empty, window, stride)

    def batches(self, split: str) -> WindowBatches:
        """The windows of a split."""
        return self._samples[split]
