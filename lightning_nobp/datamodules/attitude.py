"""Where a tumbling body will point: sequences of orientations, and frames that training has not seen."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.datamodules.batched import BatchedDataModule, TensorBatches, check_least
from lightning_nobp.datamodules.plain import plain
from lightning_nobp.datamodules.sampler import mix
from lightning_nobp.datamodules.split import num_chosen
from lightning_nobp.functional.quaternion import normalize, pack
from lightning_nobp.functional.rigid_body import kinetic_energy, orientations_in_cone, simulate, uniform_orientations


class AttitudeDataModule(BatchedDataModule):
    """Prediction of the orientation of a free rigid body, simulated.

    An input is ``history`` noisy orientations, ``dt`` apart, and its target the exact one ``horizon`` samples after the
    last. Bodies start within ``train_cone`` of the identity, for training and validation. Half of the test samples
    start so too, the other half anywhere. A choice of the world's axes ``r`` multiplies every quaternion of a sample
    from the left, its target too: the second half asks whether a network has learnt the body, or the axes it was seen
    in.

    A batch is ``(x, target, in_frame)``:

    - ``x``: ``(batch, 4 * history)``, component-major: all real parts from the oldest to the latest, then all of i, of
      j and of k;
    - ``target``: ``(batch, 4)``, of unit length;
    - ``in_frame``: ``(batch,)``, bool, whether the body started within the cone by design.

    The test set is always the same one, whatever the seed.

    Args:
        num_train: Training samples, those for validation among them.
        val_size: Of them held out for validation, a number or a fraction; 0 for none.
        test_size: Test samples that start within the cone, and as many that start anywhere.
        history: Orientations in an input.
        horizon: Samples from the last of them to the target.
        dt: Time between samples.
        inertia: Principal moments of inertia, three of them.
        rate_std: Standard deviation of each component of the angular rate at the start, in radians per unit of time.
        noise: Standard deviation of what is added to each component of an input, before it gets unit length again.
        train_cone: In degrees, up to 180: the angle at the start is uniform from 0 to it, its axis any.
        **kwargs: See :class:`~lightning_nobp.datamodules.batched.BatchedDataModule`.

    Raises:
        ValueError: An argument outside its range; in ``setup``, a ``dt`` too long to be simulated.

    References:
        Goldstein, Poole and Safko, "Classical Mechanics", 3rd edition, Addison-Wesley (2002), chapters 4 and 5.
    """

    def __init__(
        self,
        *,
        num_train: int = 8192,
        val_size: int | float = 0.1,
        test_size: int = 2000,
        history: int = 8,
        horizon: int = 5,
        dt: float = 0.1,
        inertia: Sequence[float] = (1.0, 2.0, 3.0),
        rate_std: float = 1.0,
        noise: float = 0.01,
        train_cone: float = 45.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_train, self.val_size, self.test_size = plain(num_train), plain(val_size), plain(test_size)
        self.history, self.horizon, self.dt, self.inertia = plain(history), plain(horizon), plain(dt), plain(inertia)
        self.rate_std, self.noise, self.train_cone = plain(rate_std), plain(noise), plain(train_cone)
        self._check()
        self.input_shape = (4 * self.history,)
        self._samples: dict[str, TensorBatches] = {}

    def _check(self) -> None:
        for name in ("num_train", "test_size", "history", "horizon"):
            check_least(name, getattr(self, name), 1)
        for name in ("rate_std", "noise"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} is a standard deviation: it must be at least 0, and finite")
        if not 0 < self.dt < math.inf:
            raise ValueError(f"dt={self.dt} must be positive, and finite")
        if len(self.inertia) != 3 or not all(0 < moment < math.inf for moment in self.inertia):
            raise ValueError(f"inertia={self.inertia} must be three positive numbers, the principal moments")
        if not 0 < self.train_cone <= 180:
            raise ValueError(f"train_cone={self.train_cone} must be above 0 and at most 180 degrees")
        if num_chosen(self.val_size, self.num_train, "val_size") == self.num_train:
            raise ValueError(f"val_size={self.val_size!r} leaves no training samples of num_train={self.num_train}")

    def setup(self, stage: str) -> None:
        """Simulate what the stage needs."""
        if stage in ("fit", "validate") and "train" not in self._samples:
            held_out = num_chosen(self.val_size, self.num_train, "val_size")
            samples = self._simulate(self.num_train, mix(self.seed, 0), in_frame=True)
            # Each sample is drawn for itself: the last of them are as good a choice as any.
            num_rest = self.num_train - held_out
            self._samples["train"] = TensorBatches(*(tensor[:num_rest] for tensor in samples))
            self._samples["val"] = TensorBatches(*(tensor[num_rest:] for tensor in samples))
        if stage in ("test", "predict") and "test" not in self._samples:
            # Seeds of its own: the test set stays the same whatever the user's seed.
            parts = [self._simulate(self.test_size, mix(0, 1 + k), in_frame=k == 0) for k in range(2)]
            self._samples["test"] = TensorBatches(*(torch.cat(both) for both in zip(*parts, strict=True)))

    def batches(self, split: str) -> TensorBatches:
        """The samples of a split."""
        return self._samples[split]

    def _simulate(self, num: int, seed: int, *, in_frame: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs ``(num, 4 * history)``, targets ``(num, 4)`` and flags ``(num,)``."""
        generator = torch.Generator().manual_seed(seed)
        if in_frame:
            start = orientations_in_cone(num, self.train_cone, generator)
        else:
            start = uniform_orientations(num, generator)
        rate = self.rate_std * torch.randn(num, 3, generator=generator, dtype=torch.float64)
        inertia = torch.tensor(self.inertia, dtype=torch.float64)
        path, rates = simulate(start, rate, inertia, self.dt, self.history - 1 + self.horizon)
        before, after = kinetic_energy(rates[:, 0], inertia), kinetic_energy(rates[:, -1], inertia)
        if not ((after - before).abs() <= 0.01 * before).all():
            raise ValueError(
                f"dt={self.dt} is too long for rates of rate_std={self.rate_std}: the simulation, in four steps a "
                "sample, does not keep the energy. Take a shorter dt and a larger horizon"
            )
        seen = path[:, : self.history]
        seen = normalize(seen + self.noise * torch.randn(seen.shape, generator=generator, dtype=torch.float64))
        return pack(seen).float(), path[:, -1].float(), torch.full((num,), in_frame)
