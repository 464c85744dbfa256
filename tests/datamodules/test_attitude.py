"""Simulated orientations: layout, frames, splits and order."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import trainer

from lightning_nobp.datamodules import AttitudeDataModule
from lightning_nobp.functional.quaternion import hamilton_product, unpack
from lightning_nobp.rules import LearningRule

SMALL = {"num_train": 200, "val_size": 40, "test_size": 30, "batch_size": 16}


def set_up(**kwargs):
    data = AttitudeDataModule(**SMALL | kwargs)
    data.setup("fit")
    data.setup("test")
    return data


def samples(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def angle(p, q):
    """Between two orientations, in degrees."""
    return torch.rad2deg(2 * (p * q).sum(-1).abs().clamp(max=1).acos())


def test_every_split_has_the_samples_asked_for():
    data = AttitudeDataModule()
    data.setup("fit")
    data.setup("test")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    assert [len(samples(loader)[0]) for loader in loaders] == [8192 - 819, 819, 4000, 4000]
    assert not hasattr(data, "num_classes")


@pytest.mark.parametrize("history", [1, 3, 8])
def test_batches_have_the_documented_layout(history):
    data = set_up(history=history)
    assert data.input_shape == (4 * history,)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, target, in_frame = next(iter(loader))
        assert (x.shape[1:], target.shape[1:], in_frame.shape[1:]) == ((4 * history,), (4,), ())
        assert (x.dtype, target.dtype, in_frame.dtype) == (torch.float32, torch.float32, torch.bool)
        assert len(x) == len(target) == len(in_frame)


def test_real_parts_come_first_and_then_the_others_from_old_to_new():
    """Slow bodies near the identity: the real parts are large; a long dt makes the last the nearest to the target."""
    x, target, _ = samples(set_up(noise=0.0, train_cone=1.0, rate_std=0.5).train_dataloader())
    assert x[:, :8].abs().mean() > 4 * x[:, 8:].abs().mean()
    distances = torch.stack([angle(x[:, k::8], target).mean() for k in range(8)])
    assert (distances.diff() < 0).all()


def test_inputs_and_targets_are_samples_of_one_trajectory():
    """Without noise: the rate is found from the first two orientations, and the body followed from there."""
    x, target, _ = samples(set_up(noise=0.0, dt=0.01, horizon=3, inertia=(2.0, 2.0, 2.0)).train_dataloader())
    q = unpack(x.double())
    # A ball keeps its rate: what turns one sample into the next turns each into its next.
    step = hamilton_product(q[:, 0] * torch.tensor([1, -1, -1, -1]), q[:, 1])
    for k in range(1, 7):
        torch.testing.assert_close(hamilton_product(q[:, k], step), q[:, k + 1], rtol=0, atol=1e-6)
    ahead = q[:, 7]
    for _ in range(3):
        ahead = hamilton_product(ahead, step)
    torch.testing.assert_close(ahead, target.double(), rtol=0, atol=3e-6)


def test_everything_has_unit_length():
    data = set_up(noise=0.3)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, target, _ = samples(loader)
        for q in (unpack(x), target):
            torch.testing.assert_close(q.norm(dim=-1), torch.ones(q.shape[:-1]), rtol=0, atol=1e-6)


def test_noise_is_on_the_inputs_alone_and_of_the_size_asked_for():
    noisy, clean = (samples(set_up(noise=noise, shuffle=False).train_dataloader()) for noise in (0.01, 0.0))
    assert torch.equal(noisy[1], clean[1])
    # Of four components the length takes one.
    difference = (unpack(noisy[0]) - unpack(clean[0])).square().sum(-1).mean()
    assert difference == pytest.approx(3 * 0.01**2, rel=0.1)


@pytest.mark.parametrize("cone", [1.0, 45.0, 180.0])
def test_only_half_of_the_test_starts_outside_the_cone(cone):
    data = set_up(noise=0.0, train_cone=cone, test_size=300)
    identity = torch.tensor([1.0, 0, 0, 0])
    for loader in (data.train_dataloader(), data.val_dataloader()):
        x, _, in_frame = samples(loader)
        assert in_frame.all()
        assert angle(unpack(x)[:, 0], identity).max() <= cone + 0.1
    x, _, in_frame = samples(data.test_dataloader())
    assert in_frame.tolist() == [True] * 300 + [False] * 300
    start = unpack(x)[:, 0]
    assert angle(start[in_frame], identity).max() <= cone + 0.1
    # Uniform on the sphere: the real part, signed, has mean 0 and variance 1/4.
    real = start[~in_frame, 0]
    assert real.mean().abs() < 5 * 0.5 / math.sqrt(300)
    assert real.square().mean() == pytest.approx(0.25, abs=0.08)


def test_the_seed_chooses_the_training_samples_and_leaves_the_test_alone():
    first, again, other = set_up(seed=1), set_up(seed=1), set_up(seed=2)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        x, same, different = (samples(getattr(data, name)()) for data in (first, again, other))
        assert all(torch.equal(a, b) for a, b in zip(x, same, strict=True))
        assert torch.equal(x[0], different[0]) == (name == "test_dataloader")


def test_splits_share_no_sample():
    data = set_up()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    targets = torch.cat([samples(loader)[1] for loader in loaders])
    assert len(targets) == len(targets.unique(dim=0)) == 200 + 60


def test_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    list(set_up().train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_validation_set():
    assert set_up(val_size=0).val_dataloader() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_goes_on_in_the_middle_of_an_epoch(num_workers):
    whole, stopped, fresh = (set_up(num_workers=num_workers).train_dataloader() for _ in range(3))
    for loader in (whole, stopped):
        loader.batch_sampler.set_epoch(3)
    expected = list(whole)
    batches = iter(stopped)
    got = [next(batches) for _ in range(4)]
    fresh.load_state_dict(stopped.state_dict())
    rest = iter(fresh)
    fresh.batch_sampler.set_epoch(3)
    got += list(rest)
    assert len(got) == len(expected) == 10
    assert all(torch.equal(a, b) for x, y in zip(got, expected, strict=True) for a, b in zip(x, y, strict=True))


def test_two_ranks_see_disjoint_halves(monkeypatch):
    parts = []
    for rank in (0, 1):
        data = set_up()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, overfit_batches=0)
        parts.append(samples(data.train_dataloader())[1])
    assert [len(part) for part in parts] == [80, 80]
    assert len(torch.cat(parts).unique(dim=0)) == 160
    assert torch.equal(torch.cat(parts).unique(dim=0), samples(set_up().train_dataloader())[1].unique(dim=0))


class LeastSquares(LearningRule):
    """A linear map to the next orientation."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(32, 4)

    def compute_gradients(self, batch):
        with torch.enable_grad():
            loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
            loss.backward()
        return {"loss": loss.detach()}


