"""The angle between orientations, told apart by frame."""

import math

import pytest
import torch
from toys import trainer

from lightning_nobp.callbacks import AttitudeError
from lightning_nobp.datamodules import AttitudeDataModule
from lightning_nobp.functional.quaternion import exp, hamilton_product
from lightning_nobp.nn import EquivariantMLP
from lightning_nobp.rules import QuaternionBackprop


class Turned(torch.nn.Module):
    """The last orientation, turned by so many degrees about the first axis; the scale does not matter."""

    def __init__(self, degrees):
        super().__init__()
        self.turn = exp(torch.tensor([0, math.radians(degrees) / 2, 0, 0]))

    def forward(self, x):
        return 3 * hamilton_product(x.view(len(x), 4, -1)[..., -1], self.turn)


def rule(network):
    return QuaternionBackprop(network=network, loss="unit_mse", task="regression", backward_mode="autograd")


def still_data(**options):
    """A body that does not move: the truth is the last orientation."""
    return AttitudeDataModule(num_train=60, test_size=30, rate_std=1e-6, noise=0, **options)


@pytest.mark.parametrize("degrees", [0, 10, 90])
def test_angles_are_those_between_output_and_target(tmp_path, degrees):
    run = trainer(tmp_path, callbacks=[AttitudeError()])
    [tested] = run.test(rule(Turned(degrees)), datamodule=still_data(eval_batch_size=7), verbose=False)
    assert tested["test/angle_known_frames"] == pytest.approx(degrees, abs=0.05)
    assert tested["test/angle_any_frame"] == pytest.approx(degrees, abs=0.05)


def test_frames_are_told_apart(tmp_path):
    """An output that is always the identity is as far off as the poses are from it."""

    class Identity(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0, 0, 0]]).expand(len(x), 4)

    run = trainer(tmp_path, callbacks=[AttitudeError()])
    [tested] = run.test(rule(Identity()), datamodule=still_data(), verbose=False)
    assert tested["test/angle_known_frames"] < 45
    assert tested["test/angle_any_frame"] > 90


@pytest.mark.parametrize(("known", "names"), [(True, {"angle_known_frames"}), (False, {"angle_any_frame"})])
def test_frames_that_no_sample_is_from_are_not_logged(tmp_path, known, names):
    poses = torch.randn(6, 32), torch.randn(6, 4), torch.full((6,), known)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*poses), batch_size=3)
    run = trainer(tmp_path, callbacks=[AttitudeError()])
    [tested] = run.test(rule(EquivariantMLP(32)), batches, verbose=False)
    assert {name for name in tested if "angle" in name} == {f"test/{name}" for name in names}
    [validated] = run.validate(rule(EquivariantMLP(32)), batches, verbose=False)
    assert ("val/angle" in validated) == known
    assert all(math.isfinite(value) for value in (tested | validated).values())


def test_validation_logs_the_angle(tmp_path):
    network = EquivariantMLP(32, hidden_dims=(16,))
    run = trainer(tmp_path, callbacks=[AttitudeError()], max_epochs=1)
    run.fit(
        QuaternionBackprop(network=network, loss="unit_mse", task="regression"),
        datamodule=AttitudeDataModule(num_train=60, test_size=30),
    )
    assert 0 < run.callback_metrics["val/angle"] < 180


def test_other_batches_are_refused(tmp_path):
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(6, 32), torch.randn(6, 4)), batch_size=3
    )
    run = trainer(tmp_path, callbacks=[AttitudeError()])
    with pytest.raises(TypeError, match="AttitudeError needs batches"):
        run.test(rule(EquivariantMLP(32)), batches, verbose=False)
