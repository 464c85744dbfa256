"""Seconds on a platform, from what a rule counts."""

import csv
from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import PLATFORMS, HardwareClock, Platform
from lightning_nobp.callbacks.hardware_clock import hardware_figure
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP
from lightning_nobp.rules import Backprop

PLATFORM = Platform(perturbation_seconds=0.5, update_seconds=2.0, sample_seconds=0.25, inference_seconds=0.125)
"""Powers of two: sums are exact."""


class Counting(Backprop):
    """Claims to have read three costs a sample."""

    @property
    def samples_seen(self):
        return 64 * self.trainer.global_step

    @property
    def cost_evaluations(self):
        return 3 * self.samples_seen

    @property
    def num_perturbed(self):
        return sum(p.numel() for p in self.parameters())


def counting(kind=Counting):
    torch.manual_seed(0)
    return kind(network=partial(MLP, hidden_dims=(8,)), num_classes=10, input_shape=(1, 8, 8))


def fit(folder, clock, rule=None, *callbacks, ckpt_path=None, **kwargs):
    # 300 samples in batches of 64: five steps an epoch.
    defaults = {"max_epochs": 3, "callbacks": [clock, *callbacks], "logger": CSVLogger(folder, version=0)}
    run = trainer(folder, **defaults | kwargs)
    data = DigitsDataModule(batch_size=64, subset=400, val_size=100)
    run.fit(rule or counting(), datamodule=data, ckpt_path=ckpt_path)
    return run


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def seconds_after(steps):
    return steps * (64 * (3 * 0.5 + 0.25) + 2.0)


@pytest.mark.parametrize(("serial", "expected"), [(False, 10 * 0.5 + 4 * 0.25 + 2 * 2.0), (True, 6 + 2 * 7 * 2.0)])
def test_seconds_are_those_of_the_formula(serial, expected):
    platform = Platform(0.5, 2.0, 0.25, 0.125, serial)
    assert platform.seconds(cost_evaluations=10, samples_seen=4, updates=2, num_perturbed=7) == expected


def test_the_slower_of_perturbation_and_inference_counts():
    platform = Platform(perturbation_seconds=1.0, inference_seconds=3.0)
    assert platform.seconds(cost_evaluations=5, samples_seen=9, updates=9, num_perturbed=9) == 15


def test_faster_platforms_are_faster():
    counts = {"cost_evaluations": 1000, "samples_seen": 100, "updates": 10, "num_perturbed": 9}
    laboratory, memristive, superconducting = (HardwareClock(name).platform.seconds(**counts) for name in PLATFORMS)
    assert laboratory > 1e3 * memristive > 1e3 * superconducting


