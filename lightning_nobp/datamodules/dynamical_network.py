"""Simulated networks of coupled oscillators."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_nobp.datamodules.batched import check_least
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import mix
from lightning_nobp.datamodules.series import SeriesDataModule
from lightning_nobp.functional.dynamics import FIELDS, Integrator, check_weights, simulate_network
from lightning_nobp.functional.dynamics.topology import TOPOLOGIES, draw_links, draw_weights


class CoupledOscillatorsDataModule(SeriesDataModule):
    """Time series of chaotic or spiking oscillators, coupled in a network that is to be found again.

    Batches are windows, see :class:`~lightning_nobp.datamodules.series.SeriesDataModule`. Training, validation and test
    have trajectories of their own, of the same network. ``true_weights`` holds its weights, ``field`` the motion of its
    nodes.

    Args:
        system: ``'lorenz'``, ``'chua'``, ``'fitzhugh_nagumo'`` or ``'roessler'``.
        num_nodes: Of the network; not needed where a matrix is given.
        topology: ``'random'``, ``'small_world'`` or ``'scale_free'``; a matrix of weights ``(nodes, nodes)`` whose row
            ``i`` holds what acts on node ``i``; or a file with one: ``.npy``, or ``.csv`` without a header.
        density: Fraction of possible links that there are; None for ``ln(nodes) / nodes``.
        coupling_mean: Mean of the weights; None for what leaves nodes of this system out of step.
        coupling_std: Their standard deviation; None likewise.
        directed: Whether ``j`` may act on ``i`` otherwise than ``i`` on ``j``.
        negative_fraction: Of links whose weight has the other sign.
        heterogeneity: Relative standard deviation, over the nodes, of every parameter of the system.
        observation_noise: Standard deviation of what is added to each sample, over that of its component.
        dynamical_noise: Standard deviation, per square root of time, of what drives each component.
        dt: Time from one sample to the next; None for what resolves this system.
        num_steps: Samples of each trajectory.
        num_trajectories: For training.
        num_val: Trajectories for validation; 0 for none.
        num_test: Trajectories for the test.
        transient: Steps before the first sample.
        integrator: ``'rk4'``, ``'split'`` as in the paper, or ``'euler'``: see
            :func:`~lightning_nobp.functional.dynamics.step`.
        **kwargs: Windows and batches; ``seed`` is that of the network too: see
            :class:`~lightning_nobp.datamodules.series.SeriesDataModule`.

    Raises:
        ValueError: An argument out of its range.
        FloatingPointError: In ``setup``, a network that does not stay finite.

    References:
        Tan, Correa, Stemler and Small, "Backpropagation on Dynamical Networks", arXiv 2207.03093.
    """

    def __init__(
        self,
        *,
        system: Literal["lorenz", "chua", "fitzhugh_nagumo", "roessler"] = "lorenz",
        num_nodes: int = 16,
        topology: str | Sequence[Sequence[float]] = "random",
        density: float | None = None,
        coupling_mean: float | None = None,
        coupling_std: float | None = None,
        directed: bool = False,
        negative_fraction: float = 0.0,
        heterogeneity: float = 0.0,
        observation_noise: float = 0.0,
        dynamical_noise: float = 0.0,
        dt: float | None = None,
        num_steps: int = 3129,
        num_trajectories: int = 8,
        num_val: int = 1,
        num_test: int = 4,
        transient: int = 1000,
        integrator: Integrator = "rk4",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if system not in FIELDS:
            raise ValueError(f"system={system!r} is not one of {', '.join(map(repr, FIELDS))}")
        kind = FIELDS[system]
        self.system, self.integrator, self.directed = system, integrator, plain(directed)
        self.topology, self.density, self.negative_fraction = plain(topology), plain(density), plain(negative_fraction)
        mean, std = kind.coupling
        self.coupling_mean = mean if coupling_mean is None else plain(coupling_mean)
        self.coupling_std = std if coupling_std is None else plain(coupling_std)
        self.heterogeneity, self.observation_noise = plain(heterogeneity), plain(observation_noise)
        self.dynamical_noise, self.dt = plain(dynamical_noise), kind.dt if dt is None else plain(dt)
        self.num_steps, self.transient, self.num_trajectories = plain(num_steps), plain(transient), num_trajectories
        self.num_val, self.num_test, self.num_nodes = plain(num_val), plain(num_test), plain(num_nodes)
        self._check()
        self.components, self.lyapunov_exponent = kind.components, kind.lyapunov_exponent
        generator = torch.Generator().manual_seed(mix(self.seed, 0))
        self.true_weights: Tensor = self._draw(generator)
        self.num_nodes = len(self.true_weights)
        self.field = kind().varied(self.heterogeneity, self.num_nodes, generator) if self.heterogeneity else kind()

    def _check(self) -> None:
        for name, least in (("num_trajectories", 1), ("num_val", 0), ("num_test", 1)):
            check_least(name, getattr(self, name), least)
        for name in ("heterogeneity", "observation_noise", "dynamical_noise"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} is a standard deviation: it must be at least 0, and finite")
        if not math.isfinite(self.coupling_mean):
            raise ValueError(f"coupling_mean={self.coupling_mean} must be finite")

    def _draw(self, generator: torch.Generator) -> Tensor:
        if isinstance(self.topology, str) and Path(self.topology).suffix not in (".npy", ".csv"):
            links = draw_links(self.topology, self.num_nodes, generator, self.density, self.directed)
            spread = (self.coupling_mean, self.coupling_std, generator)
            return draw_weights(links, *spread, self.negative_fraction, self.directed)
        weights = (
            _read_matrix(self.topology)
            if isinstance(self.topology, str)
            else torch.tensor(self.topology, dtype=torch.float64)
        )
        if weights.dim() != 2 or weights.shape[0] != weights.shape[1]:
            raise ValueError(f"topology of shape {tuple(weights.shape)}: give a matrix of weights (nodes, nodes)")
        check_weights(weights)
        return weights - torch.diag(weights.diagonal())

    def load(self) -> dict[str, list[Tensor]]:
        """Simulate all trajectories."""
        x = simulate_network(
            self.field,
            self.true_weights,
            self.num_steps,
            self.dt,
            self.num_trajectories + self.num_val + self.num_test,
            self.transient,
            mix(self.seed, 1),
            integrator=self.integrator,
            dynamical_noise=self.dynamical_noise,
        )
        generator = torch.Generator().manual_seed(mix(self.seed, 2))
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + self.observation_noise * x.flatten(0, 2).std(dim=0) * noise
        parts = x.split([self.num_trajectories, self.num_val, self.num_test])
        return {split: list(part) for split, part in zip(("train", "val", "test"), parts, strict=True)}


def _read_matrix(file: str) -> Tensor:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"topology={file!r}: there is no such file, and it is not one of {', '.join(TOPOLOGIES)}")
    found = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
    return torch.from_numpy(np.asarray(found, dtype=np.float64))
