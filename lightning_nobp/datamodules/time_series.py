"""Time series of a network's nodes from a file of one's own."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.series import SeriesDataModule
from lightning_nobp.datamodules.series_files import Series, read_series
from lightning_nobp.functional.dynamics import check_weights
from lightning_nobp.functional.network_inference import check_series

_TOLERANCE = 1e-3


class TimeSeriesDataModule(SeriesDataModule):
    """Windows of measured time series, from a CSV, Parquet, ``.npz`` or ``.npy`` file.

    Tables (``.csv`` with a header, ``.parquet``) have a row a time and a column a number: ``<node>.<component>``, as in
    ``a.x,a.y,b.x,b.y``, or ``<node>`` alone where nodes have one component. Nodes are numbered as their first columns
    come, components as those of the first node; through the first component nodes feel each other. A column ``time``
    is checked against ``dt``, a column ``trajectory`` tells series apart that do not go on from each other.

    Arrays have the shape ``(time, nodes, components)``, or ``(trajectories, time, nodes, components)``. A ``.npz`` file
    holds one as ``x``, and may hold ``time`` ``(time,)``, and the true ``weights`` ``(nodes, nodes)``.

    Validation and test get the ends of each trajectory. For what batches hold, see
    :class:`~lightning_nobp.datamodules.series.SeriesDataModule`.

    Args:
        path: The file.
        dt: Time from one sample to the next, in any unit: couplings are in one over it.
        val_size: Fraction of each trajectory for validation; 0 for none.
        test_size: Fraction for the test.
        lyapunov_exponent: Rate at which errors grow, one over the unit of ``dt``, if it is known: prediction times are
            then told in units of one over it.
        **kwargs: Windows and batches: see :class:`~lightning_nobp.datamodules.series.SeriesDataModule`.

    Raises:
        ValueError: An argument out of its range; in ``setup``, a file of another layout, sampled otherwise than every
            ``dt``, with gaps or values that are not finite, or of which a split is shorter than a window.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        dt: float,
        val_size: float = 0.1,
        test_size: float = 0.1,
        lyapunov_exponent: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lyapunov_exponent = plain(lyapunov_exponent)
        self.path, self.dt, self.val_size, self.test_size = str(path), plain(dt), plain(val_size), plain(test_size)
        if not 0 < self.dt < math.inf:
            raise ValueError(f"dt={self.dt} must be positive, and finite")
        if not 0 <= self.val_size < 1:
            raise ValueError(f"val_size={self.val_size} is a fraction of each trajectory: from 0 to below 1")
        if not 0 < self.test_size < 1 - self.val_size:
            raise ValueError(
                f"test_size={self.test_size} is a fraction of each trajectory: above 0, and with "
                f"val_size={self.val_size} below 1"
            )
        if self.lyapunov_exponent is not None and not self.lyapunov_exponent > 0:
            raise ValueError(f"lyapunov_exponent={self.lyapunov_exponent} must be positive, or None if it is not known")

    def load(self) -> dict[str, list[Tensor]]:
        """Read, check and split the file."""
        series = read_series(Path(self.path))
        self.node_names, self.true_weights = series.nodes, series.weights
        if series.weights is not None:
            check_weights(series.weights)
            if len(series.weights) != len(series.nodes):
                raise ValueError(f"{self.path}: weights of {len(series.weights)} nodes, x of {len(series.nodes)}")
        self._check(series)
        splits: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
        for x in series.trajectories:
            val, test = (int(size * len(x)) for size in (self.val_size, self.test_size))
            for split, part in zip(splits, torch.split(x, [len(x) - val - test, val, test]), strict=True):
                splits[split].append(part)
        return splits if self.val_size else splits | {"val": []}

    def state_dict(self) -> dict[str, Any]:
        """What the file calls the nodes; goes into the checkpoint."""
        return {"node_names": list(self.node_names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the names back."""
        self.node_names = tuple(state_dict["node_names"])

    def _check(self, series: Series) -> None:
        for number, (x, time) in enumerate(zip(series.trajectories, series.times, strict=True)):
            where = f"{self.path}, trajectory {number}" if len(series.trajectories) > 1 else self.path
            if time is not None:
                self._check_times(where, time)
            bad = (~x.isfinite()).nonzero()
            if len(bad):
                step, node, component = bad[0].tolist()
                at = step * self.dt if time is None else float(time[step])
                raise ValueError(
                    f"{where}: component {component} of node {series.nodes[node]!r} is "
                    f"{float(x[step, node, component])} at time {at:g} (row {step} from 0), and {len(bad)} values in "
                    "all are not finite. Fill them in, leave the node out, or cut the series there by a column "
                    "'trajectory'"
                )
        check_series(series.trajectories, series.nodes)

    def _check_times(self, where: str, time: Tensor) -> None:
        steps = time.diff()
        # What is not finite is wrong too.
        wrong = (~((steps - self.dt).abs() <= _TOLERANCE * self.dt)).nonzero()
        if not len(wrong):
            return
        row = int(wrong[0])
        if len(wrong) == len(steps):
            raise ValueError(
                f"{where}: samples are {float(steps.median()):g} apart, not dt={self.dt}: give dt in the unit of the "
                "column 'time'"
            )
        raise ValueError(
            f"{where}: from time {float(time[row]):g} to {float(time[row + 1]):g} (row {row} from 0) it is "
            f"{float(steps[row]):g}, not dt={self.dt}, and {len(wrong)} of {len(steps)} steps in all are wrong. "
            "Interpolate to regular times, or cut the series at gaps by a column 'trajectory'"
        )
