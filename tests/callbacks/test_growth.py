"""Callbacks that watch a network grow."""

import csv
from functools import partial

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import backprop, loader, trainer

from lightning_nobp.callbacks import DepthCurve, FilterFigure, LayerwiseCheckpoint, StopWhenNoGain, load_layers
from lightning_nobp.callbacks.depth_curve import depth_figure
from lightning_nobp.callbacks.filter_figure import filter_figure
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import ResCNet
from lightning_nobp.rules import ResidualCompensation

NETWORK = partial(ResCNet, channels=5, first_kernel_size=3, pooling={"crelu_mean": 2})


def rule(depth=4, **kwargs):
    torch.manual_seed(0)
    return ResidualCompensation(network=partial(NETWORK, depth=depth), **kwargs)


def data():
    return DigitsDataModule(batch_size=150, subset=400, val_size=100)


def fit(folder, module, *callbacks, **kwargs):
    run = trainer(folder, **{"max_epochs": -1, "callbacks": list(callbacks)} | kwargs)
    run.fit(module, datamodule=data())
    return run


def test_the_curve_holds_what_each_layer_reaches(tmp_path):
    curve, module = DepthCurve(), rule()
    fit(tmp_path, module, curve)
    assert [p["depth"] for p in curve.points] == [1, 2, 3, 4]
    datamodule = data()
    datamodule.setup("fit")
    [(x, target)] = list(datamodule.val_dataloader())
    train = [torch.cat(parts) for parts in zip(*datamodule.train_dataloader(), strict=True)]
    wanted = torch.nn.functional.one_hot(train[1], 10)
    with torch.no_grad():
        for point in curve.points:
            depth = int(point["depth"])
            scores = module.rescnet(train[0], depth=depth)
            assert point["residual"] == pytest.approx(float((scores - wanted).square().sum(1).mean()), rel=1e-3)
            right = (module.rescnet(x, depth=depth).argmax(1) == target).double().mean()
            assert point["val/accuracy"] == pytest.approx(float(right))
            if depth < 4:
                right = (scores.argmax(1) == train[1]).double().mean()
                assert point["train/accuracy"] == pytest.approx(float(right), abs=1e-6)
    assert "train/accuracy" not in curve.points[-1]
    with (tmp_path / "depth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["residual"]) for row in rows] == [p["residual"] for p in curve.points]
    assert list((tmp_path / "figures").glob("depth-step=*.png"))


def test_the_curve_goes_on_after_a_checkpoint_and_starts_anew_in_another_fit(tmp_path):
    whole, module = DepthCurve(every_n_layers=2), rule()
    run = fit(tmp_path, module, whole, max_epochs=3)
    assert len(list((tmp_path / "figures").glob("*.png"))) == 1
    run.save_checkpoint(tmp_path / "two.ckpt")
    resumed = DepthCurve()
    again = trainer(tmp_path, max_epochs=-1, callbacks=[resumed])
    again.fit(rule(), datamodule=data(), ckpt_path=tmp_path / "two.ckpt")
    assert [p["depth"] for p in resumed.points] == [1, 2, 3, 4]
    fit(tmp_path, rule(), resumed, max_epochs=2)
    assert [p["depth"] for p in resumed.points] == [1]


def test_pictures_show_every_line():
    points = [{"depth": k, "residual": 1 / k, "val/accuracy": 0.9, "val/loss": 0.2} for k in (1, 2, 3)]
    left, right = depth_figure(points).axes
    assert [len(line.get_xdata()) for line in left.lines] == [0, 3]
    assert list(right.lines[0].get_ydata()) == [1, 1 / 2, 1 / 3]


@pytest.mark.parametrize(("channels", "panels"), [(1, 16), (3, 16), (6, 4 * 10)])
def test_filters_are_drawn_a_tile_each(channels, panels):
    figure = filter_figure(torch.randn(10, channels, 3, 3))
    assert len(figure.axes) == panels
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == (40 if channels == 6 else 10)


def test_filters_of_the_first_layers_are_logged(tmp_path):
    fit(tmp_path, rule(2), FilterFigure(num_layers=2))
    names = sorted(path.name.partition("-")[0] for path in (tmp_path / "figures").glob("*.png"))
    assert names == ["filters_1", "filters_2"]


def test_layers_are_written_once_and_put_together_again(tmp_path):
    module = rule()
    fit(tmp_path, module, LayerwiseCheckpoint(str(tmp_path / "layers")))
    names = sorted(path.name for path in (tmp_path / "layers").iterdir())
    assert names == [f"layer_000{k}.pt" for k in (1, 2, 3, 4)]
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        for depth, network in ((None, NETWORK((1, 8, 8), 10, depth=4)), (2, NETWORK((1, 8, 8), 10, depth=6))):
            assert load_layers(network, tmp_path / "layers", depth) == network.num_fitted == (depth or 4)
            assert torch.equal(network(x), module.rescnet(x, depth=depth))


def test_layers_of_a_longer_fit_do_not_stay(tmp_path):
    for depth in (4, 2):
        fit(tmp_path, rule(depth), LayerwiseCheckpoint(str(tmp_path / "layers")))
    assert len(list((tmp_path / "layers").iterdir())) == 2


def test_layers_that_do_not_fit_are_refused(tmp_path):
    fit(tmp_path, rule(2), LayerwiseCheckpoint())
    folder = tmp_path / "layers"
    with pytest.raises(ValueError, match="holds more layers than the network's depth=1"):
        load_layers(NETWORK((1, 8, 8), 10, depth=1), folder)
    with pytest.raises(ValueError, match=r"layer_0001\.pt does not fit the network"):
        load_layers(ResCNet((1, 8, 8), 10, depth=2, channels=6, first_kernel_size=3), folder)
    with pytest.raises(FileNotFoundError, match=r"layer_0003\.pt: there is no such layer"):
        load_layers(NETWORK((1, 8, 8), 10, depth=4), folder, depth=3)
    with pytest.raises(FileNotFoundError, match=r"layer_0001\.pt"):
        load_layers(NETWORK((1, 8, 8), 10, depth=4), tmp_path / "nowhere")


def test_growth_ends_where_it_no_longer_helps(tmp_path):
    stop, module = StopWhenNoGain("val/accuracy", "max", min_delta=0.5, patience=2), rule(20)
    run = fit(tmp_path, module, stop)
    # The first layer is the last to gain half: two more are tried, and left unused.
    assert (module.stage, run.current_epoch) == (4, 4)
    assert module.rescnet.num_fitted == stop.best_depth == 1


def test_checkpoints_hold_the_layers_that_are_used(tmp_path):
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(
        tmp_path,
        rule(20),
        StopWhenNoGain("val/accuracy", "max", min_delta=0.5, patience=2),
        saved,
        enable_checkpointing=True,
    )
    last = ResidualCompensation.load_from_checkpoint(tmp_path / "epoch=3.ckpt")
    assert last.rescnet.num_fitted == 1


def test_another_fit_grows_anew(tmp_path):
    stop, first, second = StopWhenNoGain("val/accuracy", "max", min_delta=0.5, patience=2), rule(20), rule(20)
    fit(tmp_path, first, stop)
    fit(tmp_path, second, stop)
    assert (second.stage, second.rescnet.num_fitted) == (first.stage, first.rescnet.num_fitted) == (4, 1)


def test_training_accuracy_belongs_to_the_layers_that_were_asked(tmp_path):
    curve = DepthCurve()
    module = rule(5, combine="joint", joint_layers=3)
    fit(tmp_path, module, curve)
    # Behind layer 2 three layers are solved at once.
    assert [p["depth"] for p in curve.points] == [1, 2, 5]
    datamodule = data()
    datamodule.setup("fit")
    x, target = (torch.cat(parts) for parts in zip(*datamodule.train_dataloader(), strict=True))
    with torch.no_grad():
        for point in curve.points[:2]:
            right = (module.rescnet(x, depth=int(point["depth"])).argmax(1) == target).double().mean()
            assert point["train/accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_growth_goes_on_from_a_checkpoint(tmp_path):
    stop, module = StopWhenNoGain("val/accuracy", "max", min_delta=0.5, patience=2), rule(20)
    run = fit(tmp_path, module, stop, max_epochs=3)
    run.save_checkpoint(tmp_path / "run.ckpt")
    resumed, other = rule(20), StopWhenNoGain("val/accuracy", "max", min_delta=0.5, patience=2)
    trainer(tmp_path, max_epochs=-1, callbacks=[other]).fit(resumed, datamodule=data(), ckpt_path=tmp_path / "run.ckpt")
    assert (resumed.stage, resumed.rescnet.num_fitted) == (4, 1)


@pytest.mark.parametrize("callback", [DepthCurve, LayerwiseCheckpoint, StopWhenNoGain])
def test_networks_that_do_not_grow_are_refused(tmp_path, callback):
    with pytest.raises(MisconfigurationException, match=f"{callback.__name__} .* not a Backprop"):
        trainer(tmp_path, callbacks=[callback()]).fit(backprop(), loader())


@pytest.mark.parametrize("callback", [LayerwiseCheckpoint, StopWhenNoGain])
def test_layers_solved_together_do_not_grow(tmp_path, callback):
    with pytest.raises(MisconfigurationException, match="combine='joint' solves layers together"):
        fit(tmp_path, rule(combine="joint"), callback())


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="every_n_layers=0 must be at least 1"):
        DepthCurve(every_n_layers=0)
    with pytest.raises(ValueError, match="num_layers=0 must be at least 1"):
        FilterFigure(num_layers=0)