def test_trains_a_rule_and_is_rebuilt_from_its_checkpoint(tmp_path):
    data = AttitudeDataModule(**SMALL | {"inertia": np.array([1.0, 1.0, 2.0]), "seed": np.int64(5)})
    run = trainer(tmp_path)
    rule = LeastSquares()
    run.fit(rule, datamodule=data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = AttitudeDataModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    again.setup("fit")
    assert (again.inertia, again.seed, again.batch_size) == ([1.0, 1.0, 2.0], 5, 16)
    pairs = zip(samples(data.train_dataloader()), samples(again.train_dataloader()), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train=0 must be at least 1"),
        ({"test_size": 0}, "test_size=0 must be at least 1"),
        ({"history": 0}, "history=0 must be at least 1"),
        ({"horizon": 0}, "horizon=0 must be at least 1"),
        ({"dt": 0.0}, "dt=0.0 must be positive"),
        ({"dt": math.nan}, "dt=nan must be finite"),
        ({"inertia": (1.0, 2.0)}, r"inertia=\(1.0, 2.0\) must be three positive numbers"),
        ({"inertia": (1.0, 0.0, 2.0)}, r"inertia=\(1.0, 0.0, 2.0\) must be three positive numbers"),
        ({"noise": -0.1}, "noise=-0.1 is a standard deviation: it must be at least 0"),
        ({"rate_std": math.inf}, "rate_std=inf is a standard deviation"),
        ({"train_cone": 0}, "train_cone=0 must be above 0 and at most 180 degrees"),
        ({"train_cone": 181.0}, "train_cone=181.0 must be above 0 and at most 180 degrees"),
        ({"val_size": 201}, "val_size=201 must be a number of samples from 0 to 200"),
        ({"val_size": 1.0}, "val_size=1.0 leaves no training samples of num_train=200"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_bad_arguments_are_named_at_the_door(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttitudeDataModule(**SMALL | arguments)


@pytest.mark.parametrize("dt", [2.0, 100.0])
def test_steps_too_long_to_be_simulated_are_named(dt):
    with pytest.raises(ValueError, match=f"dt={dt} is too long for rates of rate_std=1.0"):
        set_up(dt=dt)


def test_a_body_at_rest_stays():
    x, target, _ = samples(set_up(rate_std=0.0, noise=0.0).train_dataloader())
    torch.testing.assert_close(unpack(x), target.unsqueeze(1).expand(-1, 8, -1), rtol=0, atol=1e-6)