def test_counts_and_seconds_stand_beside_what_the_rule_logs(tmp_path):
    fit(tmp_path, HardwareClock(PLATFORM), log_every_n_steps=2)
    logged = rows(tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
    beside = [row for row in logged if row["train/loss"] or row["val/accuracy"]]
    assert [int(row["step"]) for row in beside] == [1, 3, 4, 5, 7, 9, 9, 11, 13, 14]
    for row in beside:
        steps = int(row["step"]) + 1
        assert float(row["hardware/samples_seen"]) == 64 * steps
        assert float(row["hardware/cost_evaluations"]) == 192 * steps
        assert float(row["hardware/seconds"]) == seconds_after(steps)
    assert not any(row["hardware/seconds"] for row in logged if row not in beside)


def test_large_counts_are_logged_exactly(tmp_path):
    class Long(Counting):
        @property
        def cost_evaluations(self):
            return 2**40 + self.samples_seen

    run = fit(tmp_path, HardwareClock(), counting(Long), max_steps=1)
    assert run.callback_metrics["hardware/cost_evaluations"] == 2**40 + 64


def test_the_curve_is_written_and_drawn(tmp_path):
    clock = HardwareClock(PLATFORM)
    run = fit(tmp_path, clock)
    folder = tmp_path / "lightning_logs" / "version_0"
    written = rows(folder / "hardware.csv")
    assert list(written[0]) == ["hardware_seconds", "cost_evaluations", "samples_seen", "seconds", "val_accuracy"]
    assert [float(row["hardware_seconds"]) for row in written] == [seconds_after(steps) for steps in (5, 10, 15)]
    assert [int(row["cost_evaluations"]) for row in written] == [960, 1920, 2880]
    assert [int(row["samples_seen"]) for row in written] == [320, 640, 960]
    assert float(written[-1]["val_accuracy"]) == pytest.approx(float(run.callback_metrics["val/accuracy"]))
    passed = [float(row["seconds"]) for row in written]
    assert 0 < passed[0] < passed[1] < passed[2]
    assert len(list((folder / "figures").glob("hardware-step=*.png"))) == 1


def test_the_picture_shows_accuracy_on_a_logarithmic_axis():
    points = [{"hardware_seconds": t, "val_accuracy": a} for t, a in ((0, 0.1), (1e-6, 0.5), (1e-3, 0.9))]
    [axes] = hardware_figure([*points, {"hardware_seconds": 1.0}]).axes
    assert axes.get_xscale() == "log"
    assert list(axes.lines[0].get_xdata()) == [1e-6, 1e-3]
    assert list(axes.lines[0].get_ydata()) == [50, 90]


@pytest.mark.parametrize("step", [5, 7])
def test_the_curve_goes_on_after_a_checkpoint(tmp_path, step):
    whole, saved = HardwareClock(PLATFORM), ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path / "whole", whole, None, saved, enable_checkpointing=True)
    [path] = tmp_path.glob(f"*step={step}.ckpt")
    resumed = HardwareClock(PLATFORM)
    fit(tmp_path / "resumed", resumed, ckpt_path=path)
    found, expected = ([{k: p[k] for k in p if k != "seconds"} for p in c.points] for c in (resumed, whole))
    assert found == expected
    passed = [point["seconds"] for point in resumed.points]
    assert passed == sorted(passed)


def test_another_fit_starts_anew(tmp_path):
    clock = HardwareClock(PLATFORM)
    for _ in range(2):
        fit(tmp_path, clock, max_epochs=1)
        assert [point["samples_seen"] for point in clock.points] == [320]


def test_validation_alone_adds_no_point(tmp_path):
    clock, rule = HardwareClock(PLATFORM), counting()
    run = fit(tmp_path, clock, rule, max_epochs=1)
    run.validate(rule, datamodule=run.datamodule)
    assert len(clock.points) == 1


@pytest.mark.parametrize(
    ("options", "platform"),
    [
        (["platform=memristive"], PLATFORMS["memristive"]),
        (["platform.update_seconds=1e-3", "platform.serial_updates=true"], Platform(0, 1e-3, serial_updates=True)),
        (["platform={perturbation_seconds: 0.5}"], Platform(perturbation_seconds=0.5)),
    ],
)
def test_platforms_are_options_of_the_command_line(options, platform):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    arguments = [f"--callbacks.{option}" for option in options]
    parsed = parser.parse_args(["--callbacks+=lightning_nobp.callbacks.HardwareClock", *arguments])
    [clock] = parser.instantiate(parsed).callbacks
    assert clock.platform == platform


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="platform='abacus' is not one of 'chip_in_the_loop', 'memristive'"):
        HardwareClock("abacus")
    with pytest.raises(ValueError, match="platform has no 'update_second': it has perturbation_seconds"):
        HardwareClock({"update_second": 1.0})
    assert HardwareClock({"update_seconds": 1.0}).platform == Platform(update_seconds=1.0)
    with pytest.raises(ValueError, match="update_seconds=-1 must not be negative"):
        Platform(update_seconds=-1)
    with pytest.raises(
        MisconfigurationException, match="a Backprop counts none: train with MultiplexedGradientDescent"
    ):
        trainer(tmp_path, callbacks=[HardwareClock()]).fit(backprop(), loader())
